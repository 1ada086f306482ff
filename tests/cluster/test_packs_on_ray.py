"""LoRA trials that share a worker group, through the real desk: trained together, evaluated one by one."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from tiny import DEPTH, Ground

from tests.cluster.processes import below
from vrray.data.tasks import Example, Task, TaskExamples
from vrray.errors import TrainingError
from vrray.plans import Pruning, Ranking
from vrray.region import place
from vrray.specs import Recipe, RunSpec
from vrray.store import Store
from vrray.sweep.jobs import TrialJob
from vrray.sweep.trial import DELTA, Site, Trial, is_complete
from vrray.train.desk import Setup, follow
from vrray.train.execution import Execution
from vrray.train.group import WorkerGroups

pytestmark = pytest.mark.ray

LORA = Recipe(
    learning_rate=3e-3,
    projector_learning_rate=1e-2,
    global_batch=4,
    max_steps=30,
    lora_rank=4,
    lora_alpha=16,
    lora_dropout=0.0,
    precision="fp32",
)
PRUNING = Pruning((Ranking("angular"),), (0, 2, 3), (0, 1))


@pytest.fixture
def site(own_ground: Ground) -> Site:
    seen = tuple(Example(f"v{n}", "Which colour?", "red", image) for n, image in enumerate(own_ground.photos[:4]))
    select = (TaskExamples(Task("colours", "visual", "exact", ""), "select", seen, 0.25),)
    execution = Execution(micro_batch=4, checkpoint_steps=5, pack=3)
    ground = own_ground
    return Site(ground.base, ground.chunks, ground.images, (), (4, 16), select, "rows", 6, execution)


@pytest.fixture
def groups(ray_here: None, own_ground: Ground) -> WorkerGroups:
    spec = RunSpec.parse({"workers": 1, "global_batch": 4, "max_failures": 1, "storage": own_ground.store})
    setup = Setup(own_ground.store, own_ground.model, own_ground.base, "fp32")
    return WorkerGroups(spec, setup, count=1, gpu=False)


def trial(key: str, layers: str, **recipe: Any) -> Trial:
    return Trial(key, place(layers, DEPTH), LORA.model_copy(update=recipe), 0, "rows", None, PRUNING)


TRIALS = (trial("a", "1,4"), trial("b", "5"), trial("c", "1,5"))


class Follower(threading.Thread):
    """Follows one job, as a driver of Tune's does; cancels it after a step where that is asked for."""

    def __init__(self, desk: Any, job: TrialJob, stop_after: float | None = None):
        super().__init__(daemon=True)
        self.desk, self.job, self.stop_after = desk, job, stop_after
        self.reports: list[dict[str, Any]] = []
        self.failure: str | None = None
        self.start()

    def run(self) -> None:
        try:
            for report in follow(self.desk, self.job):
                self.reports.append(report)
                if self.stop_after is not None and report.get("step") == self.stop_after:
                    ray.get(self.desk.cancel.remote(self.job.key))
        except TrainingError as error:
            self.failure = str(error)

    @property
    def steps(self) -> list[float]:
        return [report["step"] for report in self.reports if "loss" in report]

    def join(self, timeout: float | None = 240) -> None:
        super().join(timeout)
        assert not self.is_alive(), f"{self.job.key} has no end: {self.reports[-1:]}"


def test_trials_train_together_and_end_one_by_one(site: Site, groups: WorkerGroups, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with groups:
        alone = replace(site, execution=replace(site.execution, pack=1))
        singles = [Follower(groups.desk, TrialJob(alone, replace(t, key=f"alone-{t.key}"))) for t in TRIALS]
        for follower in singles:
            follower.join()
        reckless = trial("r", "3", learning_rate=1e30, projector_learning_rate=1e30, warmup_ratio=0.0)
        jobs = [TrialJob(replace(site, execution=replace(site.execution, pack=5)), t) for t in (*TRIALS, reckless)]
        stopped = replace(jobs[0], trial=replace(TRIALS[0], key="stopped"))
        followers = [*(Follower(groups.desk, job) for job in jobs), Follower(groups.desk, stopped, stop_after=3)]
        for follower in followers:
            follower.join()
    for follower, single in zip(followers[:3], singles, strict=True):
        assert follower.failure is None and single.failure is None
        assert follower.steps == single.steps == [float(step) for step in range(1, 31)]
        about, other = (store.describe(DELTA, f.job.key) for f in (follower, single))
        assert about["losses"] == pytest.approx(other["losses"], rel=1e-3)
        assert about["pack"] == 5 and "pack" not in other
        assert [r["evaluated"] for r in follower.reports if "evaluated" in r] == [0, 1, 0]
        assert is_complete(store, site, follower.job.trial)
    assert followers[3].failure is not None and "not finite" in followers[3].failure
    assert followers[4].failure == "cancelled"
    assert 3 <= len(followers[4].steps) < 30
    assert not store.has(DELTA, "stopped") and not store.has(DELTA, "r")


def test_a_killed_worker_costs_the_pack_the_steps_since_its_checkpoints(
    site: Site, groups: WorkerGroups, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    with groups:
        followers = [Follower(groups.desk, TrialJob(site, t)) for t in TRIALS]
        while not followers[0].steps or followers[0].steps[-1] < 12:
            assert followers[0].is_alive()
            time.sleep(0.05)
        (worker,) = below(os.getpid(), "ray::", "TrainWorker")
        worker.kill()
        for follower in followers:
            follower.join()
    for follower in followers:
        assert follower.failure is None
        said = [report["say"] for report in follower.reports if "say" in report]
        assert any("others go on from the last checkpoint" in text for text in said)
        assert any(text.startswith("goes on from the checkpoint after step") for text in said)
        about = store.describe(DELTA, follower.job.key)
        assert (len(about["losses"]), about["pack"]) == (30, 3)
