"""What vrray's training is compared with: Hugging Face `Trainer` and PEFT with the paper's recipe, one process.

python benchmarks/peer.py --model smol --mode lora --layers 0,4,8 --steps 3 --batch 8 --precision fp32

Prints one line of JSON. The frozen vision tower runs in every step, the model's own loss takes logits at every
position, activations are recomputed in every layer, and batches of rows in random order are padded to their longest.
With bf16, frozen weights are bf16 and what trains is float32 under autocast, as AdamW needs it.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch import nn
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_cosine_schedule_with_warmup,
)

from vrray.data.demo import build_demo
from vrray.data.encode import encode_records
from vrray.data.images import open_image
from vrray.data.records import read_records
from vrray.data.rows import Row, Rows
from vrray.errors import SpecError
from vrray.home import vrray_home
from vrray.models.family import LLAVA
from vrray.models.loading import load_model, load_processor, model_shape, resolve_model
from vrray.region import place
from vrray.specs import RECIPES, Recipe
from vrray.train.workspace import forget_peak, peak_mib

_IGNORED = -100  # the label of a position that is not supervised


def main() -> None:
    options = _parse()
    path = resolve_model(options.model)
    given = json.loads(options.recipe) | {"mode": options.mode, "precision": options.precision}
    given["global_batch"] = options.batch
    recipe = Recipe.parse(RECIPES.get(options.model, Recipe()).model_dump() | given)
    shape = model_shape(path)
    demo = build_demo(vrray_home())
    if options.rows is None:
        rows = encode_records(read_records(demo.train)[: options.records], load_processor(path), shape.image_tokens)
    else:
        rows = list(Rows(options.rows))
    root = options.images or demo.image_root
    layers = place(options.layers, shape.depth).layers
    with redirect_stdout(sys.stderr):  # imports of Trainer print warnings; standard output is for the result
        measured = train_peer(
            path,
            rows,
            {name: root / name for row in rows for name in row.images},
            mode=options.mode,
            layers=layers,
            recipe=recipe,
            steps=options.steps,
            micro_batch=min(options.micro_batch, options.batch),
            threads=options.threads,
            seed=options.seed,
        )
    settings = {"model": options.model, "mode": options.mode, "layers": layers, "precision": options.precision}
    print(json.dumps(settings | {"batch": options.batch} | measured))


def train_peer(
    model: Path,
    rows: Sequence[Row],
    images: Mapping[str, Image.Image | Path],
    *,
    mode: str,
    layers: Sequence[int],
    recipe: Recipe,
    steps: int,
    micro_batch: int,
    threads: int,
    seed: int = 0,
) -> dict[str, Any]:
    """Train some decoder layers and the projector in this process.

    Args:
        images: an image for each name in `rows`; it is preprocessed before the clock starts.
        mode: "lora" (adapters on every linear layer of `layers`) or "full" (all of their parameters).
        threads: CPU threads of torch.

    Returns:
        `losses` (each step's mean over the supervised tokens of the global batch), `step_seconds` (wall time, batch
        assembly included), `samples_per_second` (of the median step after the first), `peak_mib`.

    Raises:
        SpecError: the global batch is not a multiple of `micro_batch`.
    """
    if recipe.global_batch % micro_batch:
        raise SpecError(f"global batch {recipe.global_batch} is not a multiple of micro_batch {micro_batch}")
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    processor = load_processor(model)
    lvlm = _trainable_model(model, mode, layers, recipe)
    optimizer = _optimizer(lvlm, recipe)
    schedule = get_cosine_schedule_with_warmup(optimizer, round(recipe.warmup_ratio * steps), steps)
    ordered = _random_order(rows, steps * recipe.global_batch, seed)
    collator = _Collator(_preprocess(ordered, images, processor), int(processor.tokenizer.pad_token_id))
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=lvlm,
            args=_arguments(folder, recipe, steps, micro_batch, seed),
            train_dataset=ordered,
            data_collator=collator,
            callbacks=[clock],
            optimizers=(optimizer, schedule),
        )
        trainer.remove_callback(PrinterCallback)
        forget_peak(trainer.args.device)
        trainer.train()
    median = statistics.median(clock.seconds[1:] or clock.seconds)
    return {
        "losses": clock.losses,
        "step_seconds": clock.seconds,
        "samples_per_second": recipe.global_batch / median,
        "peak_mib": peak_mib(trainer.args.device),
    }


def _trainable_model(path: Path, mode: str, layers: Sequence[int], recipe: Recipe) -> Any:
    """The model with `requires_grad` on what trains; what trains is in float32, the rest in the recipe's precision."""
    lvlm: Any = load_model(path, torch.bfloat16 if recipe.precision == "bf16" else torch.float32)
    lvlm.config.text_config.use_cache = False
    lvlm.model.vision_tower.forward = torch.no_grad()(lvlm.model.vision_tower.forward)
    parts = [lvlm.get_submodule(LLAVA.projector)]
    paths = [f"{LLAVA.layers}.{index}" for index in layers]
    if mode == "full":
        parts += [lvlm.get_submodule(path) for path in paths]
    else:
        config = LoraConfig(
            r=recipe.lora_rank,
            lora_alpha=recipe.lora_alpha,
            lora_dropout=recipe.lora_dropout,
            target_modules=_linear_layers(lvlm, paths),
        )
        lvlm = get_peft_model(lvlm, config)
    for part in parts:
        part.float().requires_grad_(True)
    return lvlm


