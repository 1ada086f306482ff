"""LLaVA conversation records: reading, checking, writing and identifying them."""

from __future__ import annotations

import hashlib
import json
import os
import reprlib
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from vrray.errors import DataError

IMAGE_PLACEHOLDER = "<image>"


@dataclass(frozen=True)
class Turn:
    """One exchange; ``user`` keeps its ``<image>`` placeholder as in LLaVA data."""

    user: str
    assistant: str


@dataclass(frozen=True)
class Record:
    """One conversation; ``images`` are paths relative to the image root, in the order of their placeholders."""

    id: str
    images: tuple[str, ...]
    turns: tuple[Turn, ...]


def read_records(path: str | os.PathLike[str]) -> list[Record]:
    """Reads LLaVA conversations (https://github.com/haotian-liu/LLaVA, docs/Finetune_Custom_Data.md).

    The file is a JSON list or JSONL, told apart by its first character.

    Raises:
        DataError: the file or one of its rows is missing or malformed; names the file, row (and line for JSONL).
    """
    records: list[Record] = []
    first_place: dict[str, str] = {}
    for place, row in read_rows(path):
        record = _parse_record(row, place)
        if record.id in first_place:
            raise DataError(f"{place}: id {record.id!r} is already that of {first_place[record.id]}; make ids unique")
        first_place[record.id] = place
        records.append(record)
    return records


def write_records(path: str | os.PathLike[str], records: Iterable[Record]) -> None:
    """Writes LLaVA JSONL, a record a line; a reader sees the old file or the whole new one."""
    write_rows(path, (_to_row(record) for record in records))


def records_identity(records: Iterable[Record]) -> str:
    """The sha256 (hex) of what the records say, in their order, however their file was formatted."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(_to_line(_to_row(record)).encode())
    return digest.hexdigest()


def read_rows(path: str | os.PathLike[str]) -> Iterator[tuple[str, object]]:
    """Yields (where the row stands, for messages; its JSON value) from a JSON list or JSONL.

    Raises:
        DataError: the file cannot be read or is not JSON.
    """
    path = Path(path)
    text = _read_text(path)
    if text.lstrip().startswith("["):
        yield from ((f"{path}, row {number}", row) for number, row in enumerate(_parse_list(text, path), start=1))
        return
    # str.splitlines would also cut at separators that JSON allows inside strings.
    numbered = ((number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip())
    for row_number, (line_number, line) in enumerate(numbered, start=1):
        place = f"{path}, row {row_number} (line {line_number})"
        try:
            yield place, json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{place}: invalid JSON, {error.msg} at column {error.colno}; "
                "write one JSON object a line, or the whole file as one JSON list"
            ) from error


def write_rows(path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes JSONL through a temporary file beside ``path`` and os.replace; creates missing folders."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("x", encoding="utf-8", newline="\n") as file:
            file.writelines(_to_line(row) for row in rows)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def parse_image_path(value: object, place: str) -> str | None:
    """The image path of a row: None, or relative and inside its root.

    Raises:
        DataError: ``value`` is neither a string nor null, is absolute, or climbs out with "..".
    """
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{place}: field 'image' is {reprlib.repr(value)}; write a relative path, or leave it out")
    windows_path = PureWindowsPath(value)  # splits at both slashes
    if PurePosixPath(value).is_absolute() or windows_path.drive or windows_path.root:
        raise DataError(f"{place}: image {value!r} is absolute; write it relative to the image root")
    if ".." in windows_path.parts:
        raise DataError(f"{place}: image {value!r} may leave the image root; write it without '..'")
    return value


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; check the path") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8 JSON or JSONL") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give a readable JSON or JSONL file") from error


def _parse_list(text: str, path: Path) -> list[object]:
    try:
        rows: list[object] = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}: invalid JSON, {error.msg} at column {error.colno}; "
            "write one JSON list of records, or one record a line"
        ) from error
    return rows


def _parse_record(row: object, place: str) -> Record:
    if not isinstance(row, dict):
        raise DataError(f"{place}: found {reprlib.repr(row)}; write an object with id, image and conversations")
    record = Record(
        id=_parse_id(row.get("id"), place),
        images=_parse_images(row.get("image"), place),
        turns=_parse_turns(row.get("conversations"), place),
    )
    _check_placeholders(record, place)
    return record


def _parse_id(value: object, place: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and value:
        return value
    raise DataError(f"{place}: field 'id' is {reprlib.repr(value)}; write a string or an integer")


def _parse_images(value: object, place: str) -> tuple[str, ...]:
    paths = [parse_image_path(name, place) for name in (value if isinstance(value, list) else [value])]
    return tuple(path for path in paths if path is not None)


def _parse_turns(value: object, place: str) -> tuple[Turn, ...]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{place}: field 'conversations' is {reprlib.repr(value)}; write a user message and its answer")
    texts = [_parse_message(message, index, f"{place}, message {index + 1}") for index, message in enumerate(value)]
    if len(texts) % 2:
        raise DataError(f"{place}: {len(texts)} messages end with the user's; add the answer or drop the message")
    return tuple(Turn(user, assistant) for user, assistant in zip(texts[::2], texts[1::2], strict=True))


def _parse_message(message: object, index: int, place: str) -> str:
    roles = ("gpt", "assistant") if index % 2 else ("human", "user")
    if not isinstance(message, dict):
        raise DataError(f"{place}: found {reprlib.repr(message)}; write an object with 'from' and 'value'")
    if message.get("from") not in roles:
        raise DataError(
            f"{place}: 'from' is {reprlib.repr(message.get('from'))}, expected {' or '.join(map(repr, roles))}; "
            "alternate user and assistant, the user first"
        )
    text = message.get("value")
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{place}: 'value' is {reprlib.repr(text)}; write a text that is not blank")
    return text


def _check_placeholders(record: Record, place: str) -> None:
    in_answers = sum(turn.assistant.count(IMAGE_PLACEHOLDER) for turn in record.turns)
    if in_answers:
        raise DataError(f"{place}: {in_answers} {IMAGE_PLACEHOLDER} in answers; only a user message may hold one")
    found = sum(turn.user.count(IMAGE_PLACEHOLDER) for turn in record.turns)
    if found != len(record.images):
        raise DataError(
            f"{place}: {found} {IMAGE_PLACEHOLDER} placeholders with {len(record.images)} images; "
            f"write one {IMAGE_PLACEHOLDER} for each image and none without"
        )


def _to_row(record: Record) -> dict[str, Any]:
    image = {"image": record.images[0] if len(record.images) == 1 else list(record.images)} if record.images else {}
    messages = [
        message
        for turn in record.turns
        for message in ({"from": "human", "value": turn.user}, {"from": "gpt", "value": turn.assistant})
    ]
    return {"id": record.id, **image, "conversations": messages}


def _to_line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, separators=(", ", ": ")) + "\n"
