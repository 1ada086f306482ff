"""A sweep whose storage is S3: killed, gone on with, read by the dashboard, verified, and cleaned up after."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import vrray
from dashboard.catalogue import Catalogue
from dashboard.votes import Vote, Votes
from tests.cluster.commands import OPTIONS, ROOT, flags
from tests.cluster.own_data import write_own_data
from vrray.cli import main
from vrray.store import MARKER, Store
from vrray.upkeep.garbage import find_garbage
from vrray.upkeep.inventory import take_inventory

pytestmark = pytest.mark.ray

NAME = "on-s3"


@pytest.fixture(scope="module")
def command(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    data = tmp_path_factory.mktemp("data") / "mine.parquet"
    write_own_data(data)
    options = {name: value for name, value in OPTIONS.items() if name != "tasks"}
    options |= {"model": tiny_model, "data": data, "placements": ["uniform", "top", "bottom"], "precision": "fp32"}
    return [sys.executable, "jobs/sweep.py", *flags({**options, "name": NAME})]


def committed(store: Store) -> dict[str, tuple[int, int] | None]:
    """The trainings in the store and when each was committed."""
    return {key: store.stamp(f"delta/{key}/{MARKER}") for key in store.keys("delta")}


def test_a_killed_sweep_on_s3_goes_on_and_is_read_from_there(
    command: list[str], s3_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(s3_folder)
    process = subprocess.Popen(
        [*command, "--storage", s3_folder], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 240
    while len(committed(store)) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    before = committed(store)
    assert 2 <= len(before) < 4, output
    assert main(["store", "gc", "--store", s3_folder, "--older-than", "0", "--delete", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["garbage"] == []  # the sweep is unfinished

    ran = subprocess.run([*command, "--storage", s3_folder], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    after = committed(store)
    assert len(after) == 4 and before.items() <= after.items()

    catalogue = Catalogue(Store(s3_folder))
    assert catalogue.sweeps() == [NAME]
    rows = {row["variant"]: row for row in catalogue.table(NAME).to_pylist()}
    trials = ("uniform-2", "top-2", "bottom-2")
    assert set(rows) == {f"{trial}{plan}" for trial in trials for plan in ("", "-prune1")} | {"untuned"}
    assert {row["status"] for row in rows.values()} == {"complete"}
    live = catalogue.live(NAME)
    assert live is not None and live["ended"] == "finished"
    shown = catalogue.examples(NAME, "top-2-prune1").to_pylist()
    picture = catalogue.image(NAME, next(row["image"] for row in shown if row["image"]))
    assert picture is not None and picture.width > 0
    votes = Votes(store)
    votes.add(vote := Vote(NAME, ("top-2", "uniform-2"), winner=0, blind=True))
    assert Votes(Store(s3_folder)).read(NAME) == ([vote], 0)

    sweep = vrray.Sweep(s3_folder, NAME)
    model, _ = sweep.load("top-2-prune1")
    assert len(model.model.language_model.layers) == 5

    assert main(["store", "verify", "--store", s3_folder]) == 0
    garbage = [item.name for item in find_garbage(store, take_inventory(store), 0.0)]
    assert [name for name in garbage if not name.startswith("ray/group-")] == []
