"""JSON lists and JSONL: where their rows begin and end, found in one pass over pieces of the file, and the rows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from vrray.data.formats.blocks import ROW_BYTES, TEXT_BYTES, Block, Raw, cut_blocks, unreadable
from vrray.data.formats.files import file_name, open_file, reading
from vrray.errors import DataError

BOM = b"\xef\xbb\xbf"
_PIECE = 4 << 20
_CUT = 64  # a value that ends within so many characters of a piece's end may go on in the next one
_CUT_OFF = "the file ends inside the list"
_SPACE = re.compile(r"[ \t\n\r]*")
_SEPARATOR = re.compile(r"[ \t\n\r]*([,\]])[ \t\n\r]*")
_NESTED = re.compile(r'"(?:[^"\\]++|\\.)*+"|[\[{]|[\]}]', re.DOTALL)
_DECODER = json.JSONDecoder()


def index_list(location: str, rows_per_block: int) -> list[Block]:
    """The blocks of a file that is one JSON list.

    Raises:
        DataError: it cannot be read or is not a JSON list to its end; names row, line, column and byte.
    """
    with reading(location), open_file(location) as file:
        return cut_blocks(location, "json", _list_spans(_Window(file, location)), rows_per_block, limit=TEXT_BYTES)


def read_list(block: Block) -> Iterator[Raw]:
    """The rows of a block of a JSON list."""
    name, data = file_name(block.location), _read(block)
    try:
        text, damaged = data.decode(), False
    except UnicodeDecodeError:
        text, damaged = data.decode(errors="surrogateescape"), True
    position = 0
    for number in range(block.first, block.first + block.rows):
        place = f"{name}, row {number + 1}"
        value: object
        try:
            value, end = _DECODER.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise _changed(block) from error
        except (RecursionError, ValueError) as error:
            value, end = unreadable(place, error), _skip(text, position) or len(text)
        if damaged and not _is_utf8(text[position:end]):
            value = _not_utf8(place)
        yield Raw(number, place, value, {})
        separator = _SEPARATOR.match(text, end)
        position = separator.end() if separator else end


def index_lines(location: str, rows_per_block: int) -> list[Block]:
    """The blocks of a JSONL file; blank lines are no rows.

    Raises:
        DataError: it cannot be read.
    """
    with reading(location), open_file(location) as file:
        return cut_blocks(location, "jsonl", _line_spans(file), rows_per_block, limit=TEXT_BYTES)


def read_lines(block: Block) -> Iterator[Raw]:
    """The rows of a block of JSONL."""
    name = file_name(block.location)
    if block.end - block.begin > ROW_BYTES and block.rows == 1:
        place = f"{name}, row {block.first + 1}"
        size = f"{(block.end - block.begin) / (1 << 20):.0f} MiB"
        error = DataError(f"{place}: has {size}, the limit is {ROW_BYTES >> 20} MiB; write one record a line")
        yield Raw(block.first, place, error, {})
        return
    lines = (line for line in _read(block).split(b"\n") if line and not line.isspace())
    for number, line in enumerate(lines, start=block.first):
        place = f"{name}, row {number + 1}"
        yield Raw(number, place, decode_row(line, place), {})


def decode_row(data: bytes, place: str) -> object:
    """The value of one JSON text, or a DataError that says why there is none."""
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return _not_utf8(place)
    except json.JSONDecodeError as error:
        return DataError(f"{place}: not JSON, {error.msg} at column {error.colno}; repair or remove the row")
    except (RecursionError, ValueError) as error:
        return unreadable(place, error)


class _Window:
    """A moving piece of a file as Latin-1 text, in which a character is a byte; JSON's own signs are ASCII."""

    def __init__(self, file: Any, location: str):
        self._file, self._location = file, location
        self.text = ""
        self.begin = 0  # the byte of the file that the text begins with
        self.ended = False
        self._lines = self._line_begin = 0  # how many lines end before the text, and where its first one begins

    def advance(self, position: int) -> None:
        """Drop the text before a position and read on."""
        self._lines += self.text.count("\n", 0, position)
        newline = self.text.rfind("\n", 0, position)
        if newline >= 0:
            self._line_begin = self.begin + newline + 1
        rest = self.text[position:]
        data = self._file.read(max(_PIECE, len(rest)))  # doubling keeps the work on a long row linear
        self.text = rest + data.decode("latin-1")
        self.begin += position
        self.ended = not data

    def error(self, row: int, position: int, message: str) -> DataError:
        """What is wrong at a position of the text."""
        newline = self.text.rfind("\n", 0, position)
        line_begin = self.begin + newline + 1 if newline >= 0 else self._line_begin
        line = self._lines + self.text.count("\n", 0, position) + 1
        byte = self.begin + position
        where = f"row {row + 1} (line {line}, column {byte - line_begin + 1}, byte {byte})"
        return DataError(
            f"{self._location}, {where}: {message}; the rows behind it cannot be found, so repair the file, "
            "or write it as JSONL, where a damaged row does not cost the others"
        )


