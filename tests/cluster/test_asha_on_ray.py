"""ASHA on real Ray: a weak trial stops at a rung, and the workers give their CPUs back in the end."""

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

CPUS, STEPS = 2, 60
STRONG, WEAK = 3e-3, (1e-9, 1e-10)  # learning rates


def test_a_weak_trial_is_stopped_and_workers_are_freed(ray_here: None, tiny_model: Path, tmp_path: Path) -> None:
    sweep = vrray.tune_layers(
        model=str(tiny_model),
        storage=str(tmp_path),
        placements=["uniform"],
        layers=[2],
        learning_rates=[STRONG, *WEAK],
        prune=[0],
        tasks=["easy-vqa"],
        examples=8,
        mode="full",
        global_batch=16,
        micro_batch=2,  # Tune hears of each step: with quicker ones it falls behind, and is late to stop a trial
        max_steps=STEPS,
        projector_steps=1,
        precision="fp32",
        scheduler="asha",
    )
    rows = {row["learning_rate"]: row for row in sweep.table.to_pylist() if row["placement"] == "uniform"}
    assert rows[STRONG]["status"] == "complete"
    # Whichever trial comes first has nobody to be compared with; the last one is weaker than the middle of the others.
    stopped = {rate: row for rate, row in rows.items() if row["status"] != "complete"}
    assert stopped and stopped.keys() <= set(WEAK)
    for row in stopped.values():
        said = re.fullmatch(r"stopped at step (\d+): weaker than others, by --scheduler asha", row["status"])
        assert said and 0 < int(said[1]) < STEPS
        assert not Store(tmp_path).has("delta", row["key"])
    until = time.monotonic() + 30
    while (free := ray.available_resources().get("CPU")) != CPUS and time.monotonic() < until:
        time.sleep(0.2)
    assert free == CPUS
    assert not below(os.getpid(), "ray::", "TrainWorker")
