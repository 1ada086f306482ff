"""One block of conversations: read, checked and encoded into an artefact of its own."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vrray.data.blobs import PREFIX as EMBEDDED
from vrray.data.blobs import write_blobs
from vrray.data.encode import encode_record
from vrray.data.fingerprints import BYTES as FINGERPRINT
from vrray.data.held_out import Candidate, candidates_of, fewest, split_of, unit_hash, write_candidates
from vrray.data.images import Images, Opened, examine
from vrray.data.records import Record, parse_record
from vrray.data.rows import Row, to_batch, write_batches
from vrray.data.sources import REJECTED, Block, read_block, rejection
from vrray.errors import DataError
from vrray.store import Store, read_parquet

PART = "rows-part"
# The files of a part.
BLOBS, HASHES, RANKS = "embedded.arrow", "images.parquet", "ranks.npy"
FINGERPRINTS = "fingerprints.npy"  # [images, bytes], in the order of HASHES
REFUSALS, UNREADABLE = "rejected.parquet", "unreadable.json"
_READERS = 8  # threads that read and check a block's images
_SEEN = 1 << 19  # images that a process remembers to have opened, with their fingerprints about 200 MiB
_IMAGES = pa.schema([("name", pa.string()), ("hash", pa.string())])


@dataclass(frozen=True)
class Source:
    """One data entry.

    Attributes:
        prefix: what its image names get, the name of its image folder in `Images`.
        weight: how often its training rows are passed over in an epoch.
    """

    location: str
    prefix: str = ""
    weight: float = 1.0


@dataclass(frozen=True)
class RowSpec:
    """What rows follow from, besides the records."""

    model_path: str
    base: str
    image_tokens: int
    template: str
    max_length: int


@dataclass(frozen=True)
class Choice:
    """Which records become rows.

    Attributes:
        fraction: share of the training records, drawn by seed; a smaller share is part of a larger one.
        limit: at most so many rows; None for all. Drawn likewise, or the first ones where `in_order`.
        in_order: the records are mixed already.
        with_image: only records with an image, for the projector stage.
        held_out: examples to hold out for each split and kind (0: none, and all records are training records).
    """

    seed: int = 0
    fraction: float = 1.0
    limit: int | None = None
    in_order: bool = False
    with_image: bool = False
    held_out: int = 0


@dataclass(frozen=True)
class Job:
    """All that the tasks of one ingestion share."""

    store: Store
    sources: tuple[Source, ...]
    spec: RowSpec
    choice: Choice
    images: Images
    threshold: float  # training records of a lower rank are encoded


@dataclass(frozen=True)
class Task:
    source: int
    block: Block
    key: str


def ingest_block(job: Job, task: Task, seen: dict[str, Opened]) -> dict[str, int]:
    """Read, check and encode a block into its artefact; what was counted.

    Args:
        seen: images that were opened before; they are not opened again. Grows.
    """
    part, source = Part(), job.sources[task.source]
    wanted, held = _read_block(job, task, part)
    names = {image for chosen in wanted for image in chosen.record.images}
    names |= {example.image for example in held if example.image is not None and example.split != "train"}
    refused = _check_images(job.images, sorted(names), part, seen)
    options: dict[str, Any] = {"template": job.spec.template, "max_length": job.spec.max_length}
    for chosen in wanted:
        try:
            for image in chosen.record.images:
                if image in refused:
                    raise refused[image]
            processor = _processor(job.spec.model_path)
            row, cut = encode_record(chosen.record, processor, job.spec.image_tokens, **options)
        except DataError as error:
            _reject(part, source, chosen.number, chosen.record, error)
            continue
        part.rows.append(row)
        part.ranks.append(chosen.rank)
        part.counts["cut"] += cut
    part.candidates = [example for example in held if example.image not in refused]
    part.counts["rows"] = len(part.rows)
    job.store.put(PART, task.key, lambda folder: _write_part(folder, part))
    return dict(part.counts)


def _read_block(job: Job, task: Task, part: Part) -> tuple[list[_Chosen], list[Candidate]]:
    """The training records that are to be encoded, and candidates for held-out examples."""
    wanted: list[_Chosen] = []
    held: list[Candidate] = []
    source, choice = job.sources[task.source], job.choice
    for raw in read_block(task.block):
        part.counts["records"] += 1
        try:
            if isinstance(raw.value, DataError):
                raise raw.value
            record = _named(parse_record(raw.value, raw.place), source.prefix)
        except DataError as error:
            _reject(part, source, raw.number, raw.value, error)
            continue
        if choice.with_image and not record.images:
            part.counts["left_out"] += 1
            continue
        identity = f"{task.source}/{raw.number}"
        rank = unit_hash(choice.seed, "order", identity)
        split = split_of(record, choice.seed) if choice.held_out else "train"
        if split is None:
            part.counts["mixed"] += 1
            continue
        if choice.held_out:
            held += candidates_of(record, split, identity, rank)
        if split != "train":
            part.counts["held_out"] += 1
        elif rank < job.threshold and not (choice.in_order and raw.number >= (choice.limit or math.inf)):
            wanted.append(_Chosen(raw.number, record, rank))
        else:
            part.counts["left_out"] += 1
            continue
        part.embedded.update(raw.embedded)
    return wanted, fewest(held, choice.held_out)


def write_images(folder: Path, opened: Mapping[str, Opened]) -> None:
    """Write names, hashes and fingerprints of images."""
    hashes = [image.hash for image in opened.values()]
    pq.write_table(pa.table([list(opened), hashes], schema=_IMAGES), folder / HASHES)
    fingerprints = b"".join(image.fingerprint for image in opened.values())
    np.save(folder / FINGERPRINTS, np.frombuffer(fingerprints, np.uint8).reshape(-1, FINGERPRINT), allow_pickle=False)


def read_hashes(folder: Path) -> dict[str, str]:
    names, hashes = (column.to_pylist() for column in read_parquet(folder / HASHES).columns)
    return dict(zip(names, hashes, strict=True))


def read_fingerprints(folder: Path) -> NDArray[np.uint8]:
    """`[images, bytes]` in the order of `read_hashes`, mapped into memory."""
    fingerprints: NDArray[np.uint8] = np.load(folder / FINGERPRINTS, mmap_mode="r", allow_pickle=False)
    return fingerprints


def write_refusals(target: Any, rejected: Sequence[Mapping[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rejected, REJECTED), target)


@dataclass
class Part:
    """What became of a block's records."""

    rows: list[Row] = field(default_factory=list)
    ranks: list[float] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    opened: dict[str, Opened] = field(default_factory=dict)
    embedded: dict[str, bytes] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


