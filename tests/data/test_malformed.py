"""Thousands of malformed records and files: nothing but DataErrors, and the rows beside the damage are still read."""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vrray.data.records import Record, parse_record
from vrray.data.sources import REJECTED, index_source, read_block, rejection
from vrray.errors import DataError

Value = dict[str, Any]
ROWS = 7


def rows() -> list[Value]:
    """Rows that can be told apart by their id and their answers."""
    made: list[Value] = []
    for number in range(ROWS):
        conversation = [
            {"from": "human", "value": "<image>\nWhat is ☃?" if number % 3 else "Hello?"},
            {"from": "gpt", "value": f"answer {number} of é"},
            {"from": "human", "value": "Sure?"},
            {"from": "gpt", "value": ""},
        ]
        made.append(
            {"id": f"row-{number}", "conversations": conversation} | ({"image": f"{number}.jpg"} if number % 3 else {})
        )
    return made


def anything(rng: random.Random, depth: int = 0) -> Any:
    """A random JSON value, with what is legal and nasty."""
    makers: list[Callable[[], Any]] = [
        lambda: rng.choice([None, True, False, 0, -1, 1.5, float("nan"), float("inf"), 10**400, 2**63]),
        lambda: rng.choice(
            ["", " ", "\0", "\ud800", "\udcff.jpg", "<image>", "/etc/passwd", "../x", "a\\..\\b", "C:x", "é" * 999]
        ),
        lambda: rng.choice(["human", "gpt", "system", "user", "assistant", "from", "value", "[]", "{}"]),
        lambda: nested(rng.randrange(30)),
        lambda: [anything(rng, depth + 1) for _ in range(rng.randrange(4))],
        lambda: {str(anything(rng, 9)): anything(rng, depth + 1) for _ in range(rng.randrange(4))},
        lambda: [
            {"from": rng.choice(["human", "gpt"]), "value": anything(rng, depth + 1)} for _ in range(rng.randrange(5))
        ],
    ]
    return rng.choice(makers[:3] if depth > 3 else makers)()


def nested(levels: int) -> Any:
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


def change(rng: random.Random, value: Any) -> Any:
    """A value with one thing changed somewhere inside: replaced, deleted, renamed, doubled or swapped."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        rest = {name: part for name, part in value.items() if name != key}
        return rng.choice(
            [
                lambda: value | {key: change(rng, value[key])},
                lambda: value | {key: change(rng, value[key])},
                lambda: rest,
                lambda: rest | {rng.choice(["image", "images", "messages", "role", "content", "ID"]): value[key]},
                lambda: value | {rng.choice(["images", "messages", "image", "from", "value"]): anything(rng)},
            ]
        )()
    if isinstance(value, list) and value and rng.random() < 0.8:
        place = rng.randrange(len(value))
        other = rng.randrange(len(value))
        return rng.choice(
            [
                lambda: [*value[:place], change(rng, value[place]), *value[place + 1 :]],
                lambda: [*value[:place], change(rng, value[place]), *value[place + 1 :]],
                lambda: value[:place] + value[place + 1 :],
                lambda: value[:place] + value[other:],
                lambda: [*value, anything(rng)],
            ]
        )()
    return anything(rng)


def damage(rng: random.Random, data: bytes) -> bytes:
    """Bytes with a part cut, overwritten, doubled or inserted."""
    begin = rng.randrange(len(data))
    end = min(len(data), begin + rng.choice([1, 1, 2, 8, 60, 600]))
    junk = rng.choice([b"\0", b"\xff", b'"', b"\\", b"[", b"}", b",", b"\xed\xa0\x80", b"\xe9", b"1" * 5000, b"\n\n"])
    return rng.choice(
        [
            lambda: data[:begin],
            lambda: data[:begin] + data[end:],
            lambda: data[:begin] + bytes(end - begin) + data[end:],
            lambda: data[:begin] + rng.randbytes(end - begin) + data[end:],
            lambda: data[:begin] + junk + data[begin:],
            lambda: data[:begin] + data[begin:end] + data[begin:],
            lambda: data[:begin] + bytes([data[begin] ^ 1 << rng.randrange(8)]) + data[begin + 1 :],
            lambda: data[:begin] + rng.choice([-1, 1 << 31, 1 << 40]).to_bytes(8, "little", signed=True) + data[end:],
        ]
    )()


def nasty_row(rng: random.Random, row: Value) -> bytes:
    """The JSON of a row with one thing wrong with it, in its content or its text."""
    kind = rng.randrange(6)
    if kind < 3:
        return json.dumps(change(rng, row), ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    if kind == 3:
        deep = rng.choice(["[", '{"a":']) * rng.choice([990, 5000])
        return b'{"id": ' + deep.encode() + rng.choice([b"", b"]" * 990, b"]" * 5000]) + b"}"
    if kind == 4:
        return json.dumps(row, ensure_ascii=False).encode(rng.choice(["utf-16", "utf-32", "utf-7"]))
    return damage(rng, json.dumps(row, ensure_ascii=False).encode())


class Tally:
    """Reads sources and records; whatever is no DataError fails the test."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def record(self, value: object, place: str) -> Record | None:
        try:
            record = parse_record(value, place)
            "".join([record.id, *record.images, *(turn.user + turn.assistant for turn in record.turns)]).encode()
            return record
        except DataError as error:
            self.listed(0, value, error, place)
            return None

    def listed(self, number: int, value: object, error: DataError, place: str) -> None:
        assert str(error).startswith(place)
        assert len(str(error)) < 300
        pa.Table.from_pylist([rejection("source", number, value, error)], REJECTED)
        self.counts["rejected"] += 1

    def source(self, location: Path, rows_per_block: int = 3) -> list[Record]:
        """The records of a source; empty where it is refused as a whole."""
        records: list[Record] = []
        try:
            blocks = index_source(location, rows_per_block)
        except DataError as error:
            assert str(error)
            self.counts["refused"] += 1
            return []
        for block in blocks:
            read = 0
            for raw in read_block(block):
                assert raw.number == block.first + read
                read += 1
                if isinstance(raw.value, DataError):
                    self.listed(raw.number, raw.value, raw.value, raw.place)
                elif record := self.record(raw.value, raw.place):
                    records.append(record)
            assert read == block.rows
        self.counts["read"] += 1
        return records


