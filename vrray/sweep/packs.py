"""How many LoRA trials of a sweep share a worker group and its frozen base at the same time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vrray.errors import ClusterError
from vrray.region import Region
from vrray.sweep.prepare import Prepared
from vrray.sweep.trial import Trial
from vrray.train.memory import MemoryEstimate, estimate_pack

# A CPU is busy with the rows of one trial: packing saves the starts of trainings and little else (docs/benchmarks.md).
# On a GPU memory is what limits; the cap is for the drivers, of which each trial in a pack has one.
_MOST_ON_CPU = 4
_MOST_ON_GPU = 16


@dataclass(frozen=True)
class PackChoice:
    """How many trials are in a pack at most, and why."""

    trials: int
    reason: str

    def text(self) -> str:
        """For the plan."""
        if self.trials == 1:
            return f"pack: one trial at a time on a worker group ({self.reason})"
        return f"pack: {self.trials} LoRA trials share a worker group and its base at the same time ({self.reason})"


def choose_pack(
    prepared: Prepared, missing: Sequence[Trial] | None, groups: int, available: int, gpu: bool
) -> PackChoice:
    """As asked; or the most trials that fit into memory, but no more than keep all groups at work.

    Args:
        missing: the trials that are not in the store; None where layer scores or a search have yet to say which.
        groups: that run at the same time.
        available: bytes that a worker can have.

    Raises:
        ClusterError: as many as asked for cannot be.
    """
    spec, asked = prepared.spec, prepared.spec.pack
    if asked == 1:
        return PackChoice(1, "as asked")
    if why := spec.never_packs():
        return PackChoice(1, why)
    if not prepared.choice.resident:
        why = "frozen weights have to be partitioned, and trials share a resident base"
        if asked != "auto":
            raise ClusterError(f"--pack {asked} is not possible: {why}; use more --workers or --pack auto")
        return PackChoice(1, why)
    trials, regions = _to_come(prepared, missing)
    if asked != "auto":
        memory = _estimate(prepared, regions, asked, gpu)
        if memory.total > available:
            raise ClusterError(
                f"--pack {asked} would need {memory.total / 2**30:.1f} GiB a worker (base {memory.frozen / 2**30:.1f}, "
                f"{asked} trials {(memory.total - memory.frozen) / 2**30:.1f}) and can have {available / 2**30:.1f} "
                f"GiB; use a smaller --pack or --micro-batch, or --pack auto"
            )
        return PackChoice(asked, f"as asked; {_fits(memory, available)}")
    most = min(-(-trials // groups), _MOST_ON_GPU if gpu else _MOST_ON_CPU)
    count = next((n for n in range(most, 1, -1) if _estimate(prepared, regions, n, gpu).fits(available)), 1)
    if count == 1:
        if most < 2:
            return PackChoice(1, f"{trials} to run on {groups} group(s)")
        two = _estimate(prepared, regions, 2, gpu).total
        return PackChoice(1, f"two would need {two / 2**30:.1f} GiB, a worker has {available / 2**30:.1f}")
    fits = _fits(_estimate(prepared, regions, count, gpu), available)
    if count < most:
        return PackChoice(count, f"{fits}, one more would not")
    limit = f"{trials} to run on {groups} group(s)" if most * groups >= trials else f"no more than {most} are worth it"
    return PackChoice(count, f"{fits}; {limit}")


def with_pack(prepared: Prepared, choice: PackChoice) -> Prepared:
    execution = replace(prepared.site.execution, pack=choice.trials)
    return replace(prepared, site=replace(prepared.site, execution=execution))


def _to_come(prepared: Prepared, missing: Sequence[Trial] | None) -> tuple[int, list[Region]]:
    """How many trials there will be, at most, and their regions, the largest first."""
    if missing is None:
        space, spec = prepared.space, prepared.spec
        space = replace(space, layer_scores={name: [0.0] * space.depth for name in space.placing_scores})
        trials = spec.most_trials if spec.search == "optuna" else len(space.configs())
        regions = [region for _, region in space.named_regions()]
    else:
        trials, regions = len(missing), [trial.region for trial in missing]
    return trials, sorted(regions, key=len, reverse=True)


def _estimate(prepared: Prepared, regions: Sequence[Region], trials: int, gpu: bool) -> MemoryEstimate:
    """Of the trials that need most; there may be fewer regions than trials."""
    spec, recipe = prepared.spec, prepared.spec.recipe().model_copy(update={"precision": prepared.precision})
    largest = [*regions[:trials], *([regions[0]] * (trials - len(regions)))]
    return estimate_pack(
        prepared.shape,
        largest,
        recipe,
        micro_batch=min(spec.micro_batch, recipe.global_batch // spec.workers),
        tokens=prepared.longest,
        recomputed=prepared.choice.recomputed,
        gpu=gpu,
    )


def _fits(memory: MemoryEstimate, available: int) -> str:
    return f"{memory.total / 2**30:.1f} GiB of a worker's {available / 2**30:.1f}"
