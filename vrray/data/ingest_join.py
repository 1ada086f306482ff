"""All blocks' rows in one file, in the order in which they are trained on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vrray.data.blobs import read_blobs, write_blobs
from vrray.data.held_out import Candidate, fewest, read_candidates, write_candidates
from vrray.data.images import Opened
from vrray.data.ingest_block import (
    BLOBS,
    PART,
    RANKS,
    REFUSALS,
    UNREADABLE,
    Job,
    Task,
    read_fingerprints,
    read_hashes,
    write_images,
)
from vrray.data.rows import FILES, Rows, read_batches, write_batches, write_order
from vrray.errors import DataError
from vrray.store import Store, read_parquet


@dataclass
class Parts:
    """What is needed of all blocks at the same time; their rows are not.

    Attributes:
        ranks: of the rows of each block.
        embedded: the blocks that have embedded images.
        rejected: records that were refused, and why.
        unreadable: images that could not be read.
    """

    tasks: Sequence[Task]
    ranks: list[NDArray[np.float64]] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)
    opened: dict[str, Opened] = field(default_factory=dict)
    embedded: list[Task] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


def read_parts(store: Store, tasks: Sequence[Task], held_out: int) -> Parts:
    """Read the blocks' artefacts, one after the other.

    Args:
        held_out: how many candidates are wanted for each split and kind.
    """
    parts = Parts(tasks)
    parts.candidates = fewest(_read_each(store, parts), held_out)
    return parts


def join_parts(job: Job, parts: Parts, counts: Mapping[str, int], folder: Path) -> dict[str, Any]:
    """Write the artefact of all rows; what describes it.

    Args:
        counts: of all blocks together.
    """
    counts = Counter(counts)
    order = _order(job, parts)
    kept = np.zeros(counts["rows"], dtype=bool)
    kept[order] = True
    write_batches(folder, _kept_batches(job.store, parts, kept))
    write_order(folder, (np.cumsum(kept) - 1)[order])
    write_candidates(folder, parts.candidates)
    rows = Rows(folder)
    asked = (example.image for example in parts.candidates if example.image and example.split != "train")
    # In the order of training: a longer run's images begin with a shorter one's, and so do the chunks of features.
    trained = rows.images()
    used = dict.fromkeys([*trained, *asked])
    write_images(folder, {name: parts.opened[name] for name in used})
    if parts.embedded:
        write_blobs(folder / BLOBS, _used_blobs(job.store, parts, used))
    counts["left_out"] += counts["rows"] - int(kept.sum())
    counts["rows"] = int(kept.sum())
    longest = int(rows.lengths.max())
    return {
        "rows": len(order),
        "longest": longest,
        "embedded": bool(parts.embedded),
        "images": len(trained),
        "counts": dict(counts),
    }


def _read_each(store: Store, parts: Parts) -> Iterator[Candidate]:
    """Fill in all but the candidates, of which these are all."""
    for task in parts.tasks:
        with store.open(PART, task.key) as folder:
            parts.ranks.append(np.load(folder / RANKS, allow_pickle=False))
            for (name, known), values in zip(read_hashes(folder).items(), read_fingerprints(folder), strict=True):
                parts.opened[name] = Opened(known, values.tobytes())
            parts.rejected += read_parquet(folder / REFUSALS).to_pylist()
            parts.unreadable += json.loads((folder / UNREADABLE).read_text())
            if (folder / BLOBS).is_file():
                parts.embedded.append(task)
            candidates = read_candidates(folder)
        yield from candidates


def _kept_batches(store: Store, parts: Parts, kept: NDArray[np.bool_]) -> Iterator[pa.RecordBatch]:
    start = 0
    for task in parts.tasks:
        with store.open(PART, task.key, only=FILES) as folder:
            for batch in read_batches(folder):
                yield batch.filter(pa.array(kept[start : start + batch.num_rows]))
                start += batch.num_rows


def _used_blobs(store: Store, parts: Parts, used: Container[str]) -> Iterator[tuple[str, bytes]]:
    for task in parts.embedded:
        with store.open(PART, task.key, only=[BLOBS]) as folder:
            yield from (item for item in read_blobs(folder / BLOBS) if item[0] in used)


def _order(job: Job, parts: Parts) -> NDArray[np.int64]:
    """The training rows by their place in the file: a share of each source, or several passes over it."""
    rank = np.concatenate(parts.ranks)
    source = np.repeat([task.source for task in parts.tasks], [len(part) for part in parts.ranks])
    drawn = np.arange(len(rank)) if job.choice.in_order else np.argsort(rank, kind="stable")
    chosen = []
    for number, entry in enumerate(job.sources):
        own = drawn[source[drawn] == number]
        passes, share = divmod(entry.weight, 1)
        chosen += [own] * int(passes) + [own[: round(share * len(own))]]
    order = np.concatenate(chosen)
    if not len(order):
        raise DataError(f"--data-weights leave none of the {len(rank)} training rows; give larger ones")
    if len(job.sources) > 1 or job.sources[0].weight != 1:
        order = order[np.argsort(rank[order], kind="stable")]
    return order[: job.choice.limit].astype(np.int64)
