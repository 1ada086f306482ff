"""The bridge between Ray Tune and Ray Train: a Tune trial that drives a Ray Train run and hands on its reports.

Ray's own callback forwards rank 0's metrics through the Tune session's queue: it leaves `Result.checkpoint` empty,
and a driver that returns while its last report is queued blocks for ever. Here the Train controller puts every report
on a queue of our own, `fit()` runs in a thread, and the Tune function drains the queue to its end before it returns.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ray import train, tune
from ray.train import UserCallback
from ray.util.queue import Empty, Queue

_POLL_SECONDS = 0.5
_END = "end"


class ForwardReports(UserCallback):
    """Runs in the Train controller: puts rank 0's metrics and the checkpoint's path on a queue."""

    def __init__(self, queue: Queue):
        self._queue = queue

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: train.Checkpoint | None
    ) -> None:
        self._queue.put({"metrics": metrics[0], "checkpoint": checkpoint.path if checkpoint else None})


def fit_with_reports(make_trainer: Callable[[list[UserCallback]], Any]) -> Iterator[dict[str, Any]]:
    """Run a trainer in a thread and yield its reports until it has ended and every report was yielded.

    Args:
        make_trainer: builds the trainer with the given callbacks.

    Raises:
        Whatever `fit()` raised, after the reports that came before it.
    """
    queue = Queue(actor_options={"num_cpus": 0})
    failure: list[BaseException] = []

    def fit() -> None:
        try:
            make_trainer([ForwardReports(queue)]).fit()
        except BaseException as error:  # handed to the caller below
            failure.append(error)
        finally:
            queue.put(_END)

    thread = threading.Thread(target=fit, name="vrray-train", daemon=True)
    thread.start()
    try:
        while (report := _next(queue, thread)) != _END:
            yield report
        thread.join()
    finally:
        queue.shutdown(force=True)
    if failure:
        raise failure[0]


def report_to_tune(report: dict[str, Any], extra: dict[str, Any]) -> None:
    """Report to Tune; a Train checkpoint becomes a small Tune checkpoint that points at it."""
    metrics = {**report["metrics"], **extra}
    if report["checkpoint"] is None:
        tune.report(metrics)
        return
    with tempfile.TemporaryDirectory(prefix="vrray-") as folder:
        Path(folder, "train_checkpoint.json").write_text(json.dumps({"path": report["checkpoint"]}))
        tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(folder))


def quicken_controller() -> None:
    """Let the Train controller look for reports every half second instead of every two."""
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")


def _next(queue: Queue, thread: threading.Thread) -> Any:
    while True:
        try:
            return queue.get(timeout=_POLL_SECONDS)
        except Empty:
            if not thread.is_alive() and queue.empty():
                return _END
