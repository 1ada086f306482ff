"""Records of what runs use: there from the start, complete at the end, never less than what is in use."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from vrray.errors import StoreError
from vrray.store import Store
from vrray.upkeep.records import RAY, read_record, recorded

RUN = "sweeps/one"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def use(store: Store, key: str) -> None:
    store.put("delta", key, lambda folder: None)


def test_what_is_asked_for_is_used(store: Store) -> None:
    before = time.time()
    store.has("delta", "a")
    with recorded(store, RUN):
        started = read_record(store, RUN)
        use(store, "b")
        store.has("scores", "c")
    ended = read_record(store, RUN)
    assert (started.finished, started.keys) == (False, {"delta": {"a"}})
    assert (ended.finished, ended.keys) == (True, {"delta": {"a", "b"}, "scores": {"c"}})
    assert before <= started.began == ended.began <= time.time()


def test_what_was_deleted_is_not_used(store: Store) -> None:
    with recorded(store, RUN):
        use(store, "a")
        use(store, "b")
        store.delete("delta", "a")
    assert read_record(store, RUN).keys == {"delta": {"b"}}


@pytest.mark.parametrize("error", [KeyboardInterrupt, StoreError])
def test_a_run_that_fails_is_unfinished_and_keeps_what_it_has(store: Store, error: type[BaseException]) -> None:
    with pytest.raises(error), recorded(store, RUN):
        use(store, "a")
        raise error
    record = read_record(store, RUN)
    assert (record.finished, record.keys) == (False, {"delta": {"a"}})


def test_a_run_that_is_to_be_continued_is_unfinished(store: Store) -> None:
    with recorded(store, RUN) as recording:
        use(store, "a")
        recording.to_be_continued = True
    record = read_record(store, RUN)
    assert (record.finished, record.keys) == (False, {"delta": {"a"}})


def test_a_run_that_goes_on_began_when_it_was_first_started(store: Store) -> None:
    with pytest.raises(KeyboardInterrupt), recorded(store, RUN):
        raise KeyboardInterrupt
    began = read_record(store, RUN).began
    with recorded(Store(store.uri), RUN):
        assert read_record(store, RUN).began == began
    with recorded(Store(store.uri), RUN):
        assert read_record(store, RUN).began > began


def test_what_the_last_finished_run_uses_stays_until_the_next_one_is_finished(store: Store) -> None:
    with recorded(store, RUN):
        use(store, "a")
        store.ask(RAY, "one-123456")
    again = Store(store.uri)
    with recorded(again, RUN):
        use(again, "b")
        record = read_record(store, RUN)
        assert not record.finished and record.keys["delta"] == {"a"}
    # The metrics of both stay.
    assert read_record(store, RUN).keys == {"delta": {"b"}, RAY: {"one-123456"}}


def test_a_damaged_record_is_an_error_and_the_next_run_replaces_it(store: Store) -> None:
    store.write_text(f"{RUN}/keys.json", '{"began": 1}')
    with pytest.raises(StoreError, match=r"sweeps/one/keys\.json is damaged .*: start the run again, or delete it"):
        read_record(store, RUN)
    with recorded(store, RUN):
        assert not read_record(store, RUN).finished