@pytest.fixture
def tally() -> Tally:
    return Tally()


def is_part(part: Sequence[Record], whole: Sequence[Record]) -> bool:
    """Whether a sequence is in another one, in order."""
    rest = iter(whole)
    return all(any(record == other for other in rest) for record in part)


def untouched(number: int) -> list[Record]:
    return [parse_record(row, "") for index, row in enumerate(rows()) if index != number]


def test_malformed_records(tally: Tally) -> None:
    rng = random.Random(1)
    for _ in range(4000):
        value: Any = rng.choice(rows())
        for _ in range(rng.randrange(1, 4)):
            value = change(rng, value)
        tally.record(value, "mine.json, row 17")
    assert tally.counts["rejected"] > 2500


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_a_malformed_row_in_text(tmp_path: Path, tally: Tally, kind: str) -> None:
    rng = random.Random(2)
    texts = [json.dumps(row, ensure_ascii=False).encode() for row in rows()]
    path = tmp_path / f"r.{kind}"
    for _ in range(700):
        number = rng.randrange(ROWS)
        parts = [*texts[:number], nasty_row(rng, rows()[number]), *texts[number + 1 :]]
        path.write_bytes(b"[" + b",\n".join(parts) + b"]" if kind == "json" else b"\n".join(parts))
        refused = tally.counts["refused"]
        records = tally.source(path)
        if tally.counts["refused"] == refused:
            assert is_part(untouched(number), records)
        else:
            assert kind == "json" or number == 0  # what a file begins with may look like another format
    assert tally.counts["rejected"] > 150
    assert (tally.counts["refused"] > 200) is (kind == "json")
    assert tally.counts["read"] > 250


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_malformed_text_files(tmp_path: Path, tally: Tally, kind: str) -> None:
    rng = random.Random(3)
    whole = json.dumps(rows()) if kind == "json" else "\n".join(map(json.dumps, rows()))
    path = tmp_path / f"r.{kind}"
    for _ in range(400):
        data = whole.encode()
        for _ in range(rng.randrange(1, 4)):
            data = damage(rng, data) or b" "
        path.write_bytes(data)
        tally.source(path)
    assert sum(tally.counts.values()) > 400


