"""Reading annotations and predictions: JSON, JSONL, CSV, TSV and Parquet, with errors that name file, row and field."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vrray.data.records import read_rows, shown
from vrray.errors import DataError

_CELL_BYTES = 1 << 30  # of one TSV cell: MMBench holds images in them
_MOST_IDS = 3  # that a message lists


@dataclass(frozen=True)
class Row:
    """One object of a file, and where it stands, for messages."""

    place: str
    values: Mapping[str, Any]

    def has(self, *names: str) -> bool:
        """Whether one of some fields is there and not null."""
        return any(self.values.get(name) is not None for name in names)

    def value(self, *names: str) -> Any:
        """The first of some fields that is there.

        Raises:
            DataError: none is.
        """
        for name in names:
            if self.values.get(name) is not None:
                return self.values[name]
        wanted = " or ".join(repr(name) for name in names)
        raise DataError(f"{self.place}: lacks the field {wanted}; its fields are {_listed(self.values)}")

    def text(self, *names: str) -> str:
        """The first of some fields as a text; numbers count as texts, as JSON writers differ there.

        Raises:
            DataError: none is there, or it is neither a text nor a number.
        """
        value = self.value(*names)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise DataError(f"{self.place}: field {self._name(names)!r} is {shown(value)}; write a text")
        return str(value)

    def texts(self, *names: str) -> tuple[str, ...]:
        """The first of some fields as a list of texts; one text is a list of one.

        Raises:
            DataError: none is there, or it is no text and no list of texts.
        """
        value = self.value(*names)
        members = value if isinstance(value, list | tuple) else [value]
        if not members or any(isinstance(one, bool) or not isinstance(one, str | int | float) for one in members):
            raise DataError(f"{self.place}: field {self._name(names)!r} is {shown(value)}; write texts")
        return tuple(str(one) for one in members)

    def integer(self, *names: str) -> int:
        """The first of some fields as an integer.

        Raises:
            DataError: none is there, or it is no integer.
        """
        text = self.text(*names)
        try:
            return int(text)
        except ValueError as error:
            message = f"{self.place}: field {self._name(names)!r} is {shown(text)}; write an integer"
            raise DataError(message) from error

    def inner(self, name: str) -> Mapping[str, Any]:
        """A field that is an object, empty where it is absent or null.

        Raises:
            DataError: it is something else.
        """
        value = self.values.get(name)
        if value is not None and not isinstance(value, dict):
            raise DataError(f"{self.place}: field {name!r} is {shown(value)}; write an object")
        return value or {}

    def _name(self, names: Sequence[str]) -> str:
        return next(name for name in names if self.values.get(name) is not None)


def find_file(path: Path, *patterns: str) -> Path:
    """The path itself where it is a file; in a folder, the one file of the first pattern that matches any.

    Raises:
        DataError: there is no such path, no match, or more than one.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder; check the path")
    for pattern in patterns:
        found = sorted(match for match in path.glob(pattern) if match.is_file())
        if len(found) > 1:
            names = ", ".join(match.name for match in found[:_MOST_IDS])
            raise DataError(f"{path}: {len(found)} files match {pattern} ({names}); name the one that is meant")
        if found:
            return found[0]
    raise DataError(f"{path}: holds none of {', '.join(patterns)}; name the file itself")


def read_json(path: Path) -> Any:
    """The value of a JSON file, or the list of the rows of JSONL.

    Raises:
        DataError: the file cannot be read or is neither.
    """
    try:
        return json.loads(_read_text(path))
    except RecursionError as error:
        raise DataError(f"{path}: nested too deeply; give the benchmark's own file") from error
    except ValueError:
        return [value for _, value in read_rows(path)]


