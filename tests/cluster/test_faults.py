"""SIGKILL of any process during a training: it goes on, perhaps when it is started again, and ends as undisturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.commands import ROOT
from tests.cluster.network import Network
from tests.cluster.processes import Cluster, below
from tests.cluster.training import losses, node_to_lose, start, training_command, wait_for_checkpoint, write_data

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def command(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], list[str]]:
    places = {"model": tiny_model, **write_data(tmp_path_factory.mktemp("photos"))}
    return lambda storage: training_command(storage, **places)


@pytest.fixture(scope="module")
def undisturbed(command: Callable[[Path], list[str]], tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    storage = tmp_path_factory.mktemp("undisturbed")
    ran = subprocess.run(command(storage), cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    result = json.loads(ran.stdout.splitlines()[-1])
    wanted = {"key", "loss", "step_seconds", "samples_per_second", "supervised_tokens_per_second", "peak_mib"}
    assert result.keys() >= wanted | {"train_seconds", "delta_bytes", "zero", "padded_share"}
    assert not (storage / "checkpoint" / result["key"]).exists()
    return losses(storage)


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


def test_a_killed_worker_costs_the_steps_since_the_checkpoint(
    command: Callable[[Path], list[str]], undisturbed: list[float], tmp_path: Path
) -> None:
    process = start(command(tmp_path))
    wait_for_checkpoint(tmp_path, 4, process)
    below(process.pid, "ray::", "TrainWorker")[-1].kill()
    output = finish(process)
    assert "workers lost" in output
    assert "goes on from the checkpoint after step" in output
    assert losses(tmp_path) == undisturbed


def test_a_killed_driver_goes_on_when_it_is_started_again(
    command: Callable[[Path], list[str]], undisturbed: list[float], tmp_path: Path
) -> None:
    process = start(command(tmp_path))
    wait_for_checkpoint(tmp_path, 4, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    output = finish(start(command(tmp_path)))
    assert "goes on from the checkpoint after step" in output
    assert losses(tmp_path) == undisturbed


def test_a_killed_driver_of_a_trial_is_replaced(
    command: Callable[[Path], list[str]], undisturbed: list[float], tmp_path: Path
) -> None:
    process = start(command(tmp_path))
    wait_for_checkpoint(tmp_path, 4, process)
    (driver,) = below(process.pid, "ray::ImplicitFunc")  # what Tune calls a trial that is a function
    driver.kill()
    finish(process)
    assert losses(tmp_path) == undisturbed


def test_a_lost_node_is_replaced_or_done_without(
    command: Callable[[Path], list[str]],
    undisturbed: list[float],
    tmp_path: Path,
    network: Network | None,  # first, so that it outlives the cluster
    start_cluster: Callable[..., Cluster],
) -> None:
    # The driver's part runs on the head. A node that says nothing is given up after 10 s, not after 55 as by default.
    cluster = start_cluster(0, network, RAY_health_check_period_ms="1000", RAY_health_check_timeout_ms="1000")
    cluster.add()
    cluster.add()
    impatient = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15"}
    process = start(cluster.on_head(command(tmp_path)), **cluster.driver_environment, **impatient)
    wait_for_checkpoint(tmp_path, 2, process)
    cluster.lose(node_to_lose(cluster))
    cluster.add()
    wait_for_checkpoint(tmp_path, 6, process)
    cluster.lose(node_to_lose(cluster))  # no other comes now: one worker goes on alone
    output = finish(process)
    assert output.count("workers lost") == 2
    assert output.count("goes on from the checkpoint after step") == 2
    assert output.count("the optimizer starts afresh") == 1
    found = losses(tmp_path)
    same = [ours == theirs for ours, theirs in zip(found, undisturbed, strict=True)]
    assert all(same[:6])
    assert not all(same)
    assert found[-1] == pytest.approx(undisturbed[-1], rel=0.3)


def test_without_its_head_node_a_training_ends_and_goes_on_elsewhere(
    command: Callable[[Path], list[str]],
    undisturbed: list[float],
    tmp_path: Path,
    start_cluster: Callable[..., Cluster],
) -> None:
    # Ray looks for its GCS for a minute, in which this training would end.
    cluster = start_cluster(cpus=0, RAY_gcs_rpc_server_reconnect_timeout_s="1")
    cluster.add()
    cluster.add()
    process = start(command(tmp_path), **cluster.driver_environment)
    wait_for_checkpoint(tmp_path, 2, process)
    (gcs,) = cluster.running("gcs_server")
    gcs.kill()
    output, _ = process.communicate(timeout=200)
    assert process.returncode != 0, output
    cluster.stop()
    output = finish(start(command(tmp_path)))
    assert "goes on from the checkpoint after step" in output
    assert losses(tmp_path) == undisturbed
