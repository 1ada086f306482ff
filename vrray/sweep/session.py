"""What a sweep and a single training share: the plan, features, stage 1, and trials under Ray Tune."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray import tune

from vrray.budget import Budget
from vrray.data.features import KIND as FEATURES
from vrray.errors import BudgetError, SpecError, TrainingError
from vrray.region import place
from vrray.scores.table import measurement_of, missing_score
from vrray.specs import SweepSpec
from vrray.store import Store
from vrray.sweep.bridge import DRIVER_MEMORY, point_of, tune_trial
from vrray.sweep.jobs import FeaturesJob, ScoresJob, TrialJob
from vrray.sweep.live import LiveState
from vrray.sweep.loggers import tune_loggers
from vrray.sweep.packs import choose_pack, with_pack
from vrray.sweep.plan import estimated_seconds, plan_text, refuse_too_large
from vrray.sweep.prepare import Prepared, prepare
from vrray.sweep.progress import Progress, TuneProgress
from vrray.sweep.proposals import Listed, WithinBudget
from vrray.sweep.trial import (
    DELTA,
    SCORES,
    Measuring,
    Site,
    Trial,
    is_complete,
    read_scores,
    scores_key,
)
from vrray.train.desk import Setup, follow
from vrray.train.execution import RUNG, RUNG_SCORE
from vrray.train.group import WorkerGroups
from vrray.train.launch import Capacity, failure_reason
from vrray.upkeep.records import RAY

WEAK = "weaker than others, by --scheduler asha"


@dataclass(frozen=True)
class Session:
    """A sweep on the connected cluster: what it needs is prepared, worker groups start when first asked for.

    `trials` are those of a grid or a random search, `missing` those of them that the store does not hold; `tune_run` is
    the name that Ray Tune runs them under.
    """

    store: Store
    prepared: Prepared
    trials: list[Trial]
    missing: list[Trial]
    groups: int
    progress: Progress
    workers: WorkerGroups
    tune_run: str

    def started(self) -> Session:
        """Features, stage 1, and the layer scores that placements follow; the session with all its trials.

        Raises:
            BudgetError: the budget ended before.
            TrainingError: stage 1 failed, or the training whose scores are asked for.
        """
        self.pretrain()
        if not (works := _placing_works(self.store, self.prepared)):
            return self
        whole = self.prepared.space.all_layers()
        if any(work.delta == whole.key for work in works) and not self.store.has(DELTA, whole.key):
            self.progress.say("layer scores: all layers are tuned first")
            self._train("all", self.prepared.site.for_one(), whole)
        self.measure(works)
        prepared = _placed(self.store, self.prepared)
        trials, missing = _trials(self.store, prepared)
        return replace(self, prepared=prepared, trials=trials, missing=missing)

    def expect_trials(self) -> None:
        """Tell those who watch which trials there are."""
        live, missing = self.progress.live, {trial.key for trial in self.missing}
        for trial in self.trials:
            live.expect(trial.key, trial.region.name, "waiting" if trial.key in missing else "in the store")

    def measure(self, works: Sequence[Measuring]) -> None:
        """Layer scores, as far as the store does not hold them.

        Raises:
            TrainingError: a measurement failed.
        """
        site = self.prepared.site
        missing = tuple(work for work in works if not self.store.has(SCORES, scores_key(site, work)))
        if missing:
            self.progress.say(f"layer scores: {', '.join(work.measurement for work in missing)}")
            for _ in follow(self.workers.desk, ScoresJob(f"scores-{uuid.uuid4().hex[:8]}", site, missing)):
                pass

    def run_trials(self) -> tuple[list[Trial], dict[str, str]]:
        """All missing trials, as far as the budget goes: the trials, and the status of each incomplete one by key."""
        seconds = estimated_seconds(self.store, self.prepared, self.missing, self.groups)
        if self.missing and seconds:
            self.progress.say(f"trials: about {seconds / 60:.0f} min at the projector stage's measured speed")
        return self._run_under_tune()

    def pretrain(self) -> None:
        """Features and stage 1, the projector alone.

        Raises:
            BudgetError: the budget ended before.
            TrainingError: stage 1 failed.
        """
        self.compute_features()
        self._train_projector()

    def compute_features(self) -> None:
        """Vision features, as far as the store does not hold them."""
        store, prepared, site = self.store, self.prepared, self.prepared.site
        missing = [chunk for chunk in prepared.site.chunks if not store.has(FEATURES, chunk.key)]
        if not missing:
            return
        self.progress.say(f"vision features of {sum(len(chunk.images) for chunk in missing)} images")
        shares = [tuple(missing[place :: self.groups]) for place in range(self.groups)]
        jobs = [
            FeaturesJob(f"features-{uuid.uuid4().hex[:8]}", share, site.images, site.embedded, prepared.model_path)
            for share in shares
            if share
        ]
        for _ in follow(self.workers.desk, *jobs):
            pass

    def _train_projector(self) -> None:
        if is_complete(self.store, self.prepared.site, self.prepared.projector):
            return
        self.progress.say("stage 1: the projector alone, on captions")
        try:
            self._train("projector", self.prepared.site, self.prepared.projector)
        except TrainingError as error:
            raise TrainingError(f"the projector stage failed: {error}") from error

    def _train(self, name: str, site: Site, trial: Trial) -> None:
        """One training that all trials wait for."""
        for report in follow(self.workers.desk, TrialJob(site, trial)):
            self.progress.update(name, report)
        if not is_complete(self.store, site, trial):
            raise BudgetError(str(self._spent()))

    def _spent(self) -> str | None:
        spent: str | None = ray.get(self.workers.desk.spent.remote())
        return spent

    def _run_under_tune(self) -> tuple[list[Trial], dict[str, str]]:
        store, prepared, spec = self.store, self.prepared, self.prepared.spec
        space, site = prepared.space, prepared.site
        pending = [config for config in space.configs() if not is_complete(store, site, space.trial(config))]
        if spec.search != "optuna" and not pending:
            return self.trials, {}
        metrics = store.shown(RAY, self.tune_run)
        self.progress.say(f"metrics of each step: {metrics} ({', '.join(spec.loggers) or 'none'})")
        unfinished: dict[str, str] = {}
        ran = {trial.key: trial for trial in self.trials}
        for result in self._tuner(pending).fit():
            trial = space.trial(point_of(result.config or {}))
            ran[trial.key] = trial
            if not is_complete(store, site, trial):
                unfinished[trial.key] = self._why(trial, result)
        left = [t for t in self.missing if t.key not in unfinished and not is_complete(store, site, t)]
        spent = self._spent()
        if spec.search == "optuna" and spent:
            self.progress.say(f"the search ends after {len(ran)} trials: {spent}")
        return list(ran.values()), unfinished | self.not_run(left, spent or f"--max-trials {spec.max_trials} reached")

    def not_run(self, trials: Sequence[Trial], reason: str) -> dict[str, str]:
        """The status by key of trials that the budget left no room for."""
        if trials:
            self.progress.say(f"{len(trials)} trials are not run: {reason}; the same command goes on from the store")
        for trial in trials:
            self.progress.live.ended(trial.key, trial.region.name, "stopped", reason)
        return {trial.key: f"not run: {reason}" for trial in trials}

    def _why(self, trial: Trial, result: Any) -> str:
        """The status of a trial that has no complete result."""
        metrics = result.metrics or {}
        if result.error:
            return f"failed: {failure_reason(result.error)}"
        step = f"at step {metrics.get('step', 0):g}"
        if "failed" in metrics:
            return f"failed: {metrics['failed']}"
        if "paused" not in metrics:
            return f"stopped {step}: {WEAK}"
        within = "step" in metrics and not self.store.has(DELTA, trial.key)  # else only its healing is lacking
        return f"stopped {step}: {self._spent()}" if within else f"not run: {self._spent()}"

    def _tuner(self, pending: list[dict[str, Any]]) -> tune.Tuner:
        spec, space, desk, store = self.prepared.spec, self.prepared.space, self.workers.desk, self.store

        def is_trained(point: dict[str, Any]) -> bool:
            return store.has(DELTA, space.trial(point).key)

        def spent() -> bool:
            return ray.get(desk.spent.remote()) is not None

        listed = spec.search != "optuna"
        search = Listed(sorted(pending, key=is_trained, reverse=True)) if listed else _subset_search(self.prepared)
        os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
        os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
        trainable = tune.with_parameters(
            tune_trial, space=space, site=self.prepared.site, store_uri=self.store.uri, desk=desk
        )
        # Drivers take memory but no CPU: a driver that held one could starve the workers it waits for.
        resources = tune.PlacementGroupFactory([{"CPU": 0, "memory": DRIVER_MEMORY}])
        return tune.Tuner(
            tune.with_resources(trainable, resources),
            tune_config=tune.TuneConfig(
                num_samples=len(pending) if listed else spec.most_trials,
                # One driver more than is served is up, so that a group need not wait for the next driver's start.
                max_concurrent_trials=self.groups * self.prepared.site.execution.pack + listed,
                # A trial that a scheduler stops may leave its thread in its driver, which then serves no other.
                reuse_actors=spec.scheduler == "none",
                search_alg=WithinBudget(search, is_trained, spent, spec.max_trials),
                scheduler=_scheduler(self.prepared),
                trial_dirname_creator=lambda trial: (
                    f"{space.trial(point_of(trial.config)).region.name}-{trial.trial_id}"
                ),
            ),
            run_config=tune.RunConfig(
                name=self.tune_run,
                storage_path=self.store.location(RAY),
                callbacks=[TuneProgress(self.progress, desk, space), *tune_loggers(spec.loggers, spec.name)],
                failure_config=tune.FailureConfig(max_failures=spec.max_failures),
                verbose=0,
            ),
        )


@contextmanager
def open_session(
    spec: SweepSpec, *, train: bool = True, run: str | None = None, live: LiveState | None = None
) -> Iterator[Session]:
    """Prepare a sweep, say its plan, and keep its worker groups while inside.

    Args:
        run: what tells this run from all others on the store, but for those that it goes on from.
        live: its state, where others watch it.
        train: whether its trials are wanted; without them there is one worker group.

    Raises:
        ClusterError: the cluster cannot hold one trial.
    """
    began = time.monotonic()
    store, capacity = Store(spec.storage), Capacity.of_cluster()
    gpu = capacity.uses_gpus(spec)
    budget = _budget(spec, gpu)
    capacity.trials_at_once(spec)  # refuses a cluster that is too small before anything is prepared
    prepared = prepare(spec, store, gpu=gpu, worker_memory=capacity.worker_memory(spec))
    refuse_too_large(prepared, capacity)
    tune_loggers(spec.loggers, spec.name)  # refuses those that are not installed
    at_once = capacity.trials_at_once(spec, prepared.choice.memory.total)
    if not _placing_works(store, prepared):
        prepared = _placed(store, prepared)
    trials, missing = _trials(store, prepared) if train else ([], [])
    later = train and (not trials or bool(_placing_works(store, prepared)))
    groups = at_once if later else min(at_once, max(1, len(missing)))
    pack = choose_pack(prepared, None if later else missing, groups, capacity.worker_memory(spec), gpu)
    prepared = with_pack(prepared, pack)
    print(plan_text(store, prepared, trials, capacity, at_once, pack), flush=True)
    path, base = str(prepared.model_path), prepared.site.base
    run = run or f"run {uuid.uuid4().hex[:8]}"
    setup = Setup(store.uri, path, base, prepared.precision, spec.attention, spec.liger, prepared.template, run)
    steps, tune_run = _steps_left(store, prepared, missing), f"{spec.name}-{uuid.uuid4().hex[:6]}"
    store.ask(RAY, tune_run)
    workers = WorkerGroups(spec, setup, count=groups, gpu=gpu, budget=budget, began=began)
    with Progress(steps, live) as progress, workers:
        yield Session(store, prepared, trials, missing, groups, progress, workers, tune_run)


def _budget(spec: SweepSpec, gpu: bool) -> Budget:
    """
    Raises:
        SpecError: GPU hours are limited where no GPU is used.
    """
    if spec.max_gpu_hours is not None and not gpu:
        raise SpecError("max_gpu_hours: no GPU is used here, so none of its hours would ever pass; give --max-time")
    return Budget(spec.max_time, spec.max_gpu_hours, spec.workers if gpu else 0)


def _trials(store: Store, prepared: Prepared) -> tuple[list[Trial], list[Trial]]:
    """The trials of a grid or a random search, and those of them that the store does not hold."""
    trials = (
        [prepared.space.trial(config) for config in prepared.space.configs()]
        if prepared.spec.search != "optuna"
        else []
    )
    return trials, [trial for trial in trials if not is_complete(store, prepared.site, trial)]


def _placing(prepared: Prepared) -> dict[str, Measuring]:
    """What is measured for each score that a placement follows."""
    found = {}
    for score in prepared.space.placing_scores:
        tuned = score == "change" or prepared.spec.scores_of == "all"
        of = prepared.space.all_layers() if tuned else prepared.projector
        found[score] = Measuring(of.key, measurement_of(score))
    return found


def _placing_works(store: Store, prepared: Prepared) -> list[Measuring]:
    """What of it the store does not hold."""
    works = dict.fromkeys(_placing(prepared).values())
    return [work for work in works if not store.has(SCORES, scores_key(prepared.site, work))]


def _placed(store: Store, prepared: Prepared) -> Prepared:
    """With the values of the scores that placements follow.

    Raises:
        SpecError: the calibration rows do not give a score.
    """
    values = {}
    for score, work in _placing(prepared).items():
        found = read_scores(store, prepared.site, work)
        if score not in found:
            raise SpecError(f"placement by:{score}: {missing_score(score)}")
        values[score] = found[score].values
    return replace(prepared, space=replace(prepared.space, layer_scores=values))


def _steps_left(store: Store, prepared: Prepared, missing: Sequence[Trial]) -> int:
    trials = [*missing, prepared.projector]
    return sum(trial.recipe.steps(prepared.rows) for trial in trials if not store.has(DELTA, trial.key))


def _subset_search(prepared: Prepared) -> Any:
    """Proposes subsets of layers, from the named placements on."""
    spec, space = prepared.spec, prepared.space
    from vrray.sweep.subset_model import SubsetSpace
    from vrray.sweep.subsets import SubsetSearch

    regions = space.named_regions()
    counts = tuple(len(place("uniform", space.depth, k)) for k in spec.layers)
    subsets = SubsetSpace(space.depth, counts, tuple(space.learning_rates), tuple(spec.seeds))
    return SubsetSearch(subsets, [(name, region.layers) for name, region in regions], seed=spec.seeds[0])


def _scheduler(prepared: Prepared) -> Any:
    """ASHA compares trials at a quarter and at half of their steps, by a score on the select split."""
    if prepared.spec.scheduler != "asha":
        return None
    return tune.schedulers.ASHAScheduler(
        time_attr=RUNG,
        metric=RUNG_SCORE,
        mode="max",
        max_t=prepared.spec.recipe().steps(prepared.rows) + 1,
        grace_period=min(prepared.site.execution.rungs, default=1),
        reduction_factor=2,
    )
