"""The blocks of an ingestion, done in this process or by Ray Data's workers all over the cluster."""

from __future__ import annotations

import json
import logging
import os
import pickle
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

from tqdm import tqdm

from vrray.data.images import Images, Opened, check_image
from vrray.data.ingest_block import PART, UNREADABLE, Job, Task, ingest_block
from vrray.errors import DataError, VrrayError

_IN_PROCESS = 2  # so few blocks are done sooner than Ray's workers have started
_LOG_EVERY_SECONDS = 15.0
_READERS = 16  # threads that ask the store
RECHECKED = 100  # of the images that could not be used: so many are looked at again on the next start


def run_tasks(job: Job, tasks: Sequence[Task], total: int, max_rejected: float) -> tuple[list[Task], Counter[str]]:
    """Do the tasks that are not done yet, until too many records are rejected; the tasks done, and what they counted.

    Args:
        total: records of all tasks.
        max_rejected: share of them.

    Raises:
        VrrayError: as `ingest_block`; the other tasks are then given up.
    """
    counts, finished = _found(job, {task.key for task in tasks} & set(job.store.keys(PART)))
    missing = [task for task in tasks if task.key not in finished]
    run = _run_on_ray if len(missing) > _IN_PROCESS else _run_here
    with _Progress(total, counts["records"], bar=len(missing) > _IN_PROCESS) as progress:
        for task, counted in run(job, missing):
            finished.add(task.key)
            counts.update(counted)
            progress.say(counts)
            if counts["rejected"] > max_rejected * total:
                break
    return [task for task in tasks if task.key in finished], counts


def readable(images: Images, name: str) -> bool:
    """Whether an image can be used by now."""
    try:
        check_image(images.read(name), name)
    except DataError:
        return False
    return True


def _found(job: Job, keys: set[str]) -> tuple[Counter[str], set[str]]:
    """What is in the store of an earlier start, without blocks that refused an image which can be used by now."""

    def look(key: str) -> dict[str, Any] | None:
        info = job.store.describe(PART, key)
        if info["unreadable"]:
            with job.store.open(PART, key) as folder:
                names = json.loads((folder / UNREADABLE).read_text())[:RECHECKED]
            if any(readable(job.images, name) for name in names):
                job.store.delete(PART, key)
                return None
        return info

    counts: Counter[str] = Counter()
    with ThreadPoolExecutor(_READERS) as pool:
        found = {key: info for key, info in zip(keys, pool.map(look, keys), strict=True) if info is not None}
    for info in found.values():
        counts.update(info["counts"])
    return counts, set(found)


def _run_here(job: Job, tasks: Sequence[Task]) -> Iterator[tuple[Task, Mapping[str, int]]]:
    seen: dict[str, Opened] = {}
    for task in tasks:
        yield task, ingest_block(job, task, seen)


def _run_on_ray(job: Job, tasks: Sequence[Task]) -> Iterator[tuple[Task, Mapping[str, int]]]:
    import ray
    from ray.data import ActorPoolStrategy

    for name, level in (("progress", logging.ERROR), ("execution.streaming_executor", logging.WARNING)):
        logging.getLogger(f"ray.data._internal.{name}").setLevel(level)  # ours is the progress that is shown
    workers = max(1, min(len(tasks), int(ray.cluster_resources().get("CPU", 1))))
    places = ray.data.from_items([{"place": place} for place in range(len(tasks))], override_num_blocks=len(tasks))
    places.context.enable_progress_bars = False
    places.context.print_on_execution_start = False
    answers = places.map_batches(
        _Worker,
        fn_constructor_args=(job, tasks),
        batch_size=1,
        compute=ActorPoolStrategy(min_size=1, max_size=workers, initial_size=workers),
        num_cpus=1,
    )
    for row in answers.iter_rows():
        answer = pickle.loads(row["answer"])
        if isinstance(answer, VrrayError):
            raise answer
        yield tasks[row["place"]], answer


class _Worker:
    """An actor of Ray Data: ingests the blocks whose places it is given."""

    def __init__(self, job: Job, tasks: Sequence[Task]):
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # every CPU has a worker
        self._job, self._tasks = job, tasks
        self._seen: dict[str, Opened] = {}

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What each block counted, or the error that ends the ingestion, which Ray would bury in stacks of its own."""
        answers: list[object] = []
        for place in batch["place"]:
            try:
                answers.append(ingest_block(self._job, self._tasks[place], self._seen))
            except VrrayError as error:
                answers.append(error)
        return {"place": batch["place"], "answer": [pickle.dumps(answer) for answer in answers]}


class _Progress:
    """A bar on a terminal, now and then a line elsewhere; a context manager.

    Args:
        found: records that an earlier start has done.
        bar: it takes long enough for a bar.
    """

    def __init__(self, total: int, found: int, *, bar: bool):
        self._total, self._found, self._lines = total, found, not sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            initial=found,
            unit=" records",
            desc="data",
            dynamic_ncols=True,
            disable=self._lines or not bar,
        )
        self._begun = self._said = time.monotonic()
        if found:
            print(f"data: {found} of {total} records are done, from an earlier start", flush=True)

    def say(self, counts: Mapping[str, int]) -> None:
        now, done = time.monotonic(), counts["records"]
        self._bar.update(done - self._bar.n)
        if self._lines and now - self._said >= _LOG_EVERY_SECONDS:
            self._said = now
            left = (now - self._begun) / (done - self._found) * (self._total - done)
            about = f"{left:.0f} s" if left < 90 else f"{left / 60:.0f} min"
            rejected = f"{counts['rejected']} rejected"
            print(f"data: {done} of {self._total} records, {rejected}, about {about} left", flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
