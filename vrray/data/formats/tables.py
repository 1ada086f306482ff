"""Rows of Arrow tables: which columns are read, and what a row's value and embedded images are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from vrray.data.blobs import embedded_name
from vrray.data.formats.blocks import Raw, unreadable
from vrray.data.formats.json_text import decode_row
from vrray.errors import DataError

_COLUMNS = ("id", "image", "images", "conversations", "messages")
_TEXTS = ("conversations", "messages")
ERRORS = (OSError, ValueError, OverflowError, MemoryError, pa.ArrowException)  # of decoding what is damaged


def pick_columns(location: str, names: Sequence[str]) -> list[str]:
    """The columns to read.

    Raises:
        DataError: none holds conversations.
    """
    if not set(names) & set(_TEXTS):
        found = ", ".join(names[:20]) or "none"
        raise DataError(
            f"{location}: its columns are {found}; rename the one with the conversations to 'conversations' "
            "(from, value) or 'messages' (role, content)"
        )
    return [name for name in _COLUMNS if name in names]


def to_raws(batch: pa.RecordBatch, first: int, place_of: Callable[[int], str]) -> Iterator[Raw]:
    """The rows of a batch, of which the first has a number; a row that cannot be decoded does not cost the others."""
    for number, row in enumerate(_decode(batch), start=first):
        place = place_of(number)
        if isinstance(row, Exception):
            yield Raw(number, place, unreadable(place, row), {})
        else:
            yield _to_raw(row, number, place)


def _decode(batch: pa.RecordBatch) -> list[dict[str, Any] | Exception]:
    try:
        return batch.to_pylist()
    except ERRORS as error:
        if batch.num_rows == 1:
            return [error]
    return [row for index in range(batch.num_rows) for row in _decode(batch.slice(index, 1))]


def _to_raw(row: dict[str, Any], number: int, place: str) -> Raw:
    embedded: dict[str, bytes] = {}
    for column in ("image", "images"):
        if column in row:
            row[column] = _to_names(row[column], embedded)
    for column in _TEXTS:
        if column in row:
            row[column] = _to_messages(row[column], place)
            if isinstance(row[column], DataError):
                return Raw(number, place, row[column], {})
    return Raw(number, place, row, embedded)


def _to_names(value: Any, embedded: dict[str, bytes]) -> Any:
    """Image columns hold names, encoded images, structs {bytes, path} as `datasets` writes them, or lists of those."""
    if isinstance(value, list):
        return [_to_names(image, embedded) for image in value]
    if isinstance(value, dict) and value.keys() <= {"bytes", "path"}:
        data = value.get("bytes")
        value = value.get("path") if data is None else data
    if isinstance(value, bytes):
        name = embedded_name(value)
        embedded[name] = value
        return name
    return value


def _to_messages(value: Any, place: str) -> Any:
    """Conversations are lists of structs, structs of lists (a Sequence of `datasets`), or JSON."""
    if isinstance(value, str):
        return decode_row(value.encode(), place)
    if isinstance(value, dict) and all(isinstance(part, list) for part in value.values()):
        lengths = {len(part) for part in value.values()}
        if len(lengths) == 1:
            return [dict(zip(value, parts, strict=True)) for parts in zip(*value.values(), strict=True)]
    return value
