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
_LARGEST_BUCKET = 200_000_000  # values that gradients are reduced in at once, as vrray.train.engine sets it
_MOST_GATHERED = 1_000_000_000  # parameters that ZeRO-3 keeps gathered at most, DeepSpeed's default
# Values of the hidden size that one decoder layer keeps per token for its backward pass: measured on Llama and Phi-3
# layers of the presets' proportions (frozen 15 to 18, full 21 to 26, LoRA with dropout 30 to 36).
_KEPT_FROZEN = 18
_KEPT_TUNED = {"full": 26, "lora": 36}


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that one worker needs in the forward and backward pass, by part.

    `whole` is what ZeRO-3 needs besides these, when it holds weights whole: partitioned, before and after the training;
    resident, when it gathers what was updated.
    """

    frozen: int
    trained: int
    optimizer: int
    activations: int
    overhead: int
    whole: int = 0

    @property
    def total(self) -> int:
        """The most at any time."""
        return max(self.frozen + self.trained + self.optimizer + self.activations + self.overhead, self.whole)

    def fits(self, available: int) -> bool:
        """Whether it fits into a worker's bytes with a tenth to spare, which is what `choose_memory` asks for."""
        return self.total <= int(_USABLE * available)


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
    gpu: bool = False,
) -> MemoryEstimate:
    """Estimate one worker's bytes. The logits of supervised tokens are not in it: how many there are is not known.

    Args:
        tokens: of the longest row.
        zero: ZeRO stage; from 1 on, the optimizer is sharded over the workers, from 2 on gradients too.
        resident: frozen weights whole on each worker, else partitioned over the workers.
        recomputed: decoder layers that recompute their activations; the tuned ones come first.
        gpu: the bytes are a GPU's: copies for restoring the base and for the delta are in the host's memory.
    """
    width = 2 if recipe.precision == "bf16" else 4
    trained = trained_parameters(shape, region, recipe)
    frozen = shape.total - (trained if recipe.mode == "full" else shape.projector)
    plain = zero == 0 and recipe.precision == "fp32"  # without DeepSpeed's optimizer there are no master weights
    # Master weights, two moments and the gradient that they are updated with, in float32.
    optimizer = trained * (8 if plain else 16) // (workers if zero else 1)
    kept = micro_batch * shape.hidden * tokens * width * _kept_per_token(shape, region, recipe, recomputed)
    copies = _copies(trained, workers, zero, resident, gpu)
    whole = 0
    if not resident:
        # Loading, the dry run of one row at least, and restoring happen with the base whole on the worker.
        dry_run = trained * width + 12 * trained // workers + kept // micro_batch
        restoring = (shape.total - shape.tower) * width // workers + optimizer
        whole = (frozen + trained) * width + max(dry_run, restoring) + _OVERHEAD
    elif zero == 3:
        # After its update, when activations and the float32 gradient are gone, all that trains is gathered anew.
        whole = (frozen + copies + trained) * width + 12 * trained // workers + _OVERHEAD
    return MemoryEstimate(
        frozen=frozen * width if resident else _partitioned(shape, frozen, workers) * width,
        trained=copies * width,
        optimizer=optimizer,
        activations=kept,
        overhead=_OVERHEAD,
        whole=whole,
    )


def estimate_pack(
    shape: ModelShape,
    regions: Sequence[Region],
    recipe: Recipe,
    *,
    micro_batch: int,
    tokens: int,
    recomputed: int,
    gpu: bool = False,
) -> MemoryEstimate:
    """Estimate one worker's bytes while LoRA trials of these regions share its base; what trains is on each worker.

    Args:
        micro_batch: rows of each trial.
        tokens, recomputed, gpu: as for one training.
    """
    each = [
        estimate_memory(
            shape,
            region,
            recipe,
            workers=1,
            micro_batch=micro_batch,
            tokens=tokens,
            zero=0,
            resident=True,
            recomputed=recomputed,
            gpu=gpu,
        )
        for region in regions
    ]
    return MemoryEstimate(
        frozen=each[0].frozen,
        trained=sum(one.trained for one in each),
        optimizer=sum(one.optimizer for one in each),
        activations=sum(one.activations for one in each),
        overhead=_OVERHEAD,
    )


def logits_bytes(shape: ModelShape, supervised: int) -> int:
    """Bytes that the head and the loss take for so many supervised tokens, at most: three float32 values a logit."""
    return 12 * shape.vocabulary * supervised


def delta_bytes(shape: ModelShape, region: Region, recipe: Recipe) -> int:
    """Bytes of a training's artefact: what trained, in the precision of the training."""
    return trained_parameters(shape, region, recipe) * (2 if recipe.precision == "bf16" else 4)


def _copies(trained: int, workers: int, zero: int, resident: bool, gpu: bool) -> int:
    """Values that a worker holds of the trained weights and their gradients, in the precision of the training."""
    share, bucket = -(-trained // workers), min(trained, _LARGEST_BUCKET)
    weights = trained + (share if zero == 3 else 0) if resident else share
    gradients = {0: trained, 1: trained + bucket + share, 2: bucket + share, 3: bucket + share}[zero]
    overlapped = bucket if gpu and zero in (1, 2) else 0  # one bucket is filled while the other one is reduced
    # The copy that restores the base, and the delta.
    return weights + gradients + overlapped + (0 if gpu else 2 * trained)


def _partitioned(shape: ModelShape, frozen: int, workers: int) -> int:
    """Frozen parameters on a worker under ZeRO-3: its share, what is gathered at a time, and the tower, whole."""
    return (frozen - shape.tower) // workers + min(shape.decoder, _MOST_GATHERED) + shape.tower


def _kept_per_token(shape: ModelShape, region: Region, recipe: Recipe, recomputed: int) -> int:
    """Values of the hidden size that all layers keep, in the order in which they are chosen to recompute.

    A recomputed layer keeps its input only; while one is recomputed, it holds again what it would have kept.
    """
    tuned = _KEPT_TUNED[recipe.mode]
    layers = [tuned] * len(region) + [_KEPT_FROZEN] * (shape.depth - len(region))
    return sum(layers[recomputed:]) + recomputed + (layers[0] if recomputed else 0)


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
    tried: list[MemoryChoice] = []
    for resident in residencies:
        if not resident and zero not in ("auto", 3):
            continue  # only stage 3 partitions weights
        stage = _RESIDENT_STAGE if zero == "auto" and resident else 3 if zero == "auto" else zero
        for recomputed in counts:
            choice = MemoryChoice(stage, resident, recomputed, estimate(stage, resident, recomputed), "")
            tried.append(choice)
            if choice.memory.fits(available):
                return replace(choice, reason=_reason(tried, frozen, available))
    return replace(tried[-1], reason=_reason(tried, frozen, available))


def _reason(tried: Sequence[MemoryChoice], frozen: str, available: int) -> str:
    chosen, have = tried[-1], available / 2**30
    fits = "fit into" if chosen.memory.fits(available) else "are asked for and exceed"
    text = f"{chosen.memory.total / 2**30:.1f} GiB {fits} the {have:.1f} GiB of a worker"
    if frozen != "auto":
        text = f"as asked; {text}"
    elif not chosen.resident:
        least = min(choice.memory.total for choice in tried if choice.resident)
        text = f"resident would take at least {least / 2**30:.1f} GiB; {text}"
    return text


def _adapter_parameters(shape: ModelShape, rank: int) -> int:
    """Adapters add `rank * (inputs + outputs)` to each linear layer; `linear_widths` is that sum over a layer."""
    return rank * shape.linear_widths
