"""What a worker needs while it trains, from sizes alone: enough to refuse what cannot fit, before anything starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vrray.models.loading import ModelShape
from vrray.region import Region
from vrray.specs import Recipe

_OVERHEAD = 900 << 20  # interpreter, libraries, communication buffers: measured on the demo, 2 CPU workers
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
    resident: bool,
    activation_checkpointing: bool,
) -> MemoryEstimate:
    """Estimate one worker's bytes.

    Args:
        tokens: of the longest row.
        resident: frozen weights whole on each worker, else partitioned over the workers.
    """
    width = 2 if recipe.precision == "bf16" else 4
    trained = trained_parameters(shape, region, recipe)
    frozen = shape.total - (trained if recipe.mode == "full" else shape.projector)
    kept = 1 if activation_checkpointing else _ACTIVATIONS_PER_TOKEN_AND_LAYER
    return MemoryEstimate(
        frozen=frozen * width // (1 if resident else workers),
        # Whole on each worker: weights (unless partitioned), the copy that restores the base, gradients, the bucket
        # that they are reduced in, and the gathered result.
        trained=trained * width * (5 if resident else 4),
        # Sharded: float32 master weights, two moments, gradient.
        optimizer=trained * 16 // workers,
        activations=micro_batch * tokens * shape.hidden * width * (kept * shape.depth + 4 * (kept == 1)),
        overhead=_OVERHEAD,
    )


def choose_residency(
    wanted: Literal["auto", "resident", "partitioned"], resident: MemoryEstimate, available: int
) -> tuple[bool, str]:
    """Whether frozen weights stay whole on each worker, and why, in words with figures."""
    need, have = resident.total / 2**30, available / 2**30
    if wanted != "auto":
        return wanted == "resident", "as asked"
    if resident.total <= 0.9 * available:
        return True, f"{need:.1f} GiB fit into the {have:.1f} GiB of a worker"
    return False, f"{need:.1f} GiB would not fit into the {have:.1f} GiB of a worker"


def _adapter_parameters(shape: ModelShape, rank: int) -> int:
    """Adapters add `rank * (inputs + outputs)` to each linear layer; `linear_widths` is that sum over a layer."""
    return rank * shape.linear_widths
