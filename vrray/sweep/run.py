"""Running a sweep: plan, features, projector stage, trials under Ray Tune, held-out scores, table and report."""

from __future__ import annotations

import io
import json
import os
import platform
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray import tune

from vrray.data.features import KIND as FEATURES
from vrray.data.features import FeatureChunk, compute_chunks
from vrray.errors import TrainingError
from vrray.report import draw_figures, format_leaderboard, render_report
from vrray.specs import SweepSpec
from vrray.store import Store
from vrray.sweep.bridge import fit_with_reports, quicken_controller, report_to_tune
from vrray.sweep.plan import estimated_seconds, plan_text
from vrray.sweep.prepare import Prepared, prepare
from vrray.sweep.progress import Progress, TuneProgress
from vrray.sweep.table import baselines, choose, sweep_table, trial_name
from vrray.sweep.trial import EVALUATION, Trial, VariantJob, evaluation_key, is_complete, run_trial, run_variants
from vrray.train.launch import Capacity, failure_reason, make_trainer

_DRIVER_MEMORY = 64 << 20


@dataclass(frozen=True)
class Outcome:
    """What a sweep left: its table, and its folder in the store."""

    table: pa.Table
    folder: str
    seconds: float


@dataclass(frozen=True)
class _Stage:
    """What every Ray Train run of a sweep needs."""

    store: Store
    prepared: Prepared
    gpu: bool

    def trainer(self, worker: Callable[[dict[str, Any]], None], config: dict[str, Any], name: str) -> Any:
        """A function of callbacks that makes the trainer; a fresh run name, so that nothing resumes half a run."""
        run = f"{name}-{uuid.uuid4().hex[:6]}"
        return lambda callbacks: make_trainer(
            worker,
            config,
            self.prepared.spec,
            gpu=self.gpu,
            name=run,
            storage=f"{self.store.uri.rstrip('/')}/ray/train",
            callbacks=callbacks,
        )


def run_sweep(spec: SweepSpec) -> Outcome:
    """Run a sweep on the connected Ray cluster; whatever its store holds already is reused.

    Raises:
        ClusterError: the cluster cannot hold one trial.
        TrainingError: the projector stage failed, or every trial did.
    """
    began = time.monotonic()
    store = Store(spec.storage)
    capacity = Capacity.of_cluster()
    at_once, gpu = capacity.trials_at_once(spec), capacity.uses_gpus(spec)
    prepared = prepare(spec, store, gpu=gpu, worker_memory=capacity.worker_memory(spec))
    trials = [prepared.trial(config) for config in prepared.configs()] if spec.search != "optuna" else []
    print(plan_text(store, prepared, trials, capacity, at_once), flush=True)
    stage = _Stage(store, prepared, gpu)
    missing = [trial for trial in trials if not is_complete(store, prepared.site, trial)]
    projector_missing = not is_complete(store, prepared.site, prepared.projector)
    total_steps = sum(trial.recipe.steps(prepared.rows) for trial in missing) + spec.projector_steps * projector_missing
    with Progress(total_steps) as progress:
        _compute_features(store, prepared, progress)
        if projector_missing:
            _train_projector(stage, progress)
            if missing:
                seconds = estimated_seconds(store, prepared, missing, at_once)
                progress.say(f"time left, from the measured projector stage: about {(seconds or 0) / 60:.0f} min")
        failures: dict[str, str] = {}
        if missing or spec.search == "optuna":
            trials, failures = _run_trials(stage, trials, at_once, progress)
        table = sweep_table(store, prepared, trials, failures)
        if _score_held_out(stage, table, progress):
            table = sweep_table(store, prepared, trials, failures)
    seconds = time.monotonic() - began
    _write(store, prepared, table, seconds)
    if not choose(table):
        raise TrainingError(f"no trial finished: {'; '.join(sorted(set(failures.values()))) or 'none ran'}")
    return Outcome(table, f"{store.uri.rstrip('/')}/sweeps/{spec.name}", seconds)


