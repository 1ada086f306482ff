"""Parquet: blocks from the footer alone, rows in batches of some MiB."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vrray.data.formats.blocks import BLOCK_BYTES, Block, Raw, cut_blocks, unreadable
from vrray.data.formats.files import file_name, open_file, reading
from vrray.data.formats.tables import ERRORS, pick_columns, to_raws
from vrray.errors import DataError

_BATCH_BYTES = 8 << 20
_BATCH_ROWS = 1024
# A reader cannot begin inside a row group: it decodes what stands before. So a group of very many rows gives fewer
# and longer blocks.
_BLOCKS_OF_GROUP = 64
_MAX_ROWS = 1 << 30


def index_parquet(location: str, rows_per_block: int, first: int = 0) -> list[Block]:
    """The blocks of a Parquet file.

    Raises:
        DataError: its footer is damaged, or it has no column of conversations.
    """
    with reading(location), open_file(location) as file:
        parquet = _open(file)
        pick_columns(location, parquet.schema_arrow.names)
        sizes = _group_sizes(parquet.metadata, location)
        rows = max(1, min(rows_per_block, _rows_of(BLOCK_BYTES, parquet.metadata, range(len(sizes)))))
        return cut_blocks(location, "parquet", _pieces(sizes, rows), rows, first=first, limit=_MAX_ROWS)


def read_parquet(block: Block) -> Iterator[Raw]:
    """The rows of a block; those that stand behind damage in their row group are unreadable too."""
    name, shift = file_name(block.location), block.begin - block.first + 1

    def place_of(number: int) -> str:
        return f"{name}, row {number + shift}"

    number, last = block.first, block.first + block.rows
    with reading(block.location), open_file(block.location) as file:
        parquet = _open(file)
        error: Exception = DataError("the file has fewer rows than its footer says")
        try:
            for batch in _batches(parquet, block):
                yield from to_raws(batch, number, place_of)
                number += batch.num_rows
        except ERRORS as damage:
            error = damage
    for lost in range(number, last):
        yield Raw(lost, place_of(lost), unreadable(place_of(lost), error), {})


def _open(file: Any) -> pq.ParquetFile:
    return pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)


def _group_sizes(metadata: Any, location: str) -> list[int]:
    sizes = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    if any(size < 0 for size in sizes) or sum(sizes) != metadata.num_rows or metadata.num_rows > _MAX_ROWS:
        raise DataError(f"{location}: its footer is damaged ({metadata.num_rows} rows); write the file again")
    return sizes


def _rows_of(size: int, metadata: Any, groups: Iterable[int]) -> int:
    """About how many rows of some row groups have a number of bytes, by what the footer says of the groups."""
    chosen = [metadata.row_group(index) for index in groups]
    held = sum(max(group.total_byte_size, 0) for group in chosen)
    return size * sum(group.num_rows for group in chosen) // max(held, 1)


def _pieces(sizes: list[int], rows_per_block: int) -> Iterator[tuple[int, int, int]]:
    begin = 0
    for size in sizes:
        step = max(rows_per_block, -(-size // _BLOCKS_OF_GROUP))
        for start in range(begin, begin + size, step):
            end = min(start + step, begin + size)
            yield start, end, end - start
        begin += size


def _batches(parquet: pq.ParquetFile, block: Block) -> Iterator[pa.RecordBatch]:
    """The rows `begin` to `end` of the file."""
    groups: list[int] = []
    begin = position = 0  # the file's row that the row group, and the next batch, begins with
    for index in range(parquet.metadata.num_row_groups):
        group = parquet.metadata.row_group(index)
        if begin < block.end and begin + group.num_rows > block.begin:
            position = position if groups else begin
            groups.append(index)
        begin += group.num_rows
    batch_rows = max(1, min(_BATCH_ROWS, _rows_of(_BATCH_BYTES, parquet.metadata, groups)))
    columns = pick_columns(block.location, parquet.schema_arrow.names)
    for batch in parquet.iter_batches(batch_rows, row_groups=groups, columns=columns, use_threads=False):
        start, end = max(block.begin - position, 0), min(block.end - position, batch.num_rows)
        if start < end:
            yield batch.slice(start, end - start)
        position += batch.num_rows
        if position >= block.end:
            return
