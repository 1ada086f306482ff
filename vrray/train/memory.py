"""What a worker needs while it trains, from sizes alone: enough to refuse what cannot fit, before anything starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from vrray.models.loading import ModelShape
from vrray.region import Region
from vrray.specs import Recipe

_OVERHEAD = 900 << 20  # interpreter, libraries, communication buffers: measured on the demo, 2 CPU workers
_USABLE = 0.9  # share of a worker's memory that an estimate may fill
_RESIDENT_STAGE: Literal[3] = 3  # measured against the others in docs/benchmarks.md
_ACTIVATIONS_PER_TOKEN_AND_LAYER = 34  # values of the hidden size that one decoder layer keeps for its backward pass


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that one worker needs, by part."""

    frozen: int
    trained: int
    optimizer: int
    activations: int
    overhead: int

    @property
    def total(self) -> int:
        return self.frozen + self.trained + self.optimizer + self.activations + self.overhead


@dataclass(frozen=True)
class MemoryChoice:
    """How a training uses memory: ZeRO stage, frozen weights resident, recomputed layers; what it takes, and why."""

    zero: Literal[0, 1, 2, 3]
    resident: bool
    recomputed: int
    memory: MemoryEstimate
    reason: str


def trained_parameters(shape: ModelShape, region: Region, recipe: Recipe) -> int:
    """How many parameters train: the region (all of it, or its adapters) and the projector."""
    per_layer = _adapter_parameters(shape, recipe.lora_rank) if recipe.mode == "lora" else shape.layer
    return per_layer * len(region) + shape.projector


def estimate_memory(
    shape: ModelShape,
    region: Region,
    recipe: Recipe,
    *,
    workers: int,
    micro_batch: int,
    tokens: int,
    zero: int,
    resident: bool,
    recomputed: int,
) -> MemoryEstimate:
    """Estimate one worker's bytes.

    Args:
        tokens: of the longest row.
        zero: ZeRO stage; from 1 on, the optimizer is sharded over the workers.
        resident: frozen weights whole on each worker, else partitioned over the workers.
        recomputed: decoder layers that recompute their activations.
    """
    width = 2 if recipe.precision == "bf16" else 4
    trained = trained_parameters(shape, region, recipe)
    frozen = shape.total - (trained if recipe.mode == "full" else shape.projector)
    # A recomputed layer keeps its input only; while one is recomputed, it holds what the others keep throughout.
    kept = _ACTIVATIONS_PER_TOKEN_AND_LAYER * (shape.depth - recomputed + (recomputed > 0)) + recomputed
    return MemoryEstimate(
        frozen=frozen * width // (1 if resident else workers),
        # Whole on each worker: weights (unless partitioned), the copy that restores the base, gradients, the bucket
        # that they are reduced in, and the gathered result.
        trained=trained * width * (5 if resident else 4),
        # Sharded: float32 master weights, two moments, gradient.
        optimizer=trained * 16 // (workers if zero else 1),
        activations=micro_batch * tokens * shape.hidden * width * kept,
        overhead=_OVERHEAD,
    )


def choose_memory(
    zero: Literal["auto", 0, 1, 2, 3],
    frozen: Literal["auto", "resident", "partitioned"],
    checkpointing: Literal["auto", "off", "all"],
    depth: int,
    available: int,
    estimate: Callable[[int, bool, int], MemoryEstimate],
) -> MemoryChoice:
    """What costs the least time among what fits: resident frozen weights, then recomputing, then partitioning.

    Args:
        available: bytes that a worker can have.
        estimate: bytes for a ZeRO stage, resident or not, and a number of recomputed layers.
    """
    residencies = {"auto": (True, False), "resident": (True,), "partitioned": (False,)}[frozen]
    counts = {"off": (0,), "all": (depth,), "auto": tuple(range(depth + 1))}[checkpointing]
    room = int(_USABLE * available)
    tried: list[MemoryChoice] = []
    for resident in residencies:
        if not resident and zero not in ("auto", 3):
            continue  # only stage 3 partitions weights
        stage = _RESIDENT_STAGE if zero == "auto" and resident else 3 if zero == "auto" else zero
        for recomputed in counts:
            choice = MemoryChoice(stage, resident, recomputed, estimate(stage, resident, recomputed), "")
            tried.append(choice)
            if choice.memory.total <= room:
                return replace(choice, reason=_reason(tried, frozen, available))
    return replace(tried[-1], reason=_reason(tried, frozen, available))


def _reason(tried: Sequence[MemoryChoice], frozen: str, available: int) -> str:
    chosen, have = tried[-1], available / 2**30
    fits = "fit into" if chosen.memory.total <= _USABLE * available else "are asked for and exceed"
    text = f"{chosen.memory.total / 2**30:.1f} GiB {fits} the {have:.1f} GiB of a worker"
    if frozen != "auto":
        text = f"as asked; {text}"
    elif not chosen.resident:
        text = f"resident would take {tried[0].memory.total / 2**30:.1f} GiB; {text}"
    return text


def _adapter_parameters(shape: ModelShape, rank: int) -> int:
    """Adapters add `rank * (inputs + outputs)` to each linear layer; `linear_widths` is that sum over a layer."""
    return rank * shape.linear_widths
