"""`vrray store` as one types it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vrray.cli import main
from vrray.store import MARKER, Store, content_key
from vrray.sweep.live import LiveState, published
from vrray.upkeep.records import recorded

ONE, TWO = (content_key({"artefact": name}) for name in ("one", "two"))
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def store(uri: str) -> Store:
    """Two deltas, of which a sweep uses one."""
    store = Store(uri)
    for key in (ONE, TWO):
        put(store, key)
    own = Store(uri)
    with recorded(own, "sweeps/where"):
        assert own.has("delta", ONE)
    return store


def put(store: Store, key: str) -> None:
    store.put("delta", key, lambda folder: (folder / "delta.bin").write_bytes(b"x" * 1500) and None)


def delta_file(store: Store, key: str) -> str:
    return f"delta/{key}/{store.attempt('delta', key)}/delta.bin"


@pytest.fixture
def vrray(store: Store, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run an action on the store: exit status, and what was printed."""

    def run(action: str, *options: str) -> tuple[int, str]:
        status = main(["store", action, "--store", store.uri, *options])
        printed = capsys.readouterr()
        return status, printed.out if "--json" in options else printed.out + printed.err

    return run


def as_json(answer: tuple[int, str]) -> Any:
    assert answer[0] == 0
    return json.loads(answer[1])


def test_ls_says_what_there_is(store: Store, vrray: Run) -> None:
    store.write_text(f"scores/{ONE}/0123456789ab/samples.npz", "half")
    found = as_json(vrray("ls", "--json"))
    assert found["kinds"] == [
        {"kind": "delta", "artefacts": 2, "bytes": 3000, "unfinished": 0},
        {"kind": "scores", "artefacts": 0, "bytes": 4, "unfinished": 1},
    ]
    (run,) = found["runs"]
    assert (run["run"], run["state"]) == ("sweeps/where", "finished")
    assert (run["artefacts"], run["bytes"]) == (1, 1500)
    assert 0 <= time.time() - run["began"] < 600
    _, text = vrray("ls")
    assert "sweeps/where" in text and "3.0 kB" in text


def test_ls_of_a_kind_says_what_uses_each(vrray: Run) -> None:
    rows = as_json(vrray("ls", "--kind", "delta", "--json"))["artefacts"]
    assert {row["key"]: (row["bytes"], row["used by"]) for row in rows} == {
        ONE: (1500, ["sweeps/where"]),
        TWO: (1500, []),
    }
    lines = vrray("ls", "--kind", "delta")[1].splitlines()
    assert any(ONE in line and "sweeps/where" in line for line in lines)
    status, text = vrray("ls", "--kind", "deltas")
    assert status == 1 and "--kind deltas: the store has none; it has delta" in text


def test_ls_knows_a_sweep_that_runs(store: Store, vrray: Run) -> None:
    with recorded(store, "sweeps/now"), published(store, "now", state := LiveState()):
        state.say("begun")
        deadline = time.monotonic() + 30
        while store.stamp("sweeps/now/live.json") is None and time.monotonic() < deadline:
            time.sleep(0.05)
        states = {run["run"]: run["state"] for run in as_json(vrray("ls", "--json"))["runs"]}
    assert states == {"sweeps/where": "finished", "sweeps/now": "running"}


def test_verify_of_a_whole_store(vrray: Run) -> None:
    status, text = vrray("verify")
    assert status == 0 and "2 artefacts, 3.0 kB: 0 damaged" in text


@pytest.mark.parametrize(
    ("content", "found"),
    [(b"x" * 1499 + b"y", "another SHA-256"), (b"x" * 3, "3 bytes instead of 1500"), (None, "missing")],
)
def test_verify_finds_damage_and_repairs_it(store: Store, vrray: Run, content: bytes | None, found: str) -> None:
    name = delta_file(store, ONE)
    store.remove(name) if content is None else store.write_bytes(name, content)
    status, text = vrray("verify", "--json")
    assert status == 1
    row = {"kind": "delta", "key": ONE, "file": "delta.bin", "found": found}
    assert json.loads(text) == {"artefacts": 2, "damaged": [row], "repaired": False}
    assert store.has("delta", ONE)  # nothing was changed
    status, text = vrray("verify", "--repair")
    assert status == 0 and ONE in text and "the next run that needs it rebuilds it" in text
    assert (store.has("delta", ONE), store.has("delta", TWO)) == (False, True)
    put(store, ONE)
    assert vrray("verify")[0] == 0


def test_verify_finds_a_damaged_marker(store: Store, vrray: Run) -> None:
    store.write_text(f"delta/{ONE}/{MARKER}", "{")
    status, text = vrray("verify")
    assert status == 1 and MARKER in text and "with --repair the next run that needs them rebuilds them" in text
    assert vrray("verify", "--repair")[0] == 0
    assert store.keys("delta") == [TWO]


def test_gc_only_lists_unless_told_to_delete(store: Store, vrray: Run) -> None:
    assert vrray("gc") == (0, "nothing to remove is older than 24 h\n")
    listed = as_json(vrray("gc", "--older-than", "0", "--json"))
    assert listed["deleted"] is False and [item["name"] for item in listed["garbage"]] == [f"delta/{TWO}"]
    status, text = vrray("gc", "--older-than", "0")
    assert status == 0 and "--delete removes: 1, 1.7 kB" in text
    assert store.keys("delta") == sorted([ONE, TWO])
    status, text = vrray("gc", "--older-than", "0", "--delete")
    assert status == 0 and TWO in text and "removed: 1, 1.7 kB" in text
    assert store.keys("delta") == [ONE]


def test_gc_names_the_runs_that_keep_what_is_new(store: Store, vrray: Run) -> None:
    with pytest.raises(KeyboardInterrupt), recorded(store, "sweeps/halted"):
        raise KeyboardInterrupt
    status, text = vrray("gc", "--older-than", "0")
    assert status == 0 and "sweeps/halted is unfinished: what was written since" in text
    listed = as_json(vrray("gc", "--older-than", "0", "--json"))
    assert (listed["unfinished"], listed["garbage"]) == (["sweeps/halted"], [])


def test_an_age_below_zero_is_refused(store: Store, vrray: Run) -> None:
    status, text = vrray("gc", "--older-than", "-1", "--delete")
    assert status == 1 and "--older-than is a number of hours from 0 on, not -1" in text
    assert store.keys("delta") == sorted([ONE, TWO])


def test_a_store_that_cannot_be_read_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    assert main(["store", "ls", "--store", str(tmp_path / "file")]) == 1
    assert f"{tmp_path}/file cannot be read" in capsys.readouterr().err
