"""Embedded images: written once each, found by name in files mapped into memory."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pytest

import vrray.data.blobs
from vrray.data.blobs import Blobs, embedded_name, read_blobs, write_blobs
from vrray.errors import DataError


def items(*contents: bytes) -> list[tuple[str, bytes]]:
    return [(embedded_name(content), content) for content in contents]


def test_a_name_says_the_content() -> None:
    assert embedded_name(b"abc") == "sha256:ba7816bf8f01cfea414140de5dae2223"


def test_every_image_is_written_once_and_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vrray.data.blobs, "_BATCH_BYTES", 1000)
    contents = [os.urandom(300) for _ in range(20)]
    write_blobs(tmp_path / "one.arrow", iter(items(*contents, *contents)))
    write_blobs(tmp_path / "two.arrow", items(b"another", contents[3], b""))
    with pa.memory_map(str(tmp_path / "one.arrow")) as source:
        batches = [batch.num_rows for batch in map(pa.ipc.open_file(source).get_batch, range(7))]
    assert batches == [3, 3, 3, 3, 3, 3, 2]
    assert list(read_blobs(tmp_path / "one.arrow")) == items(*contents)
    blobs = Blobs([str(tmp_path / "one.arrow"), str(tmp_path / "two.arrow")])
    for name, content in items(*contents, b"another", b""):
        assert blobs.get(name) == content
    for absent in (embedded_name(b"absent"), "sha256:", "zzz", embedded_name(b"another") + "0", "\udcff"):
        assert blobs.get(absent) is None


def test_nothing_is_in_no_files(tmp_path: Path) -> None:
    assert Blobs([]).get(embedded_name(b"")) is None
    write_blobs(tmp_path / "empty.arrow", [])
    assert Blobs([str(tmp_path / "empty.arrow")]).get(embedded_name(b"")) is None


def test_contents_stay_on_disk_until_they_are_read(tmp_path: Path) -> None:
    write_blobs(tmp_path / "blobs.arrow", items(*(os.urandom(1 << 20) for _ in range(8))))
    before = pa.total_allocated_bytes()
    blobs = Blobs([str(tmp_path / "blobs.arrow")])
    assert pa.total_allocated_bytes() - before < 1 << 16
    assert blobs.get("sha256:") is None


def test_other_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.arrow cannot be read as a file of embedded images"):
        Blobs([str(tmp_path / "absent.arrow")])
    (tmp_path / "text.arrow").write_text("a text")
    with pytest.raises(DataError, match=r"text\.arrow cannot be read as a file of embedded images"):
        Blobs([str(tmp_path / "text.arrow")])
    table = pa.table({"id": ["1"], "data": [b""]})
    with pa.ipc.new_file(str(tmp_path / "rows.arrow"), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(DataError, match=r"rows\.arrow is not a file of embedded images: its columns are id, data"):
        Blobs([str(tmp_path / "rows.arrow")])
