"""What a fresh process with plain transformers, vrray blocked, sees of exported directories.

python contract.py RESULT DIRECTORY...  What it finds goes into the file RESULT.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

SIDE, IMAGE_TOKENS, TOKENS = 28, 4, 5
NESTED = {"idefics3", "smolvlm"}  # their pixels are [rows, images, 3, side, side]
DECODERS = {"idefics3": "text_model", "smolvlm": "text_model"}


def asked(model: Any) -> dict[str, Any]:
    """A prompt with one image."""
    kind, image = model.config.model_type, model.config.image_token_id
    ids = [1, *[image] * IMAGE_TOKENS, 40, 50, 60]
    pixels = torch.linspace(-2, 2, 3 * SIDE * SIDE).reshape(1, 3, SIDE, SIDE)
    inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids)).long()}
    return inputs | {"pixel_values": pixels[None] if kind in NESTED else pixels}


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    return model(**asked(model)).logits


@torch.inference_mode()
def answer(model: Any, *, cached: bool) -> list[int]:
    length = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS}
    return model.generate(**asked(model), **length, do_sample=False, use_cache=cached)[0].tolist()


def observed(model: Any) -> dict[str, Any]:
    """What is compared between the variant in memory and the one that was reloaded."""
    decoder = getattr(model.model, DECODERS.get(model.config.model_type, "language_model"))
    text = decoder.config.to_dict()
    return {
        "logits": logits(model),
        "cached": answer(model, cached=True),
        "layers": text["num_hidden_layers"],
        "lists": {name: text.get(name) for name in ("layer_types", "no_rope_layers")},
        "places": [layer.self_attn.layer_idx for layer in decoder.layers],
        "tied": model.lm_head.weight.data_ptr() == decoder.embed_tokens.weight.data_ptr(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": model.dtype,
    }


def reloaded(folder: Path) -> dict[str, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    processor = AutoProcessor.from_pretrained(folder)
    text = processor.apply_chat_template([{"role": "user", "content": "What?"}], add_generation_prompt=True)
    found = observed(model.eval()) | {"problems": {name: list(value) for name, value in info.items() if value}}
    found |= {"prompt": text, "end": model.generation_config.eos_token_id, "uncached": answer(model, cached=False)}
    if (folder / "adapter").is_dir():
        from peft import PeftModel

        found["adapted"] = logits(PeftModel.from_pretrained(model, folder / "adapter").eval())
    return found


def look(folders: Sequence[Path], result: Path) -> dict[Path, dict[str, Any]]:
    """What a fresh process finds in the directories; `result` is a file for it to write."""
    done = subprocess.run([sys.executable, __file__, str(result), *map(str, folders)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[Path, dict[str, Any]] = torch.load(result, weights_only=False)
    return found


def main() -> None:
    sys.modules["vrray"] = None  # type: ignore[assignment]  # importing it would raise
    result, *folders = map(Path, sys.argv[1:])
    torch.save({folder: reloaded(folder) for folder in folders}, result)


if __name__ == "__main__":
    main()
