"""What a worker does for each job of a sweep: features; train, rank, prune and evaluate a trial; score variants.

Everything finished goes into the store under its key and is found there by a repeated or resumed sweep.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist
from transformers import AutoConfig

from vrray.data.features import compute_chunks
from vrray.data.ingest import with_embedded
from vrray.data.rows import FILES, Rows
from vrray.data.rows import KIND as ROWS
from vrray.data.tasks import TaskExamples
from vrray.evaluate.run import evaluate_tasks, latency_ms_per_token, rank_layers, summarise, write_records
from vrray.models.family import vision_tower
from vrray.pruning import pruned
from vrray.region import Region
from vrray.sweep.jobs import FeaturesJob, TrialJob, VariantsJob
from vrray.sweep.trial import DELTA, EVALUATION, SCORES, Site, Trial, evaluation_key, plans_of, scores_key
from vrray.train.checkpoint import KIND as CHECKPOINT
from vrray.train.desk import Report
from vrray.train.loop import Trained, Training, train
from vrray.train.measure import json_number
from vrray.train.workspace import Workspace
from vrray.variant import Delta, applied


def compute_features(workspace: Workspace, job: FeaturesJob, report: Report) -> None:
    vision = vision_tower(workspace.model)
    config = AutoConfig.from_pretrained(job.model_path)
    processor, images = workspace.processor.image_processor, with_embedded(workspace.store, job.images, job.embedded)
    share = job.chunks[workspace.rank :: workspace.world]
    compute_chunks(share, images, vision, config, processor, workspace.store)
    dist.barrier()


def run_trial(workspace: Workspace, job: TrialJob, report: Report) -> None:
    """Train once, rank the layers, then prune and evaluate many times; without tasks, only train."""
    site, trial, store = job.site, job.trial, workspace.store
    _use_features(workspace, site)
    if not store.has(DELTA, trial.key):
        _train(workspace, site, trial, report)
    if not site.select:
        return
    with _delta_applied(workspace, trial.key):
        if trial.counts != (0,):
            _ensure_scores(workspace, site, trial)
        plans = plans_of(store, site, trial)
        assert plans is not None
        for plan in plans:
            _evaluate_plan(workspace, trial.key, trial.region, plan, site.select, blind=False)
            report({"evaluated": len(plan)})
        _evaluate_plan(workspace, trial.key, trial.region, (), site.select, blind=True)


def evaluate_variants(workspace: Workspace, job: VariantsJob, report: Report) -> None:
    _use_features(workspace, job.site)
    for key, removed in job.variants:
        with _delta_applied(workspace, key) as region:
            _evaluate_plan(workspace, key, region, removed, job.tasks, blind=False)
        report({"evaluated": len(removed)})


def _use_features(workspace: Workspace, site: Site) -> None:
    if site.chunks:
        workspace.use_cached(site.chunks)
    else:
        workspace.use_live(with_embedded(workspace.store, site.images, site.embedded), site.feature_shape)


def _train(workspace: Workspace, site: Site, trial: Trial, report: Report) -> None:
    rows = _open_rows(workspace, trial.rows)
    training = Training(rows, trial.region, trial.recipe, trial.seed, site.execution)
    with _delta_applied(workspace, trial.start):
        trained = train(workspace, training, report, checkpoints_of=trial.key)
    if workspace.rank == 0:
        delta = _delta(trained, trial, site.base)
        about = {
            **{name: json_number(value) for name, value in trained.metrics.items()},
            "losses": [json_number(loss) for loss in trained.losses],
            "world": workspace.world,
            "zero": site.execution.zero,
            "delta_bytes": sum(tensor.nbytes for tensor in delta.tensors.values()),
        }
        workspace.store.put(DELTA, trial.key, delta.save, about)
        workspace.store.delete(CHECKPOINT, trial.key)
    dist.barrier()


def _delta(trained: Trained, trial: Trial, base: str) -> Delta:
    recipe = trial.recipe
    if recipe.mode == "lora" and len(trial.region):
        return Delta(trained.tensors, trial.region, base, "lora", recipe.lora_rank, recipe.lora_alpha)
    return Delta(trained.tensors, trial.region, base, "full")


@contextmanager
def _delta_applied(workspace: Workspace, key: str | None) -> Iterator[Region]:
    """The base with a delta of the store set on it; the base alone where there is no key."""
    if key is None:
        yield Region.none(1)
        return
    with workspace.store.open(DELTA, key) as folder:
        delta = Delta.load(folder)
        with applied(workspace.model, delta, workspace.base):
            yield delta.region


def _ensure_scores(workspace: Workspace, site: Site, trial: Trial) -> None:
    key = scores_key(trial.key, site.calibration_key, site.calibration)
    if workspace.store.has(SCORES, key):
        return
    rows = _open_rows(workspace, site.calibration_key)[: site.calibration]
    scores = rank_layers(workspace, [(row.prompt, row.images) for row in rows]).to_json()

    def write(folder: Path) -> None:
        (folder / "scores.json").write_text(json.dumps(scores, indent=1))

    if workspace.rank == 0:
        workspace.store.put(SCORES, key, write, scores)
    dist.barrier()


def _evaluate_plan(
    workspace: Workspace,
    delta: str,
    region: Region,
    removed: tuple[int, ...],
    tasks: Sequence[TaskExamples],
    *,
    blind: bool,
) -> None:
    key = evaluation_key(delta, removed, tasks, blind)
    if workspace.store.has(EVALUATION, key):
        return
    with pruned(workspace.model, removed, region):
        records = evaluate_tasks(workspace, tasks, blind=blind)
        info = {
            **summarise(records, tasks),
            "removed": list(removed),
            "parameters": sum(parameter.numel() for parameter in workspace.model.parameters()),
            "latency_ms_per_token": None if blind else latency_ms_per_token(workspace),
        }
    if workspace.rank == 0:
        workspace.store.put(EVALUATION, key, lambda folder: write_records(folder, records), info)
    dist.barrier()


def _open_rows(workspace: Workspace, key: str) -> Rows:
    with workspace.store.open(ROWS, key, only=FILES) as folder:
        return Rows(folder)  # a mapping outlives the file's name
