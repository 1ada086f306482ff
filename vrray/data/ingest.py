"""From conversations in files to encoded rows in the store: checked, in parallel, in bounded memory, resumable.

Files are cut into blocks. A block is read, checked and encoded by one task, on Ray where there are several, and its
result is an artefact, so a run that was interrupted goes on with the blocks that are missing. The blocks are then
joined into one artefact: rows, the images they use, held-out examples, and the records that were refused and why.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vrray.data.held_out import FILE as CANDIDATES
from vrray.data.held_out import Candidate, read_candidates
from vrray.data.images import Images, Opened
from vrray.data.ingest_block import (
    BLOBS,
    FINGERPRINTS,
    HASHES,
    PART,
    Choice,
    Job,
    RowSpec,
    Source,
    Task,
    read_fingerprints,
    read_hashes,
    write_refusals,
)
from vrray.data.ingest_join import Parts, join_parts, read_parts
from vrray.data.ingest_run import RECHECKED, readable, run_tasks
from vrray.data.rows import KIND
from vrray.data.sources import index_source, source_identity
from vrray.errors import DataError, StoreError
from vrray.store import Store, content_key

INDEX = "rows-index"
BLOCK_ROWS = 2000


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
        "format": 5,
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
    done, counts = run_tasks(job, tasks, total, max_rejected)
    try:
        made = _join(job, done, counts, total, max_rejected, index)
    except StoreError:
        finished = _known(store, index, images)  # by another run, which has cleared the blocks away
        if finished is None:
            raise
        made = finished
    for task in tasks:
        store.delete(PART, task.key)
    return made


def candidates_in(store: Store, key: str) -> list[Candidate]:
    """The held-out examples of ingested rows, and training questions to compare guesses with."""
    with store.open(KIND, key, only=[CANDIDATES]) as folder:
        return read_candidates(folder)


def image_hashes(store: Store, key: str) -> dict[str, str]:
    """The images of ingested rows and their held-out examples by name, each with its content hash."""
    with store.open(KIND, key, only=[HASHES]) as folder:
        return read_hashes(folder)


class TrainedImages(NamedTuple):
    """The images that ingested rows train on: names, content hashes, fingerprints `[images, bytes]`."""

    names: list[str]
    hashes: list[str]
    fingerprints: NDArray[np.uint8]


def trained_images(store: Store, key: str) -> TrainedImages:
    """The images of ingested rows; their fingerprints are mapped into memory."""
    count = store.describe(KIND, key)["images"]
    with store.open(KIND, key, only=[HASHES, FINGERPRINTS]) as folder:
        hashes = read_hashes(folder)
        return TrainedImages(list(hashes)[:count], list(hashes.values())[:count], read_fingerprints(folder)[:count])


def all_images(store: Store, key: str, names: Collection[str]) -> dict[str, Opened]:
    """Those of the named images that ingested rows or their held-out examples use."""
    with store.open(KIND, key, only=[HASHES, FINGERPRINTS]) as folder:
        looks = read_fingerprints(folder)
        hashes = enumerate(read_hashes(folder).items())
        return {name: Opened(known, looks[place].tobytes()) for place, (name, known) in hashes if name in names}


def with_embedded(store: Store, images: Images, keys: Sequence[str]) -> Images:
    """The images and those that came embedded with the rows of `keys`, for this process: they are mapped into memory.

    A mapping outlives the name of its file, which may be that of a download.
    """
    with ExitStack() as stack:
        folders = [stack.enter_context(store.open(KIND, key, only=[BLOBS])) for key in keys]
        return Images(images.roots, [folder / BLOBS for folder in folders]).mapped()


def _known(store: Store, index: str, images: Images) -> Ingested | None:
    folder, name = index.split("/")
    if name not in store.names(folder):
        return None
    about = json.loads(store.read_bytes(index))
    if not store.has(KIND, about["key"]) or any(readable(images, image) for image in about["unreadable"]):
        return None
    return _described(store, about["key"])


def _described(store: Store, key: str) -> Ingested:
    info = store.describe(KIND, key)
    counts = Counter(info["counts"])
    rejected = store.shown("rejected", f"{key}.parquet") if counts["rejected"] else None
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


def _join(
    job: Job, tasks: Sequence[Task], counts: Mapping[str, int], total: int, max_rejected: float, index: str
) -> Ingested:
    """One artefact of all blocks, and the index that says which one it is.

    Its key follows from what was encoded: where other records were rejected, it is another one.
    """
    store, name = job.store, Path(index).stem
    parts = read_parts(store, tasks, job.choice.held_out)
    if counts["rejected"] > max_rejected * total:
        raise _refusal(store, parts, name, f"{_too_many(counts, max_rejected)}, of {total} in all")
    if not counts["rows"]:
        kind = " with an image" if job.choice.with_image else ""
        text = f"none of the {counts['records']} records in {_names(job.sources)} becomes a training row{kind}"
        raise _refusal(store, parts, name, text)
    rejected = parts.rejected
    key = content_key({"index": index, "rejected": [[row["source"], row["row"]] for row in rejected]})
    if rejected:
        _publish(store, key, rejected)
    store.put(KIND, key, lambda folder: join_parts(job, parts, counts, folder))
    store.write_text(index, json.dumps({"key": key, "unreadable": parts.unreadable[:RECHECKED]}))
    return _described(store, key)


def _publish(store: Store, key: str, rejected: Sequence[Mapping[str, Any]]) -> str:
    sink = pa.BufferOutputStream()
    write_refusals(sink, rejected)
    name = f"rejected/{key}.parquet"
    store.write_bytes(name, sink.getvalue().to_pybytes())
    return store.shown(name)


def _refusal(store: Store, parts: Parts, key: str, what: str) -> DataError:
    """The error for data that cannot be used; the list of rejected records is written first."""
    first = "; ".join(row["reason"] for row in parts.rejected[:3])
    listed = f" All are listed in {_publish(store, key, parts.rejected)}." if parts.rejected else ""
    return DataError(f"{what}{'. The first: ' if first else ''}{first}.{listed}")
