"""From conversations in files to encoded rows in the store: checked, in parallel, in bounded memory, resumable.

Files are cut into blocks. A block is read, checked and encoded by one task, on Ray where there are several, and its
result is an artefact, so a run that was interrupted goes on with the blocks that are missing. The blocks are then
joined into one artefact: rows, the images they use, held-out examples, and the records that were refused and why.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from vrray.data.held_out import Candidate, read_candidates
from vrray.data.images import Images, check_image
from vrray.data.ingest_block import (
    BLOBS,
    HASHES,
    PART,
    REFUSALS,
    UNREADABLE,
    Choice,
    Job,
    RowSpec,
    Source,
    Task,
    ingest_block,
    read_table,
    write_refusals,
)
from vrray.data.ingest_join import join_parts
from vrray.data.rows import KIND
from vrray.data.sources import index_source, source_identity
from vrray.errors import DataError
from vrray.store import Store, content_key

INDEX = "rows-index"
BLOCK_ROWS = 2000
_IN_PROCESS = 2  # so few blocks are done sooner than Ray's tasks have started
_LOG_EVERY_SECONDS = 15.0
_RECHECKED = 100  # images that could not be read are looked at again on the next start


@dataclass(frozen=True)
class Ingested:
    """Encoded rows in the store under `key`, and what was counted on the way."""

    key: str
    rows: int
    longest: int
    counts: Mapping[str, int]
    embedded: bool
    rejected: str | None = None

    def summary(self) -> str:
        """What happened to the records, in one line."""
        counts = self.counts
        parts = [f"{counts['records']} records: {counts['rows']} training rows"]
        parts += [f"{counts[name]} {text}" for name, text in _SAID.items() if counts.get(name)]
        return ", ".join(parts) + (f" (listed in {self.rejected})" if self.rejected else "")


_SAID = {
    "held_out": "in held-out splits",
    "left_out": "left out by the chosen share or limit",
    "mixed": "left out because their images belong to different splits",
    "cut": "cut at the maximum length",
    "rejected": "rejected",
}


def ingest(
    store: Store,
    sources: Sequence[Source],
    spec: RowSpec,
    choice: Choice,
    images: Images,
    *,
    max_rejected: float = 0.01,
) -> Ingested:
    """The encoded rows of some sources: found in the store, or made.

    Rows that were rejected for an image are looked at again; where one can be read by now, all is made anew.

    Raises:
        DataError: a source cannot be read, too many records were rejected, or no row is left.
    """
    settings = {
        "format": 3,
        "sources": [[source_identity(s.location), s.prefix, s.weight] for s in sources],
        "spec": {name: value for name, value in asdict(spec).items() if name != "model_path"},
        "choice": asdict(choice),
        "images": images.roots,
    }
    index = f"{INDEX}/{content_key(settings)}.json"
    known = _known(store, index, images)
    if known is not None:
        if known.counts["rejected"] > max_rejected * known.counts["records"]:
            raise DataError(f"{_too_many(known.counts, max_rejected)}; they are listed in {known.rejected}")
        return known
    blocks = [(number, block) for number, s in enumerate(sources) for block in index_source(s.location, BLOCK_ROWS)]
    if choice.in_order and choice.limit is not None:
        blocks = [(number, block) for number, block in blocks if block.first < choice.limit]
    total = sum(block.rows for _, block in blocks)
    job = Job(store, tuple(sources), spec, choice, images, _threshold(choice, sources, total))
    tasks = [Task(n, b, content_key({**settings, "source": n, "block": [b.begin, b.end]})) for n, b in blocks]
    counts = _run_within(job, tasks, total, max_rejected)
    done = [task for task in tasks if store.has(PART, task.key)]
    if counts["rejected"] > max_rejected * total:
        raise _refusal(store, done, Path(index).stem, f"{_too_many(counts, max_rejected)}, of {total} in all")
    if not counts["rows"]:
        kind = " with an image" if choice.with_image else ""
        text = f"none of the {counts['records']} records in {_names(sources)} becomes a training row{kind}"
        raise _refusal(store, done, Path(index).stem, text)
    made = _join(job, done, index)
    for task in tasks:
        store.delete(PART, task.key)
    return made


def candidates_in(store: Store, key: str) -> list[Candidate]:
    """The held-out examples of ingested rows, and training questions to compare guesses with."""
    with store.open(KIND, key) as folder:
        return read_candidates(folder)


def image_hashes(store: Store, key: str) -> dict[str, str]:
    """The images of ingested rows and their held-out examples by name, each with its content hash."""
    with store.open(KIND, key) as folder:
        return {row["name"]: row["hash"] for row in read_table(folder / HASHES)}


def embedded_images(store: Store, keys: Iterable[str]) -> list[str]:
    """Local files of the images that came embedded with ingested rows, for `Images`."""
    files = []
    for key in keys:
        if store.describe(KIND, key)["embedded"]:
            with store.open(KIND, key) as folder:
                files.append(str(folder / BLOBS))
    return files


def _known(store: Store, index: str, images: Images) -> Ingested | None:
    folder, name = index.split("/")
    if name not in store.names(folder):
        return None
    about = json.loads(store.read_bytes(index))
    if not store.has(KIND, about["key"]) or any(_readable(images, image) for image in about["unreadable"]):
        return None
    return _described(store, about["key"])


def _readable(images: Images, name: str) -> bool:
    try:
        check_image(images.read(name), name)
    except DataError:
        return False
    return True


def _described(store: Store, key: str) -> Ingested:
    info = store.describe(KIND, key)
    counts = Counter(info["counts"])
    rejected = store.location("rejected", f"{key}.parquet") if counts["rejected"] else None
    return Ingested(key, info["rows"], info["longest"], counts, info["embedded"], rejected)


def _threshold(choice: Choice, sources: Sequence[Source], total: int) -> float:
    """Below which rank a training record is encoded: enough for the limit, with room for those that fall away."""
    if choice.in_order:
        return 1.0
    if choice.limit is None or not total:
        return choice.fraction
    return min(choice.fraction, 1.5 * (choice.limit + 50) / total / min(1.0, *(s.weight for s in sources)))


def _names(sources: Sequence[Source]) -> str:
    return ", ".join(source.location for source in sources)


def _too_many(counts: Mapping[str, int], max_rejected: float) -> str:
    first = f"{counts['rejected']} of the first {counts['records']} records cannot be used"
    return f"{first}, more than --max-rejected {max_rejected:g} allows"


def _run_within(job: Job, tasks: Sequence[Task], total: int, max_rejected: float) -> Counter[str]:
    """Do the tasks, say how far they are, and stop where too many records are rejected."""
    counts: Counter[str] = Counter()
    small, terminal = total <= _IN_PROCESS * BLOCK_ROWS, sys.stderr.isatty()
    said = time.monotonic()
    with tqdm(total=total, unit="record", desc="data", dynamic_ncols=True, disable=small or not terminal) as bar:
        for done in _run(job, tasks):
            counts.update(done)
            bar.update(done["records"])
            if not terminal and time.monotonic() - said >= _LOG_EVERY_SECONDS:
                said = time.monotonic()
                print(f"data: {counts['records']} of {total} records, {counts['rejected']} rejected", flush=True)
            if counts["rejected"] > max_rejected * total:
                break
    return counts


def _run(job: Job, tasks: Sequence[Task]) -> Iterator[Mapping[str, int]]:
    """Do the tasks that are not done yet; what each one counted, as it is finished."""
    there = [job.store.has(PART, task.key) for task in tasks]
    missing = [task for task, is_there in zip(tasks, there, strict=True) if not is_there]
    yield from (_counted(job.store, [task]) for task, is_there in zip(tasks, there, strict=True) if is_there)
    if len(missing) <= _IN_PROCESS:
        yield from (ingest_block(job, task) for task in missing)
        return
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    workers = max(1, min(len(missing), int(ray.cluster_resources().get("CPU", 1))))
    places = ray.data.from_items([{"place": place} for place in range(len(missing))], override_num_blocks=len(missing))
    done = places.map_batches(
        _Worker,
        fn_constructor_args=(job, missing),
        batch_size=1,
        compute=ActorPoolStrategy(min_size=1, max_size=workers),
        num_cpus=1,
    )
    for row in done.iter_rows():
        yield json.loads(row["counts"])


class _Worker:
    """An actor of Ray Data: ingests the blocks whose places it is given."""

    def __init__(self, job: Job, tasks: Sequence[Task]):
        self._job, self._tasks = job, tasks

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        counts = [json.dumps(ingest_block(self._job, self._tasks[int(place)])) for place in batch["place"]]
        return {"counts": np.array(counts)}


def _join(job: Job, tasks: Sequence[Task], index: str) -> Ingested:
    """One artefact of all parts, and the index that says which one it is.

    Its key follows from what was encoded: where other records were rejected, it is another one.
    """
    store = job.store
    rejected, unreadable = _rejected(store, tasks)
    key = content_key({"index": index, "rejected": [[row["source"], row["row"]] for row in rejected]})
    if rejected:
        _publish(store, key, rejected)

    def write(folder: Path) -> dict[str, Any]:
        with ExitStack() as stack:
            folders = [stack.enter_context(store.open(PART, task.key)) for task in tasks]
            return join_parts(job, tasks, _counted(store, tasks), folders, folder)

    store.put(KIND, key, write)
    store.write_text(index, json.dumps({"key": key, "unreadable": unreadable[:_RECHECKED]}))
    return _described(store, key)


def _counted(store: Store, tasks: Sequence[Task]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for task in tasks:
        counts.update(store.describe(PART, task.key)["counts"])
    return counts


def _rejected(store: Store, tasks: Sequence[Task]) -> tuple[list[dict[str, Any]], list[str]]:
    """What was refused, and the images that could not be read."""
    rejected: list[dict[str, Any]] = []
    unreadable: list[str] = []
    for task in tasks:
        with store.open(PART, task.key) as folder:
            rejected += read_table(folder / REFUSALS)
            unreadable += json.loads((folder / UNREADABLE).read_text())
    return rejected, unreadable


def _publish(store: Store, key: str, rejected: Sequence[Mapping[str, Any]]) -> str:
    sink = pa.BufferOutputStream()
    write_refusals(sink, rejected)
    name = f"rejected/{key}.parquet"
    store.write_bytes(name, sink.getvalue().to_pybytes())
    return store.location(name)


def _refusal(store: Store, tasks: Sequence[Task], key: str, what: str) -> DataError:
    """The error for data that cannot be used; the list of rejected records is written first."""
    rejected, _ = _rejected(store, tasks)
    first = "; ".join(row["reason"] for row in rejected[:3])
    listed = f" All are listed in {_publish(store, key, rejected)}." if rejected else ""
    return DataError(f"{what}{'. The first: ' if first else ''}{first}.{listed}")
