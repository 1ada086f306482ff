"""A sweep of many trials with a trainer that is made up: what Tune, bridge, desk, store, table and report take.

python -m benchmarks.scale [--trials 10 100 1000] [--storage DIR]

The plan, the worker groups' desk, Ray Tune, the artefacts and their keys, the table and the report are the real ones;
only what a Ray Train worker does is replaced, by a Ray task without torch that writes artefacts of the right form at
once. Each number of trials is a process and a store of its own. Prints Markdown: seconds, and MiB at their peak.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray

from vrray.claims import Claims
from vrray.data.tasks import TaskExamples
from vrray.evaluate.records import Answered, summarise, write_records
from vrray.scores.table import LayerScores
from vrray.specs import SweepSpec
from vrray.store import Store
from vrray.sweep import run, session
from vrray.sweep.jobs import TrialJob, VariantsJob
from vrray.sweep.trial import (
    DELTA,
    EVALUATION,
    SCORES,
    Evaluating,
    Measuring,
    Site,
    Trial,
    evaluation_key,
    next_work,
    scores_key,
)
from vrray.train.desk import Setup
from vrray.train.group import WorkerGroups

PLACEMENTS = ("all", "uniform", "bottom", "top", "random")
STEPS = 20  # reports of each training
DEPTH = 30  # decoder layers of the demo model, whose plan it is


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--trials", type=int, nargs="+", default=[10, 100, 1000], help=f"multiples of {len(PLACEMENTS)}"
    )
    parser.add_argument("--storage", help="where the stores are kept [nowhere]")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(_measure(options.trials[0], options.storage)))
        return
    for number, trials in enumerate(options.trials):
        found = _in_a_process(trials, options.storage)
        if not number:
            print(f"| {' | '.join(found)} |\n|{' --- |' * len(found)}")
        print(f"| {' | '.join(f'{value:,.4g}' if value < 1000 else f'{value:,.0f}' for value in found.values())} |")


def _in_a_process(trials: int, storage: str | None) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as scratch:
        place = str(Path(storage or scratch, str(trials)).absolute())
        command = [sys.executable, "-m", "benchmarks.scale", "--one", "--trials", str(trials), "--storage", place]
        ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return found


def _measure(trials: int, storage: str) -> dict[str, float]:
    """One sweep: seconds of its phases, memory, and the size of what is written again and again."""
    spec = SweepSpec.parse(
        {
            "placements": [*PLACEMENTS],
            "seeds": [*range(trials // len(PLACEMENTS))],
            "prune": [0, 1, 2, 3, 4],
            "features": "live",
            "max_steps": STEPS,
            "projector_steps": STEPS,
            "workers": 1,
            "pack": 1,
            "storage": storage,
        }
    )
    seconds = dict.fromkeys(("plan and stage 1", "trials", "table", "report"), 0.0)
    for module, name, phase in (
        (session.Session, "run_trials", "trials"),
        (run, "sweep_table", "table"),
        (run, "_write", "report"),
    ):
        setattr(module, name, _timed(getattr(module, name), phase, seconds))
    setattr(session, WorkerGroups.__name__, SimulatedGroups)
    ray.init(num_cpus=2, log_to_driver=False, logging_level="ERROR")
    began = time.perf_counter()
    run.run_sweep(spec)
    seconds["plan and stage 1"] = time.perf_counter() - began - sum(seconds.values())
    store, folder = Store(storage), Path(storage)
    table = store.read_table("sweeps/sweep/table.parquet")
    assert set(table["status"].to_pylist()) == {"complete"}, "every made-up trial finishes"
    tune = sum(path.stat().st_size for path in folder.glob("ray/sweep-*/*") if path.is_file())
    return {
        "trials": trials,
        "variants": table.num_rows,
        **{f"{phase}, s": value for phase, value in seconds.items()},
        "s a trial": seconds["trials"] / trials,
        "driver, MiB": _peak_mib(),
        "desk, MiB": SimulatedGroups.desk_mib,
        "live.json, KiB": (folder / "sweeps/sweep/live.json").stat().st_size / 1024,
        "Tune's state, KiB": tune / 1024,
    }


def _timed(function: Callable[..., Any], phase: str, seconds: dict[str, float]) -> Callable[..., Any]:
    def timed(*arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            seconds[phase] += time.perf_counter() - began

    return timed


def _peak_mib(_: object = None) -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class SimulatedGroups(WorkerGroups):
    """Worker groups whose Ray Train run is a Ray task that makes everything up."""

    desk_mib = 0.0

    def _trainer(self, group: str, workers: int) -> Any:
        return Simulated(self._setup, self._desk, group)

    def __exit__(self, *error: Any) -> None:
        SimulatedGroups.desk_mib = ray.get(self.desk.__ray_call__.remote(_peak_mib))
        super().__exit__(*error)


@dataclass(frozen=True)
class Simulated:
    """Stands where a `TorchTrainer` does."""

    setup: Setup
    desk: Any
    group: str

    def fit(self) -> None:
        ray.get(ray.remote(num_cpus=1)(_serve).remote(self.setup, self.desk, self.group))


def _serve(setup: Setup, desk: Any, group: str) -> None:
    """What `vrray.train.desk.serve` does, with jobs that are made up."""
    store, number = Store(setup.store_uri), 0
    claims = Claims(store, setup.run)
    while (jobs := ray.get(desk.jobs.remote(group, number))) != "close":
        if jobs is None:
            time.sleep(0.05)
            continue
        (job,) = jobs
        number += 1
        if isinstance(job, VariantsJob):
            for key, removed in job.variants:
                _evaluate(store, Evaluating(key, removed), job.tasks)
        else:
            assert isinstance(job, TrialJob) and claims.take(job.key) is None
            with claims.kept(job.key):
                _run_trial(store, job.site, job.trial, partial(_post, desk, job.key))
        ray.get(desk.end.remote(job.key))


def _post(desk: Any, key: str, metrics: dict[str, Any]) -> None:
    ray.get(desk.post.remote(key, metrics))


def _run_trial(store: Store, site: Site, trial: Trial, report: Callable[[dict[str, Any]], object]) -> None:
    while (work := next_work(store, site, trial)) is not None:
        if isinstance(work, Trial):
            _train(store, work, report)
        elif isinstance(work, Measuring):
            values = random.Random(scores_key(site, work)).sample(range(1000), DEPTH)
            scores = {"angular": LayerScores("angular", tuple(map(float, values)), (0.0,) * DEPTH, 48).to_json()}
            store.put(SCORES, scores_key(site, work), _write_nothing, {"scores": scores})
        else:
            _evaluate(store, work, site.select)
            report({"evaluated": len(work.removed)})


def _train(store: Store, trial: Trial, report: Callable[[dict[str, Any]], object]) -> None:
    rates = dict.fromkeys(("learning_rate", "samples_per_second", "supervised_tokens_per_second", "peak_mib"), 1.0)
    for step in range(1, STEPS + 1):
        report({"step": step, "steps": STEPS, "loss_mean": 4 / step, "step_seconds": 0.1, **rates})
    measured = {"train_seconds": 1.0, "step_seconds": 0.1, "peak_mib": 1.0, "flops_per_second": 1e15}
    store.put(DELTA, trial.key, _write_nothing, measured)


def _write_nothing(folder: Path) -> None:
    (folder / "made-up").write_bytes(b"")


def _evaluate(store: Store, work: Evaluating, tasks: Sequence[TaskExamples]) -> None:
    key = evaluation_key(work.delta, work.removed, tasks, work.blind)
    draw = random.Random(key)
    records = [
        Answered(
            group.task.name, group.split, e.id, e.question, e.image, e.answer, "", draw.randrange(2), work.blind, 1.0
        )
        for group in tasks
        for e in group.examples
    ]
    info = {**summarise(records, tasks), "parameters": 134 * 10**6 - len(work.removed), "latency_ms_per_token": 1.0}
    store.put(EVALUATION, key, lambda folder: write_records(folder, records), info)


if __name__ == "__main__":
    main()