class _Chosen(NamedTuple):
    number: int
    record: Record
    rank: float


def _named(record: Record, prefix: str) -> Record:
    """The record with its images as `Images` knows them."""
    names = (name if name.startswith(EMBEDDED) else f"{prefix}:{name}" for name in record.images)
    return replace(record, images=tuple(names)) if prefix else record


def _check_images(images: Images, names: Sequence[str], part: Part, seen: dict[str, Opened]) -> dict[str, DataError]:
    """Open every image, note its hash and fingerprint; the errors of those that cannot be used."""

    def check(name: str) -> Opened | DataError:
        if name in seen:
            return seen[name]
        try:
            data = part.embedded[name] if name in part.embedded else images.read(name)
            return examine(data, name)
        except DataError as error:
            return error

    refused: dict[str, DataError] = {}
    with ThreadPoolExecutor(_READERS) as pool:
        for name, found in zip(names, pool.map(check, names), strict=True):
            if isinstance(found, DataError):
                refused[name] = found
                part.unreadable.append(name)
            else:
                part.opened[name] = found
                if len(seen) < _SEEN:
                    seen[name] = found
    return refused


def _reject(part: Part, source: Source, number: int, value: object, error: DataError) -> None:
    part.rejected.append(rejection(source.location, number, value, error))
    part.counts["rejected"] += 1


@lru_cache(maxsize=1)
def _processor(model_path: str) -> Any:
    from vrray.models.loading import load_processor

    return load_processor(Path(model_path))


def _write_part(folder: Path, part: Part) -> dict[str, Any]:
    write_batches(folder, [to_batch(part.rows)])
    np.save(folder / RANKS, np.array(part.ranks), allow_pickle=False)
    write_candidates(folder, part.candidates)
    write_refusals(folder / REFUSALS, part.rejected)
    (folder / UNREADABLE).write_text(json.dumps(part.unreadable))
    write_images(folder, part.opened)
    if part.embedded:
        write_blobs(folder / BLOBS, part.embedded.items())
    return {"counts": dict(part.counts), "unreadable": len(part.unreadable)}
