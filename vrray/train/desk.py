"""The desk of a sweep: where jobs are left, where worker groups fetch them, and where their reports are followed.

Light to import, since every Tune trial does.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import ray

from vrray.budget import Budget
from vrray.errors import TrainingError

_IDLE_SECONDS = 0.2
_DEFERRED_SECONDS = 5.0
_ABANDONED_SECONDS = 60.0
_CANCELLED = "cancelled"
Report = Callable[[dict[str, Any]], None]
Verdict = Literal["go on", "pause", "cancel"]
BEGINS = "begins"  # reported before a training, with its key


class Job(Protocol):
    """Something that every worker of a group runs at the same time. `key` is unique among the jobs of a desk."""

    @property
    def key(self) -> str: ...

    def run(self, workspace: Any, report: Report) -> None:
        """Run on this rank; all ranks call `report` equally often, rank 0's metrics are passed on.

        A report `{"say": text}` is for the user to read. A training says that it begins (`BEGINS`), and each `step`.

        Raises:
            Cancelled, Paused: by `report`, on all ranks.
            Deferred: the job is to come again later.
        """


@dataclass(frozen=True)
class Setup:
    """What a worker loads when its group starts."""

    store_uri: str
    model_path: str
    base: str
    precision: Literal["bf16", "fp32"]
    attention: Literal["auto", "flash_attention_2", "sdpa", "eager"] = "auto"
    liger: bool = False
    template: str = "chat"
    run: str = "a run"  # in words that tell it from others: see `vrray.claims`


class Cancelled(Exception):
    """Nobody wants the job's result any more; raised on all ranks at the same report."""


class Deferred(Exception):
    """Another run is at the job's work; raised by the job on all ranks. It comes again after the others."""


class Paused(Exception):
    """The run's budget is spent: the training that reports is to keep a checkpoint and end. On all ranks at once."""


_RAISED: dict[Verdict, type[Exception] | None] = {"go on": None, "pause": Paused, "cancel": Cancelled}


class Desk:
    """The jobs of a sweep and their reports (a Ray actor).

    Once the budget is spent, trainings do not begin and those that go on are paused; all other work is done.

    Args:
        elapsed: seconds that the run has taken already.
    """

    def __init__(self, max_failures: int = 0, budget: Budget | None = None, elapsed: float = 0.0) -> None:
        self._max_failures = max_failures
        self._budget = budget or Budget()
        self._start = time.monotonic() - elapsed
        self._begun: dict[str, float] = {}  # when a group took the jobs that are going
        self._busy = 0.0
        self._failures: dict[str, int] = {}
        self._failed_starts: int | None = None  # in a row; None until a group has started
        self._waiting: list[Job] = []
        self._not_before: dict[str, float] = {}  # when a job that was deferred may come again
        self._taken: dict[str, list[Job | None]] = {}  # by group; None for what is over or was deferred
        self._reports: dict[str, list[dict[str, Any]]] = {}
        self._ended: dict[str, str | None] = {}
        self._followed: dict[str, float] = {}
        self._closed = False
        self._broken: str | None = None

    def submit(self, job: Job) -> None:
        """Take in a job; one that is waiting or running already, or has failed, is not started a second time."""
        self._followed[job.key] = time.monotonic()
        going = job.key in self._reports and job.key not in self._ended
        if going or self._ended.get(job.key) not in (None, _CANCELLED):  # Tune repeats the trial of a job that failed
            return
        self._reports[job.key] = []
        self._ended.pop(job.key, None)
        if self._broken is None:
            self._waiting.append(job)
        else:
            self.end(job.key, self._broken)

    def job(self, group: str, number: int) -> Job | str | None:
        """The group's job of that number: the same for every rank that asks; "close" at the end; None to wait."""
        taken = self._taken.setdefault(group, [])
        if number < len(taken):
            return taken[number]
        if self._closed:
            return "close"
        now = time.monotonic()
        job = next((job for job in self._waiting if self._not_before.get(job.key, now) <= now), None)
        if job is None:
            return None
        self._waiting.remove(job)
        taken.append(job)
        if number > 1 and (old := taken[number - 2]) is not None and old.key in self._ended:
            taken[number - 2] = None  # no rank is that far behind
        self._begun[job.key] = now
        self._failed_starts = 0
        return job

    def post(self, key: str, metrics: dict[str, Any]) -> Verdict:
        """Take in a report; what becomes of the job."""
        if BEGINS not in metrics:
            self._reports[key].append(metrics)
        if key in self._ended or time.monotonic() - self._followed[key] >= _ABANDONED_SECONDS:
            return "cancel"
        training = BEGINS in metrics or "step" in metrics
        return "pause" if training and self.spent() else "go on"

    def spent(self) -> str | None:
        """Which limit of the budget is reached; None while there is some left."""
        now = time.monotonic()
        going = sum(now - begun for begun in self._begun.values())
        return self._budget.reached(now - self._start, self._busy + going)

    def end(self, key: str, failure: str | None = None) -> None:
        self._leave(key)
        self._ended.setdefault(key, failure)

    def _leave(self, key: str) -> None:
        """Count the time of the group that was at a job."""
        now = time.monotonic()
        self._busy += now - self._begun.pop(key, now)

    def defer(self, group: str, key: str, reason: str) -> None:
        """Put the job that a group has begun back in line, behind the others; once the budget is spent, end it."""
        self._leave(key)
        taken = self._taken[group]
        (place,) = [place for place, job in enumerate(taken) if job is not None and job.key == key]
        job, taken[place] = taken[place], None
        if key in self._ended or self.spent():
            self.end(key)
        elif job is not None:
            if key not in self._not_before:
                self._reports[key].append({"say": reason})
            self._not_before[key] = time.monotonic() + _DEFERRED_SECONDS
            self._waiting.append(job)

    def group_failed(self, group: str, reason: str) -> bool:
        """Put back whatever the group was at, or end it; whether to start another group.

        A job that raised has ended with its own error by then and is not repeated. One that is still going was lost
        with its workers: another group takes it up, from its last checkpoint, until it was lost too often. Where the
        very first group fails before it takes a job, the next one would fail too, and every job ends; later on, a node
        may just have been lost.
        """
        taken = self._taken.pop(group, [])
        for job in taken:
            if job is not None and job.key not in self._ended:
                self._lose(job, reason)
        if taken:
            return True
        if self._failed_starts is not None and self._failed_starts < self._max_failures:
            self._failed_starts += 1
            return True
        self._broken = f"workers could not start: {reason}"
        for job in self._waiting:
            self.end(job.key, self._broken)
        self._waiting = []
        return False

    def _lose(self, job: Job, reason: str) -> None:
        self._leave(job.key)
        self._failures[job.key] = self._failures.get(job.key, 0) + 1
        if "OutOfMemory" in reason:
            self.end(job.key, f"{reason}; a worker's node ran out of memory: lower --micro-batch or --workers a node")
        elif self._failures[job.key] > self._max_failures:
            self.end(job.key, f"its workers were lost {self._failures[job.key]} times, at last: {reason}")
        else:
            text = f"workers lost ({reason}); others go on from the last checkpoint"
            self._reports[job.key].append({"say": text})
            self._waiting.insert(0, job)

    def cancel(self, key: str) -> None:
        self._waiting = [job for job in self._waiting if job.key != key]
        self.end(key, _CANCELLED)

    def follow(self, key: str) -> tuple[list[dict[str, Any]], bool, str | None]:
        """New reports of a job, whether it has ended, and with what failure."""
        self._followed[key] = time.monotonic()
        reports, self._reports[key] = self._reports[key], []
        return reports, key in self._ended, self._ended.get(key)

    def close(self) -> None:
        self._closed = True


