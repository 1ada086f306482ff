"""What tests on real Ray share."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator

import pytest
import ray

from tests.cluster.network import Network
from tests.cluster.processes import Cluster


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """Ray with two CPUs, for whatever a module's tests do in this process."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def start_cluster() -> Iterator[Callable[..., Cluster]]:
    """Starts clusters with that many CPUs on their head node; they end with the test."""
    started: list[Cluster] = []

    def start(cpus: int, network: Network | None = None, **environment: str) -> Cluster:
        started.append(Cluster(cpus, network, **environment))
        return started[-1]

    yield start
    for cluster in started:
        cluster.stop()


@pytest.fixture
def network() -> Iterator[Network | None]:
    """None where this process may not make a network: then all nodes have this machine's address."""
    try:
        made = Network()
    except (OSError, subprocess.CalledProcessError):
        yield None
        return
    yield made
    made.remove()


@pytest.fixture
def cluster(start_cluster: Callable[..., Cluster]) -> Cluster:
    """A head node with two CPUs."""
    return start_cluster(2)
