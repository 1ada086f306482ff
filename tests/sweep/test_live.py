"""The live state of a sweep: what it holds, and that it reaches the store while the sweep runs."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vrray.errors import BusyError
from vrray.store import Store
from vrray.sweep import live as module
from vrray.sweep.live import ENDED_POINTS, MOST_POINTS, LiveState, published
from vrray.sweep.progress import Progress, TuneProgress


def _step(step: int, steps: int = 10, loss: float = 2.0) -> dict[str, Any]:
    return {"step": step, "steps": steps, "loss_mean": loss, "step_seconds": 0.5}


def _read(store: Store, name: str = "demo") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(store.read_bytes(f"sweeps/{name}/live.json"))
    return found


def test_a_trial_goes_through_its_states() -> None:
    state = LiveState()
    state.expect("k", "uniform-8")
    assert state.to_json()["trials"][0]["state"] == "waiting"
    state.stepped("k", "uniform-8", _step(4, loss=1.25))
    (trial,) = state.to_json()["trials"]
    assert (trial["state"], trial["step"], trial["steps"], trial["seconds_left"]) == ("training", 4, 10, 3.0)
    assert trial["losses"] == [[4, 1.25]]
    state.stepped("k", "uniform-8", _step(10))
    assert state.to_json()["trials"][0]["state"] == "trained"
    state.evaluated("k", "uniform-8", 2)
    assert state.to_json()["trials"][0]["evaluated"] == [2]
    state.ended("k", "uniform-8", "failed", "out of memory")
    (trial,) = state.to_json()["trials"]
    assert (trial["state"], trial["message"]) == ("failed", "out of memory")


def test_a_long_loss_curve_is_thinned_and_keeps_its_ends() -> None:
    state = LiveState()
    for step in range(1, 5001):
        state.stepped("k", "all", _step(step, 5000))
    losses = state.to_json()["trials"][0]["losses"]
    assert len(losses) <= MOST_POINTS
    assert (losses[0][0], losses[-1][0]) == (1, 5000)
    assert [step for step, _ in losses] == sorted({step for step, _ in losses})


def test_the_curve_of_a_trial_that_is_over_is_short(tmp_path: Path) -> None:
    state = LiveState()
    for step in range(1, 201):
        state.stepped("k", "all", _step(step, 200))
    state.ended("k", "all", "finished")
    (trial,) = state.to_json()["trials"]
    losses = trial["losses"]
    assert (len(losses), losses[0][0], losses[-1][0]) == (ENDED_POINTS, 1, 200)
    state.ended("k", "all", "finished")
    assert state.to_json()["trials"][0]["losses"] == losses


def test_writing_takes_a_small_share_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that takes 0.1 s for each write is written to 20 times more rarely than its state changes."""
    monkeypatch.setattr(module, "EVERY_SECONDS", 0.001)
    writes, began = [0], time.monotonic()

    def slow(*_: object) -> None:
        writes[0] += 1
        time.sleep(0.1)

    monkeypatch.setattr(Store, "write_text", slow)
    state = LiveState()
    with published(Store(tmp_path), "demo", state):
        for _ in range(400):
            state.say("on")
            time.sleep(0.01)
    assert writes[0] <= 3 + (time.monotonic() - began) / 2


def test_tune_can_pickle_it() -> None:
    state = LiveState()
    state.say("something")
    assert pickle.loads(pickle.dumps(state)).to_json()["lines"] == []


def test_it_is_in_the_store_while_the_sweep_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY_SECONDS", 0.02)
    store, state = Store(tmp_path), LiveState()
    with published(store, "demo", state):
        state.stepped("k", "uniform-8", _step(3))
        deadline = time.monotonic() + 10
        while not (store.stamp("sweeps/demo/live.json") and _read(store)["trials"]):
            assert time.monotonic() < deadline, "nothing was written while it ran"
            time.sleep(0.02)
        assert _read(store)["ended"] is None
    assert _read(store)["ended"] == "finished"


def test_how_it_ended_is_kept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(ValueError, match="no luck"), published(store, "demo", LiveState()):
        raise ValueError("no luck")
    assert _read(store)["ended"] == "failed: no luck"
    with pytest.raises(KeyboardInterrupt), published(store, "demo", LiveState()):
        raise KeyboardInterrupt
    assert _read(store)["ended"] == "interrupted"


def test_many_changes_are_few_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[str] = []
    monkeypatch.setattr(Store, "write_text", lambda self, name, text: writes.append(name))
    state = LiveState()
    with published(Store(tmp_path), "demo", state):
        for step in range(2000):
            state.stepped("k", "all", _step(step, 2000))
    assert 1 <= len(writes) <= 3


