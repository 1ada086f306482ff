"""Claims on work: one holder at a time, among real processes, and what becomes of a claim whose holder is gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vrray import claims as module
from vrray.claims import KIND, Claims, Watch
from vrray.store import Store

HOLDER = """
import sys, time
from vrray import claims
from vrray.store import Store
claims.BEAT_SECONDS = 0.05
ours = claims.Claims(Store(sys.argv[1]), "sweep 'other'")
assert ours.take("k") is None
with ours.kept("k"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


@pytest.fixture
def holder(store: Store) -> Iterator[subprocess.Popen[str]]:
    """Another process, which holds the claim on "k" until its standard input ends."""
    command = [sys.executable, "-c", HOLDER, store.uri]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def wait_for(claims: Claims, key: str) -> None:
    deadline = time.monotonic() + 60
    while claims.take(key) is not None:
        assert time.monotonic() < deadline, "the claim was never free"
        time.sleep(0.05)


def test_a_claim_of_another_process_is_respected_as_long_as_it_lives(
    store: Store, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STALE_SECONDS", 5.0)
    ours = Claims(store, "sweep 'ours'")
    for _ in range(60):  # longer than a claim stays that is not renewed
        assert ours.take("k") == f"sweep 'other' (process {holder.pid} on {os.uname().nodename})"
        time.sleep(0.1)
    assert ours.take("another key") is None
    assert holder.stdin is not None
    holder.stdin.close()
    assert holder.wait(timeout=60) == 0
    assert ours.take("k") is None  # at once: it was given up


@pytest.mark.parametrize("machine", ["this one", "another"])
def test_the_claim_of_a_killed_process_is_taken_over(
    store: Store, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch, machine: str
) -> None:
    ours = Claims(store, "sweep 'ours'")
    assert ours.take("k") is not None
    holder.kill()
    holder.wait()
    if machine == "another":  # where a process has ended is not known there
        left = json.loads(store.read_bytes(f"{KIND}/k/claim.json"))
        store.write_text(f"{KIND}/k/claim.json", json.dumps({**left, "machine": machine}))
        monkeypatch.setattr(module, "STALE_SECONDS", 1.0)
        assert ours.take("k") is not None
        wait_for(ours, "k")
    else:
        assert ours.take("k") is None
    with ours.kept("k"):
        assert (Claims(store, "sweep 'third'").take("k") or "").startswith("sweep 'ours' (process ")


def test_a_run_takes_its_own_claim_at_once(store: Store, holder: subprocess.Popen[str]) -> None:
    assert Claims(store, "sweep 'other'").take("k") is None


def test_a_holder_that_was_taken_over_leaves_the_claim_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STALE_SECONDS", 0.0)
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.01)
    slow, quick = Claims(store, "slow"), Claims(store, "quick")
    assert slow.take("k") is None
    assert quick.take("k") is None
    with slow.kept("k"):
        time.sleep(0.1)
    assert quick._is_ours("k")


def test_nothing_is_left_of_a_claim_that_was_given_up(store: Store) -> None:
    ours = Claims(store, "ours")
    assert ours.take("k") is None
    with pytest.raises(ValueError, match="no luck"), ours.kept("k"):
        raise ValueError("no luck")
    assert store.names(KIND) == []


def test_a_store_that_fails_costs_the_claim_and_not_the_work(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError("the storage does not answer")

    ours = Claims(store, "ours")
    for name in ("read_bytes", "write_bytes"):
        with monkeypatch.context() as patch:
            patch.setattr(Store, name, fail)
            assert ours.take("k") is None
            with ours.kept("k"):
                pass


def test_a_damaged_claim_is_none(store: Store) -> None:
    store.write_text(f"{KIND}/k/claim.json", '{"run": ')
    assert Claims(store, "ours").take("k") is None


def test_a_watch_asks_no_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    watch, now = Watch(), [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module.time, "time", lambda: pytest.fail("the wall clock may jump"))
    assert watch.unchanged("a", {"beat": 1}) == 0
    now[0] = 130.0
    assert (watch.unchanged("a", {"beat": 1}), watch.unchanged("b", {"beat": 1})) == (30, 0)
    assert watch.unchanged("a", {"beat": 2}) == 0
