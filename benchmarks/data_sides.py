"""The two sides of the data benchmark, each run in a process of its own: vrray's ingestion, and `datasets.map`."""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

CPUS = 2
_LOOK_SECONDS = 0.25
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Work:
    """Records to encode with a model's tokenizer, their photos, and where the result goes."""

    records: Path
    photos: Path
    model: Path
    image_tokens: int
    template: str
    max_length: int
    target: Path


def ours(work: Work) -> dict[str, Any]:
    """vrray on a local Ray, which is started before the clock."""
    import ray

    # Below the benchmark's own folder, which is removed in the end, also when this process is killed.
    scratch = str(work.target.parent / "ray")
    ray.init(
        num_cpus=CPUS, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING, _temp_dir=scratch
    )
    try:
        return ours_again(work)
    finally:
        ray.shutdown()


def ours_again(work: Work) -> dict[str, Any]:
    """vrray without Ray, which it does not need where the store has everything."""
    from vrray.data.images import Images
    from vrray.data.ingest import ingest
    from vrray.data.ingest_block import Choice, RowSpec, Source
    from vrray.models.loading import base_identity
    from vrray.store import Store

    base = base_identity(work.model)
    spec = RowSpec(str(work.model), base, work.image_tokens, work.template, work.max_length)
    began = time.monotonic()
    made = ingest(Store(work.target), [Source(str(work.records))], spec, Choice(), Images({"": work.photos}))
    return {"seconds": time.monotonic() - began, "rows": made.rows}


def theirs(work: Work) -> dict[str, Any]:
    """`datasets`, from the file to a saved dataset."""
    began = time.monotonic()
    rows = _map(work)
    rows.save_to_disk(str(work.target / "rows"), num_proc=CPUS)
    return {"seconds": time.monotonic() - began, "rows": len(rows)}


def theirs_again(work: Work) -> dict[str, Any]:
    """`datasets` where its cache has everything."""
    began = time.monotonic()
    rows = _map(work)
    return {"seconds": time.monotonic() - began, "rows": len(rows)}


def _map(work: Work) -> Any:
    from datasets import Features, List, Value, load_dataset
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    columns = {
        "id": Value("string"),
        "ids": List(Value("int32")),
        "supervised": List(Value("bool")),
        "images": List(Value("string")),
    }
    records = load_dataset("json", data_files=str(work.records), split="train", cache_dir=str(work.target / "cache"))
    return records.map(
        Encoder(work), batched=True, num_proc=CPUS, features=Features(columns), remove_columns=records.column_names
    )


class Encoder:
    """What `map` calls with a batch: vrray's encoding of a record, and its check of a photo, once in a process."""

    def __init__(self, work: Work):
        self._work = work
        self._processor: Any = None
        self._checked: set[str] = set()

    def __reduce__(self) -> tuple[type[Encoder], tuple[Work]]:
        return Encoder, (self._work,)

    def __call__(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        from vrray.data.encode import encode_record
        from vrray.data.images import Images, check_image
        from vrray.data.records import parse_record
        from vrray.models.loading import load_processor

        work = self._work
        if self._processor is None:
            self._processor, self._images = load_processor(work.model), Images({"": work.photos})
        encoded = []
        for identity, image, said in zip(batch["id"], batch["image"], batch["conversations"], strict=True):
            record = parse_record({"id": identity, "image": image, "conversations": said}, identity)
            for name in record.images:
                if name not in self._checked:
                    check_image(self._images.read(name), name)
                    self._checked.add(name)
            options: dict[str, Any] = {"template": work.template, "max_length": work.max_length}
            encoded.append(encode_record(record, self._processor, work.image_tokens, **options).row)
        columns = ("id", "ids", "supervised", "images")
        return {name: [getattr(row, name) for row in encoded] for name in columns}


class Run:
    """A function's run in a process of its own, and what that process and all below it took."""

    def __init__(self, function: Callable[[Work], dict[str, Any]], work: Work):
        context = multiprocessing.get_context("spawn")
        self._end, there = context.Pipe()
        self._process = context.Process(target=_answer, args=(function, work, there))
        self._process.start()
        there.close()
        self._peaks: dict[int, float] = {}
        self._ticks: dict[int, int] = {}

    def wait(self) -> dict[str, Any]:
        """What the function returned, and of its processes: `cpu_seconds` of all, `driver_mib` and `worker_mib`, the
        peaks of resident memory of the first and of the largest other one.

        Raises:
            RuntimeError: it failed; with its stack.
        """
        while not self._end.poll(_LOOK_SECONDS):
            self.look()
        answer = self._end.recv()
        self._process.join()
        if isinstance(answer, str):
            raise RuntimeError(answer)
        driver = self._peaks.pop(self._process.pid or 0)
        measured = {"driver_mib": driver, "worker_mib": max(self._peaks.values(), default=0.0)}
        return {**answer, **measured, "cpu_seconds": sum(self._ticks.values()) / _TICKS}

    def look(self) -> None:
        """Note what the processes have taken until now."""
        for pid in [self._process.pid or 0, *_below(self._process.pid or 0)]:
            with suppress(FileNotFoundError, ProcessLookupError, IndexError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                peak = Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2].split()[0]
                self._ticks[pid] = int(fields[11]) + int(fields[12])
                self._peaks[pid] = int(peak) / 1024

    def kill(self) -> float:
        """SIGKILL of the first process alone; the seconds until its workers have ended as well."""
        workers = [pid for pid in _below(self._process.pid or 0) if _is_worker(pid)]
        self._process.kill()
        self._process.join()
        began = time.monotonic()
        while any(_is_worker(pid) for pid in workers):
            time.sleep(0.05)
        return time.monotonic() - began


def _is_worker(pid: int) -> bool:
    """Whether it is a live process that encodes; Ray's own agents take a minute to notice that they are alone."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return b"MapWorker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _below(pid: int) -> list[int]:
    """The processes that a process has started, and those that they have."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(FileNotFoundError, ProcessLookupError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found: list[int] = []
    level = {pid}
    while level := {child for child, parent in parents.items() if parent in level}:
        found += level
    return found


def _answer(function: Callable[[Work], dict[str, Any]], work: Work, pipe: Connection) -> None:
    os.dup2(2, 1)  # what a side says about its progress belongs in no table
    try:
        pipe.send(function(work))
    except Exception:
        pipe.send(traceback.format_exc())
