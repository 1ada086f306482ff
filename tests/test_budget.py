"""The budget of a run: durations as they are typed, and which limit is reached."""

from __future__ import annotations

import pytest

from vrray.budget import Budget, duration, read_duration
from vrray.errors import SpecError
from vrray.specs import SweepSpec


@pytest.mark.parametrize(
    ("text", "seconds", "shown"),
    [("8h", 28800, "8h"), ("90m", 5400, "90m"), ("1.5h", 5400, "90m"), ("30", 30, "30s"), (" 0.5s ", 0.5, "0.5s")],
)
def test_durations(text: str, seconds: float, shown: str) -> None:
    assert read_duration(text) == seconds
    assert duration(seconds) == shown
    assert SweepSpec.parse({"max_time": text}).max_time == SweepSpec.parse({"max_time": seconds}).max_time == seconds


@pytest.mark.parametrize("text", ["", "h", "8d", "8 hours", "1h30m", "nan", "inf", "-1h", "0"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(SpecError, match="option max_time: "):
        SweepSpec.parse({"max_time": text})


def test_without_limits_nothing_is_reached() -> None:
    assert Budget(gpus=8).reached(1e9, 1e9) is None


def test_time_counts_from_the_start_of_the_run() -> None:
    budget = Budget(seconds=7200)
    assert budget.reached(7199.9, 1e9) is None
    assert budget.reached(7200.0, 0.0) == "--max-time 2h reached"


def test_gpu_hours_count_every_gpu_of_a_busy_group() -> None:
    budget = Budget(gpu_hours=16, gpus=8)
    assert budget.reached(1e9, 7199.9) is None
    assert budget.reached(0.0, 7200.0) == "--max-gpu-hours 16 reached"
