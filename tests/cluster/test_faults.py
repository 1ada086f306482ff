"""SIGKILL of any process during a training: it goes on, perhaps when it is started again, and ends as undisturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import draw_photos, tiny_records

from tests.cluster.commands import ROOT, flags
from tests.cluster.network import Network
from tests.cluster.processes import Cluster, Node, below
from vrray.data.records import write_records

pytestmark = pytest.mark.ray

STEPS = 12
OPTIONS: dict[str, Any] = {
    "placement": "1,4",
    "mode": "full",
    "learning-rate": 3e-3,
    "projector-learning-rate": 1e-2,
    "global-batch": 32,
    "micro-batch": 2,  # many small micro-batches: a step takes long enough to be hit
    "max-steps": STEPS,
    "projector-steps": 1,
    "checkpoint-steps": 2,
    "precision": "fp32",
    "node-wait": 5,
}


@pytest.fixture(scope="module")
def command(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], list[str]]:
    folder = tmp_path_factory.mktemp("photos")
    records = tiny_records(draw_photos(folder, 12), 20)
    write_records(folder / "records.jsonl", records)
    options = {**OPTIONS, "model": tiny_model, "data": folder / "records.jsonl", "image-folder": folder}
    return lambda storage: [sys.executable, "jobs/finetune.py", *flags({**options, "storage": storage})]


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


def losses(storage: Path) -> list[float]:
    """The loss of each step of the training; that of the projector has one step only."""
    infos = [json.loads(path.read_text())["info"] for path in storage.glob("delta/*/COMMITTED.json")]
    (found,) = [info["losses"] for info in infos if len(info["losses"]) == STEPS]
    return list(found)


def start(command: list[str], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_checkpoint(storage: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Wait until both ranks have written a checkpoint of that step or a later one."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        whole = [
            int(path.name.removeprefix("step-"))
            for path in storage.glob("checkpoint/*/step-*")
            if len(list(path.glob("rank-*/COMMITTED.json"))) == 2
        ]
        if max(whole, default=0) >= step:
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    process.kill()
    raise AssertionError(f"no checkpoint of step {step}: {process.communicate()[0]}")


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


def node_to_lose(cluster: Cluster) -> Node:
    """A node of one CPU that does not bear the desk, on which the driver waits."""
    return next(node for node in cluster.nodes[1:] if not node.running("ray::Desk"))


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