def read_object(path: Path) -> Row:
    """The object that a JSON file holds.

    Raises:
        DataError: the file cannot be read, or holds something else.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise DataError(f"{path}: holds {_kind(value)}; this benchmark's file is one JSON object")
    return Row(str(path), value)


def read_table(path: Path) -> list[Row]:
    """The rows of a JSON list, of JSONL or of Parquet; of embedded images only their names.

    Raises:
        DataError: the file cannot be read, has no rows, or one of them is no object.
    """
    rows = _read_parquet(path) if path.suffix == ".parquet" else rows_of(read_json(path), path)
    if not rows:
        raise DataError(f"{path}: has no rows; give a file with at least one")
    return rows


def rows_of(value: Any, path: Path) -> list[Row]:
    """The rows of what `read_json` gave: those of a list, or one object as the only row.

    Raises:
        DataError: one of them is no object.
    """
    members = value if isinstance(value, list) else [value]
    return [to_row(member, f"{path}, row {number}") for number, member in enumerate(members, start=1)]


def rows_in(row: Row, field: str) -> Iterator[Row]:
    """The objects of a list that is a field of an object.

    Raises:
        DataError: the field is no list of objects, or empty.
    """
    value = row.value(field)
    if not isinstance(value, list) or not value:
        raise DataError(f"{row.place}: field {field!r} is {_kind(value)}; it should be a list of objects")
    for number, member in enumerate(value, start=1):
        yield to_row(member, f"{row.place}, {field} {number}")


def to_row(value: object, place: str) -> Row:
    """A row of an object.

    Raises:
        DataError: the value is none.
    """
    if not isinstance(value, dict):
        raise DataError(f"{place}: found {shown(value)}; write an object")
    return Row(place, value)


def read_csv(path: Path, *, delimiter: str = ",", header: Sequence[str] | None = None) -> list[Row]:
    """The rows of a CSV file with a header, or with the given one.

    Raises:
        DataError: the file cannot be read, has no rows, or one has another number of cells than the header.
    """
    rows = list(iter_csv(path, delimiter=delimiter, header=header))
    if not rows:
        raise DataError(f"{path}: has no rows; give a file with at least one")
    return rows


def iter_csv(path: Path, *, delimiter: str = ",", header: Sequence[str] | None = None) -> Iterator[Row]:
    """The rows that `read_csv` gives, one at a time.

    Raises:
        DataError: as `read_csv`, but for a file without rows.
    """
    limit = csv.field_size_limit(_CELL_BYTES)
    try:
        with _reading(path), path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, delimiter=delimiter)
            names = header if header is not None else next(lines, [])
            for number, cells in enumerate((line for line in lines if line), start=1):
                place = f"{path}, row {number}"
                if len(cells) != len(names):
                    raise DataError(f"{place}: {len(cells)} cells where {len(names)} columns are; repair the row")
                yield Row(place, dict(zip(names, cells, strict=True)))
    except csv.Error as error:
        raise DataError(f"{path}: not CSV ({error}); give the benchmark's own file") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: a byte soon after line {lines.line_num} is not UTF-8; save the file as UTF-8"
        ) from error
    finally:
        csv.field_size_limit(limit)


def read_lines(path: Path) -> list[str]:
    """The lines of a text file.

    Raises:
        DataError: the file cannot be read.
    """
    return _read_text(path).replace("\r\n", "\n").removesuffix("\n").split("\n")


def unique(rows: Iterable[tuple[str, str, Any]]) -> dict[str, Any]:
    """The values of (key, place, value) by their key.

    Raises:
        DataError: two have one key; names both places.
    """
    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    for key, place, value in rows:
        if key in places:
            raise DataError(f"{place}: repeats {shown(key)} of {places[key]}; keep one of them")
        places[key], values[key] = place, value
    return values


def some_of(names: Sequence[str]) -> str:
    """The first few of some names, for messages."""
    more = f" and {len(names) - _MOST_IDS} more" if len(names) > _MOST_IDS else ""
    return ", ".join(shown(name) for name in names[:_MOST_IDS]) + more


def _read_text(path: Path) -> str:
    # newline="" keeps line ends inside quoted cells
    try:
        with _reading(path), path.open(encoding="utf-8-sig", newline="") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; check the path") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give a readable file") from error


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            table = file.read(columns=[_column(field) for field in file.schema_arrow])
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; check the path") from error
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({str(error).splitlines()[0]})") from error
    return [Row(f"{path}, row {number}", row) for number, row in enumerate(table.to_pylist(), start=1)]


def _column(field: Any) -> str:
    """What to read of a column: all, or the name alone of an image that is embedded as {bytes, path}."""
    return f"{field.name}.path" if is_picture(field) else str(field.name)


def is_picture(field: Any) -> bool:
    """Whether a column holds images as {bytes, path}."""
    return {"bytes", "path"} <= set(getattr(field.type, "names", None) or [])


def _kind(value: object) -> str:
    sizes = {dict: "an object", list: "a list"}
    return f"{sizes[type(value)]} of {len(value)}" if isinstance(value, dict | list) else shown(value)


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(name if len(name) <= 40 else shown(name) for name in list(values)[:12]) or "none"
