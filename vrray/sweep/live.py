"""The live state of a running sweep: a small file beside its table, for whoever watches. Light to import.

`sweeps/NAME/live.json` is for eyes only: the table, written at the end, is what counts, and nothing that goes wrong
with the live state ends a sweep. It is also how a second driver of the same sweep finds out about the first.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from vrray.claims import Watch
from vrray.errors import BusyError, StoreError
from vrray.process import has_ended, this_process
from vrray.store import Store

FILE = "live.json"
EVERY_SECONDS = 2.0
HEARTBEAT_SECONDS = 10.0
SILENT_SECONDS = 3 * HEARTBEAT_SECONDS  # without a change of the file, after which its driver counts as gone
MOST_POINTS = 240  # of a loss curve; beyond, every second one goes
ENDED_POINTS = 24  # of the loss curve of a trial that is over: a sweep may have a thousand of them
_MOST_SHARE = 0.05  # of the time that writing may take
_MOST_LINES = 20

State = Literal["waiting", "in the store", "training", "trained", "evaluating", "finished", "failed", "stopped"]


class LiveState:
    """What a sweep is at, kept in memory; safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._began = time.time()
        self._trials: dict[str, dict[str, Any]] = {}
        self._lines: list[str] = []
        self._end: str | None = None
        self.changes = 0

    def __reduce__(self) -> tuple[type[LiveState], tuple[()]]:
        """Tune pickles its callbacks, and with them this, into the state that it saves: a copy there stays empty."""
        return LiveState, ()

    def expect(self, key: str, name: str, state: State = "waiting") -> None:
        """Take in a trial that is to come, or that the store holds already."""
        with self._change():
            self._trial(key, name)["state"] = state

    def stepped(self, key: str, name: str, metrics: Mapping[str, Any]) -> None:
        """Take in the metrics of an optimizer step: `step`, `steps`, `loss_mean` and `step_seconds`."""
        step, steps = int(metrics["step"]), int(metrics["steps"])
        with self._change():
            trial = self._trial(key, name)
            trial |= {"state": "trained" if step == steps else "training", "step": step, "steps": steps}
            trial["seconds_left"] = (steps - step) * float(metrics["step_seconds"])
            losses = trial["losses"]
            losses.append([step, round(float(metrics["loss_mean"]), 5)])
            if len(losses) > MOST_POINTS:
                del losses[1:-1:2]

    def evaluated(self, key: str, name: str, removed: int) -> None:
        """Take in that a variant with so many layers removed was evaluated."""
        with self._change():
            trial = self._trial(key, name)
            trial["state"] = "evaluating"
            trial["evaluated"].append(removed)

    def ended(self, key: str, name: str, state: State, message: str | None = None) -> None:
        with self._change():
            trial = self._trial(key, name)
            trial.update(state=state, message=message, seconds_left=0.0)
            trial["losses"] = _thinned(trial["losses"])

    def say(self, line: str) -> None:
        with self._change():
            self._lines = [*self._lines[1 - _MOST_LINES :], line.strip()]

    def close(self, end: str) -> None:
        """The sweep is over: "finished", or why it is not."""
        with self._change():
            self._end = end

    def to_json(self) -> dict[str, Any]:
        """The state as values for `json.dumps`; times are seconds since the epoch, of this machine's clock."""
        with self._lock:
            trials = [{**trial, "losses": list(trial["losses"])} for trial in self._trials.values()]
            about = {"format": 1, "began": self._began, "updated": time.time(), "ended": self._end}
            return {**about, "driver": this_process(), "trials": trials, "lines": list(self._lines)}

    @contextmanager
    def _change(self) -> Iterator[None]:
        with self._lock:
            self.changes += 1
            yield

    def _trial(self, key: str, name: str) -> dict[str, Any]:
        new = {"key": key, "name": name, "state": "waiting", "step": 0, "steps": 0, "seconds_left": None}
        return self._trials.setdefault(key, {**new, "losses": [], "evaluated": [], "message": None})


def _thinned(points: list[Any]) -> list[Any]:
    """At most `ENDED_POINTS` of some points, evenly spaced, with both ends."""
    if len(points) <= ENDED_POINTS:
        return points
    return [points[place * (len(points) - 1) // (ENDED_POINTS - 1)] for place in range(ENDED_POINTS)]


@contextmanager
def published(store: Store, sweep: str, state: LiveState) -> Iterator[None]:
    """Write the state to the store while inside, by a thread of its own, and once more at the end.

    Raises:
        BusyError: another driver does so.
    """
    _refuse_a_second_driver(store, sweep)
    publisher = _Publisher(store, f"sweeps/{sweep}/{FILE}", state)
    publisher.write()
    publisher.start()
    try:
        yield
    except BaseException as error:
        state.close("interrupted" if isinstance(error, KeyboardInterrupt) else f"failed: {error}")
        raise
    else:
        state.close("finished")
    finally:
        publisher.finish()


def _refuse_a_second_driver(store: Store, sweep: str) -> None:
    """Look whether the file of a driver that has not said its end still changes, unless it was killed on this machine.

    Times in the file are not asked: clocks differ, and jump.
    """
    watch, first = Watch(), _unended(store, sweep)
    if first is None or has_ended(first["driver"]):
        return
    began = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(first["began"]))
    who = "process {pid} on {host}".format(**first["driver"])
    print(
        f"sweep {sweep!r}: {who}, which began it at {began}, has not said its end; "
        f"it is watched for {SILENT_SECONDS:.0f} s",
        flush=True,
    )
    while (held := _unended(store, sweep)) is not None and watch.unchanged(sweep, held) < SILENT_SECONDS:
        if held != first:
            raise BusyError(
                f"sweep {sweep!r} is being run by {who}, since {began}; wait for its end or stop it, or give this one "
                f"another --name: trainings are shared through the store all the same"
            )
        time.sleep(1.0)


def _unended(store: Store, sweep: str) -> dict[str, Any] | None:
    """The live state of a driver that has not said its end."""
    try:
        found: dict[str, Any] = json.loads(store.read_bytes(f"sweeps/{sweep}/{FILE}"))
    except (StoreError, ValueError, OSError):
        return None
    return None if found["ended"] is not None or "driver" not in found else found


class _Publisher(threading.Thread):
    def __init__(self, store: Store, name: str, state: LiveState):
        super().__init__(name="live-state", daemon=True)
        self._store, self._name, self._state = store, name, state
        self._stop_asked = threading.Event()
        self._complained = False

    def run(self) -> None:
        written, at = -1, time.monotonic()
        while True:
            stopping = self._stop_asked.is_set()
            changes, now = self._state.changes, time.monotonic()
            if changes != written or now - at >= HEARTBEAT_SECONDS:
                self.write()
                written, at = changes, now
            if stopping:
                return
            took = time.monotonic() - now
            self._stop_asked.wait(max(EVERY_SECONDS, took / _MOST_SHARE))

    def finish(self) -> None:
        self._stop_asked.set()
        self.join(timeout=30.0)

    def write(self) -> None:
        try:
            self._store.write_text(self._name, json.dumps(self._state.to_json()))
        except Exception as error:  # whatever a file system raises: a sweep goes on without being watched
            if not self._complained:
                print(f"live state cannot be written, the sweep goes on without it: {error}", flush=True)
            self._complained = True
