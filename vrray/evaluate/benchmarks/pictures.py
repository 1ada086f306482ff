"""Images that a benchmark ships inside its own files: a column of base64 in TSV, or of {bytes, path} in Parquet."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from vrray.errors import DataError
from vrray.evaluate.benchmarks.files import is_picture, iter_csv

HOLDERS = (".parquet", ".tsv")
_COLUMNS = ("image_1", "image")  # the first that is there
_ROWS = 8  # that are held at a time; an image may have many MiB
_REFERENCE = 64  # characters of a TSV cell that names another row instead of holding an image


class Picture(NamedTuple):
    """The image of a row: its file's bytes, or the key of the row above that has it too, or neither.

    Attributes:
        place: where it stands, for messages.
        key: of this row.
    """

    place: str
    data: bytes | None
    key: str = ""
    same_as: str = ""


def pictures_in(file: Path) -> Iterator[Picture]:
    """The image of every row of a file, in its order; a few rows are held at a time.

    Raises:
        DataError: the file cannot be read, or a cell is not base64.
    """
    return _in_parquet(file) if file.suffix == ".parquet" else _in_tsv(file)


def _in_parquet(path: Path) -> Iterator[Picture]:
    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            fields = {field.name: field for field in file.schema_arrow if is_picture(field)}
            column = next((name for name in _COLUMNS if name in fields), None)
            number = 0
            for batch in file.iter_batches(_ROWS, columns=[f"{column}.bytes"] if column else [], use_threads=False):
                values: list[Any] = batch.column(0).to_pylist() if column else [None] * batch.num_rows
                for value in values:
                    number += 1
                    yield Picture(f"{path}, row {number}", (value or {}).get("bytes") or None)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({str(error).splitlines()[0]})") from error


def _in_tsv(path: Path) -> Iterator[Picture]:
    for row in iter_csv(path, delimiter="\t"):
        cell = row.values.get("image") or ""
        key = str(row.values.get("index") or "")
        if len(cell) <= _REFERENCE:
            yield Picture(row.place, None, key, cell.strip())
            continue
        try:
            yield Picture(row.place, base64.b64decode(cell, validate=True), key)
        except binascii.Error as error:
            raise DataError(
                f"{row.place}: field 'image' is not base64 ({error}); give the benchmark's own file"
            ) from error
