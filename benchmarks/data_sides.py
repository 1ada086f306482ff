"""The two sides of the data benchmark, each run in a process of its own: vrray's ingestion, and `datasets.map`."""

from __future__ import annotations

import logging
import multiprocessing
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

CPUS = 2


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
    """vrray on a local Ray."""
    import ray

    from vrray.data.images import Images
    from vrray.data.ingest import ingest
    from vrray.data.ingest_block import Choice, RowSpec, Source
    from vrray.models.loading import base_identity
    from vrray.store import Store

    base = base_identity(work.model)
    spec = RowSpec(str(work.model), base, work.image_tokens, work.template, work.max_length)
    store, images = Store(work.target), Images({"": work.photos})
    with tempfile.TemporaryDirectory(prefix="ray-") as scratch:
        options = {"logging_level": logging.WARNING, "log_to_driver": False, "include_dashboard": False}
        ray.init(num_cpus=CPUS, _temp_dir=scratch, **options)
        try:
            began = time.monotonic()
            made = ingest(store, [Source(str(work.records))], spec, Choice(), images)
            seconds = time.monotonic() - began
        finally:
            ray.shutdown()
    return {"seconds": seconds, "rows": made.rows, "counts": dict(made.counts)}


def ours_again(work: Work) -> dict[str, Any]:
    """vrray where the store has everything; no Ray is needed."""
    raise NotImplementedError


def theirs(work: Work) -> dict[str, Any]:
    """`datasets`: the same encoding of a record, and the same check of its photo, once in a process."""
    from datasets import Features, List, Value, load_dataset, logging

    logging.disable_progress_bar()
    features = Features(
        {
            "id": Value("string"),
            "ids": List(Value("int32")),
            "supervised": List(Value("bool")),
            "images": List(Value("string")),
        }
    )
    began = time.monotonic()
    records = load_dataset("json", data_files=str(work.records), split="train", cache_dir=str(work.target / "cache"))
    rows = records.map(
        Encoder(work),
        batched=True,
        num_proc=CPUS,
        features=features,
        remove_columns=records.column_names,
    )
    rows.save_to_disk(str(work.target / "rows"), num_proc=CPUS)
    return {"seconds": time.monotonic() - began, "rows": len(rows)}


class Encoder:
    """What `map` calls with a batch. The processor is loaded, and a photo is checked, once in a process."""

    def __init__(self, work: Work):
        self._work = work
        self._processor: Any = None
        self._checked: set[str] = set()

    def __getstate__(self) -> Work:
        return self._work

    def __setstate__(self, work: Work) -> None:
        self.__init__(work)  # type: ignore[misc]

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
    """A function's run in a process of its own; watches the memory of that process and of all below it."""

    def __init__(self, work: Callable[[Work], dict[str, Any]], arguments: Work):
        context = multiprocessing.get_context("spawn")
        self._end, there = context.Pipe()
        self.process: BaseProcess = context.Process(target=_answer, args=(work, arguments, there))
        self.process.start()
        there.close()
        self.peaks: dict[int, tuple[str, float]] = {}

    def wait(self) -> dict[str, Any]:
        """What the function returned, with `driver_mib` and `worker_mib`, the peaks of resident memory.

        Raises:
            RuntimeError: it failed; with its stack.
        """
        while not self._end.poll(0.25):
            self.look()
        answer = self._end.recv()
        self.process.join()
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return answer

    def look(self):
        pass


def _answer(work: Callable[[Work], dict[str, Any]], arguments: Work, pipe: Connection) -> None:
    try:
        pipe.send(work(arguments))
    except Exception:
        pipe.send(traceback.format_exc())
