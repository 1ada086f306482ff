"""`vrray plan`: what tuning a region of a model takes on each worker, from its configuration alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import Field

from vrray.errors import SpecError
from vrray.frozen import Frozen
from vrray.job_specs import FinetuneSpec
from vrray.models.loading import ModelShape, model_config, shape_of
from vrray.models.presets import find_preset
from vrray.region import Region, place
from vrray.specs import Recipe
from vrray.train.memory import (
    MemoryChoice,
    MemoryEstimate,
    choose_memory,
    delta_bytes,
    estimate_memory,
    logits_bytes,
    trained_parameters,
)

_UNITS = {"": 1, "b": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("kmgt", start=1)
    for suffix, base in (("b", 1000), ("ib", 1024))
}
# ZeRO stage, and what becomes of frozen weights.
_CHOICES: tuple[tuple[Literal[0, 1, 2, 3], Literal["resident", "partitioned"]], ...] = (
    (0, "resident"),
    (1, "resident"),
    (2, "resident"),
    (3, "resident"),
    (3, "partitioned"),
)
_THOUSAND = 1000


class PlanSpec(Frozen):
    """What is planned. Where None, it is the model's recipe, or the paper's region of a preset, or unknown."""

    model: str
    workers: int = Field(8, ge=1)
    gpu_memory: int = Field(80 << 30, ge=1)
    placement: str | None = None
    layers: int | float | str | None = None
    mode: Literal["full", "lora"] | None = None
    global_batch: int | None = Field(None, ge=1)
    micro_batch: int = Field(8, ge=1)
    tokens: int | None = Field(None, ge=1)
    precision: Literal["bf16", "fp32"] = "bf16"
    image_count: int | None = Field(None, ge=0)

    def training(self) -> FinetuneSpec:
        """The training that is planned.

        Raises:
            SpecError: its options contradict each other.
        """
        names = ("model", "workers", "placement", "layers", "mode", "global_batch", "micro_batch", "precision")
        given = {name: getattr(self, name) for name in names}
        return FinetuneSpec.parse({name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True)
class Plan:
    """A training on paper. Sizes are in bytes.

    Attributes:
        available: what a worker has.
        micro_batch, tokens: rows that a worker takes at once, and the tokens of the longest.
        choices: every ZeRO choice, without and with all layers recomputed.
        auto: the one that a run takes by itself.
        images: how many images the data has, where that was said.
    """

    model: str
    shape: ModelShape
    region: Region
    recipe: Recipe
    workers: int
    available: int
    micro_batch: int
    tokens: int
    choices: tuple[MemoryChoice, ...]
    auto: MemoryChoice
    images: int | None

    @property
    def trained(self) -> int:
        """How many parameters train."""
        return trained_parameters(self.shape, self.region, self.recipe)

    def features(self, images: int) -> int:
        """Bytes of the stored vision features of so many images."""
        return images * self.shape.feature_bytes

    def fits(self, memory: MemoryEstimate) -> Literal["yes", "tight", "no"]:
        """Tight: it may run, but `auto` prefers what leaves a tenth of the memory free."""
        return "yes" if memory.fits(self.available) else "tight" if memory.total <= self.available else "no"

    def to_json(self) -> dict[str, Any]:
        """Everything in it, for programs."""
        return {
            "model": self.model,
            "parameters": {"total": self.shape.total, "decoder": self.shape.decoder, **asdict(self.shape)},
            "region": self.region.to_json(),
            "recipe": self.recipe.model_dump(),
            "trained_parameters": self.trained,
            "workers": self.workers,
            "worker_bytes": self.available,
            "micro_batch": self.micro_batch,
            "tokens": self.tokens,
            "choices": [self._choice(choice) for choice in self.choices],
            "auto": {**self._choice(self.auto), "reason": self.auto.reason},
            "logits_bytes_per_1000_supervised_tokens": logits_bytes(self.shape, _THOUSAND),
            "delta_bytes": delta_bytes(self.shape, self.region, self.recipe),
            "feature_bytes_per_1000_images": self.features(_THOUSAND),
            "images": self.images,
            "feature_bytes": None if self.images is None else self.features(self.images),
        }

    def _choice(self, choice: MemoryChoice) -> dict[str, Any]:
        return {
            "zero": choice.zero,
            "frozen": "resident" if choice.resident else "partitioned",
            "recomputed": choice.recomputed,
            "bytes": asdict(choice.memory) | {"total": choice.memory.total},
            "fits": self.fits(choice.memory),
        }


def parse_bytes(text: str) -> int:
    """The bytes of `--gpu-memory`, such as "80GiB" (80 * 2**30), "80GB" (80 * 10**9) or "85899345920".

    Raises:
        SpecError: it is not of that form, or nothing.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)", text.strip())
    size = int(float(found[1]) * _UNITS.get(found[2].lower(), 0)) if found else 0
    if size < 1:
        raise SpecError(f"--gpu-memory {text!r} is no size; write one such as 80GiB, 24GB, or a number of bytes")
    return size