def _compute_features(store: Store, prepared: Prepared, progress: Progress) -> None:
    missing = [chunk for chunk in prepared.site.chunks if not store.has(FEATURES, chunk.key)]
    if not missing:
        return
    images = sum(len(chunk.images) for chunk in missing)
    began = time.monotonic()
    tasks = min(len(missing), max(1, int(ray.cluster_resources().get("CPU", 1))))
    compute = ray.remote(num_cpus=1)(_features_task)
    waiting = [compute.remote(missing[index::tasks], prepared, store) for index in range(tasks)]
    ray.get(waiting)
    progress.say(f"vision features of {images} images: {time.monotonic() - began:.0f} s, by {tasks} tasks")


def _features_task(chunks: list[FeatureChunk], prepared: Prepared, store: Store) -> None:
    from pathlib import Path

    compute_chunks(chunks, prepared.roots, Path(prepared.site.model_path), store)


def _train_projector(stage: _Stage, progress: Progress) -> None:
    progress.say("stage 1: the projector alone, on captions")
    config = {"site": stage.prepared.site, "trial": stage.prepared.projector}
    try:
        for report in fit_with_reports(stage.trainer(run_trial, config, f"projector-{stage.prepared.projector.key}")):
            progress.update("projector", report["metrics"])
    except ray.train.v2.api.exceptions.TrainingFailedError as error:
        raise TrainingError(f"the projector stage failed: {failure_reason(error)}") from error


def _run_trials(
    stage: _Stage, trials: list[Trial], at_once: int, progress: Progress
) -> tuple[list[Trial], dict[str, str]]:
    """All trials through Tune; those that the store holds return at once."""
    prepared, spec = stage.prepared, stage.prepared.spec
    quicken_controller()
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
    trainable = tune.with_resources(
        tune.with_parameters(_tune_trial, stage=stage),
        # Drivers take memory but no CPU: a driver that held one could starve the workers it waits for.
        tune.PlacementGroupFactory([{"CPU": 0, "memory": _DRIVER_MEMORY}]),
    )
    pending = [c for c in prepared.configs() if not is_complete(stage.store, prepared.site, prepared.trial(c))]
    searcher = _searcher(prepared)
    tuner = tune.Tuner(
        trainable,
        param_space={"point": tune.grid_search(pending)} if searcher is None else {},
        tune_config=tune.TuneConfig(
            num_samples=1 if searcher is None else spec.trials or 8,
            max_concurrent_trials=at_once,
            search_alg=searcher,
            scheduler=_scheduler(prepared),
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=f"{spec.name}-{uuid.uuid4().hex[:6]}",
            storage_path=f"{stage.store.uri.rstrip('/')}/ray/tune",
            callbacks=[TuneProgress(progress)],
            verbose=0,
        ),
    )
    results = tuner.fit()
    failures: dict[str, str] = {}
    ran = {trial.key: trial for trial in trials}
    for result in results:
        trial = prepared.trial(_point(result.config or {}))
        ran[trial.key] = trial
        if is_complete(stage.store, prepared.site, trial):
            continue
        if result.error is not None:
            failures[trial.key] = failure_reason(result.error)
        else:
            step = (result.metrics or {}).get("step", 0)
            failures[trial.key] = f"stopped early at step {step:g} by the scheduler"
    return list(ran.values()), failures


def _tune_trial(config: dict[str, Any], stage: _Stage) -> None:
    """One trial: drive its Ray Train run and hand its reports on to Tune."""
    trial = stage.prepared.trial(_point(config))
    name = trial_name(trial)
    if is_complete(stage.store, stage.prepared.site, trial):
        score = _select_score(stage, trial)
        report_to_tune({"metrics": {"score": score, "done_score": score}, "checkpoint": None}, _latest(name, {}))
        return
    quicken_controller()
    seen: dict[str, Any] = {}
    train_config = {"site": stage.prepared.site, "trial": trial}
    for report in fit_with_reports(stage.trainer(run_trial, train_config, f"trial-{trial.key}")):
        latest = report["metrics"]
        seen.update(latest)
        if "done" in latest:
            seen["done_score"] = latest["score"]
        seen.pop("done", None)  # Tune's own word for a trial that is over
        report_to_tune({"metrics": seen, "checkpoint": report["checkpoint"]}, _latest(name, latest))


