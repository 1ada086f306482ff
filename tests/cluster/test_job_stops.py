"""`ray job stop` and SIGTERM: a job saves what it is at, ends by itself, frees its workers, and goes on later."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import draw_photos, tiny_records

from tests.cluster.commands import ROOT, flags
from tests.cluster.processes import RAY, Cluster
from vrray.data.records import write_records

pytestmark = pytest.mark.ray

STEPS = 400  # more than are done before the stop
OPTIONS: dict[str, Any] = {
    "placement": "1,4",
    "mode": "full",
    "global-batch": 8,
    "micro-batch": 2,
    "max-steps": STEPS,
    "projector-steps": 1,
    "precision": "fp32",
}


@pytest.fixture
def job(tiny_model: Path, tmp_path: Path) -> list[str]:
    """A training whose checkpoints are minutes apart."""
    records = tiny_records(draw_photos(tmp_path, 12), 20)
    write_records(tmp_path / "records.jsonl", records)
    places = {"model": tiny_model, "data": tmp_path / "records.jsonl", "image-folder": tmp_path}
    return [sys.executable, "jobs/finetune.py", *flags({**OPTIONS, **places, "storage": tmp_path / "store"})]


def lines_until(lines: Iterator[str], pattern: str) -> list[str]:
    found = []
    for line in lines:
        found.append(line)
        if re.search(pattern, line):
            return found
    raise AssertionError(f"no {pattern!r} in {''.join(found)}")


def whole_checkpoints(store: Path) -> list[int]:
    """The steps of which both ranks have a checkpoint."""
    folders = [path for path in store.glob("checkpoint/*/step-*") if len(list(path.glob("rank-*/COMMITTED.json"))) == 2]
    return sorted(int(path.name.removeprefix("step-")) for path in folders)


def test_a_stopped_job_saves_ends_and_goes_on(job: list[str], cluster: Cluster, tmp_path: Path) -> None:
    at, environment = ["--address", cluster.jobs], cluster.environment
    folder = tmp_path / "submitter"
    for part in ("jobs", "vrray"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    runtime = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "30", "OF_THE_JOB": "seen"}})

    def command(*arguments: str) -> str:
        ran = subprocess.run([RAY, "job", *arguments], env=environment, capture_output=True, text=True, timeout=120)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    identity = ["--submission-id", "stopped", "--no-wait"]
    command("submit", *at, *identity, "--working-dir", str(folder), "--runtime-env-json", runtime, "--", *job)
    shutil.rmtree(folder)  # the job does not need the disk of whoever submitted it
    with subprocess.Popen(
        [RAY, "job", "logs", *at, "--follow", "stopped"], env=environment, stdout=subprocess.PIPE, text=True
    ) as logs:
        assert logs.stdout is not None
        lines_until(logs.stdout, rf"1-4: step \d+/{STEPS}")
        workers = cluster.running("ray::", "TrainWorker")
        assert [worker.environ().get("OF_THE_JOB") for worker in workers] == ["seen", "seen"]
        assert "driver_info=DriverInfo(" in command("list", *at)  # the driver is known as that of the submitted job
        command("stop", *at, "stopped")
    said = command("logs", *at, "stopped")
    assert "interrupted; what is finished is in the store" in said
    assert "Traceback" not in said and "\r" not in said and "%|" not in said
    (saved,) = whole_checkpoints(tmp_path / "store")

    # Both CPUs are free again: the same command finds room for its workers, and goes on.
    with subprocess.Popen(
        job,
        cwd=ROOT,
        env=cluster.driver_environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as again:
        assert again.stdout is not None
        lines_until(again.stdout, f"goes on from the checkpoint after step {saved} of {STEPS}")
        lines_until(again.stdout, rf"1-4: step \d+/{STEPS}")
        os.kill(again.pid, signal.SIGTERM)
        rest = again.stdout.read()
        assert again.wait(timeout=60) == 143, rest
    assert "interrupted; what is finished is in the store" in rest and "Traceback" not in rest
    assert whole_checkpoints(tmp_path / "store")[-1] > saved
    deadline = time.monotonic() + 30
    while cluster.running("ray::", "TrainWorker") and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not cluster.running("ray::", "TrainWorker")
