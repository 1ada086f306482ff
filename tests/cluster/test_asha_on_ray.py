"""ASHA on real Ray: a weak trial stops at a rung, the worker group serves the next one, and gives its CPUs back."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest
import ray

import vrray
from tests.cluster.processes import below
from vrray.store import Store

pytestmark = pytest.mark.ray

CPUS, STEPS = 2, 200  # long enough for Tune to hear of a rung before the end


def test_a_weak_trial_makes_room_for_the_next_one(ray_here: None, tiny_model: Path, tmp_path: Path) -> None:
    sweep = vrray.tune_layers(
        model=str(tiny_model),
        storage=str(tmp_path),
        placements=["uniform"],
        layers=[2],
        learning_rates=[3e-3, 1e-9, 4e-3],
        prune=[0],
        tasks=["easy-vqa"],
        examples=8,
        mode="full",
        global_batch=4,
        max_steps=STEPS,
        projector_steps=1,
        precision="fp32",
        scheduler="asha",
    )
    rows = {row["learning_rate"]: row for row in sweep.table.to_pylist() if row["placement"] == "uniform"}
    assert rows[3e-3]["status"] == "complete"
    weak = re.fullmatch(r"stopped at step (\d+): weaker than others, by --scheduler asha", rows[1e-9]["status"])
    assert weak and 0 < int(weak[1]) < STEPS
    assert not Store(tmp_path).has("delta", rows[1e-9]["key"])
    assert {row["status"] for row in rows.values()} != {rows[1e-9]["status"]}
    until = time.monotonic() + 30
    while (free := ray.available_resources().get("CPU")) != CPUS and time.monotonic() < until:
        time.sleep(0.2)
    assert free == CPUS
    assert not below(os.getpid(), "ray::", "TrainWorker")
