"""Sweeps with a budget, on real Ray: what it leaves out is said, and the same command without it goes on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Protocol

import pytest

import vrray
from vrray.errors import SpecError

pytestmark = pytest.mark.ray

OPTIONS: dict[str, Any] = {
    "placements": ["uniform", "top", "bottom"],
    "layers": [2],
    "prune": [0, 1],
    "tasks": ["easy-vqa"],
    "examples": 8,
    "mode": "full",
    "global_batch": 4,
    "max_steps": 3,
    "projector_steps": 1,
    "precision": "fp32",
    "data_fraction": 0.02,
    "features": "live",
}
TRIALS = ("uniform-2", "top-2", "bottom-2")


class Sweeps(Protocol):
    def __call__(self, **changes: Any) -> tuple[dict[str, str], str]:
        """Run the sweep: the status of each variant, and the output."""


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With what the first test leaves there, such as stage 1, a limited time goes to the training."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def sweep(ray_here: None, tiny_model: Path, storage: Path, capsys: pytest.CaptureFixture[str]) -> Sweeps:
    def run(**changes: Any) -> tuple[dict[str, str], str]:
        places = {"model": str(tiny_model), "storage": str(storage)}
        table = vrray.tune_layers(**OPTIONS | places | changes).table
        return {row["variant"]: row["status"] for row in table.to_pylist()}, "".join(capsys.readouterr())

    return run


def test_a_budget_of_trials_is_one_of_this_run(sweep: Sweeps, storage: Path) -> None:
    first, output = sweep(max_trials=1)
    assert {first[name] for name in ("untuned", "uniform-2", "uniform-2-prune1")} == {"complete"}
    assert first["top-2"] == first["bottom-2"] == "not run: --max-trials 1 reached"
    assert "2 trials are not run: --max-trials 1 reached" in output
    report = (storage / "sweeps" / "sweep" / "report.md").read_text()
    assert "| `top-2` | not run | --max-trials 1 reached |" in report
    second, output = sweep(max_trials=1)
    assert [second[name] for name in TRIALS] == ["complete", "complete", "not run: --max-trials 1 reached"]
    assert "  uniform-2: step" not in output and "  top-2: step 3/3" in output
    # What is trained is evaluated, also where nothing may be trained.
    third, output = sweep(max_trials=0, prune=[0, 2])
    assert third["uniform-2-prune2"] == third["top-2-prune2"] == "complete"
    assert third["bottom-2"] == "not run: --max-trials 0 reached"
    assert ": step" not in output


def test_when_the_time_is_over_a_training_is_paused_and_goes_on_later(sweep: Sweeps) -> None:
    endless = {"placements": ["top"], "max_steps": 100_000, "name": "endless"}
    found, output = sweep(**endless, max_time="90s")
    stopped = re.fullmatch(r"stopped at step (\d+): --max-time .+ reached", found["top-2"])
    assert stopped and found["untuned"] == "complete", output
    found, output = sweep(**endless, max_time="90s")
    assert f"goes on from the checkpoint after step {stopped[1]} of 100000" in output
    again = re.fullmatch(r"stopped at step (\d+): --max-time .+ reached", found["top-2"])
    assert again and int(again[1]) > int(stopped[1])


def test_a_run_whose_time_is_over_at_once_still_writes_its_table(sweep: Sweeps, tmp_path: Path) -> None:
    found, _ = sweep(max_time="1s", storage=str(tmp_path))
    assert found == dict.fromkeys((*TRIALS, "untuned"), "not run: --max-time 1s reached")
    found, _ = sweep(placements=["top"], storage=str(tmp_path))
    assert set(found.values()) == {"complete"}


def test_gpu_hours_are_refused_where_there_is_no_gpu(sweep: Sweeps) -> None:
    with pytest.raises(SpecError, match=r"max_gpu_hours: no GPU is used here.*--max-time"):
        sweep(gpu=False, max_gpu_hours=4)
