"""Reading, writing and identifying LLaVA records, and the message of every way they can be wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vrray.data.records import Record, Turn, read_records, records_identity, write_records
from vrray.errors import DataError

RECORDS = [
    Record("7", ("coco/1.jpg",), (Turn("<image>\nWhat is it?", "A cat."), Turn("Sure?", "Yes\u2028\u00e9."))),
    Record("text", (), (Turn("Hello", "Hi"),)),
]


def row(**changes: Any) -> dict[str, Any]:
    conversation = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
    return {"id": "a", "image": "1.jpg", "conversations": conversation} | changes


def says(*messages: tuple[str, object]) -> list[dict[str, object]]:
    return [{"from": role, "value": value} for role, value in messages]


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "records.jsonl"
    write_records(path, RECORDS)
    assert read_records(path) == RECORDS
    assert len(path.read_text(encoding="utf-8").split("\n")) == len(RECORDS) + 1


def test_json_list_and_jsonl_mean_the_same(tmp_path: Path) -> None:
    as_list, as_lines = tmp_path / "r.json", tmp_path / "r.jsonl"
    other_names = says(("user", "<image>\nWhat?"), ("assistant", "A cat."))
    as_list.write_text(json.dumps([row(id=7, image=["1.jpg"], model="x")], indent=2), encoding="utf-8-sig")
    as_lines.write_text("\n" + json.dumps(row(id="7", conversations=other_names)) + "\r\n\n", encoding="utf-8")
    assert read_records(as_list) == read_records(as_lines)
    assert read_records(as_list) == [Record("7", ("1.jpg",), (Turn("<image>\nWhat?", "A cat."),))]


def test_separators_inside_strings_do_not_cut_lines(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    conversation = says(("human", "<image>a\u2028b"), ("gpt", "c\x85d"))
    path.write_text(json.dumps(row(conversations=conversation), ensure_ascii=False), encoding="utf-8")
    assert read_records(path)[0].turns == (Turn("<image>a\u2028b", "c\x85d"),)


def test_identity_follows_content_not_format(tmp_path: Path) -> None:
    as_list = tmp_path / "r.json"
    as_list.write_text(json.dumps([row(image=["1.jpg"])], indent=4), encoding="utf-8")
    as_lines = tmp_path / "r.jsonl"
    write_records(as_lines, read_records(as_list))
    identity = records_identity(read_records(as_lines))
    assert identity == records_identity(read_records(as_list))
    assert len(identity) == 64
    assert identity != records_identity([Record("a", ("1.jpg",), (Turn("<image>\nWhat?", "A dog."),))])
    assert records_identity(RECORDS) != records_identity(RECORDS[::-1])


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.jsonl"
    write_records(path, RECORDS)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_records(path, RECORDS[:1])
    assert read_records(path) == RECORDS
    assert [entry.name for entry in tmp_path.iterdir()] == ["r.jsonl"]


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.json: no such file; check the path"):
        read_records(tmp_path / "nowhere.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_records(tmp_path)
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "\xe9"}')
    with pytest.raises(DataError, match="byte 8 is not UTF-8; save the file as UTF-8"):
        read_records(tmp_path / "latin.jsonl")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[\n{"id": 1},\n]', r"bad\.json, line \d: invalid JSON, .*; write one JSON list"),
        ('\n{"id":\n', r"bad\.json, row 1 \(line 2\): invalid JSON, .* column \d+; write one JSON object a line"),
    ],
)
def test_invalid_json(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_records(tmp_path / "bad.json")


BAD_ROWS: list[tuple[object, str]] = [
    ("text", "found 'text'; write an object"),
    (row(id=None), "field 'id' is None; write a string or an integer"),
    (row(id=True), "field 'id' is True"),
    (row(id=""), "field 'id' is ''"),
    (row(id="first"), r"id 'first' is already that of .*row 1.*; make ids unique"),
    (row(image=["1.jpg", "2.jpg"]), "1 <image> placeholders with 2 images; write one <image> for each"),
    (row(image=[]), "1 <image> placeholders with 0 images"),
    (row(image=3), "field 'image' is 3; write a relative path"),
    (row(image=""), "field 'image' is ''"),
    (row(image="/etc/1.jpg"), "image '/etc/1.jpg' is absolute; write it relative"),
    (row(image="C:\\1.jpg"), "is absolute"),
    (row(image="a/../../1.jpg"), "may leave the image root; write it without"),
    (row(image="a\\..\\1.jpg"), "may leave the image root"),
    (row(conversations=[]), r"field 'conversations' is \[\]; write a user message and its answer"),
    (row(conversations=None), "field 'conversations' is None"),
    (row(conversations=["hi"]), "message 1: found 'hi'; write an object with 'from' and 'value'"),
    (row(conversations=says(("gpt", "a"), ("human", "b"))), "message 1: 'from' is 'gpt', expected 'human' or 'user'"),
    (row(conversations=says(("human", "<image>"), ("human", "b"))), "message 2: 'from' is 'human', expected 'gpt'"),
    (row(conversations=says(("system", "a"))), "message 1: 'from' is 'system'"),
    (row(conversations=says(("human", "<image>"))), "1 messages end with the user's; add the answer"),
    (row(conversations=says(("human", "<image>"), ("gpt", " "))), "message 2: 'value' is ' '; write a text"),
    (row(conversations=says(("human", "<image>"), ("gpt", 3))), "message 2: 'value' is 3"),
    (row(conversations=says(("human", "hi"), ("gpt", "b"))), "0 <image> placeholders with 1 images"),
    (row(conversations=says(("human", "<image><image>"), ("gpt", "b"))), "2 <image> placeholders with 1 images"),
    (row(conversations=says(("human", "<image>"), ("gpt", "<image>"))), "1 <image> in answers; only a user message"),
    (row(image=None), "1 <image> placeholders with 0 images; .*none without"),
]


def to_lines(rows: list[object]) -> str:
    return "\n".join(map(json.dumps, rows))


@pytest.mark.parametrize(("bad", "message"), BAD_ROWS)
@pytest.mark.parametrize(("write", "place"), [(json.dumps, "row 2"), (to_lines, r"row 2 \(line 2\)")])
def test_bad_rows(tmp_path: Path, bad: object, message: str, write: Callable[[object], str], place: str) -> None:
    path = tmp_path / "records.json"
    path.write_text(write([row(id="first"), bad]), encoding="utf-8")
    with pytest.raises(DataError, match=rf"records\.json, {place}.*{message}"):
        read_records(path)
