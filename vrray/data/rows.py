"""Encoded rows: what training reads, memory-mapped from one Arrow file however many there are."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

KIND = "rows"
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("ids", pa.list_(pa.int32())),
        ("supervised", pa.list_(pa.int32())),  # begin and end of every stretch of supervised tokens
        ("images", pa.list_(pa.string())),
    ]
)
_FILE = "rows.arrow"
_ORDER = "order.npy"
FILES = (_FILE, _ORDER)
_BATCH = 2048


@dataclass(frozen=True)
class Row:
    """One encoded record: `ids[i]` is supervised (its cross-entropy counts) where `supervised[i]`.

    `images` are names, in the order of their tokens in `ids`.
    """

    id: str
    ids: tuple[int, ...]
    supervised: tuple[bool, ...]
    images: tuple[str, ...]

    @property
    def supervised_tokens(self) -> int:
        return sum(self.supervised[1:])

    @property
    def prompt(self) -> tuple[int, ...]:
        """The tokens before the first supervised one."""
        return self.ids[: self.supervised.index(True)]


def to_batch(rows: Sequence[Row]) -> pa.RecordBatch:
    """Rows as an Arrow batch of `SCHEMA`."""
    return pa.RecordBatch.from_pydict(
        {
            "id": [row.id for row in rows],
            "ids": [row.ids for row in rows],
            "supervised": [_stretches(row.supervised) for row in rows],
            "images": [row.images for row in rows],
        },
        schema=SCHEMA,
    )


def write_batches(folder: Path, batches: Iterable[pa.RecordBatch]) -> None:
    """Write the file that `Rows` maps."""
    with pa.ipc.new_file(str(folder / _FILE), SCHEMA) as writer:
        for batch in batches:
            writer.write_batch(batch)


def read_batches(folder: Path) -> Iterator[pa.RecordBatch]:
    """The batches of a folder's file, mapped into memory."""
    reader = pa.ipc.open_file(pa.memory_map(str(folder / _FILE)))
    yield from (reader.get_batch(index) for index in range(reader.num_record_batches))


def write_order(folder: Path, order: NDArray[np.int64]) -> None:
    """Say in which order `Rows` gives the rows of the file; it may leave some out and repeat others."""
    np.save(folder / _ORDER, order, allow_pickle=False)


def write_rows(folder: Path, rows: Sequence[Row]) -> None:
    """Write rows that are in memory."""
    write_batches(folder, (to_batch(rows[start : start + _BATCH]) for start in range(0, len(rows), _BATCH)))


class Rows(Sequence[Row]):
    """The rows of a folder, mapped into memory and made when asked for.

    Attributes:
        lengths: tokens of each row.
    """

    def __init__(self, folder: Path):
        self._batches = list(read_batches(folder))
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)]).tolist()
        order = folder / _ORDER
        self._order = np.load(order, allow_pickle=False) if order.is_file() else np.arange(self._starts[-1])
        in_file = [np.diff(batch.column("ids").offsets.to_numpy()) for batch in self._batches]
        lengths = np.concatenate(in_file) if in_file else np.zeros(0)
        self.lengths: NDArray[np.int64] = lengths.astype(np.int64)[self._order]

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self._row(int(place)) for place in self._order[index]]
        return self._row(int(self._order[index]))

    def images(self) -> list[str]:
        """The names of all images, once each, in the order of their first use."""
        columns = pa.chunked_array([batch.column("images") for batch in self._batches], SCHEMA.field("images").type)
        taken = columns.combine_chunks().take(pa.array(self._order))
        names: list[str] = taken.flatten().unique().to_pylist()
        return names

    def _row(self, place: int) -> Row:
        number = bisect.bisect_right(self._starts, place) - 1
        batch, within = self._batches[number], place - self._starts[number]
        ids = batch.column("ids")[within].values.to_numpy()
        supervised = np.zeros(len(ids), dtype=bool)
        for begin, end in _pairs(batch.column("supervised")[within].as_py()):
            supervised[begin:end] = True
        images = tuple(batch.column("images")[within].as_py())
        return Row(batch.column("id")[within].as_py(), tuple(ids.tolist()), tuple(supervised.tolist()), images)


def lengths_of(rows: Sequence[Row]) -> NDArray[np.int64]:
    """Tokens of each row, without making the rows where they are mapped."""
    if isinstance(rows, Rows):
        return rows.lengths
    return np.array([len(row.ids) for row in rows], dtype=np.int64)


def _stretches(supervised: Sequence[bool]) -> list[int]:
    """Where the flag changes: begin, end, begin, end, ..."""
    padded = [False, *supervised, False]
    return [place for place, (before, after) in enumerate(pairwise(padded)) if before != after]


def _pairs(values: Sequence[int]) -> Iterable[tuple[int, int]]:
    return zip(values[::2], values[1::2], strict=True)
