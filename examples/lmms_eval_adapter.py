"""lmms-eval on a directory that `vrray export` wrote; needs lmms-eval and transformers 5, and nothing of vrray.

python lmms_eval_adapter.py --model_args pretrained=small --tasks mme --batch_size 8 --output_path results
accelerate launch --num_processes 8 lmms_eval_adapter.py --model_args pretrained=small --tasks mme ...

Every option is lmms-eval's own. `model_args` takes pretrained=DIR and dtype=auto|bfloat16|float16|float32.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.models import MODEL_REGISTRY_V2
from lmms_eval.models.registry_v2 import ModelManifest
from PIL import Image
from tqdm import tqdm
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

NAME = "vrray_export"
# vrray trains with one view of an image; by default these processors cut it into tiles.
ONE_VIEW = ("crop_to_patches", "do_pan_and_scan", "do_image_splitting")
SAMPLING = ("temperature", "top_p", "num_beams", "do_sample")


class VrrayExport(lmms):
    """An exported model, asked through its chat template; the images of a message come first, as in training."""

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        dtype: str = "auto",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        if (Path(pretrained) / "adapter").is_dir():
            raise ValueError(f"{pretrained} keeps its LoRA adapters apart; export it with --merge-lora")
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        alone = device is not None and self._world_size == 1
        self.device = torch.device(device) if alone else self.accelerator.device
        model, info = AutoModelForImageTextToText.from_pretrained(pretrained, dtype=dtype, output_loading_info=True)
        if info["missing_keys"]:
            raise ValueError(f"{pretrained} lacks weights: {sorted(info['missing_keys'])[:3]}")
        self.model = model.to(self.device).eval()
        self.processor = AutoProcessor.from_pretrained(pretrained)
        self.processor.image_processor = AutoImageProcessor.from_pretrained(pretrained, backend="pil")
        for name in ONE_VIEW:
            if hasattr(self.processor.image_processor, name):
                setattr(self.processor.image_processor, name, False)
        self.tokenizer = self.processor.tokenizer
        self.tokenizer.padding_side = "left"
        self.batch_size = int(batch_size)

    @torch.inference_mode()
    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The answer to each request, in their order; those with the same options are answered in batches."""
        answers = [""] * len(requests)
        bar = tqdm(total=len(requests), disable=self.rank != 0, desc="Answering")
        for members in self._batches(requests):
            arguments = [requests[member].args for member in members]
            options = arguments[0][1]
            inputs = self._inputs([(text, self._images(*rest)) for text, _, *rest in arguments])
            output = self.model.generate(**inputs, **self._decoding(options))
            texts = self.tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            for member, text in zip(members, texts, strict=True):
                answers[member] = _cut(text, options.get("until") or [])
            bar.update(len(members))
        bar.close()
        return answers

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        # lmms-eval 0.7.3 makes texts of such pairs before its tasks read them, whatever model gives them.
        raise NotImplementedError("tasks by likelihood are not supported here; `vrray lm-eval` has such tasks of texts")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError("tasks of several rounds are not supported here")

    def _images(self, doc_to_visual: Any, doc_id: int, task: str, split: str) -> list[Any]:
        images = list(doc_to_visual(self.task_dict[task][split][doc_id]) or [])
        if not all(isinstance(image, Image.Image) for image in images):
            raise NotImplementedError(f"task {task} shows something else than images, which is not supported here")
        return [image.convert("RGB") for image in images]

    def _inputs(self, asked: Sequence[tuple[str, list[Any]]]) -> dict[str, torch.Tensor]:
        """The model's inputs for texts with their images, padded on the left."""
        prompts = [self._prompt(text, len(images)) for text, images in asked]
        images = [each for _, each in asked]
        start = self.tokenizer.bos_token
        inputs = self.processor(
            text=prompts,
            images=images if any(images) else None,
            padding=True,
            return_tensors="pt",
            # A chat template may have written the start token already.
            add_special_tokens=start is None or not prompts[0].startswith(start),
        )
        inputs = inputs.to(self.device)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        return dict(inputs)

    def _prompt(self, text: str, images: int) -> str:
        for placeholder in ("<image>", getattr(self.processor, "image_token", "<image>")):
            text = text.replace(placeholder, "")
        content = [*[{"type": "image"}] * images, {"type": "text", "text": text.strip("\n")}]
        message = {"role": "user", "content": content}
        prompt: str = self.processor.apply_chat_template([message], add_generation_prompt=True)
        return prompt

    def _decoding(self, options: dict[str, Any]) -> dict[str, Any]:
        """Greedy, unless a task asks for a temperature."""
        given = {name: options[name] for name in SAMPLING if options.get(name) is not None}
        if not given.get("temperature"):
            given = {name: value for name, value in given.items() if name == "num_beams"} | {"do_sample": False}
        else:
            given.setdefault("do_sample", True)
        length = options.get("max_new_tokens", options.get("max_gen_toks", 128))
        return {**given, "max_new_tokens": length, "pad_token_id": self.tokenizer.pad_token_id}

    def _batches(self, requests: Sequence[Instance]) -> Iterator[list[int]]:
        """Places of requests with the same options and number of images, by the length of their texts."""
        groups: dict[tuple[str, int], list[int]] = defaultdict(list)
        for place, request in enumerate(requests):
            _, options, doc_to_visual, doc_id, task, split = request.args
            images = len(doc_to_visual(self.task_dict[task][split][doc_id]) or [])
            groups[json.dumps(options, sort_keys=True, default=str), images].append(place)
        for places in groups.values():
            places.sort(key=lambda place: len(requests[place].args[0]))
            for start in range(0, len(places), self.batch_size):
                yield places[start : start + self.batch_size]


def _cut(text: str, until: str | Sequence[str]) -> str:
    for end in [until] if isinstance(until, str) else until:
        text = text.split(end)[0] if end else text
    return text.strip()


def main() -> None:
    from lmms_eval.__main__ import cli_evaluate

    MODEL_REGISTRY_V2.register_manifest(
        ModelManifest(NAME, simple_class_path=f"{VrrayExport.__module__}.{VrrayExport.__name__}")
    )
    sys.argv[1:1] = ["--model", NAME]
    cli_evaluate()


if __name__ == "__main__":
    main()
