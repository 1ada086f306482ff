"""LLaVA conversation records: reading, checking, writing and identifying them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import reprlib
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vrray.errors import DataError

IMAGE_PLACEHOLDER = "<image>"
_ABSOLUTE = re.compile(r"[/\\]|.:", re.DOTALL)  # on POSIX or Windows
_SLASH = re.compile(r"[/\\]")
_ROLES = {"human": True, "user": True, "gpt": False, "assistant": False}  # whether they are the user's


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
    """Reads the records of a JSON list or of JSONL, told apart by the first character (see `parse_record`).

    Raises:
        DataError: the file or one of its rows is missing or malformed; names the file, row (and line for JSONL).
    """
    return [parse_record(row, place) for place, row in read_rows(path)]


def parse_record(value: object, place: str) -> Record:
    """The record of a row, in LLaVA's format (https://github.com/haotian-liu/LLaVA, docs/Finetune_Custom_Data.md).

    - `id`: a string or an integer; several records may share one.
    - `image` or `images`: a name, a list of names, or nothing.
    - `conversations` of `from` (human, gpt) and `value`, or `messages` of `role` (user, assistant) and `content`,
      which is a text or a list of parts of the type text or image.

    Roles alternate and the last message is an answer, which may be empty. A first message of the assistant answers
    nothing and is dropped, as LLaVA's training does. The user's messages hold one `<image>` for each image.
    Other fields are ignored.

    Args:
        place: where the row stands; the message of every error begins with it.

    Raises:
        DataError: the value is not such a record.
    """
    if not isinstance(value, dict):
        raise DataError(f"{place}: found {shown(value)}; write an object with id, image and conversations")
    record = Record(
        id=_parse_id(value.get("id"), place),
        images=_parse_images(value, place),
        turns=_parse_turns(value, place),
    )
    _check_placeholders(record, place)
    return record


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
        except (RecursionError, ValueError) as error:
            raise DataError(f"{place}: cannot be read ({error}); repair or remove the row") from error


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
        DataError: ``value`` is neither a string nor null, is absolute, climbs out with "..", or is no file name.
    """
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{place}: field 'image' is {shown(value)}; write a relative path, or leave it out")
    if "\0" in value or not _is_text(value):
        raise DataError(f"{place}: image {shown(value)} is no file name; write it without NUL and lone surrogates")
    if _ABSOLUTE.match(value):
        raise DataError(f"{place}: image {shown(value)} is absolute; write it relative to the image root")
    if ".." in value and ".." in _SLASH.split(value):
        raise DataError(f"{place}: image {shown(value)} may leave the image root; write it without '..'")
    return value


def shown(value: object) -> str:
    """A short form of any value for messages: printable, and at most 100 characters."""
    text = _SHORT.repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


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
    except (RecursionError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); repair the file") from error
    return rows


def _parse_id(value: object, place: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 64:
        return str(value)
    if isinstance(value, str) and value and _is_text(value):
        return value
    raise DataError(f"{place}: field 'id' is {shown(value)}; write a string or an integer")


def _parse_images(row: Mapping[str, object], place: str) -> tuple[str, ...]:
    _, value = _one_of(row, "image", "images", place)
    names = value if isinstance(value, list) else [] if value is None else [value]
    paths = [parse_image_path(name, place) for name in names]
    if None in paths:
        raise DataError(f"{place}: image {paths.index(None) + 1} of {len(paths)} is missing; write its name")
    return tuple(path for path in paths if path is not None)


def _parse_turns(row: Mapping[str, object], place: str) -> tuple[Turn, ...]:
    field, value = _one_of(row, "conversations", "messages", place)
    if not isinstance(value, list) or not value:
        raise DataError(f"{place}: field {field!r} is {shown(value)}; write a user message and its answer")
    turns: list[Turn] = []
    question: str | None = None
    for number, message in enumerate(value, start=1):
        where = f"{place}, message {number}"
        of_user, text = _parse_message(message, where)
        if of_user is (question is not None) and number > 1:
            who = "user" if of_user else "assistant"
            raise DataError(f"{where}: a second message of the {who} in a row; let user and assistant alternate")
        if of_user and not text.strip():
            raise DataError(f"{where}: the user's text is {shown(text)}; write a text that is not blank")
        if question is not None:
            turns.append(Turn(question, text))
        question = text if of_user else None
    if question is not None or not turns:
        raise DataError(f"{place}: its {len(value)} messages lack the last answer; add it or drop the user's message")
    return tuple(turns)


def _parse_message(message: object, place: str) -> tuple[bool, str]:
    """Whether a message is the user's, and its text."""
    if not isinstance(message, dict):
        raise DataError(f"{place}: found {shown(message)}; write an object with 'from' and 'value'")
    role_field = "role" if message.get("from") is None and "role" in message else "from"
    text_field = "content" if message.get("value") is None and "content" in message else "value"
    role = message.get(role_field)
    if role == "system":
        raise DataError(f"{place}: system messages cannot be used, as templates have their own; drop it")
    if not isinstance(role, str) or role not in _ROLES:
        raise DataError(f"{place}: {role_field!r} is {shown(role)}; write one of {', '.join(_ROLES)}")
    text = message.get(text_field)
    if isinstance(text, list) and text_field == "content":
        text = "".join(_parse_part(part, place) for part in text)
    if not isinstance(text, str):
        raise DataError(f"{place}: {text_field!r} is {shown(text)}; write a text")
    if not _is_text(text):
        raise DataError(f"{place}: the text has a lone surrogate, which is no character; repair or remove the row")
    return _ROLES[role], text


def _parse_part(part: object, place: str) -> str:
    """The text of one part of a message; an image stands on a line of its own, as in LLaVA data."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "image":
        return f"{IMAGE_PLACEHOLDER}\n"
    text = part.get("text") if isinstance(part, dict) and kind == "text" else None
    if not isinstance(text, str):
        raise DataError(f"{place}: 'content' has the part {shown(part)}; write parts of the type text or image")
    return text


def _one_of(row: Mapping[str, object], first: str, second: str, place: str) -> tuple[str, object]:
    """The name and value of that one of two fields which is there; an empty list counts as nothing."""
    there = [field for field in (first, second) if row.get(field) not in (None, [])]
    if len(there) == 2:
        raise DataError(f"{place}: has the fields {first!r} and {second!r}; write one of them")
    field = there[0] if there else next((field for field in (first, second) if field in row), first)
    return field, row.get(field)


def _is_text(text: str) -> bool:
    """Whether a string can be written as UTF-8, which lone surrogates cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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


class _Short(reprlib.Repr):
    """Bounded in time too, whatever the value holds."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxdict, self.maxlist, self.maxstring, self.maxother = 2, 3, 3, 40, 40

    def repr_int(self, value: int, level: int) -> str:
        return repr(value) if abs(value) < 1 << 64 else f"<an integer of {value.bit_length()} bits>"

    def repr_bytes(self, value: bytes, level: int) -> str:
        return repr(value) if len(value) <= 16 else f"<{len(value)} bytes>"


_SHORT = _Short()


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