def make_plan(spec: PlanSpec) -> Plan:
    """Plan a training on GPUs; no weights are read.

    Raises:
        ModelError: the model cannot be found or is not supported.
        SpecError, RegionError: the options contradict each other, or the region does not fit the decoder.
    """
    training, preset = spec.training(), find_preset(spec.model)
    shape = shape_of(model_config(spec.model))
    if preset is not None and spec.placement is None and spec.layers is None:
        region = preset.region
    else:
        region = place(training.placement, shape.depth, training.layers)
    recipe = training.recipe().model_copy(update={"precision": spec.precision})
    tokens = recipe.max_length if spec.tokens is None else spec.tokens
    micro_batch = min(spec.micro_batch, recipe.global_batch // spec.workers)

    def estimate(zero: int, resident: bool, recomputed: int) -> MemoryEstimate:
        return estimate_memory(
            shape,
            region,
            recipe,
            workers=spec.workers,
            micro_batch=micro_batch,
            tokens=tokens,
            zero=zero,
            resident=resident,
            recomputed=recomputed,
            gpu=True,
        )

    within = (shape.depth, spec.gpu_memory, estimate)
    return Plan(
        model=spec.model,
        shape=shape,
        region=region,
        recipe=recipe,
        workers=spec.workers,
        available=spec.gpu_memory,
        micro_batch=micro_batch,
        tokens=tokens,
        choices=tuple(
            choose_memory(zero, frozen, "all" if all_layers else "off", *within)
            for zero, frozen in _CHOICES
            for all_layers in (False, True)
        ),
        auto=choose_memory("auto", "auto", "auto", *within),
        images=spec.image_count,
    )


def plan_text(plan: Plan) -> str:
    """The plan as tables."""
    return "\n\n".join(["\n".join(part) for part in (_model_lines(plan), _memory_lines(plan), _size_lines(plan))])


def _model_lines(plan: Plan) -> list[str]:
    shape, region, recipe = plan.shape, plan.region, plan.recipe
    adapters = f", rank {recipe.lora_rank}" if recipe.mode == "lora" else ""
    layers = " ".join(map(str, region)) or "none"
    return [
        f"model: {plan.model}",
        *_table(
            [
                ["part", "parameters", ""],
                ["decoder", _millions(shape.decoder), f"{shape.depth} layers of {_millions(shape.layer)}"],
                ["vision tower", _millions(shape.tower), f"{shape.image_tokens} tokens an image"],
                ["projector", _millions(shape.projector), f"{shape.tower_width} -> {shape.hidden}"],
                ["all", _millions(shape.total), ""],
            ],
            "<><",
        ),
        f"region: {region.name}, {len(region)} of {shape.depth} layers: {layers}",
        f"trains ({recipe.mode}{adapters}): {_millions(plan.trained)} parameters, {plan.trained / shape.total:.2%} of "
        f"all; of these the projector {_millions(shape.projector)}",
    ]


def _memory_lines(plan: Plan) -> list[str]:
    rows = [["ZeRO", "frozen", "recomputed", "frozen", "trained", "optimizer", "activations", "other", "total", "fits"]]
    for choice in plan.choices:
        memory = choice.memory
        parts = (memory.frozen, memory.trained, memory.optimizer, memory.activations, memory.overhead, memory.total)
        rows.append(
            [
                str(choice.zero),
                "resident" if choice.resident else "partitioned",
                _recomputed(choice, plan.shape.depth),
                *(_gib(part) for part in parts),
                plan.fits(memory),
            ]
        )
    chosen = plan.auto
    resident, partitioned = (choice.memory.whole for choice in plan.choices if choice.zero == 3 and choice.recomputed)
    logits = logits_bytes(plan.shape, _THOUSAND)
    return [
        f"memory of one of {plan.workers} workers in GiB, of {_gib(plan.available)}; {plan.recipe.precision}, "
        f"{plan.micro_batch} row(s) of {plan.tokens} tokens at once, global batch {plan.recipe.global_batch}",
        *_table(rows, "><<>>>>>><"),
        f"auto takes: ZeRO {chosen.zero}, frozen weights {'resident' if chosen.resident else 'partitioned'}, "
        f"{_recomputed(chosen, plan.shape.depth)} of {plan.shape.depth} layers recomputed; {chosen.reason}",
        f"ZeRO 3 takes at least what it needs while weights are whole: resident {_gib(resident)} (after an update), "
        f"partitioned {_gib(partitioned)} (before and after the training)",
        f"not counted: logits, {_gib(logits)} GiB for 1,000 supervised tokens of a micro-batch",
    ]


def _size_lines(plan: Plan) -> list[str]:
    delta = delta_bytes(plan.shape, plan.region, plan.recipe)
    lines = [
        f"artefact: {_size(delta)} a training ({plan.recipe.precision})",
        f"stored vision features: {_size(plan.features(_THOUSAND))} for 1,000 images",
    ]
    if plan.images is not None:
        lines[1] += f", {_size(plan.features(plan.images))} for {plan.images:,}"
    return lines


def _table(rows: Sequence[Sequence[str]], alignment: str) -> list[str]:
    """Columns aligned to the left (`<`) or right (`>`), two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [f"{cell:{side}{width}}" for cell, side, width in zip(row, alignment, widths, strict=True)]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return lines


def _recomputed(choice: MemoryChoice, depth: int) -> str:
    return {0: "none", depth: "all"}.get(choice.recomputed, str(choice.recomputed))


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f}M"


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"


def _size(size: int) -> str:
    return f"{_gib(size)} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
