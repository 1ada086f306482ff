"""Reading, writing and identifying LLaVA records, and the message of every way they can be wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vrray.data.records import Record, Turn, parse_record, read_records, records_identity, shown, write_records
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
        ('[{"id": 1}, ' + "1" * 5000 + "]", r"bad\.json: cannot be read \(.*digits.*\); repair the file"),
        ("[" * 2000, r"bad\.json: cannot be read \(.*recursion.*\); repair the file"),
        ('{"id": ' + "1" * 5000 + "}", r"bad\.json, row 1 \(line 1\): cannot be read \(.*digits.*\)"),
        ('{"id": ' + "[" * 2000, r"bad\.json, row 1 \(line 1\): cannot be read \(.*recursion.*\)"),
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
    (row(id=1.5), "field 'id' is 1.5"),
    (row(id="\ud800"), r"field 'id' is '\\ud800'"),
    (row(image=["1.jpg", "2.jpg"]), "1 <image> placeholders with 2 images; write one <image> for each"),
    (row(image=[]), "1 <image> placeholders with 0 images"),
    (row(image=["1.jpg", None]), "image 2 of 2 is missing"),
    (row(images=["1.jpg"]), "has the fields 'image' and 'images'; write one of them"),
    (row(image=3), "field 'image' is 3; write a relative path"),
    (row(image=""), "field 'image' is ''"),
    (row(image=[["1.jpg"]]), r"field 'image' is \['1.jpg'\]"),
    (row(image="/etc/1.jpg"), "image '/etc/1.jpg' is absolute; write it relative"),
    (row(image="C:\\1.jpg"), "is absolute"),
    (row(image="\\\\host\\1.jpg"), "is absolute"),
    (row(image="a/../../1.jpg"), "may leave the image root; write it without"),
    (row(image="a\\..\\1.jpg"), "may leave the image root"),
    (row(image="1.jpg\0.png"), "is no file name; write it without NUL"),
    (row(image="\udc80.jpg"), "is no file name"),
    (row(conversations=[]), r"field 'conversations' is \[\]; write a user message and its answer"),
    (row(conversations=None), "field 'conversations' is None"),
    (row(messages=says(("human", "a"))), "has the fields 'conversations' and 'messages'"),
    (row(conversations=["hi"]), "message 1: found 'hi'; write an object with 'from' and 'value'"),
    (row(conversations=says(("gpt", "a"))), "its 1 messages lack the last answer"),
    (row(conversations=says(("gpt", "a"), ("human", "b"))), "its 2 messages lack the last answer"),
    (row(conversations=says(("gpt", "a"), ("gpt", "b"))), "message 2: a second message of the assistant in a row"),
    (row(conversations=says(("human", "<image>"), ("user", "b"))), "message 2: a second message of the user in a row"),
    (row(conversations=says(("system", "a"))), "message 1: system messages cannot be used"),
    (row(conversations=says(("bot", "a"))), "message 1: 'from' is 'bot'; write one of human, user, gpt, assistant"),
    (row(conversations=says(("human", "<image>"))), "its 1 messages lack the last answer; add it or drop the user's"),
    (row(conversations=says(("human", " \n"), ("gpt", "a"))), r"message 1: the user's text is ' \\n'; write a text"),
    (row(conversations=says(("human", "<image>"), ("gpt", 3))), "message 2: 'value' is 3; write a text"),
    (row(conversations=says(("human", "<image>"), ("gpt", "\ud800"))), "message 2: the text has a lone surrogate"),
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


def test_parts_that_are_neither_text_nor_image() -> None:
    message = {"role": "user", "content": [{"type": "video"}]}
    with pytest.raises(DataError, match=r"^here, message 1: 'content' has the part .*video.*type text or image"):
        parse_record({"id": 1, "messages": [message]}, "here")


def test_messages_of_roles_and_parts() -> None:
    parts = [{"type": "image"}, {"type": "text", "text": "What?", "index": None}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "A cat."}]
    expected = Record("a", ("1.jpg",), (Turn("<image>\nWhat?", "A cat."),))
    assert parse_record({"id": "a", "images": ["1.jpg"], "messages": messages}, "here") == expected


def test_empty_answers_stay_and_a_leading_answer_goes() -> None:
    conversation = says(("gpt", "I begin."), ("human", "<image>\nWhat?"), ("gpt", ""))
    assert parse_record(row(conversations=conversation), "here").turns == (Turn("<image>\nWhat?", ""),)


def test_original_rows_are_taken_or_refused_for_their_placeholders() -> None:
    path = Path(__file__).resolve().parents[2].parent / "shared" / "reference" / "conversations" / "records.json"
    if not path.exists():
        pytest.skip("the reference fixtures are not beside the repository")
    rows = json.loads(path.read_text(encoding="utf-8"))
    with pytest.raises(DataError, match="r12: 2 <image> placeholders with 1 images"):
        parse_record(rows[12], "r12")
    records = [parse_record(value, value["id"]) for value in rows[:12]]
    assert [len(record.turns) for record in records] == [1, 1, 2, 1, 3, 1, 1, 1, 1, 1, 2, 1]
    assert records[10].turns[0].user == "<image>\nWhat is in this picture?"


@pytest.mark.parametrize(
    "value",
    [10**5000, b"x" * 10**6, ["\ud800" * 99] * 99, {"a" * 99: [{1: 2}] * 9, (): None}, {1, "a"}, float("nan"), None],
    ids=["integer", "bytes", "list", "object", "set", "NaN", "None"],
)
def test_any_value_is_shown_short_and_printable(value: object) -> None:
    assert len(shown(value).encode()) <= 100
    with pytest.raises(DataError, match=r"^here: ") as caught:
        parse_record(row(id=value), "here")
    assert len(str(caught.value)) < 200
