"""What is in a store, from one listing of its files: artefacts, attempts to write one, leftovers, runs."""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

from vrray.errors import StoreError
from vrray.store import MARKER, File, Store
from vrray.upkeep.records import FILE, RUNS, Record, read_record

THREADS = 16  # that ask the store
LIVE_SECONDS = 60.0
# The shapes of names that vrray gives; whatever else lies in the store is not vrray's.
_ARTEFACT = re.compile(
    r"(?P<kind>[a-z][a-z-]*)/(?P<key>[0-9a-f]{20}(/step-\d+/rank-\d+-of-\d+)?)/"
    rf"({re.escape(MARKER)}|(?P<attempt>[0-9a-f]{{12}})/[^/]+)"
)
_LEFTOVER = re.compile(r".+\.[0-9a-f]{8}\.tmp|claim/[^/]+/claim\.json")
_RUN = re.compile(rf"(?P<run>({'|'.join(RUNS)})/[^/]+)/.+")
_RAY = re.compile(r"(?P<folder>ray/[^/]+)/.+")

State = Literal["running", "finished", "unfinished", "unknown"]


@dataclass
class Artefact:
    """The files in an artefact's folder: its marker, where it is committed, and those of every attempt to write it."""

    kind: str
    key: str
    marker: File | None = None
    attempts: dict[str, list[File]] = field(default_factory=lambda: defaultdict(list))

    @property
    def bytes(self) -> int:
        return sum(file.bytes for files in self.attempts.values() for file in files)

    @property
    def owner(self) -> str:
        """The key of what it belongs to: that of the training for a part of a checkpoint, else its own."""
        return self.key.partition("/")[0]


@dataclass(frozen=True)
class Run:
    """A run with a folder in the store; `record` is None while it is prepared, and where an older version ran it."""

    name: str
    state: State
    record: Record | None


@dataclass(frozen=True)
class Inventory:
    """What was found.

    Attributes:
        leftovers: what a crash may have left behind: half-written files, and claims on work (vrray/claims.py).
        ray: the files of each of Ray's folders.
    """

    artefacts: Sequence[Artefact]
    runs: Sequence[Run]
    leftovers: Sequence[File]
    ray: dict[str, list[File]]

    @property
    def unfinished(self) -> list[Record]:
        """The records of the runs that are running or wait to be started again."""
        return [run.record for run in self.runs if run.record and not run.record.finished]


def take_inventory(store: Store) -> Inventory:
    """List the store.

    Raises:
        StoreError: the store cannot be read, or the record of a run is damaged.
    """
    artefacts: dict[tuple[str, str], Artefact] = {}
    ray: defaultdict[str, list[File]] = defaultdict(list)
    leftovers, runs = [], dict[str, None]()
    for file in _listed(store):
        if _LEFTOVER.fullmatch(file.name):
            leftovers.append(file)
        elif found := _ARTEFACT.fullmatch(file.name):
            kind, key, attempt = found["kind"], found["key"], found["attempt"]
            artefact = artefacts.setdefault((kind, key), Artefact(kind, key))
            if attempt is None:
                artefact.marker = file
            else:
                artefact.attempts[attempt].append(file)
        elif found := _RUN.fullmatch(file.name):
            runs[found["run"]] = None
        elif found := _RAY.fullmatch(file.name):
            ray[found["folder"]].append(file)
    with ThreadPoolExecutor(THREADS) as pool:
        read = list(pool.map(lambda run: _run(store, run), runs))
    return Inventory([artefacts[name] for name in sorted(artefacts)], read, leftovers, dict(ray))


def _listed(store: Store) -> list[File]:
    try:
        return list(store.files())
    except OSError as error:
        raise StoreError(f"{store.shown()} cannot be read: {error}; check --store and its access rights") from error


def _run(store: Store, name: str) -> Run:
    record = read_record(store, name) if store.stamp(f"{name}/{FILE}") is not None else None
    if _is_live(store, name):
        return Run(name, "running", record)
    if record is None:
        return Run(name, "unknown", None)
    return Run(name, "finished" if record.finished else "unfinished", record)


def _is_live(store: Store, run: str) -> bool:
    """Whether a run that publishes its live state (vrray/sweep/live.py) has just done so."""
    name = f"{run}/live.json"
    stamp = store.stamp(name)
    if stamp is None or time.time() - stamp[0] / 1e9 > LIVE_SECONDS:
        return False
    try:
        return json.loads(store.read_bytes(name))["ended"] is None
    except (StoreError, ValueError, KeyError):
        return False
