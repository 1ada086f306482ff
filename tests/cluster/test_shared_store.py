"""Several drivers on one store: two sweeps share their trainings, two drivers of one sweep do not both run it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.cluster.commands import ROOT, flags
from tests.cluster.processes import Cluster

pytestmark = pytest.mark.ray

OPTIONS: dict[str, Any] = {
    "placements": ["uniform", "top"],
    "layers": 2,
    "prune": [0, 1],
    "tasks": "easy-vqa",
    "examples": 8,
    "mode": "full",
    "global-batch": 4,
    "max-steps": 3,
    "projector-steps": 1,
    "precision": "fp32",
    "workers": 1,
    "cpus-per-worker": 0.25,  # so that each sweep has a group for each of its trials
}


def start(model: Path, storage: Path, environment: dict[str, str], **changes: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "jobs/sweep.py", *flags({**OPTIONS, "model": model, "storage": storage, **changes})]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipe)  # type: ignore[call-overload, no-any-return]


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 180
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.05)


def test_two_sweeps_at_once_train_everything_once(tiny_model: Path, tmp_path: Path, cluster: Cluster) -> None:
    environment = cluster.driver_environment
    sweeps = [start(tiny_model, tmp_path, environment, name=name) for name in ("one", "two")]
    outputs = [sweep.communicate(timeout=400)[0] for sweep in sweeps]
    assert [sweep.returncode for sweep in sweeps] == [0, 0], outputs
    said = "".join(outputs)
    assert [said.count(end) for end in ("projector: step 1/1", "uniform-2: step 3/3", "top-2: step 3/3")] == [1, 1, 1]
    tables = [pq.read_table(tmp_path / "sweeps" / name / "table.parquet") for name in ("one", "two")]
    assert tables[0].equals(tables[1]) and set(tables[0]["status"].to_pylist()) == {"complete"}
    assert not list((tmp_path / "claim").iterdir())


def test_a_second_driver_is_refused_and_a_killed_one_replaced(tiny_model: Path, tmp_path: Path) -> None:
    environment = dict(os.environ)
    first = start(tiny_model, tmp_path, environment)
    try:
        wait_for(tmp_path / "sweeps" / "sweep" / "live.json", first)
        second = start(tiny_model, tmp_path, environment)
        output, _ = second.communicate(timeout=180)
        assert second.returncode == 1
        assert f"error: sweep 'sweep' is being run by process {first.pid} on " in output
        wait_for(tmp_path / "claim", first)
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.communicate(timeout=60)
    third = start(tiny_model, tmp_path, environment)
    output, _ = third.communicate(timeout=300)
    assert third.returncode == 0, output
    assert "has not said its end" not in output  # it is known to be gone
    assert "waits for" not in output  # the claims of the run that it goes on from are its own
    table = pq.read_table(tmp_path / "sweeps" / "sweep" / "table.parquet")
    assert set(table["status"].to_pylist()) == {"complete"}