def follow(desk: Any, *jobs: Job) -> Iterator[dict[str, Any]]:
    """Submit jobs; iterate over their reports as they come, until all have ended and every report was yielded.

    A job that was paused ends as any other: the store says what it left undone.

    Raises:
        TrainingError: a job failed; the message is the worker's.
    """
    for job in jobs:
        ray.get(desk.submit.remote(job))
    return _reports(desk, [job.key for job in jobs])


def _reports(desk: Any, going: list[str]) -> Iterator[dict[str, Any]]:
    # In turn, since a job that nobody asks about for a while counts as abandoned.
    while going:
        found = {key: ray.get(desk.follow.remote(key)) for key in going}
        for key, (reports, ended, failure) in found.items():
            yield from reports
            if not ended or reports:
                continue
            if failure is not None:
                raise TrainingError(failure)
            going = [other for other in going if other != key]
        if going and not any(reports for reports, _, _ in found.values()):
            time.sleep(_IDLE_SECONDS)


def serve(config: dict[str, Any]) -> None:
    """The Ray Train worker function: set up, then run the jobs that the desk gives to this group."""
    from transformers.utils import logging as transformers_logging

    from vrray.train.workspace import Workspace

    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is local by now; a look-up would only wait
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    desk, group, setup = config["desk"], config["group"], config["setup"]
    workspace = Workspace.set_up(setup)
    number = 0
    while (job := ray.get(desk.job.remote(group, number))) != "close":
        if job is None:
            time.sleep(_IDLE_SECONDS)
            continue
        number += 1
        try:
            job.run(workspace, _reporter(desk, job.key, workspace))
        except (Cancelled, Paused):
            pass
        except Deferred as deferred:
            if workspace.rank == 0:
                ray.get(desk.defer.remote(group, job.key, str(deferred)))
            continue
        except Exception as error:
            # Said here, because a job that raises must not be repeated, as one whose workers died is.
            if not _lost_a_peer(error):
                ray.get(desk.end.remote(job.key, error_line(error)))
            raise
        if workspace.rank == 0:
            ray.get(desk.end.remote(job.key))


def _lost_a_peer(error: BaseException) -> bool:
    """Whether an error only says that another rank's process is gone."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def error_line(error: BaseException) -> str:
    """The last line that an error tells, with its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"


def _reporter(desk: Any, key: str, workspace: Any) -> Report:
    import torch
    import torch.distributed as dist

    verdicts = list(_RAISED)

    def report(metrics: dict[str, Any]) -> None:
        verdict = torch.zeros(1, dtype=torch.int64, device=workspace.device)
        if workspace.rank == 0:
            verdict.fill_(verdicts.index(ray.get(desk.post.remote(key, metrics))))
        dist.broadcast(verdict, 0)
        if (error := _RAISED[verdicts[int(verdict)]]) is not None:
            raise error

    return report
