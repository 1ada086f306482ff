"""What a worker does for each job of a sweep: features; train, rank, prune and evaluate a trial; score variants.

Everything finished goes into the store under its key and is found there by a repeated or resumed sweep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch.distributed as dist
from transformers import AutoConfig

from vrray.data.examples import example_rows
from vrray.data.features import compute_chunks
from vrray.data.ingest import with_embedded
from vrray.data.rows import FILES, Row, Rows
from vrray.data.rows import KIND as ROWS
from vrray.data.tasks import Ability, TaskExamples
from vrray.errors import VrrayError
from vrray.evaluate.records import summarise, write_records
from vrray.evaluate.run import evaluate_tasks, latency_ms_per_token
from vrray.models.family import family_of, vision_tower
from vrray.models.loading import decoder_layers
from vrray.pruning import pruned
from vrray.region import Region
from vrray.scores.change import parameter_change
from vrray.scores.measure import Samples, measure
from vrray.scores.table import LayerScores
from vrray.sweep.heal import in_base, stacked
from vrray.sweep.jobs import FeaturesJob, ScoresJob, TrialJob, VariantsJob
from vrray.sweep.trial import (
    DELTA,
    EVALUATION,
    SAMPLES,
    SCORES,
    Evaluating,
    Measuring,
    Remembering,
    Site,
    Trial,
    Work,
    evaluation_key,
    next_work,
    scores_key,
)
from vrray.train.checkpoint import KIND as CHECKPOINT
from vrray.train.desk import BEGINS, Cancelled, Deferred, Paused, Report, error_line
from vrray.train.loop import Trained, Training, train
from vrray.train.measure import json_number
from vrray.train.pack import train_pack
from vrray.train.workspace import Workspace
from vrray.variant import Delta, applied, changes, load_delta

T = TypeVar("T")


def compute_features(workspace: Workspace, job: FeaturesJob, report: Report) -> None:
    vision = vision_tower(workspace.model)
    config = AutoConfig.from_pretrained(job.model_path)
    processor, images = workspace.processor.image_processor, with_embedded(workspace.store, job.images, job.embedded)
    share = job.chunks[workspace.rank :: workspace.world]
    compute_chunks(share, images, vision, config, processor, workspace.store)
    dist.barrier()


def run_trial(workspace: Workspace, job: TrialJob, report: Report) -> None:
    """Train once, measure scores, then prune and evaluate many times; without tasks, only train.

    Raises:
        Deferred: another run is at the same trial.
    """
    with _claimed(workspace, job.trial.key):
        _use_features(workspace, job.site)
        _run_trial(workspace, job, report)


@contextmanager
def _claimed(workspace: Workspace, key: str) -> Iterator[None]:
    """Be the only run that works on a trial.

    Raises:
        Deferred: another one does.
    """
    if holder := agreed(workspace, lambda: workspace.claims.take(key)):
        raise Deferred(f"waits for {holder}, which is at the same training")
    with workspace.claims.kept(key) if workspace.rank == 0 else nullcontext():
        yield


def _run_trial(workspace: Workspace, job: TrialJob, report: Report) -> None:
    site, trial, store = job.site, job.trial, Remembering(workspace.store)

    def following() -> Work | None:
        return agreed(workspace, lambda: next_work(store, site, trial))

    while (work := following()) is not None:
        if isinstance(work, Trial):
            _train(workspace, site, work, report)
            continue
        # What lies between two trainings mostly needs the same weights: they are set once for all plans.
        delta = _needed(work)
        with _delta_applied(workspace, delta):
            while not (work is None or isinstance(work, Trial)) and _needed(work) == delta:
                if isinstance(work, Measuring):
                    _measure(workspace, site, work)
                else:
                    _evaluate(workspace, work, site.select)
                    report({"evaluated": len(work.removed)})
                work = following()


def train_trials(workspace: Workspace, jobs: Sequence[TrialJob], reports: Sequence[Report]) -> dict[str, str]:
    """Train at the same time what the store does not hold of several LoRA trials; by key, why one failed.

    Fewer than two are left to `run_trial`, which goes on with each.
    """
    with ExitStack() as stack:
        ours = [number for number, job in enumerate(jobs) if _begins(workspace, stack, job, reports[number])]
        if len(ours) < 2:
            return {}
        jobs, reports = [jobs[number] for number in ours], [reports[number] for number in ours]
        _use_features(workspace, jobs[0].site)
        trainings = [_training(workspace, job.site, job.trial) for job in jobs]
        with _delta_applied(workspace, jobs[0].trial.start):
            outcomes = train_pack(workspace, trainings, reports, [job.key for job in jobs])
        failures = {}
        for job, outcome in zip(jobs, outcomes, strict=True):
            if isinstance(outcome, Trained):
                _keep(workspace, job.site, job.trial, outcome, zero=0)
            elif outcome is not None:
                failures[job.key] = error_line(outcome)
        return failures


def _begins(workspace: Workspace, stack: ExitStack, job: TrialJob, report: Report) -> bool:
    """Whether a training is lacking and begins here; its claim is kept until the stack ends."""
    if agreed(workspace, lambda: workspace.store.has(DELTA, job.trial.key)):
        return False
    try:
        report({BEGINS: job.trial.key})
        stack.enter_context(_claimed(workspace, job.trial.key))
    except (Cancelled, Deferred, Paused):
        return False
    return True


def measure_scores(workspace: Workspace, job: ScoresJob, report: Report) -> None:
    """Layer scores of deltas, or of the base where there is none."""
    _use_features(workspace, job.site)
    for work in job.works:
        with _delta_applied(workspace, _needed(work)):
            _measure(workspace, job.site, work)


def evaluate_variants(workspace: Workspace, job: VariantsJob, report: Report) -> None:
    _use_features(workspace, job.site)
    for key, removed in job.variants:
        with _delta_applied(workspace, key):
            _evaluate(workspace, Evaluating(key, removed), job.tasks)
        report({"evaluated": len(removed)})


def _use_features(workspace: Workspace, site: Site) -> None:
    if site.chunks:
        workspace.use_cached(site.chunks)
    else:
        workspace.use_live(with_embedded(workspace.store, site.images, site.embedded), site.feature_shape)


def _train(workspace: Workspace, site: Site, trial: Trial, report: Report) -> None:
    report({BEGINS: trial.key})
    training = _training(workspace, site, trial)
    with _delta_applied(workspace, trial.start), _without(workspace, trial.removed):
        trained = train(workspace, training, report, checkpoints_of=trial.key)
    _keep(workspace, site, trial, trained, site.execution.zero)


def _training(workspace: Workspace, site: Site, trial: Trial) -> Training:
    region = trial.region
    if trial.removed:
        left = _left(region.depth, trial.removed)
        places = tuple(left.index(layer) for layer in region.layers if layer in left)
        region = Region(places, len(left), "explicit") if places else Region.none(len(left))
    asked: list[Row] = []
    # Neither stage 1, nor the ceiling, nor what follows a finished training is stopped on the way.
    if site.execution.rungs and 0 < len(trial.region) < trial.region.depth and not trial.removed:
        asked = _example_rows(workspace, site, "visual") or _example_rows(workspace, site, "textual")
    return Training(_open_rows(workspace, trial.rows), region, trial.recipe, trial.seed, site.execution, asked)


def _keep(workspace: Workspace, site: Site, trial: Trial, trained: Trained, zero: int) -> None:
    """Put what was trained into the store."""
    if workspace.rank == 0:
        delta = _delta(workspace, trained, trial, site.base)
        about = {
            **{name: json_number(value) for name, value in trained.metrics.items()},
            "losses": [json_number(loss) for loss in trained.losses],
            "world": workspace.world,
            "zero": zero,
            "delta_bytes": sum(tensor.nbytes for tensor in delta.tensors.values()),
        }
        workspace.store.put(DELTA, trial.key, delta.save, about)
        workspace.store.delete(CHECKPOINT, trial.key)
    dist.barrier()


def _delta(workspace: Workspace, trained: Trained, trial: Trial, base: str) -> Delta:
    """The delta to the base: its layers are numbered as there, also where some were gone in the training."""
    recipe, path = trial.recipe, family_of(workspace.model.config).layers
    tensors = in_base(trained.tensors, path, _left(trial.region.depth, trial.removed))
    lora = recipe.mode == "lora" and len(trial.region) > 0
    rank, alpha = (recipe.lora_rank, recipe.lora_alpha) if lora else (0, 0)
    delta = Delta(tensors, trial.region, base, "lora" if lora else "full", rank, alpha)
    if not trial.removed or trial.start is None:
        return delta
    return stacked(load_delta(workspace.store, trial.start), delta)


@contextmanager
def _delta_applied(workspace: Workspace, key: str | None) -> Iterator[None]:
    """The base with a delta of the store set on it; the base alone where there is no key."""
    if key is None:
        yield
        return
    with applied(workspace.model, load_delta(workspace.store, key), workspace.base):
        yield


def _needed(work: Measuring | Evaluating) -> str | None:
    """The delta that is to be set on the base; none where its weights are compared with the base's."""
    return None if isinstance(work, Measuring) and work.measurement == "change" else work.delta


