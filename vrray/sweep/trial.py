"""What the Ray Train workers of one trial do: train once, rank the layers, then prune and evaluate many times.

Everything finished goes into the store under its key and is found there by a repeated or resumed sweep.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vrray.data.features import FeatureChunk
from vrray.data.tasks import TaskExamples
from vrray.region import Region
from vrray.specs import Recipe
from vrray.store import Store, content_key

DELTA, SCORES, EVALUATION = "delta", "scores", "evaluation"
REPORT_EVERY = 5


@dataclass(frozen=True)
class Site:
    """What all trials of a sweep share: the base, the data, the store."""

    store_uri: str
    model_path: str
    base: str
    precision: Literal["bf16", "fp32"]
    chunks: tuple[FeatureChunk, ...]
    select: tuple[TaskExamples, ...]
    calibration_key: str
    calibration: int
    micro_batch: int
    resident: bool
    activation_checkpointing: bool


@dataclass(frozen=True)
class Trial:
    """One training and the pruning plans that are evaluated on it. `rows` and `start` are keys in the store."""

    key: str
    region: Region
    recipe: Recipe
    seed: int
    rows: str
    start: str | None
    counts: tuple[int, ...]


@dataclass(frozen=True)
class VariantJob:
    """A finished variant to evaluate on further examples."""

    key: str
    removed: tuple[int, ...]


def trial_key(site_base: str, rows: str, region: Region, recipe: Recipe, seed: int, start: str | None) -> str:
    """The key of a delta: a hash of exactly what determines its weights."""
    return content_key(
        {
            "format": 1,
            "base": site_base,
            "rows": rows,
            "layers": list(region.layers),
            "recipe": recipe.model_dump(),
            "seed": seed,
            "start": start,
        }
    )


def evaluation_key(delta: str, removed: Sequence[int], tasks: Sequence[TaskExamples], blind: bool) -> str:
    """The key of an evaluation: the variant, and every question with its answer."""
    asked = [
        [group.task.name, group.split, content_key({"examples": [vars(example) for example in group.examples]})]
        for group in tasks
    ]
    return content_key({"format": 1, "delta": delta, "removed": list(removed), "tasks": asked, "blind": blind})


def scores_key(delta: str, calibration_key: str, calibration: int) -> str:
    return content_key({"format": 1, "delta": delta, "rows": calibration_key, "samples": calibration})


def plans_of(store: Store, site: Site, trial: Trial) -> list[tuple[int, ...]] | None:
    """The layers removed by each plan of a trial, once its layer scores are there."""
    from vrray.pruning import nested_plans
    from vrray.scores import LayerScores

    if trial.counts == (0,):
        return [()]
    key = scores_key(trial.key, site.calibration_key, site.calibration)
    if not store.has(SCORES, key):
        return None
    return nested_plans(LayerScores.from_json(store.describe(SCORES, key)), trial.region, trial.counts)


def is_complete(store: Store, site: Site, trial: Trial) -> bool:
    """Whether the trial's delta and all evaluations of its plans are in the store."""
    plans = plans_of(store, site, trial)
    if plans is None or not store.has(DELTA, trial.key):
        return False
    wanted = [(plan, False) for plan in plans] + [((), True)]
    return all(store.has(EVALUATION, evaluation_key(trial.key, plan, site.select, blind)) for plan, blind in wanted)


def run_trial(config: dict[str, Any]) -> None:
    """The Ray Train worker function of a trial; `config` holds a `Site` and a `Trial`."""
    from vrray.train.loop import Training, train
    from vrray.variant import Delta, applied

    site: Site = config["site"]
    trial: Trial = config["trial"]
    store, workspace = _set_up(site)
    if not store.has(DELTA, trial.key):
        rows = _read_rows(store, trial.rows)
        training = Training(
            rows,
            trial.region,
            trial.recipe,
            trial.seed,
            site.micro_batch,
            site.resident,
            site.activation_checkpointing,
        )
        with _start(store, workspace, trial.start):
            trained = train(workspace, training, _report, REPORT_EVERY)
        recipe = trial.recipe
        lora = recipe.mode == "lora" and len(trial.region) > 0
        delta = Delta(
            trained.tensors,
            trial.region,
            site.base,
            "lora" if lora else "full",
            recipe.lora_rank if lora else 0,
            recipe.lora_alpha if lora else 0,
        )
        if workspace.rank == 0:
            info = {**trained.metrics, "losses": trained.losses, "world": workspace.world}
            store.put(DELTA, trial.key, delta.save, info)
        _barrier()
    with store.open(DELTA, trial.key) as folder:
        delta = Delta.load(folder)
    with applied(workspace.model, delta, site.base):
        scores = _evaluate_trial(store, workspace, site, trial)
    workspace.features.close()
    _report({"done": 1.0, "score": scores}, pointer=store.location(DELTA, trial.key))


