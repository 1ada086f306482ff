"""Worker groups that outlive a trial: Ray Train workers that set up once and then serve one job after another.

Starting a group (processes, imports, the base, DeepSpeed) takes longer than a small training, so a sweep starts its
groups once. Jobs go through a `Desk`, an actor without a CPU: whoever submits a job follows its reports there, and
the groups fetch jobs from it as they become free. A job that fails ends its group's Ray Train run; the group is then
started anew, so nothing of the failure reaches the next job.
"""

from __future__ import annotations

import threading
import uuid
from types import TracebackType
from typing import Any, Self

import ray

from vrray.specs import SweepSpec
from vrray.store import Store
from vrray.train.desk import Desk, Setup, serve
from vrray.train.launch import failure_reason, make_trainer


class WorkerGroups:
    """Groups of a sweep as a context manager: started when the desk is first asked for, ended and joined on leaving."""

    def __init__(self, spec: SweepSpec, setup: Setup, *, count: int, gpu: bool):
        self._spec, self._setup, self._gpu, self._count = spec, setup, gpu, count
        self._threads: list[threading.Thread] = []
        self._desk: Any = None
        self._closing = False

    @property
    def desk(self) -> Any:
        """The actor that takes jobs; see `vrray.train.desk.follow`."""
        if self._desk is None:
            self._desk = ray.remote(num_cpus=0)(Desk).remote()
            for index in range(self._count):
                name = f"vrray-group-{index}"
                self._threads.append(threading.Thread(target=self._keep_serving, name=name, daemon=True))
                self._threads[-1].start()
        return self._desk

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        if self._desk is None:
            return
        if error is None:
            ray.get(self._desk.close.remote())
            for thread in self._threads:
                thread.join(timeout=60)
        ray.kill(self._desk)

    def _keep_serving(self) -> None:
        again = True
        while again and not self._closing:
            group = uuid.uuid4().hex[:8]
            reason = "the worker group ended"
            try:
                self._trainer(group).fit()
            except Exception as error:
                reason = failure_reason(error)
            if not self._closing:
                again = ray.get(self._desk.group_failed.remote(group, reason))

    def _trainer(self, group: str) -> Any:
        config = {"setup": self._setup, "desk": self._desk, "group": group}
        storage = Store(self._setup.store_uri).location("ray")
        return make_trainer(serve, config, self._spec, gpu=self._gpu, name=f"group-{group}", storage=storage)
