"""What nobody uses any more, and removing it.

Whatever goes can be computed again: artefacts that no run has recorded, attempts to write one that were not committed,
files that a crash left behind, Ray's files of ended runs. Tables, reports, votes and all that vrray did not name stay.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from vrray.errors import StoreError
from vrray.store import File, Store
from vrray.upkeep.inventory import THREADS, Artefact, Inventory
from vrray.upkeep.records import RAY

_DELTA, _CHECKPOINT = "delta", "checkpoint"  # of modules that take torch along
_CLOCKS_DIFFER_SECONDS = 60.0  # of a driver and a store; S3 also gives whole seconds only
Why = Literal["no run uses it", "was not committed", "was left behind", "its run has ended"]


@dataclass(frozen=True)
class Garbage:
    """A folder or a file of the store that may go; `changed` is that of its newest file (s since the epoch)."""

    name: str
    why: Why
    bytes: int
    changed: float


def find_garbage(store: Store, inventory: Inventory, older_than: float) -> list[Garbage]:
    """What may go.

    An unfinished run keeps, besides what it has recorded, all that was written since it began.

    Args:
        inventory: of the store.
        older_than: hours since it was changed; younger things may belong to what is being written.

    Raises:
        StoreError: what a run uses is not known.
    """
    _check_recorded(store, inventory)
    since = min((record.began for record in inventory.unfinished), default=math.inf) - _CLOCKS_DIFFER_SECONDS
    cutoff = min(since, time.time() - 3600 * older_than)
    found = [*_unused(inventory), *_of_ray(inventory), *_uncommitted(store, inventory), *_leftovers(inventory)]
    old = {item.name: item for item in found if item.changed < cutoff}
    return [old[name] for name in sorted(old) if name.rpartition("/")[0] not in old]


def remove_garbage(store: Store, garbage: Sequence[Garbage]) -> list[Garbage]:
    """Remove what `find_garbage` found, but for what was changed since; what was removed.

    Raises:
        StoreError: something cannot be removed.
    """

    def remove(item: Garbage) -> bool:
        try:
            return _remove(store, item)
        except OSError as error:
            raise StoreError(f"{store.shown(item.name)} cannot be removed: {error}") from error

    with ThreadPoolExecutor(THREADS) as pool:
        return [item for item, gone in zip(garbage, pool.map(remove, garbage), strict=True) if gone]


def users(inventory: Inventory, artefact: Artefact) -> list[str]:
    """The runs that use a committed artefact, by their records.

    A checkpoint is used by the runs that want its training and are not finished: a finished run has the training's
    result, or does without.
    """
    kind, runs = artefact.kind, inventory.runs
    if kind == _CHECKPOINT:
        kind, runs = _DELTA, [run for run in runs if run.record and not run.record.finished]
    return [run.name for run in runs if run.record and artefact.owner in run.record.keys.get(kind, ())]


def _remove(store: Store, item: Garbage) -> bool:
    if item.why == "was left behind":
        store.remove(item.name)
        return True
    if max((file.changed for file in store.files(item.name)), default=math.inf) > item.changed:
        return False
    kind, _, key = item.name.partition("/")
    store.delete(kind, key)
    return True


def _check_recorded(store: Store, inventory: Inventory) -> None:
    """Refuse to judge where a run has not recorded what it uses: an older version ran it, or it is being prepared."""
    if unknown := [run.name for run in inventory.runs if run.state == "unknown"]:
        raise StoreError(
            f"{store.shown()}: what {', '.join(unknown)} uses is not recorded; run it again with the same options, "
            "which trains nothing again, or delete its folder"
        )
    running = [run for run in inventory.runs if run.state == "running"]
    if early := [run.name for run in running if run.record is None or run.record.finished]:
        raise StoreError(f"{store.shown()}: {', '.join(early)} is starting or ending; wait until it trains or is over")


def _unused(inventory: Inventory) -> Iterator[Garbage]:
    for artefact in inventory.artefacts:
        if artefact.marker is not None and not users(inventory, artefact):
            files = [artefact.marker, *(file for files in artefact.attempts.values() for file in files)]
            yield _garbage(f"{artefact.kind}/{artefact.key}", "no run uses it", files)


def _of_ray(inventory: Inventory) -> Iterator[Garbage]:
    used = {name for run in inventory.runs if run.record for name in run.record.keys.get(RAY, ())}
    for folder, files in inventory.ray.items():
        if folder.removeprefix(f"{RAY}/") not in used:
            yield _garbage(folder, "its run has ended", files)


def _uncommitted(store: Store, inventory: Inventory) -> Iterator[Garbage]:
    """Attempts to write an artefact that did not come to an end, or came second."""
    for artefact in inventory.artefacts:
        if artefact.marker is not None and len(artefact.attempts) < 2:
            continue
        committed = store.attempt(artefact.kind, artefact.key)
        for attempt, files in artefact.attempts.items():
            if attempt != committed:
                yield _garbage(f"{artefact.kind}/{artefact.key}/{attempt}", "was not committed", files)


def _leftovers(inventory: Inventory) -> Iterator[Garbage]:
    for file in inventory.leftovers:
        yield _garbage(file.name, "was left behind", [file])


def _garbage(name: str, why: Why, files: Sequence[File]) -> Garbage:
    return Garbage(name, why, sum(file.bytes for file in files), max(file.changed for file in files))
