"""What tests on real Ray share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.cluster.processes import Cluster


@pytest.fixture
def start_cluster() -> Iterator[Callable[..., Cluster]]:
    """Starts clusters with that many CPUs on their head node; they end with the test."""
    started: list[Cluster] = []

    def start(cpus: int, **environment: str) -> Cluster:
        started.append(Cluster(cpus, **environment))
        return started[-1]

    yield start
    for cluster in started:
        cluster.stop()


@pytest.fixture
def cluster(start_cluster: Callable[..., Cluster]) -> Cluster:
    """A head node with two CPUs."""
    return start_cluster(2)
