"""The artefact store: nothing half-written is ever taken for whole, and what is damaged is found."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import FileSelector, FileType

from vrray.errors import StoreError
from vrray.store import MARKER, Damage, Store, content_key, shown_uri


def writing(**contents: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for name, content in contents.items():
            (folder / f"{name}.txt").write_text(content)

    return write


def stored_file(store: Store, name: str) -> str:
    """Where a file of artefact kind/k is, below the store."""
    marker = json.loads(store.read_bytes(f"kind/k/{MARKER}"))
    return f"kind/k/{marker['attempt']}/{name}"


def files_in(store: Store) -> list[str]:
    found = store._fs.get_file_info(FileSelector(store._root, recursive=True, allow_not_found=True))
    return [entry.path for entry in found if entry.type == FileType.File]


@pytest.fixture
def store(uri: str) -> Store:
    return Store(uri)


@pytest.fixture
def remote(s3_folder: str) -> Store:
    return Store(s3_folder)


def test_what_is_put_is_there(store: Store) -> None:
    assert not store.has("kind", "k")
    store.put("kind", "k", writing(a="one", b="two"), {"loss": 0.5})
    assert store.has("kind", "k")
    assert store.describe("kind", "k") == {"loss": 0.5}
    with store.open("kind", "k") as folder:
        assert {path.name: path.read_text() for path in folder.iterdir()} == {"a.txt": "one", "b.txt": "two"}
    root, separator, options = store.uri.partition("?")
    assert store.location("kind", "k") == f"{root}/kind/k{separator}{options}"


def test_a_complete_artefact_is_left_as_it_is(store: Store) -> None:
    store.put("kind", "k", writing(a="first"))
    store.put("kind", "k", lambda _: pytest.fail("written again"))
    with store.open("kind", "k") as folder:
        assert (folder / "a.txt").read_text() == "first"


def test_without_a_marker_there_is_nothing(store: Store) -> None:
    store.put("kind", "k", writing(a="one"))
    remove(store, f"kind/k/{MARKER}")
    assert not store.has("kind", "k")
    with pytest.raises(StoreError, match="no complete artefact kind/k"), store.open("kind", "k"):
        pass
    with pytest.raises(StoreError, match="no complete artefact kind/k"):
        store.describe("kind", "k")


def test_a_crash_while_writing_leaves_nothing(store: Store) -> None:
    def crash(folder: Path) -> None:
        (folder / "a.txt").write_text("half")
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        store.put("kind", "k", crash)
    assert not store.has("kind", "k")
    assert files_in(store) == []
    store.put("kind", "k", writing(a="whole"))
    with store.open("kind", "k") as folder:
        assert (folder / "a.txt").read_text() == "whole"


def test_a_crash_before_the_marker_leaves_nothing_visible(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise RuntimeError("the node is gone")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write_text", crash)
        with pytest.raises(RuntimeError, match="the node is gone"):
            store.put("kind", "k", writing(a="first", b="only in the first"))
    assert not store.has("kind", "k")
    with pytest.raises(StoreError, match="no complete artefact"), store.open("kind", "k"):
        pass
    store.put("kind", "k", writing(a="second"))
    with store.open("kind", "k") as folder:
        assert {path.name: path.read_text() for path in folder.iterdir()} == {"a.txt": "second"}


def test_only_the_files_that_are_wanted_are_downloaded(store: Store) -> None:
    store.put("kind", "k", writing(a="first", b="second"))
    with store.open("kind", "k", only=["b.txt"]) as folder:
        assert (folder / "b.txt").read_text() == "second"
        assert (folder / "a.txt").exists() == store.is_local


def cut(store: Store, name: str) -> None:
    store.write_text(name, "01234")


def alter(store: Store, name: str) -> None:
    store.write_text(name, "0123x56789")


def remove(store: Store, name: str) -> None:
    store._fs.delete_file(f"{store._root}/{name}")


@pytest.mark.parametrize(
    ("damage", "found"), [(cut, "5 bytes instead of 10"), (remove, "missing"), (alter, "another SHA-256")]
)
def test_a_damaged_artefact_is_found_and_rebuilt(
    store: Store, damage: Callable[[Store, str], None], found: str
) -> None:
    if store.is_local and damage is alter:
        pytest.skip("files that are read in place are checked by size only")
    store.put("kind", "k", writing(a="0123456789", b="whole"))
    damage(store, stored_file(store, "a.txt"))
    whole = stored_file(store, "b.txt")
    message = f"{store.shown('kind', 'k')}: a.txt is not what was committed ({found}); it is rebuilt on the next run"
    with pytest.raises(StoreError, match=re.escape(message)), store.open("kind", "k"):
        pass
    assert not store.has("kind", "k")
    assert store.read_bytes(whole) == b"whole"  # somebody may be reading it
    store.put("kind", "k", writing(a="0123456789"))
    with store.open("kind", "k") as folder:
        assert (folder / "a.txt").read_text() == "0123456789"


def test_a_rebuilt_artefact_outlives_the_discovery_of_the_old_damage(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("kind", "k", writing(a="0123456789"))
    cut(store, stored_file(store, "a.txt"))
    check = Store._wrong_size

    def rebuild_then_check(self: Store, *args: Any) -> Damage | None:
        monkeypatch.undo()
        with pytest.raises(StoreError), Store(store.uri).open("kind", "k"):
            pass
        store.put("kind", "k", writing(a="rebuilt"))
        return check(self, *args)

    monkeypatch.setattr(Store, "_wrong_size", rebuild_then_check)
    with pytest.raises(StoreError, match="5 bytes instead of 10"), store.open("kind", "k"):
        pass
    with store.open("kind", "k") as folder:
        assert (folder / "a.txt").read_text() == "rebuilt"


def test_damage_in_a_store_that_cannot_be_written_says_what_to_delete(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("kind", "k", writing(a="0123456789"))
    cut(store, stored_file(store, "a.txt"))

    def refuse(*_: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(Store, "_remove", refuse)
    message = rf"its {MARKER} cannot be removed \(read-only\): delete the folder to have it rebuilt"
    with pytest.raises(StoreError, match=message), store.open("kind", "k"):
        pass


def test_a_download_is_removed(remote: Store) -> None:
    remote.put("kind", "k", writing(a="0123456789"))
    with remote.open("kind", "k") as folder:
        assert (folder / "a.txt").read_text() == "0123456789"
    assert not folder.exists()


def test_on_s3_there_are_files_and_nothing_else(remote: Store, s3: str) -> None:
    """Empty objects that stand for folders would be written again and again, above the store's own folder too."""
    remote.put("kind", "k", writing(a="one"))
    remote.write_text("sweeps/one/report.md", "text")
    bucket, _, folder = remote._root.partition("/")
    client = boto3.client("s3", endpoint_url=f"http://{s3}")
    found = client.list_objects_v2(Bucket=bucket, Prefix=folder.partition("/")[0])["Contents"]
    names = [stored_file(remote, "a.txt"), f"kind/k/{MARKER}", "sweeps/one/report.md"]
    assert {entry["Key"] for entry in found} == {f"{folder}/{name}" for name in names}


