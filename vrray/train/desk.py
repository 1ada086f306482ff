"""The desk of a sweep: where jobs are left, where worker groups fetch them, and where their reports are followed.

Light to import, since every Tune trial does.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import ray

from vrray.budget import Budget
from vrray.errors import TrainingError

_IDLE_SECONDS = 0.2
_DEFERRED_SECONDS = 5.0
_ABANDONED_SECONDS = 60.0
_GATHER_SECONDS = 10.0  # a driver of Tune's takes some seconds to start on a busy machine
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


@runtime_checkable
class Packable(Job, Protocol):
    """A job that a group can do the first part of for several of its kind at once."""

    @property
    def room(self) -> int:
        """How many that may be, this one among them."""

    def packs_with(self, other: Job) -> bool: ...

    def run_pack(self, workspace: Any, jobs: Sequence[Job], reports: Sequence[Report]) -> dict[str, str]:
        """Run the first part of jobs that pack with this one; a report that raises `Cancelled` ends its own job only.

        Returns:
            By key, why a job failed. Each other one goes on alone.
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
    """The run's budget is spent, or its driver is about to end: the training that reports is to keep a checkpoint and
    end. On all ranks at once."""


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
        self._begun: dict[str, float] = {}  # by group at work, since when
        self._busy = 0.0
        self._failures: dict[str, int] = {}
        self._failed_starts: int | None = None  # in a row; None until a group has started
        self._waiting: list[Job] = []
        self._not_before: dict[str, float] = {}  # when a job that was deferred may come again
        self._arrived = 0.0  # when the last job came
        self._taken: dict[str, list[list[Job]]] = {}  # by group, what it was given at each time it asked
        self._alone: set[str] = set()  # jobs that are not packed, or not any more
        self._reports: dict[str, list[dict[str, Any]]] = {}
        self._ended: dict[str, str | None] = {}
        self._followed: dict[str, float] = {}
        self._closed = self._stopping = False
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
            self._arrived = time.monotonic()
        else:
            self.end(job.key, self._broken)

    def jobs(self, group: str, number: int) -> list[Job] | str | None:
        """What the group runs at that number: the same for every rank that asks; "close" at the end; None to wait.

        It is one job, or several that pack. A pack that is not full waits until no job has come for some seconds.
        """
        taken = self._taken.setdefault(group, [])
        if number < len(taken):
            return taken[number]
        self._pause_clock(group)
        if self._closed:
            return "close"
        now = time.monotonic()
        ready = [job for job in self._waiting if self._not_before.get(job.key, now) <= now]
        if not ready:
            return None
        pack, room = self._pack(ready)
        if len(pack) < room and now - self._arrived < _GATHER_SECONDS:
            return None
        self._waiting = [job for job in self._waiting if job not in pack]
        taken.append(pack)
        if number > 1:  # no rank is further behind
            taken[number - 2] = [job for job in taken[number - 2] if job.key not in self._ended]
        self._begun[group] = now
        self._failed_starts = 0
        return pack

    def _pack(self, ready: Sequence[Job]) -> tuple[list[Job], int]:
        """The first of the jobs that may begin, with those that pack with it, and how many may."""
        first = ready[0]
        if first.key in self._alone or not isinstance(first, Packable):
            return [first], 1
        others = [job for job in ready[1:] if job.key not in self._alone and first.packs_with(job)]
        return [first, *others][: first.room], first.room

    def unpack(self, group: str, number: int, failures: Mapping[str, str], reason: str | None = None) -> None:
        """End the jobs of a pack that have failed; each other one goes on alone, first in line.

        Args:
            reason: why the pack as a whole did not come to its end.
        """
        pack, self._taken[group][number] = self._taken[group][number], []
        for key, failure in failures.items():
            self.end(key, failure)
        again = {job.key for job in self._waiting}  # stopped, and wanted once more before the pack noticed
        left = [job for job in pack if job.key not in self._ended and job.key not in again]
        for job in left if reason else ():
            self._reports[job.key].append({"say": f"the trials in its pack go on one by one: {reason}"})
        self._alone.update(job.key for job in left)
        self._waiting = [*left, *self._waiting]

    def post(self, key: str, metrics: dict[str, Any]) -> Verdict:
        """Take in a report; what becomes of the job."""
        training = BEGINS in metrics or "step" in metrics
        if BEGINS not in metrics:
            self._reports[key].append(metrics)
        if self._stopping and training:
            return "pause"
        if key in self._ended or time.monotonic() - self._followed[key] >= _ABANDONED_SECONDS:
            return "cancel"
        return "pause" if training and self.spent() else "go on"

    def spent(self) -> str | None:
        """Which limit of the budget is reached; None while there is some left."""
        now = time.monotonic()
        going = sum(now - begun for begun in self._begun.values())
        return self._budget.reached(now - self._start, self._busy + going)

    def end(self, key: str, failure: str | None = None) -> None:
        self._ended.setdefault(key, failure)

    def _pause_clock(self, group: str) -> None:
        """A group is at work from what it is given until it asks for more."""
        now = time.monotonic()
        self._busy += now - self._begun.pop(group, now)

    def defer(self, group: str, key: str, reason: str) -> None:
        """Put the job that a group has begun back in line, behind the others; once the budget is spent, end it."""
        taken = self._taken[group]
        (place,) = [place for place, jobs in enumerate(taken) if [job.key for job in jobs] == [key]]
        (job,), taken[place] = taken[place], []
        if key in self._ended or self.spent():
            self.end(key)
        else:
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
        self._pause_clock(group)
        for number, pack in enumerate(self._taken.get(group, [])):
            if len(pack) > 1 and "OutOfMemory" in reason:
                self.unpack(group, number, {}, reason)
        taken = self._taken.pop(group, [])
        for job in reversed([job for pack in taken for job in pack]):
            if job.key not in self._ended:
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

    def stop(self) -> None:
        """Close at once: what is in line does not start, what runs ends at its next report, trainings are paused."""
        self._closed = self._stopping = True
        self._waiting = []
        for key in self._reports:
            self.end(key, _CANCELLED)


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
    while (jobs := ray.get(desk.jobs.remote(group, number))) != "close":
        if jobs is None:
            time.sleep(_IDLE_SECONDS)
            continue
        reports = [_reporter(desk, job.key, workspace) for job in jobs]
        if len(jobs) == 1:
            _run(desk, group, jobs[0], workspace, reports[0])
        else:
            _run_pack(desk, jobs, workspace, reports, (group, number))
        number += 1


def _run(desk: Any, group: str, job: Job, workspace: Any, report: Report) -> None:
    try:
        job.run(workspace, report)
    except (Cancelled, Paused):
        pass
    except Deferred as deferred:
        if workspace.rank == 0:
            ray.get(desk.defer.remote(group, job.key, str(deferred)))
        return
    except Exception as error:
        # Said here, because a job that raises must not be repeated, as one whose workers died is.
        if not _lost_a_peer(error):
            ray.get(desk.end.remote(job.key, error_line(error)))
        raise
    if workspace.rank == 0:
        ray.get(desk.end.remote(job.key))


def _run_pack(
    desk: Any, jobs: Sequence[Packable], workspace: Any, reports: Sequence[Report], taken: tuple[str, int]
) -> None:
    try:
        failures = jobs[0].run_pack(workspace, jobs, reports)
    except Exception as error:
        # What the jobs cannot do together, each may do alone.
        if not _lost_a_peer(error):
            ray.get(desk.unpack.remote(*taken, {}, error_line(error)))
        raise
    if workspace.rank == 0:
        ray.get(desk.unpack.remote(*taken, failures))


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
