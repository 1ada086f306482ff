"""Worker groups that outlive a trial: Ray Train workers that set up once and then serve one job after another.

Starting a group (processes, imports, the base, DeepSpeed) takes longer than a small training, so a sweep starts its
groups once. Jobs go through a `Desk`, an actor without a CPU: whoever submits a job follows its reports there, and
the groups fetch jobs from it as they become free. A job that fails ends its group's Ray Train run; the group is then
started anew, so nothing of the failure reaches the next job. After the loss of a node a group goes on with fewer
workers where no other node comes in time.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from types import TracebackType
from typing import Any, Self

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from vrray.budget import Budget
from vrray.specs import RunSpec
from vrray.store import Store
from vrray.train.desk import Desk, Setup, error_line, serve
from vrray.train.launch import Capacity, failure_reason, make_trainer
from vrray.upkeep.records import RAY

_SAVING_SECONDS = 15.0  # with what follows, an interrupted job ends within 30 s

log = logging.getLogger(__name__)


class WorkerGroups:
    """Groups of a sweep as a context manager: started when the desk is first asked for, ended and joined on leaving.

    Args:
        began: when the run began whose budget it is, by `time.monotonic`.
    """

    def __init__(
        self,
        spec: RunSpec,
        setup: Setup,
        *,
        count: int,
        gpu: bool,
        budget: Budget | None = None,
        began: float | None = None,
    ):
        self._spec, self._setup, self._gpu, self._count = spec, setup, gpu, count
        self._budget, self._began = budget, time.monotonic() if began is None else began
        self._threads: list[threading.Thread] = []
        self._desk: Any = None
        self._closing = False

    @property
    def desk(self) -> Any:
        """The actor that takes jobs; see `vrray.train.desk.follow`."""
        if self._desk is None:
            # Beside the driver: losing another node must not lose the desk.
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
            desk = ray.remote(num_cpus=0, scheduling_strategy=here)(Desk)
            self._desk = desk.remote(self._spec.max_failures, self._budget, time.monotonic() - self._began)
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
            self._join(60)
        elif not isinstance(error, Exception):
            log.warning("stopping; trainings save a checkpoint after the step that they are at")
            ray.get(self._desk.stop.remote())
            self._join(_SAVING_SECONDS)
        ray.kill(self._desk)
        self._join(10)  # Ray may be shut down next, which must not happen below a thread that uses it

    def _join(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(timeout=max(0.0, until - time.monotonic()))

    def _keep_serving(self) -> None:
        workers, again = self._spec.workers, True
        while again and not self._closing:
            group = uuid.uuid4().hex[:8]
            reason = "the worker group ended"
            try:
                self._trainer(group, workers).fit()
            except Exception as error:
                reason = failure_reason(error)
            again = self._report_failure(group, reason)
            if again:
                workers = self._workers_left()

    def _report_failure(self, group: str, reason: str) -> bool:
        """Tell the desk that a group has ended; whether to start another one."""
        while not self._closing:
            try:
                return bool(ray.get(self._desk.group_failed.remote(group, reason)))
            except ray.exceptions.RayError as error:  # Ray's own state is lost, perhaps for a moment only
                log.error("the desk of the sweep cannot be reached: %s", error_line(error))
                time.sleep(5.0)
        return False

    def _workers_left(self) -> int:
        """As many workers as asked for; fewer where the cluster has shrunk and stays so."""
        wanted, batch = self._spec.workers, self._spec.recipe().global_batch
        until = time.monotonic() + self._spec.node_wait
        while (seats := Capacity.of_cluster().seats(self._spec)) < wanted and time.monotonic() < until:
            time.sleep(1.0)
        workers = next((n for n in range(min(wanted, seats), 0, -1) if batch % n == 0), wanted)
        if workers < wanted:
            log.warning("the cluster has room for %d of %d workers; going on with %d", seats, wanted, workers)
        return workers

    def _trainer(self, group: str, workers: int) -> Any:
        config = {"setup": self._setup, "desk": self._desk, "group": group}
        storage = Store(self._setup.store_uri).location(RAY)
        spec = self._spec.model_copy(update={"workers": workers})
        return make_trainer(serve, config, spec, gpu=self._gpu, name=f"group-{group}", storage=storage)
