"""cluster/slurm.sh on real Ray nodes; only `srun` and `scontrol` are stand-ins, and both nodes are this machine."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cluster.commands import ROOT
from tests.cluster.processes import daemons

SCRIPT = ROOT / "cluster" / "slurm.sh"
SCONTROL = '#!/bin/sh\n[ "$*" = "show hostnames node[1-2]" ] && printf "node1\\nnode2\\n"\n'
SRUN = """#!/bin/sh
while case $1 in --*) true ;; *) false ;; esac; do shift; done
exec "$@"
"""
# It says what it sees, then works until it is told to end, as a training does.
JOB = """
import os, sys, time
from vrray.api import connected
from vrray.job import exit_status

def work():
    with connected("/tmp"):
        import ray
        print("job:", len(ray.nodes()), ray.cluster_resources()["CPU"], sys.argv[1:], flush=True)
        time.sleep(300)

sys.exit(exit_status(work))
"""


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    path = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]])
    slurm = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_CPUS_PER_TASK": "1"}
    environment = {**os.environ, **slurm, "PATH": path}
    environment.pop("RAY_ADDRESS", None)
    yield environment
    shutil.rmtree(f"/tmp/ray-{slurm['SLURM_JOB_ID']}", ignore_errors=True)


def test_the_script_passes_the_linter() -> None:
    linted = subprocess.run([Path(sys.executable).with_name("shellcheck"), SCRIPT], capture_output=True, text=True)
    assert (linted.returncode, linted.stdout) == (0, "")


@pytest.mark.ray
def test_a_job_runs_on_all_nodes_and_ends_on_the_signal(environment: dict[str, str]) -> None:
    slurm = subprocess.Popen(
        ["bash", str(SCRIPT), "-c", JOB, "--of", "its own"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert slurm.stdout is not None
    lines = []
    try:
        for line in slurm.stdout:
            lines.append(line)
            if line.startswith("job:"):
                slurm.send_signal(signal.SIGTERM)
        assert slurm.wait(timeout=60) == 143, "".join(lines)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(slurm.pid, signal.SIGKILL)
    assert "job: 2 2.0 ['--of', 'its own']\n" in lines
    assert any(line.startswith("interrupted; what is finished is in the store") for line in lines)
    folder, deadline = f"/tmp/ray-{os.getpid()}", time.monotonic() + 30
    while daemons(folder) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not daemons(folder)


@pytest.mark.ray
def test_the_status_is_that_of_the_job(environment: dict[str, str]) -> None:
    ended = subprocess.run(["bash", str(SCRIPT), "-c", "raise SystemExit(7)"], cwd=ROOT, env=environment, timeout=120)
    assert ended.returncode == 7