def test_a_damaged_marker_says_so_and_counts_no_more(store: Store) -> None:
    store.put("kind", "k", writing(a="one"))
    store.write_text(f"kind/k/{MARKER}", "{")
    with pytest.raises(StoreError, match=rf"{MARKER} is not what was committed .*; it is rebuilt on the next run"):
        store.describe("kind", "k")
    assert not store.has("kind", "k")


def test_what_is_deleted_is_gone(store: Store) -> None:
    for key in ("k", "k2"):
        store.put("kind", key, writing(a=key, b="two"))
    store.delete("kind", "k")
    assert not store.has("kind", "k")
    assert store.names("kind") == ["k2"]
    store.put("kind", "k", writing(a="new"))
    with store.open("kind", "k") as folder:
        assert [path.read_text() for path in folder.iterdir()] == ["new"]


def test_deleting_what_is_not_there_does_nothing(store: Store) -> None:
    store.delete("kind", "k")
    store.put("kind", "other", writing(a="one"))
    store.delete("kind", "k")
    assert store.keys("kind") == ["other"]


def test_deleting_leaves_no_data_of_an_attempt_that_was_not_committed(store: Store) -> None:
    store.write_text("kind/k/attempt/a.txt", "half")
    store.delete("kind", "k")
    assert store.names("kind") == []


