"""A small training of one region on two workers, to start, to watch and to disturb."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.cluster.commands import ROOT, flags
from tests.cluster.processes import Cluster, Node
from tests.tiny import draw_photos, tiny_records
from vrray.data.records import write_records

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


def write_data(folder: Path) -> dict[str, Path]:
    """Photos and conversations about them; the options that name them."""
    write_records(folder / "records.jsonl", tiny_records(draw_photos(folder, 12), 20))
    return {"data": folder / "records.jsonl", "image-folder": folder}


def training_command(storage: Path, **changes: Any) -> list[str]:
    return [sys.executable, "jobs/finetune.py", *flags({**OPTIONS, "storage": storage, **changes})]


def losses(storage: Path) -> list[float]:
    """The loss of each step of the training; that of the projector has one step only."""
    infos = [json.loads(path.read_text())["info"] for path in storage.glob("delta/*/COMMITTED.json")]
    (found,) = [info["losses"] for info in infos if len(info["losses"]) == STEPS]
    return list(found)


def start(command: Sequence[str], **environment: str) -> subprocess.Popen[str]:
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
    """Wait until both ranks have written a checkpoint of that step or a later one.

    Raises:
        AssertionError: the process has ended, or three minutes have passed.
    """
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


def node_to_lose(cluster: Cluster) -> Node:
    """A node that was added and does not bear the desk, which is beside the driver."""
    return next(node for node in cluster.nodes[1:] if not node.running("ray::Desk"))