def _latest(name: str, metrics: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "latest": {key: value for key, value in metrics.items() if key != "done"}}


def _point(config: dict[str, Any]) -> dict[str, Any]:
    return dict(config.get("point") or config)


def _select_score(stage: _Stage, trial: Trial) -> float:
    about = stage.store.describe(EVALUATION, evaluation_key(trial.key, (), stage.prepared.site.select, False))
    return float(about["score_visual"] or about["score_textual"] or 0.0)


def _searcher(prepared: Prepared) -> Any:
    if prepared.spec.search != "optuna":
        return None
    from optuna.samplers import TPESampler
    from ray.tune.search.optuna import OptunaSearch

    space = {name: tune.choice(values) for name, values in prepared.space.items()}
    return OptunaSearch(space=space, metric="score", mode="max", sampler=TPESampler(seed=prepared.spec.seeds[0]))


def _scheduler(prepared: Prepared) -> Any:
    if prepared.spec.scheduler != "asha":
        return None
    steps = prepared.spec.recipe().steps(prepared.rows)
    return tune.schedulers.ASHAScheduler(
        time_attr="step",
        metric="loss",
        mode="min",
        max_t=steps + 1,
        grace_period=max(1, steps // 4),
        reduction_factor=2,
    )


def _score_held_out(stage: _Stage, table: pa.Table, progress: Progress) -> bool:
    """Score the chosen variant and the baselines on the test split; whether anything was left to score."""
    chosen = choose(table)
    if not chosen:
        return False
    wanted = {(row["key"], tuple(row["removed_layers"])) for row in (*baselines(table), chosen)}
    tasks = stage.prepared.test

    def key(job: VariantJob, blind: bool) -> str:
        return evaluation_key(job.key, () if blind else job.removed, tasks, blind)

    jobs = [VariantJob(*variant) for variant in sorted(wanted)]
    missing = [job for job in jobs if not all(stage.store.has(EVALUATION, key(job, b)) for b in (False, True))]
    if not missing:
        return False
    progress.say(f"held-out test split: the chosen variant and the baselines ({len(missing)})")
    config = {"site": stage.prepared.site, "variants": missing, "tasks": tasks}
    try:
        for _ in fit_with_reports(stage.trainer(run_variants, config, f"test-{stage.prepared.spec.name}")):
            pass
    except ray.train.v2.api.exceptions.TrainingFailedError as error:
        progress.say(f"held-out scores failed, the table goes without them: {failure_reason(error)}")
        return False
    return True


def _write(store: Store, prepared: Prepared, table: pa.Table, seconds: float) -> None:
    folder = f"sweeps/{prepared.spec.name}"
    context = _context(prepared, seconds)
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    for name, data in draw_figures(table).items():
        store.write_bytes(f"{folder}/figures/{name}", data)
    store.write_text(f"{folder}/report.md", render_report(table, context))
    store.write_text(f"{folder}/sweep.json", json.dumps({"context": context, "base": prepared.site.base}, indent=1))
    store.write_bytes(f"{folder}/table.parquet", buffer.getvalue())
    print(format_leaderboard(table, color=sys.stdout.isatty()), flush=True)


def _context(prepared: Prepared, seconds: float) -> dict[str, str]:
    spec = prepared.spec
    packages = ("ray", "torch", "transformers", "deepspeed")
    resources = ray.cluster_resources()
    return {
        "model": spec.model,
        "data": f"{spec.data} ({prepared.rows} training rows)",
        "tasks": f"{', '.join(spec.tasks)}; {spec.examples} examples of each task and split",
        "recipe": json.dumps(prepared.trial(prepared.configs()[0]).recipe.model_dump()),
        "seeds": ", ".join(map(str, spec.seeds)),
        "workers": f"{spec.workers} a trial, {spec.cpus_per_worker:g} CPUs each",
        "command": " ".join(sys.argv),
        "machine": f"{platform.machine()}, {resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs",
        "versions": ", ".join(f"{package} {version(package)}" for package in packages),
        "wall time": f"{seconds:.0f} s (what the store already held was reused)",
    }