def test_a_malformed_row_in_parquet(tmp_path: Path, tally: Tally) -> None:
    rng = random.Random(4)
    texts = [json.dumps(row["conversations"]).encode() for row in rows()]
    for _ in range(300):
        number = rng.randrange(ROWS)
        nasty = nasty_row(rng, {"conversations": rows()[number]["conversations"]})
        binary = pa.array([*texts[:number], nasty, *texts[number + 1 :]], pa.binary())
        columns = {
            "id": [row["id"] for row in rows()],
            "image": [row.get("image") for row in rows()],
            "conversations": pa.Array.from_buffers(pa.string(), ROWS, binary.buffers()),  # whether UTF-8 or not
        }
        pq.write_table(pa.table(columns), tmp_path / "r.parquet", row_group_size=3)
        assert is_part(untouched(number), tally.source(tmp_path / "r.parquet"))
    assert tally.counts["rejected"] > 200
    assert tally.counts["refused"] == 0


def tar_of(texts: Sequence[bytes], kind: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        for number, text in enumerate(texts):
            members = [(f"row-{number}.json", text)]
            if number % 3:
                members.append((f"row-{number}.jpg", b"image %d" % number * 50))
            for name, data in members:
                info = tarfile.TarInfo(name if number % 2 else f"{'folder/' * 20}{name}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_malformed_row_in_a_tar(tmp_path: Path, tally: Tally, kind: int) -> None:
    rng = random.Random(5)
    texts = [json.dumps({name: row[name] for name in ("id", "conversations")}).encode() for row in rows()]
    path = tmp_path / "r.tar"
    path.write_bytes(tar_of(texts, kind))
    whole = tally.source(path)
    assert len(whole) == ROWS
    for _ in range(150):
        number = rng.randrange(ROWS)
        path.write_bytes(tar_of([*texts[:number], nasty_row(rng, rows()[number]), *texts[number + 1 :]], kind))
        assert is_part(whole[:number] + whole[number + 1 :], tally.source(path))
    assert tally.counts["rejected"] > 80
    assert tally.counts["refused"] == 0


def test_malformed_tars(tmp_path: Path, tally: Tally) -> None:
    rng = random.Random(6)
    texts = [json.dumps(row).encode() for row in rows()]
    wholes = [tar_of(texts, kind) for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT)]
    for _ in range(400):
        (tmp_path / "r.tar").write_bytes(damage(rng, rng.choice(wholes)) or b" ")
        tally.source(tmp_path / "r.tar")
    assert tally.counts["refused"] > 150
    assert tally.counts["read"] > 50


def test_malformed_parquet_files(tmp_path: Path, tally: Tally) -> None:
    rng = random.Random(7)
    table = pa.Table.from_pylist([row | {"image": {"bytes": b"x" * 90, "path": None}} for row in rows()])
    wholes = []
    for compression in ("none", "snappy", "zstd"):
        buffer = io.BytesIO()
        pq.write_table(table, buffer, row_group_size=3, compression=compression)
        wholes.append(buffer.getvalue())
    for _ in range(400):
        (tmp_path / "r.parquet").write_bytes(damage(rng, rng.choice(wholes)) or b" ")
        tally.source(tmp_path / "r.parquet")
    assert tally.counts["refused"] > 100
    assert tally.counts["rejected"] > 300


def test_malformed_datasets(tmp_path: Path, tally: Tally) -> None:
    rng = random.Random(8)
    table = pa.Table.from_pylist([row | {"image": row.get("image")} for row in rows()])
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "d.arrow"}]}')
    (tmp_path / "d.arrow").write_bytes(buffer.getvalue())
    assert len(tally.source(tmp_path)) == ROWS
    for _ in range(400):
        (tmp_path / "d.arrow").write_bytes(damage(rng, buffer.getvalue()) or b" ")
        tally.source(tmp_path)
    (tmp_path / "d.arrow").write_bytes(buffer.getvalue())
    for _ in range(100):
        (tmp_path / "state.json").write_bytes(nasty_row(rng, {"_data_files": [{"filename": "d.arrow"}]}))
        tally.source(tmp_path)
    assert tally.counts["refused"] > 200
    assert tally.counts["rejected"] > 50
