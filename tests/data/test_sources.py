"""Every format read in blocks: the same rows, whatever the format, and what becomes of damage to a row or a file."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vrray.data.blobs import embedded_name
from vrray.data.formats import files, json_text, parquet, tars
from vrray.data.records import Record, parse_record
from vrray.data.sources import REJECTED, Block, Raw, index_source, read_block, rejection, source_identity
from vrray.errors import DataError

IMAGES = [bytes([number]) * (20 + number) for number in range(4)]
Value = dict[str, Any]
Member = tuple[str, bytes]


def talk(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def plain_rows(count: int) -> list[Value]:
    """Rows that name their image, with what makes reading hard: escapes, several scripts, brackets, no image."""
    rows: list[Value] = []
    for number in range(count):
        question = f'<image>\nIs "{number}" in [this, {{}}]? \\ 这 🙂 \u2028'
        row = {"id": f"r{number}", "image": f"a/{number}.jpg", "conversations": talk(question, "né" * (number % 5))}
        if number % 4 == 3:
            row = {"id": number, "model": "", "conversations": talk("Hello", "Hi")}
        rows.append(row)
    return rows


def embedded_rows(count: int) -> list[Value]:
    """Rows with the bytes of their image, some without one."""
    return [
        {
            "id": f"r{number}",
            "image": None if number % 4 == 3 else IMAGES[number % 4],
            "conversations": talk("Hello" if number % 4 == 3 else "<image>\nWhat?", f"é {number}"),
        }
        for number in range(count)
    ]


def write_list(path: Path, rows: list[Value], **options: Any) -> Path:
    path.write_text(json.dumps(rows, **options), encoding="utf-8")
    return path


def write_lines(path: Path, rows: list[Value]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: list[Value], **options: Any) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


def write_dataset(path: Path, rows: list[Value]) -> Path:
    images = [None if row["image"] is None else {"bytes": row["image"], "path": "x.png"} for row in rows]
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "image": datasets.Image(),
            "conversations": [{"from": datasets.Value("string"), "value": datasets.Value("string")}],
        }
    )
    columns = {
        "id": [row["id"] for row in rows],
        "image": images,
        "conversations": [row["conversations"] for row in rows],
    }
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(path, num_shards=2)
    return path


def write_tar(path: Path, members: list[Member], **options: Any) -> Path:
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members:
            add(tar, name, data)
    return path


def add(tar: tarfile.TarFile, name: str, data: bytes, **changes: Any) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mtime = len(data), 1.5  # type: ignore[assignment]  # a fraction makes a POSIX header
    for field, value in changes.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(data))


def sample(row: Value, folder: str = "") -> list[Member]:
    text = {"id": row["id"], "conversations": row["conversations"]}
    members = [(f"{folder}{row['id']}.json", json.dumps(text).encode())]
    return [(f"{folder}{row['id']}.jpg", row["image"]), *members] if row["image"] is not None else members


def write_tar_of(path: Path, rows: list[Value]) -> Path:
    return write_tar(path, [member for row in rows for member in sample(row)])


def read_all(location: str | os.PathLike[str], rows_per_block: int = 3) -> list[Raw]:
    return [raw for block in index_source(location, rows_per_block) for raw in read_block(block)]


def records_of(raws: list[Raw]) -> list[Record]:
    return [parse_record(raw.value, raw.place) for raw in raws]


def reasons(raws: list[Raw]) -> dict[int, str]:
    """The numbers of the rows that cannot be read, and why."""
    return {raw.number: str(raw.value) for raw in raws if isinstance(raw.value, DataError)}


# Every format


@pytest.mark.parametrize(
    ("name", "write"),
    [("r.json", write_list), ("r.jsonl", write_lines), ("r.parquet", write_parquet)],
)
def test_rows_with_named_images(tmp_path: Path, name: str, write: Callable[..., Path]) -> None:
    rows = [row for row in plain_rows(23) if "image" in row]
    raws = read_all(write(tmp_path / name, rows))
    expected = [parse_record(row, "here") for row in rows]
    assert records_of(raws) == expected
    assert [raw.number for raw in raws] == list(range(len(rows)))
    assert raws[16].place == f"{name}, row 17"
    assert not any(raw.embedded for raw in raws)


@pytest.mark.parametrize(
    ("name", "write"),
    [("r.parquet", write_parquet), ("saved", write_dataset), ("r.tar", write_tar_of)],
)
def test_rows_with_embedded_images(tmp_path: Path, name: str, write: Callable[..., Path]) -> None:
    rows = embedded_rows(23)
    raws = read_all(write(tmp_path / name, rows))
    assert [raw.number for raw in raws] == list(range(23))
    for row, raw, record in zip(rows, raws, records_of(raws), strict=True):
        images = [] if row["image"] is None else [row["image"]]
        assert record.images == tuple(map(embedded_name, images))
        assert raw.embedded == dict(zip(record.images, images, strict=True))
        assert (record.id, record.turns[0].assistant) == (row["id"], row["conversations"][1]["value"])
    expected = f"{name}, sample 'r16'" if name.endswith(".tar") else f"{name}, row 17"
    assert raws[16].place == expected


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("r.json", write_list),
        ("r.jsonl", write_lines),
        ("r.parquet", lambda path, rows: write_parquet(path, rows, row_group_size=5)),
        ("saved", write_dataset),
        ("r.tar", write_tar_of),
    ],
)
def test_blocks_are_read_on_their_own(tmp_path: Path, name: str, write: Callable[..., Path]) -> None:
    source = write(tmp_path / name, plain_rows(23) if "json" in name else embedded_rows(23))
    whole = [raw.value for raw in read_all(source, 1000)]
    blocks: list[Block] = pickle.loads(pickle.dumps(index_source(source, 4)))
    assert [block.first for block in blocks] == [sum(block.rows for block in blocks[:n]) for n in range(len(blocks))]
    assert max(block.rows for block in blocks) <= (12 if name == "saved" else 4)  # two record batches
    for block in reversed(blocks):
        part = list(read_block(block))
        assert [raw.number for raw in part] == list(range(block.first, block.first + block.rows))
        assert [raw.value for raw in part] == whole[block.first : block.first + block.rows]


def test_rows_without_an_id_are_named_by_their_place(tmp_path: Path) -> None:
    nameless = {"conversations": talk("Hello", "Hi")}
    (parquet, text, null) = (
        write_parquet(tmp_path / "r.parquet", [nameless] * 2),
        write_lines(tmp_path / "r.jsonl", [nameless] * 2),
        write_list(tmp_path / "r.json", [nameless | {"id": None}] * 2),
    )
    assert [[record.id for record in records_of(read_all(path))] for path in (parquet, text, null)] == [["1", "2"]] * 3
    assert (
        records_of(read_all(write_tar(tmp_path / "r.tar", [("a/b.json", json.dumps(nameless).encode())])))[0].id
        == "a/b"
    )


def test_an_unusable_number_of_rows_a_block(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="blocks of 0 rows; use at least 1"):
        index_source(write_lines(tmp_path / "r.jsonl", plain_rows(2)), 0)


# JSON lists


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 64, 1000])
@pytest.mark.parametrize("options", [{}, {"indent": 2, "ensure_ascii": False}, {"separators": (",", ":")}])
def test_pieces_may_end_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int, options: dict[str, Any]
) -> None:
    rows: list[Any] = [*plain_rows(6), 12.5e-7, -3, "a]", [[], {}], True, None, float("inf"), 10**30]
    path = write_list(tmp_path / "r.json", rows, **options)
    monkeypatch.setattr(json_text, "_PIECE", piece)
    assert [raw.value for raw in read_all(path)] == [
        row | {"id": row["id"]} if isinstance(row, dict) else row for row in rows
    ]


def test_marks_and_white_space_around_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_text, "_PIECE", 4)
    (tmp_path / "r.json").write_bytes(b'\xef\xbb\xbf \r\n\t [ {"id": 1} ,\r\n {"id": 2}\n] \n\n')
    assert [raw.value for raw in read_all(tmp_path / "r.json")] == [{"id": 1}, {"id": 2}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"id": 1},\n {"id" 2}]', r"row 2 \(line 2, column 8, byte 19\): not JSON, Expecting ':' delimiter"),
        ('[{"id": 1},\n {"id": 2}', r"row 2 \(line 2, column 11, byte 22\): .*the file ends inside the list"),
        ('[{"id": 1}, {"id": "2', r"row 2 \(line 1, .*\): not JSON, Unterminated string"),
        ('[{"id": 1} {"id": 2}]', r"row 1 .* not JSON, Expecting ',' or '\]'"),
        ('[{"id": 1},]', r"row 2 .* not JSON, Expecting value"),
        ('[{"id": 1}]\n\n, 3', r"row 2 \(line 3, column 1, byte 13\): there is more after the end of the list"),
        ("[", "the file ends inside the list|Expecting value"),
        ("[]", "r.json: has no rows; supported are"),
    ],
)
@pytest.mark.parametrize("piece", [1, 5, 1 << 20])
def test_broken_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str, piece: int) -> None:
    monkeypatch.setattr(json_text, "_PIECE", piece)
    (tmp_path / "r.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        index_source(tmp_path / "r.json")


def test_a_row_of_a_list_that_cannot_be_read_costs_no_other(tmp_path: Path) -> None:
    deep, digits = "[" * 3000 + '"]"' + "]" * 3000, "1" * 5000
    rows = [b'{"id": 1}', deep.encode(), b'{"id": "\xe9]"}', digits.encode(), b'{"id": "\xc3\xa9"}']
    (tmp_path / "r.json").write_bytes(b"[" + b", ".join(rows) + b"]")
    raws = read_all(tmp_path / "r.json", 1000)
    assert [raws[0].value, raws[4].value] == [{"id": 1}, {"id": "é"}]
    found = reasons(raws)
    assert found[1].startswith("r.json, row 2: cannot be read (maximum recursion depth")
    assert found[2] == "r.json, row 3: not UTF-8; save the file as UTF-8"
    assert "r.json, row 4: cannot be read (Exceeds the limit" in found[3]


def test_an_endless_row_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_text, "_PIECE", 1000)
    monkeypatch.setattr(json_text, "ROW_BYTES", 10_000)
    (tmp_path / "r.json").write_text('[{"id": 1}, {"id": "' + "x" * 100_000, encoding="utf-8")
    with pytest.raises(DataError, match=r"row 2 \(line 1, column 13, byte 12\): the row is longer than"):
        index_source(tmp_path / "r.json")


@pytest.mark.parametrize(("name", "write"), [("r.json", write_list), ("r.jsonl", write_lines)])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str, write: Callable[..., Path]) -> None:
    rows = [{"id": number, "conversations": talk("x" * 40_000, "y")} for number in range(1500)]
    path = write(tmp_path / name, rows)
    del rows
    tracemalloc.start()
    blocks = index_source(path)
    indexing = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    assert sum(1 for block in blocks for _ in read_block(block)) == 1500
    reading = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 60e6
    assert indexing < 25e6
    assert reading < 55e6
    assert len(blocks) > 3


def test_a_file_that_changed_since_it_was_indexed(tmp_path: Path) -> None:
    for name, write in (("r.json", write_list), ("r.jsonl", write_lines)):
        path = write(tmp_path / name, plain_rows(8))
        blocks = index_source(path, 4)
        path.write_text("[" + "x" * 100)
        with pytest.raises(DataError, match="has changed since it was indexed; start again"):
            list(read_block(blocks[1]))
        path.unlink()
        with pytest.raises(DataError, match="no such file"):
            list(read_block(blocks[0]))


# JSONL


def test_damaged_lines_are_rows_that_cannot_be_read(tmp_path: Path) -> None:
    lines = [
        b'{"id": 1}',
        b'{"id": 2',
        b"",
        b'{"id": "\xff"}',
        b" \r",
        b"[" * 3000,
        b'{"id": 3}\r',
        b"1" * 5000,
        b'{"id": 4}',
    ]
    (tmp_path / "r.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines))
    raws = read_all(tmp_path / "r.jsonl", 2)
    assert {raw.number: raw.value for raw in raws if not isinstance(raw.value, DataError)} == {
        0: {"id": 1},
        4: {"id": 3},
        6: {"id": 4},
    }
    found = reasons(raws)
    assert found[1] == ("r.jsonl, row 2: not JSON, Expecting ',' delimiter at column 9; repair or remove the row")
    assert found[2] == "r.jsonl, row 3: not UTF-8; save the file as UTF-8"
    assert "row 4: cannot be read (maximum recursion depth" in found[3]
    assert "row 6: cannot be read (Exceeds the limit" in found[5]


@pytest.mark.parametrize("piece", [1, 3, 50, 1000])
def test_lines_over_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    path = write_lines(tmp_path / "r.jsonl", plain_rows(9))
    path.write_bytes(b"\n\n  " + path.read_bytes().replace(b"\n", b"\n \n").rstrip())
    monkeypatch.setattr(json_text, "_PIECE", piece)
    assert [raw.value for raw in read_all(path)] == plain_rows(9)


def test_overlong_lines_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_text, "ROW_BYTES", 5 << 20)
    monkeypatch.setattr(json_text, "TEXT_BYTES", 1 << 20)
    path = tmp_path / "r.jsonl"
    with path.open("wb") as file:
        file.write(b'{"id": 1}\n')
        file.write(b'{"id": "' + b"x" * (6 << 20) + b'"}\n{"id": 3}\n')
    raws = read_all(path, 1000)
    assert [raws[0].value, raws[2].value] == [{"id": 1}, {"id": 3}]
    assert reasons(raws) == {1: "r.jsonl, row 2: has 6 MiB, the limit is 5 MiB; write one record a line"}


# Parquet and saved datasets


def test_every_way_to_store_images_and_conversations(tmp_path: Path) -> None:
    a, b = IMAGES[:2]
    said = talk("<image>", "A cat.")
    structs = pa.array([[{"bytes": a, "path": "x"}, {"bytes": None, "path": "f/y.jpg"}], []])
    columns: list[tuple[dict[str, Any], tuple[str, ...]]] = [
        ({"image": pa.array([a]), "conversations": [said]}, (embedded_name(a),)),
        ({"image": ["f/x.jpg"], "conversations": [json.dumps(said)]}, ("f/x.jpg",)),
        (
            {"image": [{"path": "f/x.jpg"}], "conversations": [{"from": ["human", "gpt"], "value": ["<image>", "Hi"]}]},
            ("f/x.jpg",),
        ),
        (
            {
                "images": pa.array([[b]]),
                "image": pa.nulls(1),
                "messages": [[{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "Hi"}]],
            },
            (embedded_name(b),),
        ),
        ({"images": structs[:1], "conversations": [talk("<image><image>", "Hi")]}, (embedded_name(a), "f/y.jpg")),
        ({"images": structs[1:], "conversations": [talk("Hello", "Hi")], "other": [[1]]}, ()),
    ]
    for number, (values, images) in enumerate(columns):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(pa.table({"id": [7], **values}), path)
        (raw,) = read_all(path)
        assert parse_record(raw.value, raw.place).images == images
        assert set(raw.embedded) == {name for name in images if name.startswith("sha256:")}
        assert isinstance(raw.value, dict) and "other" not in raw.value


def test_rows_of_a_table_that_cannot_be_decoded(tmp_path: Path) -> None:
    texts = [b"[]", b'[{"from": 1', b"\xff\xfe", b"[]"]
    text = pa.Array.from_buffers(pa.string(), 4, pa.array(texts, pa.binary()).buffers())
    pq.write_table(pa.table({"id": [1, 2, 3, 4], "conversations": text}), tmp_path / "r.parquet")
    raws = read_all(tmp_path / "r.parquet", 10)
    assert [raws[0].value, raws[3].value] == [{"id": 1, "conversations": []}, {"id": 4, "conversations": []}]
    found = reasons(raws)
    assert found[1].startswith("r.parquet, row 2: not JSON, Expecting")
    assert found[2].startswith("r.parquet, row 3: cannot be read ('utf-8' codec can't decode")


def test_a_damaged_page_costs_the_rows_behind_it(tmp_path: Path) -> None:
    rows = [{"id": number, "conversations": talk("Hello", os.urandom(500).hex())} for number in range(40)]
    path = write_parquet(tmp_path / "r.parquet", rows, row_group_size=10, compression="snappy")
    column = pq.ParquetFile(path).metadata.row_group(1).column(2)
    data = bytearray(path.read_bytes())
    begin = column.dictionary_page_offset or column.data_page_offset
    data[begin : begin + 60] = bytes(60)
    path.write_bytes(data)
    raws = read_all(path, 10)
    found = reasons(raws)
    assert set(found) <= set(range(10, 20)) and 19 in found
    assert found[19].startswith("r.parquet, row 20: cannot be read (")
    assert [raw.value["id"] for raw in raws if raw.number not in found] == [  # type: ignore[index]
        number for number in range(40) if number not in found
    ]


def test_large_row_groups_give_blocks_within(tmp_path: Path) -> None:
    rows = [{"id": number, "conversations": talk("Hello", "Hi")} for number in range(1000)]
    path = write_parquet(tmp_path / "r.parquet", rows, row_group_size=900)
    blocks = index_source(path, 10)
    assert [(block.begin, block.end) for block in blocks[:2]] == [(0, 15), (15, 30)]  # 64 blocks of the group
    assert [(block.begin, block.end, block.rows) for block in blocks[-2:]] == [(980, 990, 10), (990, 1000, 10)]
    assert [raw.value["id"] for block in blocks for raw in read_block(block)] == list(range(1000))  # type: ignore[index]


def test_blocks_of_large_images_have_fewer_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "BLOCK_BYTES", 160_000)
    rows = [{"id": 1, "image": os.urandom(10_000), "conversations": talk("<image>", "Hi")} for _ in range(40)]
    path = write_parquet(tmp_path / "r.parquet", rows, use_dictionary=False, row_group_size=4, compression="none")
    assert [block.rows for block in index_source(path)] == [12, 12, 12, 4]


def test_columns_without_conversations(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1], "text": ["a"]}), tmp_path / "r.parquet")
    with pytest.raises(DataError, match=r"its columns are id, text; rename the one with the conversations"):
        index_source(tmp_path / "r.parquet")


@pytest.mark.parametrize("cut", [slice(0, 300), slice(0, -4), slice(0, -8)])
def test_damaged_parquet_files(tmp_path: Path, cut: slice) -> None:
    path = write_parquet(tmp_path / "r.parquet", plain_rows(3))
    path.write_bytes(b"PAR1" + path.read_bytes()[4:][cut])
    with pytest.raises(DataError, match=r"r\.parquet: cannot be read \("):
        index_source(path)


def test_the_train_split_of_a_dataset_of_several(tmp_path: Path) -> None:
    part = datasets.Dataset.from_dict({"id": [3], "messages": [[{"role": "user", "content": "a"}]]})
    datasets.DatasetDict({"train": part, "test": part}).save_to_disk(tmp_path / "both")
    datasets.DatasetDict({"val": part, "test": part}).save_to_disk(tmp_path / "none")
    assert [raw.value for raw in read_all(tmp_path / "both")] == [
        {"id": 3, "messages": [{"role": "user", "content": "a"}]}
    ]
    assert source_identity(tmp_path / "both") == source_identity(tmp_path / "both" / "train")
    with pytest.raises(DataError, match="has no split 'train' but val, test; give the folder of one of them"):
        index_source(tmp_path / "none")


def test_damaged_datasets(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "saved", embedded_rows(8))
    whole = (folder / "state.json").read_text()
    arrow = sorted(folder.glob("*.arrow"))[1]
    for state in (
        whole.replace('"data-', '"../saved/data-'),
        '{"_data_files": 3}',
        '{"_data_files": [3]}',
        "[" * 3000,
        "[]",
    ):
        (folder / "state.json").write_text(state)
        with pytest.raises(DataError, match=r"state\.json: (does not list the Arrow files|is not a JSON object)"):
            index_source(folder)
    (folder / "state.json").write_text("{")
    with pytest.raises(DataError, match=r"state\.json: cannot be read \(Expecting property name"):
        index_source(folder)
    (folder / "state.json").write_text(whole.replace("{", '{"_indices_data_files": [{"filename": "i.arrow"}], ', 1))
    with pytest.raises(DataError, match="its rows are a selection; save what `flatten_indices"):
        index_source(folder)
    (folder / "state.json").write_text(whole)
    data = arrow.read_bytes()
    arrow.write_bytes(data[:-8])
    with pytest.raises(DataError, match="ends without the mark of its end"):
        index_source(folder)
    arrow.write_bytes(data[:-200])
    with pytest.raises(DataError, match=r"\.arrow: "):
        index_source(folder)


def test_offsets_that_lead_out_of_a_batch_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    datasets.Dataset.from_dict({"id": [1, 2, 3], "conversations": ["[1]", "[22]", "[3]"]}).save_to_disk(folder)
    (arrow,) = folder.glob("*.arrow")
    data = arrow.read_bytes()
    offsets = b"".join(number.to_bytes(4, "little") for number in (0, 3, 7, 10))
    assert data.count(offsets) == 1
    arrow.write_bytes(data.replace(offsets, b"".join(number.to_bytes(4, "little") for number in (0, 1 << 30, 7, 10))))
    raws = read_all(folder)
    assert len(reasons(raws)) == 3
    assert reasons(raws)[0].startswith("saved, row 1: cannot be read (")


def test_dictionary_columns_are_refused(tmp_path: Path) -> None:
    table = pa.table({"id": pa.array(["a"]).dictionary_encode(), "conversations": ["[]"]})
    with pa.ipc.new_stream(str(tmp_path / "d.arrow"), table.schema) as writer:
        writer.write_table(table)
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "d.arrow"}]}')
    with pytest.raises(DataError, match="column 'id' is dictionary-encoded; cast it"):
        index_source(tmp_path)


# WebDataset


def test_long_and_foreign_names_in_every_kind_of_tar(tmp_path: Path) -> None:
    rows = [row | {"id": f"日本-{row['id']}"} for row in embedded_rows(6)]
    for kind in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        members = [member for row in rows for member in sample(row, "folder.1/" * 30)]
        raws = read_all(write_tar(tmp_path / f"{kind}.tar", [("folder.1/", b""), *members], format=kind), 2)
        assert [record.id for record in records_of(raws)] == [row["id"] for row in rows]
        assert [len(raw.embedded) for raw in raws] == [row["image"] is not None for row in rows]


def test_several_images_follow_the_names_in_the_record(tmp_path: Path) -> None:
    def made(image: object, field: str = "image") -> bytes:
        return json.dumps({field: image, "conversations": talk("<image><image>", "Hi")}).encode()

    a, b = IMAGES[:2]
    members = [
        *(("1.json", made(["1.b.png", "x/1.a.png"])), ("1.a.png", a), ("1.b.png", b)),
        *(("2.a.PNG", a), ("2.b.png", b), ("2.json", made(["p.png", "q.png"], "images"))),
        *(("3.a.png", a), ("3.b.png", b), ("3.json", made(None)), ("3.seg.npy", b"x")),
        *(("4.json", made(["4.a.png", "4.b.png"])), ("4.a.png", a)),
        ("5.json", made(["in/folder.png", "other.png"])),
    ]
    raws = read_all(write_tar(tmp_path / "r.tar", members), 10)
    images = [record.images for record in records_of([raw for raw in raws if raw.number != 3])]
    first, second = embedded_name(a), embedded_name(b)
    assert images == [(second, first), (first, second), (first, second), ("in/folder.png", "other.png")]
    assert raws[0].embedded == {first: a, second: b}
    assert reasons(raws) == {
        3: "r.tar, sample '4': names the images ['4.a.png', '4.b.png'] and has 1; write one name for each"
    }


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self.target), "w")


def test_nothing_is_unpickled_or_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, target = tmp_path / "here", tmp_path / "exploded"
    folder.mkdir()
    monkeypatch.chdir(folder)
    bomb = pickle.dumps(Bomb(target))
    text = json.dumps({"conversations": talk("Hello", "Hi")}).encode()
    members = [(f"1.{ext}", bomb) for ext in ("pkl", "pyd", "pickle", "cls", "npy", "pth")]
    names = ["../up.json", "/tmp/vrray-absolute.json", "1.json"]
    raws = read_all(write_tar(tmp_path / "r.tar", [*((name, text) for name in names), *members]))
    assert [record.id for record in records_of(raws)] == ["../up", "/tmp/vrray-absolute", "1"]
    assert not target.exists()
    assert list(folder.iterdir()) == []
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["here", "r.tar"]
    assert not Path("/tmp/vrray-absolute.json").exists()


def test_samples_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tars, "ROW_BYTES", 3000)
    monkeypatch.setattr(tars, "_IMAGE_BYTES", 5000)
    good = json.dumps({"conversations": talk("Hello", "Hi")}).encode()
    path = tmp_path / "r.tar"
    with tarfile.open(path, "w") as tar:
        add(tar, "0.json", good)
        add(tar, "1.jpg", b"x")
        add(tar, "2.json", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(tar, "3.json", good)
        add(tar, "3.jpg", b"", type=tarfile.LNKTYPE, linkname="0.json")
        add(tar, "4.json", good)
        add(tar, "4.json", good)
        add(tar, "5.json", b"[" + b" " * 3000 + b"]")
        add(tar, "6.json", good)
        add(tar, "6.jpg", b"x" * 5001)
        add(tar, "7.json", b'{"id": "\xff"}')
        add(tar, ".8.json", good)
        add(tar, "README", b"x")
        add(tar, "9.json", good)
    raws = read_all(path)
    assert [raw.number for raw in raws if not isinstance(raw.value, DataError)] == [0, 8]
    found = [reason.partition(": ")[2] for reason in reasons(raws).values()]
    link = "is a link or special file; store the file itself"
    count = ".json members; write one, right beside the images that share its name"
    large = "is larger than 0 MiB of JSON or 0 MiB of images"
    assert found == [
        *(f"has 0 {count}", f"member '2.json' {link}", f"member '3.jpg' {link}", f"has 2 {count}", large, large),
        "not UTF-8; save the file as UTF-8",
    ]


def rewrite(path: Path, header: int, size: bytes) -> None:
    """Give a member another size, and its header the checksum that fits."""
    data = bytearray(path.read_bytes())
    data[header + 124 : header + 136] = size
    data[header + 148 : header + 156] = b" " * 8
    data[header + 148 : header + 156] = b"%06o\0 " % sum(data[header : header + 512])
    path.write_bytes(data)


@pytest.mark.parametrize(
    "size",
    [b"\xff" * 8 + (-512).to_bytes(4, "big", signed=True), b"\xff" * 12, b"77777777777\0", b"\x80" + b"\x7f" * 11],
    ids=["back", "minus-one", "8 GiB", "10^26"],
)
@pytest.mark.parametrize("header", [0, 1024])
def test_hostile_sizes(tmp_path: Path, size: bytes, header: int) -> None:
    path = tmp_path / "r.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name in ("1.json", "2.json"):
            add(tar, name, b"{}", mtime=1)
    rewrite(path, header, size)
    with pytest.raises(
        DataError, match=rf"byte {header}: member '.\.json' has -?\d+ bytes, which the file does not hold"
    ):
        index_source(path)


def test_damaged_tars(tmp_path: Path) -> None:
    path = write_tar_of(tmp_path / "r.tar", embedded_rows(6))
    data = path.read_bytes()
    for cut in range(1, len(data.rstrip(b"\0")), 77):
        path.write_bytes(data[:cut])
        with pytest.raises(DataError, match=r"damaged or cut off|not the header|ends without the empty blocks|no rows"):
            index_source(path)
    path.write_bytes(data.rstrip(b"\0") + bytes(100))
    with pytest.raises(DataError, match="ends without the empty blocks that close a tar"):
        index_source(path)
    path.write_bytes(data[:1024] + b"\x01" * 100 + data[1124:])
    with pytest.raises(DataError, match=r"byte 1024: not the header of a tar's member \(bad checksum\)"):
        index_source(path)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        add(tar, "x" * (2 << 20), b"x")
    with pytest.raises(DataError, match=r"byte 0: a header of 2097153 bytes"):
        index_source(path)


def test_appended_tars_are_read_to_their_end(tmp_path: Path) -> None:
    rows = embedded_rows(6)
    one, two = write_tar_of(tmp_path / "1.tar", rows[:3]), write_tar_of(tmp_path / "2.tar", rows[3:])
    (tmp_path / "both.tar").write_bytes(one.read_bytes() + two.read_bytes())
    assert [record.id for record in records_of(read_all(tmp_path / "both.tar", 2))] == [row["id"] for row in rows]


# Locations


def test_several_files_make_one_source(tmp_path: Path) -> None:
    rows, folder = embedded_rows(10), tmp_path / "the shards"
    folder.mkdir()
    for shard in range(4):
        write_tar_of(folder / f"s-{shard:03}.tar", rows[3 * shard : 3 * shard + 3])
    (folder / "._s-000.tar").write_bytes(b"of a Mac")
    (folder / "notes.txt").write_text("x")
    for pattern in ("", "s-*.tar", "s-{000..003}.tar", "s-{000,001}.tar", "s-00[01].tar", "s-{000,001,*}.tar"):
        raws = read_all(folder / pattern, 2)
        many = 6 if pattern.startswith(("s-{000,001}", "s-00[")) else 10
        assert [raw.number for raw in raws] == list(range(many))
        assert [record.id for record in records_of(raws)] == [row["id"] for row in rows[:many]]
        if many == 10:
            assert source_identity(folder / pattern) == source_identity(folder)
    assert raws[9].place == "s-003.tar, sample 'r9'"


def test_parquet_files_of_one_folder(tmp_path: Path) -> None:
    for number, rows in enumerate((plain_rows(3), plain_rows(3)[:2] * 2)):
        write_parquet(tmp_path / f"{number}.parquet", rows)
    raws = read_all(tmp_path, 2)
    assert [raw.number for raw in raws] == list(range(7))
    assert [raws[2].place, raws[3].place] == ["0.parquet, row 3", "1.parquet, row 1"]


def test_uris(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    folder.mkdir()
    rows = embedded_rows(5)
    write_lines(folder / "r ü.jsonl", plain_rows(5))
    write_parquet(folder / "r.parquet", rows)
    write_dataset(folder / "saved", rows)
    (folder / "tars").mkdir()
    write_tar_of(folder / "tars" / "s 0.tar", rows)
    root = folder.as_uri()
    for name in ("r%20%C3%BC.jsonl", "r.parquet", "saved/", "tars/?x=1", "tars/s%20{0..0}.tar", "tars/s*.tar?x=1"):
        raws = read_all(f"{root}/{name}", 2)
        assert len(records_of(raws)) == 5
        assert "%" not in raws[0].place and "?" not in raws[0].place
    assert source_identity(f"{root}/saved") == source_identity(folder / "saved")


def test_a_name_that_looks_like_a_pattern(tmp_path: Path) -> None:
    assert len(read_all(write_lines(tmp_path / "r[1]{2,3}*.jsonl", plain_rows(3)))) == 3


def test_home_and_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lines(tmp_path / "r.jsonl", plain_rows(3))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = [Block(str(tmp_path / "r.jsonl"), "jsonl", 0, (tmp_path / "r.jsonl").stat().st_size - 1, 0, 3)]
    assert index_source("r.jsonl") == index_source("~/r.jsonl") == expected


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("r.json", b"", "is empty; supported are a JSON list or JSONL"),
        ("r.jsonl", b" \n\n", "is empty"),
        ("r.tar", b"\0" * 10240, "has no rows"),
        ("r.json", b"hello", "an unknown format, it begins with b'hello'; supported are .*Parquet, .*WebDataset"),
        ("r.xyz", b"\x00\x01", "an unknown format"),
        ("r.jsonl.gz", b"\x1f\x8b\x08\x00", "is compressed with gzip; unpack it"),
        ("r.json", '[{"id": 1}]'.encode("utf-16"), "not UTF-8 but UTF-16; save the file as UTF-8"),
        ("r.json", b'{\n  "id": 1\n}', "one JSON object over several lines; write a list of records, or one a line"),
    ],
)
def test_files_of_no_known_format(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=rf"{name}: .*{message}|{name}: {message}"):
        index_source(tmp_path / name)


def test_formats_follow_content_before_names(tmp_path: Path) -> None:
    rows = plain_rows(3)
    for name, write in (("a.jsonl", write_list), ("b.json", write_lines), ("c", write_parquet), ("d.txt", write_list)):
        assert len(read_all(write(tmp_path / name, rows))) == 3
    (tmp_path / "e.jsonl").write_text('[1, 2]\n{"id": 3}\n')
    assert [raw.value for raw in read_all(tmp_path / "e.jsonl")] == [[1, 2], {"id": 3}]


def test_missing_and_mixed_locations(tmp_path: Path) -> None:
    write_lines(tmp_path / "r.jsonl", plain_rows(1))
    folder = tmp_path / "mixed"
    folder.mkdir()
    write_parquet(folder / "a.parquet", plain_rows(1))
    write_tar_of(folder / "b.tar", embedded_rows(1))
    for location, message in (
        (tmp_path / "nowhere.json", r"nowhere\.json: no such file; check the path"),
        (tmp_path / "none-*.tar", r"none-\*\.tar: no file matches; check the pattern"),
        (tmp_path / "s-{0..2}.tar", r"s-0\.tar: no such file, though .*s-\{0\.\.2\}\.tar names it"),
        (tmp_path / "s-{0..99999999}.tar", r"\{0\.\.99999999\} is not a range of 1 to 100000 numbers"),
        (tmp_path / "s-{0..999}{0..999}.tar", "more than 100000 files"),
        (tmp_path / "*" / "a.tar", r"folders cannot hold \* or \["),
        (tmp_path, "a folder without a dataset, tars or Parquet files; supported are"),
        (folder, "2 files of the kind parquet and webdataset; name tars alone"),
        ("ftp://host/r.json", r"ftp://host/r\.json: cannot be read \(Unrecognized filesystem type"),
        ("", "'' is not the name of a file"),
        ("a\0b", "is not the name of a file"),
    ):
        with pytest.raises(DataError, match=message):
            index_source(location)


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lines(tmp_path / "r.jsonl", plain_rows(1))
    blocks = index_source(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match=r"r\.jsonl: cannot be read \("):
        list(read_block(blocks[0]))


def test_identity_follows_content(tmp_path: Path) -> None:
    one, two = write_lines(tmp_path / "a.jsonl", plain_rows(3)), write_lines(tmp_path / "b.jsonl", plain_rows(3))
    first = source_identity(one)
    assert len(first) == 16 and first == source_identity(two)
    two.write_bytes(two.read_bytes() + b"\n")
    assert source_identity(two) != first
    folder = tmp_path / "t"
    folder.mkdir()
    for name in ("a.tar", "b.tar"):
        write_tar_of(folder / name, embedded_rows(3))
    before = source_identity(folder)
    (folder / "b.tar").rename(folder / "c.tar")
    assert source_identity(folder) != before


def test_the_hash_of_a_large_file_is_remembered_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = []

    def file_sha256(path: Path) -> str:
        hashed.append(path)
        return compute(path)

    compute = files.file_sha256
    path = write_list(tmp_path / "a.json", plain_rows(3))
    small = source_identity(path)
    monkeypatch.setenv("VRRAY_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(files, "_LARGE", path.stat().st_size)
    monkeypatch.setattr(files, "file_sha256", file_sha256)
    assert [source_identity(path) for _ in range(3)] == [small] * 3
    assert hashed == [path]
    path.write_bytes(path.read_bytes().replace(b"Is", b"is"))
    os.utime(path, ns=(1, 1))  # however coarse the clock of the file system is
    assert source_identity(path) != small
    assert hashed == [path, path]


def test_rejections_fit_their_table(tmp_path: Path) -> None:
    error = DataError("here: no")
    values: list[object] = [
        {"id": "a", "image": "a.jpg"},
        {"id": 10**5000, "image": ["a.jpg", "b.jpg"]},
        {"id": "\ud800" * 300, "images": ["\udc80.jpg"]},
        {"id": [1], "image": 3},
        Record("r", ("x.jpg",), ()),
        DataError("damaged"),
        "text",
    ]
    rows = [rejection("mine.json", number, value, error) for number, value in enumerate(values)]
    table = pa.Table.from_pylist(rows, REJECTED)
    assert table["row"].to_pylist() == [1, 2, 3, 4, 5, 6, 7]
    assert table["id"].to_pylist()[:2] == ["a", "<an integer of 16610 bits>"]
    assert table["id"].to_pylist()[3:] == ["[1]", "r", None, None]
    assert table["image"].to_pylist() == ["a.jpg", "['a.jpg', 'b.jpg']", "\\udc80.jpg", "3", "x.jpg", None, None]
    assert set(table["reason"].to_pylist()) == {"here: no"}
