"""All blocks' rows in one file, in the order in which they are trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vrray.data.blobs import read_blobs, write_blobs
from vrray.data.held_out import fewest, read_candidates, write_candidates
from vrray.data.ingest_block import BLOBS, HASHES, RANKS, Job, Task, read_table, write_hashes
from vrray.data.rows import Rows, read_batches, write_batches, write_order
from vrray.errors import DataError


def join_parts(
    job: Job, tasks: Sequence[Task], counts: Mapping[str, int], parts: Sequence[Path], folder: Path
) -> dict[str, Any]:
    """Write the artefact of all rows from the parts' folders; what describes it.

    Args:
        counts: of all parts together.
    """
    counts = Counter(counts)
    order = _order(job, tasks, parts)
    kept = np.zeros(counts["rows"], dtype=bool)
    kept[order] = True
    candidates = fewest((c for part in parts for c in read_candidates(part)), job.choice.held_out)
    write_batches(folder, _kept_batches(parts, kept))
    write_order(folder, (np.cumsum(kept) - 1)[order])
    write_candidates(folder, candidates)
    rows = Rows(folder)
    asked = (candidate.image for candidate in candidates if candidate.image and candidate.split != "train")
    # In the order of training: a longer run's images begin with a shorter one's, and so do the chunks of features.
    used = dict.fromkeys([*rows.images(), *asked])
    hashes = {row["name"]: row["hash"] for part in parts for row in read_table(part / HASHES) if row["name"] in used}
    write_hashes(folder, {name: hashes[name] for name in used})
    blobs = [part / BLOBS for part in parts if (part / BLOBS).is_file()]
    if blobs:
        write_blobs(folder / BLOBS, (item for blob in blobs for item in read_blobs(blob) if item[0] in used))
    counts["left_out"] += counts["rows"] - int(kept.sum())
    counts["rows"] = int(kept.sum())
    return {"rows": len(order), "longest": int(rows.lengths.max()), "embedded": bool(blobs), "counts": dict(counts)}


def _kept_batches(parts: Sequence[Path], kept: NDArray[np.bool_]) -> Iterator[pa.RecordBatch]:
    start = 0
    for part in parts:
        for batch in read_batches(part):
            yield batch.filter(pa.array(kept[start : start + batch.num_rows]))
            start += batch.num_rows


def _order(job: Job, tasks: Sequence[Task], parts: Sequence[Path]) -> NDArray[np.int64]:
    """The training rows by their place in the file: a share of each source, or several passes over it."""
    ranks = [np.load(part / RANKS, allow_pickle=False) for part in parts]
    rank = np.concatenate(ranks)
    source = np.repeat([task.source for task in tasks], [len(part) for part in ranks])
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
