"""One store for all tests on real Ray clusters: what one test trained, the next ones reuse."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.commands import free_port


@pytest.fixture(scope="session")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def cluster() -> Iterator[dict[str, str]]:
    """A head node of its own, started with `ray start` and token authentication; yields the job server's address."""
    environment = {**os.environ, "RAY_AUTH_MODE": "token"}
    environment.pop("RAY_ADDRESS", None)
    ray = str(Path(sys.executable).with_name("ray"))
    port, dashboard, agent = free_port(), free_port(), free_port()
    ports = [f"--port={port}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    start = [ray, "start", "--head", *ports, "--num-cpus=2"]
    subprocess.run([ray, "get-auth-token", "--generate"], env=environment, check=True, capture_output=True)
    begun = subprocess.run([*start, "--disable-usage-stats"], env=environment, capture_output=True, text=True)
    assert begun.returncode == 0, begun.stdout + begun.stderr
    try:
        yield {**environment, "JOBS": f"http://127.0.0.1:{dashboard}", "GCS": f"127.0.0.1:{port}"}
    finally:
        subprocess.run([ray, "stop", "--force"], env=environment, capture_output=True)
