"""The desk of a sweep: where jobs are left, where worker groups fetch them, and where their reports are followed.

Light to import, since every Tune trial does.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import ray

from vrray.errors import TrainingError

_IDLE_SECONDS = 0.2
_ABANDONED_SECONDS = 60.0
Report = Callable[[dict[str, Any]], None]


class Job(Protocol):
    """Something that every worker of a group runs at the same time. `key` is unique among the jobs of a desk."""

    @property
    def key(self) -> str: ...

    def run(self, workspace: Any, report: Report) -> None:
        """Run on this rank; all ranks call `report` equally often, rank 0's metrics are passed on."""


@dataclass(frozen=True)
class Setup:
    """What a worker loads when its group starts."""

    store_uri: str
    model_path: str
    base: str
    precision: str


class Cancelled(Exception):
    """Nobody wants the job's result any more; raised on all ranks at the same report."""


class Desk:
    """The jobs of a sweep and their reports (a Ray actor)."""

    def __init__(self) -> None:
        self._waiting: list[Job] = []
        self._taken: dict[str, list[Job]] = {}
        self._reports: dict[str, list[dict[str, Any]]] = {}
        self._ended: dict[str, str | None] = {}
        self._followed: dict[str, float] = {}
        self._closed = False
        self._broken: str | None = None

    def submit(self, job: Job) -> None:
        """Take in a job; one that is waiting or running already is not started a second time."""
        self._followed[job.key] = time.monotonic()
        if job.key in self._reports and job.key not in self._ended:
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
        if not self._waiting:
            return None
        taken.append(self._waiting.pop(0))
        return taken[number]

    def post(self, key: str, metrics: dict[str, Any]) -> bool:
        """Take in a report; whether the job should go on."""
        self._reports[key].append(metrics)
        return key not in self._ended and time.monotonic() - self._followed[key] < _ABANDONED_SECONDS

    def end(self, key: str, failure: str | None = None) -> None:
        self._ended.setdefault(key, failure)

    def group_failed(self, group: str, reason: str) -> bool:
        """End whatever the group was at; whether to start another one.

        A group that failed before it took a job could not set up, and the next one could not either: then every job
        ends with that reason.
        """
        taken = self._taken.pop(group, [])
        for job in taken:
            self.end(job.key, reason)
        if not taken:
            self._broken = f"workers could not start: {reason}"
            for job in self._waiting:
                self.end(job.key, self._broken)
            self._waiting = []
        return bool(taken)

    def cancel(self, key: str) -> None:
        self._waiting = [job for job in self._waiting if job.key != key]
        self.end(key, "cancelled")

    def follow(self, key: str) -> tuple[list[dict[str, Any]], bool, str | None]:
        """New reports of a job, whether it has ended, and with what failure."""
        self._followed[key] = time.monotonic()
        reports, self._reports[key] = self._reports[key], []
        return reports, key in self._ended, self._ended.get(key)

    def close(self) -> None:
        self._closed = True


def follow(desk: Any, job: Job) -> Iterator[dict[str, Any]]:
    """Submit a job and yield its reports until it has ended and every report was yielded.

    Raises:
        TrainingError: the job failed; the message is the worker's.
    """
    ray.get(desk.submit.remote(job))
    while True:
        reports, ended, failure = ray.get(desk.follow.remote(job.key))
        yield from reports
        if ended and not reports:
            break
        if not reports:
            time.sleep(_IDLE_SECONDS)
    if failure is not None:
        raise TrainingError(failure)


def serve(config: dict[str, Any]) -> None:
    """The Ray Train worker function: set up, then run the jobs that the desk gives to this group."""
    from transformers.utils import logging as transformers_logging

    from vrray.train.workspace import Workspace

    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is local by now; a look-up would only wait
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    desk, group, setup = config["desk"], config["group"], config["setup"]
    workspace = Workspace.set_up(setup.store_uri, setup.model_path, setup.base, setup.precision)
    number = 0
    while (job := ray.get(desk.job.remote(group, number))) != "close":
        if job is None:
            time.sleep(_IDLE_SECONDS)
            continue
        number += 1
        with suppress(Cancelled):
            job.run(workspace, _reporter(desk, job.key, workspace))
        if workspace.rank == 0:
            ray.get(desk.end.remote(job.key))


def _reporter(desk: Any, key: str, workspace: Any) -> Report:
    import torch
    import torch.distributed as dist

    def report(metrics: dict[str, Any]) -> None:
        wanted = torch.ones(1, device=workspace.device)
        if workspace.rank == 0 and not ray.get(desk.post.remote(key, metrics)):
            wanted.zero_()
        dist.broadcast(wanted, 0)
        if not wanted.item():
            raise Cancelled

    return report
