"""A disk that is full, and a storage service that is gone for a while: nothing is lost, nothing is taken for whole."""

from __future__ import annotations

import errno
import logging
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pytest

from tests.s3 import new_folder, s3_server
from vrray import patience
from vrray.job import exit_status
from vrray.store import Store


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small file system can only be mounted as root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def write(size: int, folder: Path) -> None:
    (folder / "first").write_bytes(b"1" * 1000)
    (folder / "second").write_bytes(b"2" * size)


def free(folder: Path) -> int:
    return int(subprocess.check_output(["df", "--output=avail", "-B1", folder]).split()[1])


def test_an_artefact_that_does_not_fit_leaves_nothing(small_disk: Path) -> None:
    store, before = Store(small_disk), free(small_disk)
    with pytest.raises(OSError) as failed:
        store.put("kind", "large", lambda folder: write(2 << 20, folder))
    assert failed.value.errno == errno.ENOSPC
    assert not store.has("kind", "large") and store.keys("kind") == []
    assert free(small_disk) >= before - 16_384, "what was written of it is gone"
    store.put("kind", "small", lambda folder: write(1000, folder))
    with store.open("kind", "small") as folder:
        assert (folder / "second").read_bytes() == b"2" * 1000


def test_a_table_that_does_not_fit_leaves_the_old_one(small_disk: Path) -> None:
    store, old = Store(small_disk), pa.table({"a": [1]})
    store.write_table("sweeps/s/table.parquet", old)
    random = pa.table({"a": pa.array(range(400_000)), "b": [str(hash(str(n))) for n in range(400_000)]})
    with pytest.raises(OSError):
        store.write_table("sweeps/s/table.parquet", random)
    assert store.read_table("sweeps/s/table.parquet").equals(old)
    assert store.names("sweeps/s") == ["table.parquet"]


def test_a_job_without_room_says_so_in_its_last_line(small_disk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert exit_status(lambda: Store(small_disk).write_bytes("table", b"0" * (2 << 20))) == 1
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and "No space left" in last and "the same command goes on from there" in last


class Line:
    """A line to a server that can be cut."""

    def __init__(self, target: str):
        host, port = target.split(":")
        self._target, self._open = (host, int(port)), list[socket.socket]()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.cut, self.refused = False, 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.cut = True
        for end in self._open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            if self.cut:
                self.refused += 1
                near.close()
                continue
            far = socket.create_connection(self._target)
            self._open += [near, far]
            for ends in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=ends, daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture
def line(server: str) -> Iterator[Line]:
    found = Line(server)
    yield found
    found.close()


def test_storage_that_is_gone_for_a_while_is_waited_for(
    line: Line, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Longer than the attempts of pyarrow's own last; each operation meets the outage at its start."""
    store = Store(new_folder(line.address))
    store.write_text("sweeps/s/sweep.json", "{}")
    store.put("kind", "k", lambda folder: write(5000, folder))
    pauses: list[float] = []

    def mend(seconds: float) -> None:
        pauses.append(seconds)
        line.cut = False

    monkeypatch.setattr(patience.time, "sleep", mend)

    def read_artefact() -> bytes:
        with store.open("kind", "k") as folder:
            return (folder / "second").read_bytes()

    operations = {
        "a table is written": lambda: store.write_text("sweeps/s/sweep.json", "[]"),
        "it is read": lambda: store.read_bytes("sweeps/s/sweep.json") == b"[]",
        "an artefact is asked for": lambda: store.has("kind", "k"),
        "it is read as a whole": lambda: read_artefact() == b"2" * 5000,
        "another is written": lambda: store.put("kind", "l", lambda folder: write(7, folder)),
        "they are listed": lambda: store.keys("kind") == ["k", "l"],
        "one is removed": lambda: store.delete("kind", "l"),
    }
    for number, (what, operation) in enumerate(operations.items(), 1):
        line.close()
        assert operation() in (None, True), what
        assert pauses == [patience.WAITS_S[0]] * number, what
    assert "the storage does not answer, asked again in 2 s" in caplog.text
    assert store.keys("kind") == ["k"]


def test_storage_that_stays_away_is_an_error_in_the_end(
    line: Line, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    store, pauses = Store(new_folder(line.address)), list[float]()
    store.put("kind", "k", lambda folder: write(5000, folder))
    monkeypatch.setattr(patience.time, "sleep", pauses.append)
    monkeypatch.setattr(patience, "WAITS_S", (2.0,))
    line.close()
    assert exit_status(lambda: store.write_text("table", "x")) == 1
    assert pauses == [2.0]
    assert "NETWORK_CONNECTION" in capfd.readouterr().err.splitlines()[-1]
    line.cut = False
    assert store.keys("kind") == ["k"]


def test_what_waiting_would_not_mend_is_said_at_once(
    server: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(patience.time, "sleep", lambda _: pytest.fail("waited"))
    with caplog.at_level(logging.WARNING), pytest.raises(OSError, match="NO_SUCH_BUCKET"):
        Store(f"s3://nowhere/runs?endpoint_override={server}&scheme=http").write_text("a", "b")
    assert caplog.text == ""
