"""Claims on work, so that of several runs on one store one does what all of them need."""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vrray.errors import StoreError
from vrray.process import has_ended, this_process
from vrray.store import Store

KIND = "claim"
BEAT_SECONDS = 5.0
STALE_SECONDS = 45.0
_FILE = "claim.json"
_SETTLE_SECONDS = 0.2

log = logging.getLogger(__name__)


class Watch:
    """Tells what still changes from what has stopped to, by this process's monotonic clock: no other clock is asked."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[object, float]] = {}

    def unchanged(self, name: str, value: object) -> float:
        """For how many seconds a name has been seen with this value and no other."""
        now = time.monotonic()
        if name not in self._seen or self._seen[name][0] != value:
            self._seen[name] = value, now
        return now - self._seen[name][1]


class Claims:
    """The claims of a run, as one of its processes makes them.

    A claim is a file that its holder writes anew every few seconds. Where it has stopped to change, its holder is gone
    and it may be taken over; at once where the holder's process has ended on this machine, or is of the same run.
    `pyarrow.fs` creates no file atomically, so that now and then two may take one claim. Then both do the work, and the
    store keeps one artefact. For the same reason a store that cannot be read or written costs the claim, never the
    work.

    Args:
        run: what tells the run from others, in words.
    """

    def __init__(self, store: Store, run: str):
        self._store, self._run, self._token = store, run, uuid.uuid4().hex
        self._watch = Watch()

    def take(self, key: str) -> str | None:
        """Claim a key: None where it is this run's now, else who holds it."""
        try:
            held = self._read(key)
            if held and not self._may_take(key, held):
                return _text(held)
            self._write(key, 0)
            time.sleep(_SETTLE_SECONDS)  # of two that write at the same time, the last one holds it
            held = self._read(key)
        except OSError as error:
            log.warning("the claim on %s cannot be kept, the work is done without: %s", key, error)
            return None
        return _text(held) if held and held["token"] != self._token else None

    def _may_take(self, key: str, held: dict[str, Any]) -> bool:
        if held["run"] == self._run or has_ended(held):
            return True
        return self._watch.unchanged(key, held) >= STALE_SECONDS

    @contextmanager
    def kept(self, key: str) -> Iterator[None]:
        """Keep a claim that was taken fresh while inside, then give it up."""
        done = threading.Event()
        beats = threading.Thread(target=self._beat, args=(key, done), name="vrray-claim", daemon=True)
        beats.start()
        try:
            yield
        finally:
            done.set()
            beats.join()
            self._give_up(key)

    def _beat(self, key: str, done: threading.Event) -> None:
        beat = 0
        while not done.wait(BEAT_SECONDS):
            beat += 1
            try:
                if not self._is_ours(key):
                    return  # this process was silent for too long, and another has taken over
                self._write(key, beat)
            except OSError as error:
                log.warning("the claim on %s could not be renewed: %s", key, error)

    def _give_up(self, key: str) -> None:
        try:
            if self._is_ours(key):
                self._store.delete(KIND, key)
        except OSError as error:
            log.warning("the claim on %s could not be given up, others wait %d s: %s", key, STALE_SECONDS, error)

    def _is_ours(self, key: str) -> bool:
        held = self._read(key)
        return held is not None and bool(held["token"] == self._token)

    def _read(self, key: str) -> dict[str, Any] | None:
        try:
            held: dict[str, Any] = json.loads(self._store.read_bytes(f"{KIND}/{key}/{_FILE}"))
        except (StoreError, ValueError):
            return None
        return held

    def _write(self, key: str, beat: int) -> None:
        claim = {"run": self._run, "token": self._token, "beat": beat, **this_process()}
        self._store.write_text(f"{KIND}/{key}/{_FILE}", json.dumps(claim))


def _text(held: dict[str, Any]) -> str:
    return f"{held['run']} (process {held['pid']} on {held['host']})"