def run_variants(config: dict[str, Any]) -> None:
    """The Ray Train worker function that evaluates finished variants on other examples, one after the other."""
    from vrray.variant import Delta, applied

    site: Site = config["site"]
    store, workspace = _set_up(site)
    for job in config["variants"]:
        with store.open(DELTA, job.key) as folder:
            delta = Delta.load(folder)
        with applied(workspace.model, delta, site.base):
            _evaluate_plan(store, workspace, job.key, delta.region, job.removed, config["tasks"], blind=False)
            _evaluate_plan(store, workspace, job.key, delta.region, (), config["tasks"], blind=True)
    workspace.features.close()
    _report({"done": 1.0}, pointer=None)


def _set_up(site: Site) -> tuple[Store, Any]:
    from transformers.utils import logging as transformers_logging

    from vrray.train.workspace import Workspace

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    store = Store(site.store_uri)
    return store, Workspace.set_up(Path(site.model_path), site.base, site.precision, store, site.chunks)


def _start(store: Store, workspace: Any, start: str | None) -> Any:
    """The weights that training starts from: the base, with the stage-1 projector where there is one."""
    from contextlib import nullcontext

    from vrray.variant import Delta, applied

    if start is None:
        return nullcontext()
    with store.open(DELTA, start) as folder:
        return applied(workspace.model, Delta.load(folder), workspace.base)


def _evaluate_trial(store: Store, workspace: Any, site: Site, trial: Trial) -> float:
    if trial.counts != (0,):
        _ensure_scores(store, workspace, site, trial)
    plans = plans_of(store, site, trial)
    assert plans is not None
    for plan in plans:
        _evaluate_plan(store, workspace, trial.key, trial.region, plan, site.select, blind=False)
        _report({"evaluated": float(len(plan))})
    _evaluate_plan(store, workspace, trial.key, trial.region, (), site.select, blind=True)
    about = store.describe(EVALUATION, evaluation_key(trial.key, (), site.select, False))
    return float(about["score_visual"])


def _ensure_scores(store: Store, workspace: Any, site: Site, trial: Trial) -> None:
    from vrray.evaluate.run import rank_layers

    key = scores_key(trial.key, site.calibration_key, site.calibration)
    if store.has(SCORES, key):
        return
    rows = _read_rows(store, site.calibration_key)[: site.calibration]
    scores = rank_layers(workspace, [(row.prompt, row.image) for row in rows])
    if workspace.rank == 0:
        text = json.dumps(scores.to_json(), indent=1)
        store.put(SCORES, key, lambda folder: _write(folder / "scores.json", text), scores.to_json())
    _barrier()


def _evaluate_plan(
    store: Store,
    workspace: Any,
    delta: str,
    region: Region,
    removed: tuple[int, ...],
    tasks: Sequence[TaskExamples],
    *,
    blind: bool,
) -> None:
    from vrray.evaluate.run import evaluate_tasks, latency_ms_per_token, summarise, write_records
    from vrray.pruning import pruned

    key = evaluation_key(delta, removed, tasks, blind)
    if store.has(EVALUATION, key):
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
        store.put(EVALUATION, key, lambda folder: write_records(folder, records), info)
    _barrier()


def _read_rows(store: Store, key: str) -> Any:
    from vrray.data.encode import KIND, read_rows

    with store.open(KIND, key) as folder:
        return read_rows(folder)


def _report(metrics: dict[str, float], pointer: str | None = None) -> None:
    import ray.train

    checkpoint = None
    if pointer is not None and ray.train.get_context().get_world_rank() == 0:
        folder = Path(tempfile.mkdtemp(prefix="vrray-"))
        _write(folder / "artefact.json", json.dumps({"delta": pointer}))
        checkpoint = ray.train.Checkpoint.from_directory(str(folder))
    ray.train.report(metrics, checkpoint=checkpoint)


def _write(path: Path, text: str) -> None:
    path.write_text(text)


def _barrier() -> None:
    import torch.distributed as dist

    dist.barrier()