def _without(workspace: Workspace, removed: tuple[int, ...]) -> AbstractContextManager[None]:
    """The model without some layers; whether they may go was settled with the plan."""
    depth = len(decoder_layers(workspace.model))
    return pruned(workspace.model, removed, Region.none(depth))


def _left(depth: int, removed: tuple[int, ...]) -> list[int]:
    return [layer for layer in range(depth) if layer not in removed]


def agreed(workspace: Workspace, decide: Callable[[], T]) -> T:
    """What rank 0 decides, on every rank: what each sees in a store may differ for a moment.

    Raises:
        VrrayError: what rank 0 met.
    """
    found: list[Any] = [None]
    if workspace.rank == 0:
        try:
            found = [decide()]
        except VrrayError as error:
            found = [error]
    dist.broadcast_object_list(found, 0)
    if isinstance(found[0], VrrayError):
        raise found[0]
    decided: T = found[0]
    return decided


def _measure(workspace: Workspace, site: Site, work: Measuring) -> None:
    key = scores_key(site, work)
    if agreed(workspace, lambda: workspace.store.has(SCORES, key)):
        return
    samples: Samples = {}
    if work.measurement == "change":
        assert work.delta is not None, "without a tuning nothing has changed"
        tuned = changes(workspace.model, load_delta(workspace.store, work.delta), workspace.base)
        scores = {"change": LayerScores.of_weights("change", parameter_change(workspace.model, tuned))}
    else:
        rows = _open_rows(workspace, site.calibration_key)[: site.calibration]
        if work.measurement == "ablation" and all(row.images for row in rows):
            rows = [*rows, *_example_rows(workspace, site, "textual")]
        with _without(workspace, work.removed):
            execution = site.execution
            samples = measure(
                workspace, work.measurement, rows, batch=execution.micro_batch, recompute=execution.recomputed > 0
            )
        scores = {name: LayerScores.of_samples(name, values) for name, values in samples.items()}

    def write(folder: Path) -> None:
        np.savez(folder / SAMPLES, **samples)  # type: ignore[arg-type]

    if workspace.rank == 0:
        workspace.store.put(SCORES, key, write, {"scores": {name: each.to_json() for name, each in scores.items()}})
    dist.barrier()


def _evaluate(workspace: Workspace, work: Evaluating, tasks: Sequence[TaskExamples]) -> None:
    key = evaluation_key(work.delta, work.removed, tasks, work.blind)
    if agreed(workspace, lambda: workspace.store.has(EVALUATION, key)):
        return
    with _without(workspace, work.removed):
        records = evaluate_tasks(workspace, tasks, blind=work.blind)
        info = {
            **summarise(records, tasks),
            "removed": list(work.removed),
            "parameters": sum(parameter.numel() for parameter in workspace.model.parameters()),
            "latency_ms_per_token": None if work.blind else latency_ms_per_token(workspace),
        }
    if workspace.rank == 0:
        workspace.store.put(EVALUATION, key, lambda folder: write_records(folder, records), info)
    dist.barrier()


def _example_rows(workspace: Workspace, site: Site, ability: Ability) -> list[Row]:
    return example_rows(site.select, ability, workspace.processor, workspace.image_tokens, workspace.template)


def _open_rows(workspace: Workspace, key: str) -> Rows:
    with workspace.store.open(ROWS, key, only=FILES) as folder:
        return Rows(folder)  # a mapping outlives the file's name
