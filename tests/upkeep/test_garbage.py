"""What may go from a store, and what never does."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from vrray.errors import StoreError
from vrray.store import MARKER, Store, content_key
from vrray.sweep.live import LiveState, published
from vrray.upkeep.garbage import Garbage, find_garbage, remove_garbage
from vrray.upkeep.inventory import take_inventory

USED, WANTED, UNUSED = (content_key({"artefact": name}) for name in ("used", "wanted", "unused"))
ATTEMPT = "0123456789ab"


@pytest.fixture
def store(uri: str) -> Store:
    return Store(uri)


def put(store: Store, kind: str, key: str, content: str = "content") -> None:
    store.put(kind, key, lambda folder: (folder / "a.txt").write_text(content) and None)


def record(store: Store, run: str, *, finished: bool = True, began: float = 0.0, **keys: list[str]) -> None:
    store.write_text(f"{run}/keys.json", json.dumps({"format": 1, "began": began, "finished": finished, "keys": keys}))


def found(store: Store, older_than: float = 0.0) -> list[Garbage]:
    return find_garbage(store, take_inventory(store), older_than)


def names(store: Store, older_than: float = 0.0) -> dict[str, str]:
    return {item.name: item.why for item in found(store, older_than)}


def test_what_runs_use_stays(store: Store) -> None:
    for kind in ("delta", "features", "evaluation"):
        for key in (USED, UNUSED):
            put(store, kind, key)
    record(store, "sweeps/one", delta=[USED], features=[USED])
    record(store, "evaluations/two", evaluation=[USED])
    assert names(store) == dict.fromkeys(
        [f"delta/{UNUSED}", f"evaluation/{UNUSED}", f"features/{UNUSED}"], "no run uses it"
    )
    remove_garbage(store, found(store))
    assert names(store) == {}
    for kind in ("delta", "features", "evaluation"):
        assert store.keys(kind) == [USED]
        with store.open(kind, USED) as folder:
            assert (folder / "a.txt").read_text() == "content"


def test_a_deleted_run_uses_nothing(store: Store) -> None:
    put(store, "delta", USED)
    record(store, "sweeps/one", delta=[USED])
    assert names(store) == {}
    store.delete("sweeps", "one")
    assert names(store) == {f"delta/{USED}": "no run uses it"}


def test_results_votes_and_foreign_files_stay(store: Store) -> None:
    files = [
        "sweeps/one/table.parquet",
        "sweeps/one/figures/layer_map.png",
        "layer-scores/scores/report.md",
        "votes/1-a.json",
        f"rejected/{UNUSED}.parquet",
        "photos/delta/a.png",
        f"photos/{UNUSED}/a.png",
        "notes.tmp",
    ]
    for run in ("sweeps/one", "layer-scores/scores"):
        record(store, run)
    for name in files:
        store.write_text(name, "kept")
    put(store, "delta", UNUSED)
    remove_garbage(store, found(store))
    assert store.keys("delta") == []
    assert all(store.read_bytes(name) == b"kept" for name in files)


def test_what_a_crash_left_behind_goes(store: Store) -> None:
    put(store, "delta", USED)
    record(store, "sweeps/one", delta=[USED])
    left = {
        f"delta/{USED}/{ATTEMPT}": "was not committed",  # of another writer, which came second
        f"delta/{UNUSED}/{ATTEMPT}": "was not committed",
        "sweeps/one/table.parquet.89abcdef.tmp": "was left behind",
        f"delta/{UNUSED}/{MARKER}.89abcdef.tmp": "was left behind",
        f"claim/{UNUSED}/claim.json": "was left behind",
    }
    for name, why in left.items():
        store.write_text(f"{name}/a.txt" if why == "was not committed" else name, "half")
    assert names(store) == left
    remove_garbage(store, found(store))
    assert names(store) == {}
    with store.open("delta", USED) as folder:
        assert (folder / "a.txt").read_text() == "content"


def test_what_is_young_stays(store: Store) -> None:
    put(store, "delta", UNUSED)
    store.write_text(f"delta/{USED}/{ATTEMPT}/a.txt", "half")
    store.write_text("sweeps/one/table.parquet.89abcdef.tmp", "half")
    record(store, "sweeps/one")
    assert names(store, older_than=1.0) == {}
    assert len(names(store)) == 3


def test_an_unfinished_run_keeps_what_was_written_since_it_began(store: Store) -> None:
    put(store, "delta", UNUSED)
    store.write_text("ray/group-1234/state.json", "state")
    store.write_text(f"delta/{USED}/{ATTEMPT}/a.txt", "being written")
    store.write_text("sweeps/live/table.parquet.89abcdef.tmp", "being written")
    later = time.time() + 3600
    record(store, "sweeps/live", finished=False, began=time.time())
    assert names(store) == {}
    record(store, "sweeps/live", finished=False, began=later)
    assert set(names(store)) == {
        f"delta/{UNUSED}",
        "ray/group-1234",
        f"delta/{USED}/{ATTEMPT}",
        "sweeps/live/table.parquet.89abcdef.tmp",
    }


def test_checkpoints_are_of_unfinished_trainings(store: Store) -> None:
    for key in (USED, WANTED, UNUSED):
        put(store, "checkpoint", f"{key}/step-00000004/rank-0-of-1")
    record(store, "sweeps/done", delta=[USED])
    record(store, "sweeps/halted", finished=False, began=time.time() + 3600, delta=[WANTED])
    assert set(names(store)) == {f"checkpoint/{key}/step-00000004/rank-0-of-1" for key in (USED, UNUSED)}
    remove_garbage(store, found(store))
    assert store.keys(f"checkpoint/{WANTED}/step-00000004") == ["rank-0-of-1"]
    assert store.keys(f"checkpoint/{USED}/step-00000004") == []


def test_metrics_of_recorded_runs_stay(store: Store) -> None:
    for name in ("one-123456", "two-123456", "group-1234"):
        store.write_text(f"ray/{name}/trial/events", "metrics")
    record(store, "sweeps/one", ray=["one-123456"])
    assert set(names(store)) == {"ray/two-123456", "ray/group-1234"}
    remove_garbage(store, found(store))
    assert store.read_bytes("ray/one-123456/trial/events") == b"metrics"
    assert store.names("ray/two-123456") == []


def test_what_was_written_anew_meanwhile_stays(tmp_path: Path) -> None:
    store = Store(tmp_path)
    put(store, "delta", UNUSED)
    before = found(store)
    store.delete("delta", UNUSED)
    put(store, "delta", UNUSED)
    assert [item.name for item in before] == [f"delta/{UNUSED}"]
    assert remove_garbage(store, before) == []
    assert store.has("delta", UNUSED)


def test_a_run_without_a_record_is_refused(store: Store) -> None:
    put(store, "delta", UNUSED)
    store.write_text("sweeps/old/table.parquet", "rows")
    with pytest.raises(StoreError, match=r"what sweeps/old uses is not recorded; run it again .* or delete"):
        found(store)


@pytest.mark.parametrize("ran_before", [False, True])
def test_while_a_sweep_is_prepared_nothing_is_judged(store: Store, ran_before: bool) -> None:
    """What it will use is in its record only when all is prepared."""
    put(store, "delta", UNUSED)
    if ran_before:
        record(store, "sweeps/now")
    with published(store, "now", LiveState()):
        with pytest.raises(StoreError, match=r"sweeps/now is being prepared; wait until it trains"):
            found(store)
        record(store, "sweeps/now", finished=False, began=time.time() + 3600)
        assert names(store) == {f"delta/{UNUSED}": "no run uses it"}