def _linear_layers(model: nn.Module, paths: Sequence[str]) -> list[str]:
    """Full names, since PEFT's `layers_to_transform` would also take the tower's layer of the same index."""
    return [
        f"{path}.{name}"
        for path in paths
        for name, module in model.get_submodule(path).named_modules()
        if isinstance(module, nn.Linear)
    ]


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    groups: list[dict[str, Any]] = [
        {"params": [parameter for name, parameter in trained.items() if LLAVA.projector not in name]},
        {
            "params": [parameter for name, parameter in trained.items() if LLAVA.projector in name],
            "lr": recipe.projector_learning_rate,
        },
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)


def _arguments(folder: str, recipe: Recipe, steps: int, micro_batch: int, seed: int) -> Any:
    on_gpu = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=recipe.global_batch // micro_batch,
        train_sampling_strategy="sequential",  # the data set is in random order already
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        max_grad_norm=recipe.gradient_clip,
        bf16=recipe.precision == "bf16",
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        remove_unused_columns=False,
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to="none",
        save_strategy="no",
        seed=seed,
    )


def _random_order(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """Epoch after epoch, each shuffled anew; cut to `count` rows so that every step has its whole global batch."""
    shuffle = random.Random(seed)
    order: list[Row] = []
    while len(order) < count:
        order += shuffle.sample(rows, len(rows))
    return order[:count]


def _preprocess(
    rows: Sequence[Row], images: Mapping[str, Image.Image | Path], processor: Any
) -> dict[str, torch.Tensor]:
    """Pixels `[3, side, side]` of every image that the rows use."""
    pixels = {}
    for name in sorted({name for row in rows for name in row.images}):
        source = images[name]
        image = open_image(source.read_bytes(), str(source)) if isinstance(source, Path) else source
        pixels[name] = processor.image_processor(images=[image], return_tensors="pt")["pixel_values"][0]
    return pixels


@dataclass(frozen=True)
class _Collator:
    """Rows to what the model is called with, padded on the right to the longest."""

    pixels: Mapping[str, torch.Tensor]
    padding_id: int

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        longest = max(len(row.ids) for row in rows)
        ids = torch.full((len(rows), longest), self.padding_id)
        labels = torch.full((len(rows), longest), _IGNORED)
        mask = torch.zeros((len(rows), longest), dtype=torch.long)
        for index, row in enumerate(rows):
            length = len(row.ids)
            ids[index, :length] = torch.tensor(row.ids)
            labels[index, :length] = ids[index, :length].where(torch.tensor(row.supervised), _IGNORED)
            mask[index, :length] = 1
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        pixels = [self.pixels[name] for row in rows for name in row.images]
        return batch | ({"pixel_values": torch.stack(pixels)} if pixels else {})


class _Clock(TrainerCallback):
    """Wall time and loss of every optimizer step; a step begins where the one before it ended."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self._began = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds.append(now - self._began)
        self._began = now

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        if "loss" in logs:
            self.losses.append(logs["loss"])


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smol", help="preset, or the directory of a LLaVA-family model")
    parser.add_argument("--mode", choices=["full", "lora"], default="lora")
    parser.add_argument("--layers", default="all", help="a placement (25 %% of the layers), or a list such as 0,4,8")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16, help="rows of a step")
    parser.add_argument("--micro-batch", type=int, default=8, help="rows at once; the rest of a step accumulates")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="fp32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--records", type=int, default=96, help="the first records of the demo data are trained on")
    parser.add_argument("--rows", type=Path, help="folder of a rows.parquet to train on instead")
    parser.add_argument("--images", type=Path, help="folder that image names start from [the demo's]")
    parser.add_argument("--recipe", default="{}", help="JSON of other fields of vrray's Recipe")
    return parser.parse_args()


if __name__ == "__main__":
    main()