def test_a_crash_while_deleting_leaves_nothing_that_counts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ["", "/step-5/rank-0-of-2", "/step-5/rank-1-of-2"]
    for key in keys:
        store.put("checkpoint", f"abc{key}", writing(a="one"))
    remove = Store._remove

    def crash_at_folders(self: Store, how: Callable[[str], None], path: str) -> None:
        if not path.endswith(MARKER):
            raise RuntimeError("the node is gone")
        remove(self, how, path)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "_remove", crash_at_folders)
        with pytest.raises(RuntimeError, match="the node is gone"):
            store.delete("checkpoint", "abc")
    assert not any(store.has("checkpoint", f"abc{key}") for key in keys)
    assert store.names("checkpoint") == ["abc"]
    store.delete("checkpoint", "abc")
    assert store.names("checkpoint") == []


def test_keys_are_those_of_complete_artefacts_of_one_level(store: Store) -> None:
    assert store.keys("checkpoint") == []
    for key in ("b", "a", "abc/step-5/rank-1-of-2", "abc/step-5/rank-0-of-2"):
        store.put("checkpoint", key, writing(a="one"))
    store.write_text("checkpoint/not-committed/attempt/a.txt", "half")
    store.write_text("checkpoint/a-file", "plain")
    assert store.keys("checkpoint") == ["a", "b"]
    assert store.keys("checkpoint/abc") == []
    assert store.keys("checkpoint/abc/step-5") == ["rank-0-of-2", "rank-1-of-2"]
    store.delete("checkpoint/abc/step-5", "rank-0-of-2")
    assert store.keys("checkpoint/abc/step-5") == ["rank-1-of-2"]


def test_folders_in_an_artefact_are_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(StoreError, match="kind/k: inner is not a plain file"):
        store.put("kind", "k", lambda folder: (folder / "inner").mkdir())
    assert not store.has("kind", "k")


def _put_at_once(uri: str, writer: str, barrier: threading.Barrier) -> None:
    def write(folder: Path) -> None:
        barrier.wait(30)  # all have found nothing and write
        for name in "abcd":
            (folder / f"{name}.txt").write_text(writer * 50_000)

    Store(uri).put("kind", "k", write, {"writer": writer})


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_several_writers_end_with_one_whole_artefact(uri: str, kind: str) -> None:
    names = "wxyz"
    if kind == "threads":
        barrier = threading.Barrier(len(names))
        writers = [threading.Thread(target=_put_at_once, args=(uri, name, barrier)) for name in names]
    else:
        context = multiprocessing.get_context("spawn")
        gate = context.Barrier(len(names))
        writers = [context.Process(target=_put_at_once, args=(uri, name, gate)) for name in names]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert getattr(writer, "exitcode", 0) == 0
    store = Store(uri)
    winner = store.describe("kind", "k")["writer"]
    with store.open("kind", "k") as folder:
        assert {path.name: path.read_text() for path in folder.iterdir()} == {
            f"{name}.txt": winner * 50_000 for name in "abcd"
        }


@pytest.mark.parametrize("name", ["../out", "/etc/out", "a/../../out", "", "..", "a/..", ".", "a//b", "a/"])
def test_names_outside_the_store_are_refused(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path / "root")
    for act in (
        lambda: store.write_text(name, "x"),
        lambda: store.read_bytes(name),
        lambda: store.names(name),
        lambda: store.has("kind", name),
        lambda: store.delete("kind", name),
        lambda: store.keys(name),
        lambda: store.put(name, "k", writing(a="x")),
    ):
        with pytest.raises(StoreError, match="is not a name inside the store"):
            act()
    assert list(tmp_path.iterdir()) == []


def test_plain_files(store: Store) -> None:
    assert store.names("sweeps/one") == []
    with pytest.raises(StoreError, match=r"there is no sweeps/one/table\.parquet"):
        store.read_bytes("sweeps/one/table.parquet")
    store.write_bytes("sweeps/one/table.parquet", b"old")
    store.write_bytes("sweeps/one/table.parquet", b"new")
    store.write_text("sweeps/one/report.md", "ä")
    assert store.read_bytes("sweeps/one/table.parquet") == b"new"
    assert store.read_bytes("sweeps/one/report.md") == "ä".encode()
    assert store.names("sweeps/one") == ["report.md", "table.parquet"]


