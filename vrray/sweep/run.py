"""Running a sweep: plan, features, projector stage, trials under Ray Tune, held-out scores, table and report."""

from __future__ import annotations

import io
import json
import os
import platform
import sys
import time
import uuid
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray import tune

from vrray.data.features import KIND as FEATURES
from vrray.errors import TrainingError
from vrray.report import draw_figures, format_leaderboard, render_report
from vrray.specs import SweepSpec
from vrray.store import Store
from vrray.sweep.bridge import DRIVER_MEMORY, point_of, tune_trial
from vrray.sweep.jobs import FeaturesJob, TrialJob, VariantsJob
from vrray.sweep.plan import estimated_seconds, plan_text, refuse_too_large
from vrray.sweep.prepare import Prepared, prepare
from vrray.sweep.progress import Progress, TuneProgress
from vrray.sweep.table import baselines, choose, sweep_table
from vrray.sweep.trial import DELTA, EVALUATION, Trial, evaluation_key, is_complete
from vrray.train.desk import Setup, follow
from vrray.train.group import WorkerGroups
from vrray.train.launch import Capacity, failure_reason


def run_sweep(spec: SweepSpec) -> None:
    """Run a sweep on the connected Ray cluster; whatever its store holds already is reused.

    Raises:
        ClusterError: the cluster cannot hold one trial.
        TrainingError: the projector stage failed, or every trial did.
    """
    began = time.monotonic()
    store, capacity = Store(spec.storage), Capacity.of_cluster()
    gpu = capacity.uses_gpus(spec)
    capacity.trials_at_once(spec)  # refuses a cluster that is too small before anything is prepared
    prepared = prepare(spec, store, gpu=gpu, worker_memory=capacity.worker_memory(spec))
    refuse_too_large(prepared, capacity)
    at_once = capacity.trials_at_once(spec, prepared.memory.total)
    trials = [prepared.trial(config) for config in prepared.configs()] if spec.search != "optuna" else []
    missing = [trial for trial in trials if not is_complete(store, prepared.site, trial)]
    print(plan_text(store, prepared, trials, capacity, at_once), flush=True)
    setup = Setup(store.uri, str(prepared.model_path), prepared.site.base, prepared.precision)
    groups = min(at_once, max(1, len(missing))) if trials else at_once
    steps = _steps_left(store, prepared, missing)
    with Progress(steps) as progress, WorkerGroups(spec, setup, count=groups, gpu=gpu) as workers:
        _compute_features(store, prepared, workers, progress)
        _train_projector(store, prepared, workers, progress)
        _say_time_left(store, prepared, missing, groups, progress)
        trials, failures = _run_trials(store, prepared, workers, trials, groups, progress)
        table = sweep_table(store, prepared, trials, failures)
        _score_held_out(store, prepared, workers, table, progress)
    table = sweep_table(store, prepared, trials, failures)
    seconds = time.monotonic() - began
    _write(store, prepared, table, seconds)
    if not choose(table):
        raise TrainingError(f"no trial finished: {'; '.join(sorted(set(failures.values()))) or 'none ran'}")
    print(f"report: {store.location('sweeps', spec.name, 'report.md')} ({seconds:.0f} s)", flush=True)


def _steps_left(store: Store, prepared: Prepared, missing: Sequence[Trial]) -> int:
    trials = [*missing, prepared.projector]
    return sum(trial.recipe.steps(prepared.rows) for trial in trials if not store.has(DELTA, trial.key))


def _compute_features(store: Store, prepared: Prepared, workers: WorkerGroups, progress: Progress) -> None:
    missing = tuple(chunk for chunk in prepared.site.chunks if not store.has(FEATURES, chunk.key))
    if missing:
        progress.say(f"vision features of {sum(len(chunk.images) for chunk in missing)} images")
        job = FeaturesJob(f"features-{uuid.uuid4().hex[:8]}", missing, prepared.roots, prepared.model_path)
        for _ in follow(workers.desk, job):
            pass


def _train_projector(store: Store, prepared: Prepared, workers: WorkerGroups, progress: Progress) -> None:
    if is_complete(store, prepared.site, prepared.projector):
        return
    progress.say("stage 1: the projector alone, on captions")
    try:
        for report in follow(workers.desk, TrialJob(prepared.site, prepared.projector)):
            progress.update("projector", report)
    except TrainingError as error:
        raise TrainingError(f"the projector stage failed: {error}") from error


def _say_time_left(store: Store, prepared: Prepared, missing: Sequence[Trial], groups: int, progress: Progress) -> None:
    seconds = estimated_seconds(store, prepared, missing, groups)
    if missing and seconds:
        progress.say(f"trials: about {seconds / 60:.0f} min at the projector stage's measured speed")


def _run_trials(
    store: Store, prepared: Prepared, workers: WorkerGroups, trials: list[Trial], groups: int, progress: Progress
) -> tuple[list[Trial], dict[str, str]]:
    """All missing trials through Tune; the trials that were run or found, and why some have failed, by key."""
    spec = prepared.spec
    by_point = {point_of(point): prepared.trial(point) for point in prepared.points()}
    pending = [c for c in prepared.configs() if not is_complete(store, prepared.site, by_point[point_of(c)])]
    searcher = _searcher(prepared)
    if searcher is None and not pending:
        return trials, {}
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
    trainable = tune.with_resources(
        tune.with_parameters(tune_trial, trials=by_point, site=prepared.site, store_uri=store.uri, desk=workers.desk),
        # Drivers take memory but no CPU: a driver that held one could starve the workers it waits for.
        tune.PlacementGroupFactory([{"CPU": 0, "memory": DRIVER_MEMORY}]),
    )
    tuner = tune.Tuner(
        trainable,
        param_space={"point": tune.grid_search(pending)} if searcher is None else {},
        tune_config=tune.TuneConfig(
            num_samples=1 if searcher is None else spec.trials or 8,
            # One driver more than groups is up, so that a group need not wait for the next driver's start.
            max_concurrent_trials=groups + (searcher is None),
            search_alg=searcher,
            scheduler=_scheduler(prepared),
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(
            name=f"{spec.name}-{uuid.uuid4().hex[:6]}",
            storage_path=store.location("ray"),
            callbacks=[TuneProgress(progress, workers.desk, by_point)],
            verbose=0,
        ),
    )
    failures: dict[str, str] = {}
    ran = {trial.key: trial for trial in trials}
    for result in tuner.fit():
        trial = by_point[point_of(result.config or {})]
        ran[trial.key] = trial
        if not is_complete(store, prepared.site, trial):
            step = (result.metrics or {}).get("step", 0)
            failures[trial.key] = (
                failure_reason(result.error) if result.error else f"stopped by the scheduler at step {step:g}"
            )
    return list(ran.values()), failures


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


def _score_held_out(
    store: Store, prepared: Prepared, workers: WorkerGroups, table: pa.Table, progress: Progress
) -> None:
    """Score the chosen variant and the baselines on the test split."""
    chosen = choose(table)
    if not chosen:
        return
    wanted = sorted({(row["key"], tuple(row["removed_layers"])) for row in (*baselines(table), chosen)})
    missing = tuple(v for v in wanted if not store.has(EVALUATION, evaluation_key(*v, prepared.test, False)))
    if not missing:
        return
    progress.say(f"held-out test split: the chosen variant and the baselines ({len(missing)} to score)")
    job = VariantsJob(f"test-{uuid.uuid4().hex[:8]}", prepared.site, missing, prepared.test)
    try:
        for _ in follow(workers.desk, job):
            pass
    except TrainingError as error:
        progress.say(f"held-out scores failed, the table goes without them: {error}")


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