def test_a_store_that_cannot_be_written_does_not_end_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Store, "write_text", refuse)
    monkeypatch.setattr(module, "EVERY_SECONDS", 0.01)
    state = LiveState()
    with published(Store(tmp_path), "demo", state):
        for _ in range(5):
            state.say("on")
            time.sleep(0.02)
    assert capsys.readouterr().out.count("the sweep goes on without it: disk full") == 1


DRIVER = """
import sys
from vrray.errors import BusyError
from vrray.store import Store
from vrray.sweep import live
live.EVERY_SECONDS = live.HEARTBEAT_SECONDS = 0.05
live.SILENT_SECONDS = float(sys.argv[2])
with live.published(Store(sys.argv[1]), "demo", live.LiveState()):
    print("alone", flush=True)
    sys.stdin.read()
"""


@contextmanager
def driver(store: Store, silent: float) -> Iterator[subprocess.Popen[str]]:
    """A process that publishes the state of sweep "demo" until its standard input ends."""
    command = [sys.executable, "-c", DRIVER, store.uri, str(silent)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def alone(process: subprocess.Popen[str]) -> str:
    """What a driver says before it is alone."""
    assert process.stdout is not None
    lines = []
    while (line := process.stdout.readline()) != "alone\n":
        assert line, process.communicate()[1]
        lines.append(line)
    return "".join(lines)


def test_a_second_driver_is_refused_by_name_of_the_first(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with driver(store, 60.0) as first:
        assert alone(first) == ""
        for _ in range(2):  # also where the last one was refused
            with driver(store, 60.0) as second:
                output, problem = second.communicate(timeout=60)
            assert "alone" not in output
            who = f"process {first.pid} on {os.uname().nodename}"
            assert re.search(
                f"BusyError: sweep 'demo' is being run by {who}, since 20.* UTC; .*another --name", problem
            )
        assert _read(store)["driver"]["pid"] == first.pid
        first.communicate(timeout=60)
    with driver(store, 60.0) as third:
        assert alone(third) == ""  # the first has said its end


@pytest.mark.parametrize("machine", ["this one", "another"])
def test_the_sweep_of_a_killed_driver_is_taken_up(tmp_path: Path, machine: str) -> None:
    store = Store(tmp_path)
    with driver(store, 60.0) as first:
        alone(first)
        os.kill(first.pid, signal.SIGKILL)
        first.wait(timeout=60)
    if machine == "this one":  # where it is known to have ended
        with driver(store, 60.0) as second:
            assert alone(second) == ""
        return
    left = _read(store)
    left["driver"]["machine"] = machine
    store.write_text("sweeps/demo/live.json", json.dumps(left))
    with driver(store, 2.0) as second:
        assert re.match(rf"sweep 'demo': process {first.pid} on .* has not said its end; .* for 2 s\n$", alone(second))
        assert _read(store)["driver"]["pid"] == second.pid


@pytest.mark.parametrize("jump", [-1e6, 1e6])
def test_clocks_that_jump_kill_no_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    """Its times lie far in the past or in the future; what counts is that its file changes."""
    monkeypatch.setattr(module, "time", SimpleNamespace(**{**vars(time), "time": lambda: time.time() + jump}))
    with driver(Store(tmp_path), 60.0) as first:
        alone(first)
        with pytest.raises(BusyError), published(Store(tmp_path), "demo", LiveState()):
            pass


def test_what_a_sweep_says_reaches_the_live_state() -> None:
    region = SimpleNamespace(name="uniform-8")
    space = SimpleNamespace(trial=lambda point: SimpleNamespace(region=region, key="k"))
    rest = {"learning_rate": 1e-3, "samples_per_second": 1.0, "supervised_tokens_per_second": 1.0, "peak_mib": 1.0}
    with Progress(10) as progress:
        told = TuneProgress(progress, None, space)  # type: ignore[arg-type]
        told.on_trial_result(1, [], None, {"trial": "uniform-8", "key": "k", **_step(4), **rest})
        assert progress.live.to_json()["trials"][0]["step"] == 4
        failed = SimpleNamespace(last_result={"failed": "loss is not finite"}, config={"point": {}})
        told.on_trial_complete(1, [], failed)
        (trial,) = progress.live.to_json()["trials"]
        assert (trial["state"], trial["message"]) == ("failed", "loss is not finite")
        lost = SimpleNamespace(get_error=lambda: None, config={"point": {}})
        told.on_trial_error(1, [], lost)
        (trial,) = progress.live.to_json()["trials"]
        assert (trial["state"], trial["message"]) == ("failed", "its process was lost")
        assert progress.live.to_json()["lines"][-1] == "uniform-8: failed, the others go on; the reason is in the table"
