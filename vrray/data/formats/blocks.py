"""A source cut into blocks that are read on their own, and its rows as they are read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from vrray.errors import DataError

Kind = Literal["json", "jsonl", "parquet", "dataset", "webdataset"]

ROW_BYTES = 64 << 20  # of the JSON of one row
BLOCK_BYTES = 128 << 20  # of what comes with embedded images
TEXT_BYTES = 16 << 20  # of a block of text, which is held as a whole


@dataclass(frozen=True)
class Block:
    """A piece of a source that one task reads.

    Attributes:
        location: path or URI of its file.
        begin, end: bytes of its file; rows of it for Parquet.
        first: the number of its first row in the source, from 0.
    """

    location: str
    kind: Kind
    begin: int
    end: int
    first: int
    rows: int


@dataclass(frozen=True)
class Raw:
    """One row as it was read.

    Attributes:
        number: in its source, from 0.
        place: where it stands, for messages, such as `mine.json, row 17`; rows count from 1 there.
        value: a JSON-like value, or why the row cannot be read.
        embedded: the images that came with the row, by the names that `value` uses for them.
    """

    number: int
    place: str
    value: object
    embedded: Mapping[str, bytes]


def cut_blocks(
    location: str,
    kind: Kind,
    pieces: Iterable[tuple[int, int, int]],
    rows_per_block: int,
    *,
    first: int = 0,
    limit: int,
) -> list[Block]:
    """Gather consecutive pieces (begin, end, rows) of a file into blocks of at most some rows and `limit` bytes.

    A piece stays whole, so that one beyond the limits is a block of its own.
    """
    blocks: list[Block] = []
    begin = end = rows = 0
    for piece_begin, piece_end, piece_rows in pieces:
        if rows and (rows + piece_rows > rows_per_block or piece_end - begin > limit):
            blocks.append(Block(location, kind, begin, end, first, rows))
            first, rows = first + rows, 0
        if not rows:
            begin = piece_begin
        end, rows = piece_end, rows + piece_rows
    if rows:
        blocks.append(Block(location, kind, begin, end, first, rows))
    return blocks


def one_line(error: BaseException) -> str:
    """The message of a foreign error, fit for one of ours."""
    text = " ".join(str(error).split()).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 100 else f"{text[:97]}..."


def unreadable(place: str, error: BaseException) -> DataError:
    """What stands for a row that a decoder refused."""
    return DataError(f"{place}: cannot be read ({one_line(error) or type(error).__name__}); repair or remove the row")