def test_a_plain_file_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    store.write_bytes("table", b"old")
    seen: list[bytes] = []
    replace = os.replace

    def look_then_replace(source: str, target: str) -> None:
        # All of the new content is written by now, and the reader still has all of the old.
        seen.extend([Path(source).read_bytes(), store.read_bytes("table")])
        replace(source, target)

    monkeypatch.setattr(os, "replace", look_then_replace)
    store.write_bytes("table", b"new content")
    assert seen == [b"new content", b"old"]
    assert store.read_bytes("table") == b"new content"


def test_a_reader_sees_the_old_content_or_the_new_one_also_on_s3(remote: Store) -> None:
    contents = [f"{number};".encode() * (1 + number % 2 * 5) for number in range(100)]
    remote.write_bytes("live.json", contents[0])
    done = threading.Event()

    def keep_writing() -> None:
        for content in contents:
            remote.write_bytes("live.json", content)
        done.set()

    writer = threading.Thread(target=keep_writing)
    writer.start()
    seen = set()
    while not done.is_set():
        seen.add(remote.read_bytes("live.json"))
    writer.join()
    assert len(seen) > 1 and seen <= set(contents)


def test_a_store_travels_to_other_processes(store: Store) -> None:
    store.put("kind", "k", writing(a="one"))
    assert pickle.loads(pickle.dumps(store)).has("kind", "k")


def test_unusable_storage() -> None:
    with pytest.raises(StoreError, match=r"storage 'nowhere://x' cannot be used .*; give a local path or a URI"):
        Store("nowhere://x")


def test_keys_do_not_depend_on_the_order_of_names() -> None:
    assert content_key({"a": 1, "b": {"c": 2, "d": 3}}) == content_key({"b": {"d": 3, "c": 2}, "a": 1})


PARTS = {"seed": 0, "layers": [0, 4], "recipe": {"rate": 2e-4}, "start": None}


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"seed": "0"},
        {"layers": [4, 0]},
        {"layers": [0, 4, 8]},
        {"recipe": {"rate": 2.1e-4}},
        {"start": "none"},
        {"new": 1},
    ],
)
def test_keys_differ_on_any_change(change: dict[str, object]) -> None:
    assert content_key(PARTS | change) != content_key(PARTS)
    assert len(content_key(PARTS)) == 20


def test_keys_of_what_json_cannot_say_are_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        content_key({"rate": float("nan")})


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts the threads that Linux lists")
def test_reading_parquet_leaves_no_thread_behind(tmp_path: Path) -> None:
    """A thread that frees Python's bytes after the last line of a script aborts the interpreter."""
    pq.write_table(pa.table({f"column{number}": range(1000) for number in range(16)}), tmp_path / "table.parquet")
    script = """
import os, sys
import pyarrow as pa
from vrray.store import read_parquet

data = open(sys.argv[1], "rb").read()
before = len(os.listdir("/proc/self/task"))
table = read_parquet(pa.BufferReader(data))
print(table.num_columns, len(os.listdir("/proc/self/task")) - before)
"""
    ran = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "table.parquet")], capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == ["16", "0"]


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("/data/runs", "/data/runs"),
        ("s3://KEY:SECRET@bucket/runs", "s3://bucket/runs"),
        (
            "s3://KEY:SECRET@bucket/a/runs?endpoint_override=127.0.0.1:9000&scheme=http&secret=y",
            "s3://bucket/a/runs?endpoint_override=127.0.0.1:9000&scheme=http",
        ),
        ("gs://anonymous@bucket/runs?access_token=t", "gs://bucket/runs"),
    ],
)
def test_a_uri_is_shown_without_its_keys(uri: str, shown: str) -> None:
    assert shown_uri(uri) == shown


def test_errors_show_no_keys() -> None:
    with pytest.raises(StoreError) as refused:
        Store("s3x://KEY:SECRET@bucket/runs")
    assert "SECRET" not in str(refused.value)
    missing = Store("s3://KEY:SECRET@bucket/runs?region=r")
    assert missing.shown("sweeps", "one") == "s3://bucket/runs/sweeps/one?region=r"
