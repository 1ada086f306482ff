"""What runs use of a store: each run writes it down beside its results, and what none has written down may go.

The record of a run is `RUNS/NAME/keys.json`, such as `sweeps/where/keys.json`: the keys, by kind, of all artefacts that
its driver asked for. It goes with the run's folder. Light to import.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from vrray.errors import StoreError
from vrray.store import Store

FILE = "keys.json"
RUNS = ("sweeps", "layer-scores", "evaluations", "trainings")
RAY = "ray"  # the folder of Ray's own files, and the kind under which a run records its Tune runs there


@dataclass(frozen=True)
class Record:
    """What a run uses.

    Attributes:
        run: its folder in the store.
        began: when the run was first started (s since the epoch); what is newer may be its own where it is unfinished.
        keys: by kind.
    """

    run: str
    began: float
    finished: bool
    keys: Mapping[str, frozenset[str]]

    def to_json(self) -> str:
        keys = {kind: sorted(keys) for kind, keys in sorted(self.keys.items())}
        return json.dumps({"format": 1, "began": self.began, "finished": self.finished, "keys": keys})


def read_record(store: Store, run: str) -> Record:
    """
    Raises:
        StoreError: there is none, or it is damaged.
    """
    name = f"{run}/{FILE}"
    try:
        about = json.loads(store.read_bytes(name))
        keys = {kind: frozenset(keys) for kind, keys in about["keys"].items()}
        return Record(run, float(about["began"]), bool(about["finished"]), keys)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{store.shown(name)} is damaged ({error!r}): start the run again, or delete it") from error


class Recording:
    """A run while it is recorded: unless it says so, it is not to be continued once it has ended without an error."""

    to_be_continued = False


@contextmanager
def recorded(store: Store, run: str) -> Iterator[Recording]:
    """Write down what a run uses, at once and when it ends; without an error it is then finished.

    What an earlier run of the same name used stays in the record until this one is finished.
    """
    recording = Recording()
    before = _before(store, run)
    _write_unfinished(store, before)
    try:
        yield recording
    except BaseException:
        with suppress(OSError):  # which would hide the error; the record of the start stays
            _write_unfinished(store, before)
        raise
    if recording.to_be_continued:
        _write_unfinished(store, before)
        return
    # The metrics of an interrupted run belong to the finished one.
    keys = _together([store.asked, {RAY: before.keys.get(RAY, frozenset())}])
    store.write_text(f"{run}/{FILE}", replace(before, finished=True, keys=keys).to_json())


def _write_unfinished(store: Store, before: Record) -> None:
    keys = _together([before.keys, store.asked])
    store.write_text(f"{before.run}/{FILE}", replace(before, keys=keys).to_json())


def _before(store: Store, run: str) -> Record:
    """The record that a run starts from."""
    now = time.time()
    if store.stamp(f"{run}/{FILE}") is None:
        return Record(run, now, False, {})
    try:
        known = read_record(store, run)
    except StoreError:
        return Record(run, now, False, {})  # it is written anew, as its error says
    return replace(known, finished=False, began=now if known.finished else known.began)


def _together(parts: Iterable[Mapping[str, Collection[str]]]) -> dict[str, frozenset[str]]:
    together: dict[str, frozenset[str]] = {}
    for part in parts:
        for kind, keys in part.items():
            if keys:
                together[kind] = together.get(kind, frozenset()) | frozenset(keys)
    return together