def _list_spans(window: _Window) -> Iterator[tuple[int, int, int]]:
    position, row = _open_list(window), 0
    while True:
        position = _SPACE.match(window.text, position).end()  # type: ignore[union-attr]
        if row == 0 and window.text.startswith("]", position):
            position += 1
            break
        found = _element(window, position, row)
        if found is None:
            window.advance(position)
            position = 0
            continue
        end, separator = found
        yield window.begin + position, window.begin + end, 1
        row, position = row + 1, separator.end()
        if separator[1] == "]":
            break
    while not window.text[position:].strip(" \t\n\r"):
        if window.ended:
            return
        window.advance(len(window.text))
        position = 0
    raise window.error(row, position, "there is more after the end of the list")


def _open_list(window: _Window) -> int:
    """The position behind the opening bracket, with which the caller knows the file to begin."""
    window.advance(0)
    while "[" not in window.text and not window.ended:
        window.advance(len(window.text))
    return window.text.index("[") + 1


def _element(window: _Window, position: int, row: int) -> tuple[int, re.Match[str]] | None:
    """Where the value at a position ends, and the separator behind it; None where the window cuts it."""
    text = window.text
    try:
        end: int | None = _DECODER.raw_decode(text, position)[1]
    except json.JSONDecodeError as error:
        near_end = error.pos > len(text) - _CUT or error.msg.startswith("Unterminated string")
        if window.ended or not near_end:
            raise window.error(row, error.pos, f"not JSON, {error.msg}") from error
        end = None
    except (RecursionError, ValueError):  # nested too deeply, or a number of too many digits: this row's matter
        end = _skip(text, position)
    if end is not None:
        separator = _SEPARATOR.match(text, end)
        if separator:
            return end, separator
        if window.ended or end < len(text) - _CUT:
            at_end = not text[end:].strip(" \t\n\r")
            raise window.error(row, end, _CUT_OFF if at_end else "not JSON, Expecting ',' or ']'")
    if window.ended:
        raise window.error(row, len(text), _CUT_OFF)
    if len(text) - position > ROW_BYTES:
        raise window.error(row, position, f"the row is longer than {ROW_BYTES >> 20} MiB")
    return None


def _skip(text: str, position: int) -> int | None:
    """Where the value at a position ends by its brackets alone; None where the text ends before."""
    if text[position] not in "[{":
        end = re.compile(r"[,\]}\s]").search(text, position)
        return end.start() if end else None
    depth = 0
    for sign in _NESTED.finditer(text, position):
        if sign[0] in "[{":
            depth += 1
        elif sign[0] in "]}":
            depth -= 1
        if depth == 0:
            return sign.end()
    return None


def _line_spans(file: Any) -> Iterator[tuple[int, int, int]]:
    """Lines that are not blank, without holding one that is longer than a piece."""
    begin, length, blank = 0, 0, True
    while piece := file.read(_PIECE):
        lines = piece.split(b"\n")
        for line in lines[:-1]:
            length += len(line)
            if not (blank and (not line or line.isspace())):
                yield begin, begin + length, 1
            begin, length, blank = begin + length + 1, 0, True
        length += len(lines[-1])
        blank = blank and (not lines[-1] or lines[-1].isspace())
    if not blank:
        yield begin, begin + length, 1


def _read(block: Block) -> bytes:
    with reading(block.location), open_file(block.location) as file:
        data: bytes = file.read_at(block.end - block.begin, block.begin)
    if len(data) < block.end - block.begin:
        raise _changed(block)
    return data


def _changed(block: Block) -> DataError:
    return DataError(f"{block.location}: has changed since it was indexed; start again")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _not_utf8(place: str) -> DataError:
    return DataError(f"{place}: not UTF-8; save the file as UTF-8")
