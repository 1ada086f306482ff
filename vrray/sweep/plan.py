"""What a sweep is about to do, said before it starts."""

from __future__ import annotations

from collections.abc import Sequence

from vrray.data.features import KIND as FEATURES
from vrray.errors import ClusterError
from vrray.specs import HELD_OUT
from vrray.store import Store
from vrray.sweep.packs import PackChoice
from vrray.sweep.prepare import Prepared
from vrray.sweep.trial import DELTA, Site, Trial, is_complete
from vrray.train.launch import Capacity
from vrray.train.memory import delta_bytes, trained_parameters

_STARTUP_SECONDS = 5.0  # a trial's driver and the hand-over to a group, measured on 2 cores


def refuse_too_large(prepared: Prepared, capacity: Capacity) -> None:
    """
    Raises:
        ClusterError: a worker needs more memory than it can have.
    """
    memory = prepared.choice.memory
    need, have = memory.total / 2**30, capacity.worker_memory(prepared.spec) / 2**30
    if need > have:
        raise ClusterError(
            f"a worker would need {need:.1f} GiB (frozen {memory.frozen / 2**30:.1f}, trained "
            f"{memory.trained / 2**30:.1f}, optimizer {memory.optimizer / 2**30:.1f}, activations "
            f"{memory.activations / 2**30:.1f}) and can have {have:.1f} GiB; use more --workers, a smaller "
            f"--micro-batch, --activation-checkpointing auto, --mode lora or fewer --layers"
        )


def plan_text(
    store: Store, prepared: Prepared, trials: Sequence[Trial], capacity: Capacity, at_once: int, pack: PackChoice
) -> str:
    """The plan in a few lines.

    Args:
        at_once: worker groups that the cluster has room for.
    """
    spec, site = prepared.spec, prepared.site
    choice = prepared.choice
    missing = [trial for trial in trials if not is_complete(store, site, trial)]
    trainings = sum(not store.has(DELTA, trial.key) for trial in trials)
    chunks = [chunk for chunk in site.chunks if not store.has(FEATURES, chunk.key)]
    lines = [
        f"sweep {spec.name!r}: {spec.model} ({prepared.shape.total / 1e6:.0f}M parameters, {prepared.shape.depth} "
        f"decoder layers), data {' '.join(spec.data)}",
        f"data: {prepared.data.summary()}; conversation template {prepared.template}",
        *_trials_line(prepared, trials, missing, trainings),
        f"workers: {spec.workers} a trial, {at_once} trial(s) at once on {capacity.cpus:g} CPUs and "
        f"{capacity.gpus:g} GPUs; DeepSpeed ZeRO stage {choice.zero}, {prepared.precision}",
        *([pack.text()] if len(missing) > 1 or _finds_trials(prepared) else []),
        f"memory: frozen weights {'resident' if choice.resident else 'partitioned'}, {choice.recomputed} of "
        f"{prepared.shape.depth} layers recompute activations ({choice.reason})",
        f"vision features: {'computed once and stored' if prepared.features.cached else 'computed in every step'} "
        f"({prepared.features.reason}); {sum(len(chunk.images) for chunk in chunks)} images to compute",
        f"storage: {store.shown()}; deltas about {_delta_mib(prepared, trials, store):.0f} MiB",
        *_floor_lines(site),
        *(_time_line(store, prepared, missing, at_once) if trials or _finds_trials(prepared) else []),
    ]
    return "\n".join(lines)


def _floor_lines(site: Site) -> list[str]:
    floors = ", ".join(f"{group.task.name} {group.floor:.2f}" for group in site.select)
    own = [f"task {g.task.name}: {g.task.description}" for g in site.select if g.task.name.startswith(HELD_OUT)]
    return [*own, f"blind floor (question-only guess), select split: {floors}"] if floors else []


def estimated_seconds(store: Store, prepared: Prepared, missing: Sequence[Trial], at_once: int) -> float | None:
    """Seconds for the missing trials, from the throughput of the measured projector stage; None before it ran."""
    if not store.has(DELTA, prepared.projector.key):
        return None
    speed = float(store.describe(DELTA, prepared.projector.key)["flops_per_second"])
    shape, spec = prepared.shape, prepared.spec
    layers = shape.layer * shape.depth
    total = 0.0
    for trial in missing:
        if not store.has(DELTA, trial.key):
            tokens = trial.recipe.steps(prepared.rows) * trial.recipe.global_batch * prepared.longest
            total += tokens * (4 * layers + 2 * trained_parameters(shape, trial.region, trial.recipe)) / speed
        questions = spec.examples * len(spec.tasks) * (_variants(trial) + 1)
        total += questions * prepared.longest * 2 * layers / speed + _STARTUP_SECONDS
    return total / at_once


def _trials_line(prepared: Prepared, trials: Sequence[Trial], missing: Sequence[Trial], trainings: int) -> list[str]:
    spec = prepared.spec
    if spec.search == "optuna":
        return [f"trials: up to {spec.most_trials}, subsets of layers proposed by Optuna from the placements on"]
    if not trials and not _finds_trials(prepared):
        return []
    variants, reused = sum(map(_variants, trials)), len(trials) - len(missing)
    later = [name for name in prepared.space.placing_scores if name not in prepared.space.layer_scores]
    more = f"; more of them once layer scores are measured ({', '.join(later)})" if later else ""
    return [f"trials: {len(trials)} ({variants} variants); {reused} complete in the store, {trainings} to train{more}"]


def _variants(trial: Trial) -> int:
    """How many variants a trial gives, at least."""
    pruning = trial.pruning
    pruned = len(pruning.rankings) * (len(pruning.counts) - 1 + len(pruning.kept))
    return 1 + pruned * (1 + (pruning.heal_steps > 0))


def _finds_trials(prepared: Prepared) -> bool:
    """Whether there will be trials that are not known yet."""
    return prepared.spec.search == "optuna" or any(
        s not in prepared.space.layer_scores for s in prepared.space.placing_scores
    )


def _time_line(store: Store, prepared: Prepared, missing: Sequence[Trial], at_once: int) -> list[str]:
    if not missing and not _finds_trials(prepared):
        return ["time: under a minute, everything is in the store"]
    seconds = estimated_seconds(store, prepared, missing, at_once)
    if seconds is None:
        return ["time: said after the projector stage, from its measured speed"]
    return [f"time: about {seconds / 60:.0f} min, from the measured projector stage"]


def _delta_mib(prepared: Prepared, trials: Sequence[Trial], store: Store) -> float:
    missing = [trial for trial in trials if not store.has(DELTA, trial.key)]
    return sum(delta_bytes(prepared.shape, trial.region, trial.recipe) for trial in missing) / 2**20
