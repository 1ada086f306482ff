"""The estimate of a large sweep: by hand, for what a hand can compute, and as docs/scale.md prints it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.estimate import Assumptions, all_layers_hours, estimate, table

GIVEN = Assumptions()
LAYER = 4 * 5120 * 5120 + 3 * 5120 * 13824 + 2 * 5120  # attention, MLP and norms of Llama-13B
PROJECTOR = 1024 * 5120 + 5120 + 5120 * 5120 + 5120
TRAINED = 10 * LAYER + PROJECTOR
TOKENS = 0.94 * 576 + 260


def test_sizes_by_hand() -> None:
    full = estimate(GIVEN, "full")
    assert full.delta == 2 * TRAINED
    assert full.deltas == 500 * full.delta
    assert full.checkpoint == 14 * TRAINED
    assert full.kept == 8 * 2 * full.checkpoint
    assert full.checkpoint_rate == pytest.approx(8 * full.checkpoint / 600)
    assert full.features == 350_000 * 576 * 1024 * 2
    assert full.loading == pytest.approx(64 * full.base / 5e9)
    lora = estimate(GIVEN, "lora")
    adapters = 128 * (4 * (5120 + 5120) + 3 * (5120 + 13824))
    assert lora.delta == 2 * (10 * adapters + PROJECTOR)


def test_times_by_hand() -> None:
    full = estimate(GIVEN, "full")
    speed = 8 * 312e12 * 0.25
    assert full.train == pytest.approx(665_000 * TOKENS * (4 * 40 * LAYER + 2 * TRAINED) / speed)
    assert full.evaluate == pytest.approx(6 * 1000 * TOKENS * 2 * 40 * LAYER / (speed / 4))
    assert full.sweep == pytest.approx(500 / 8 * (full.train + full.evaluate))
    assert full.feature_rate == pytest.approx(8 * 665_000 * 0.94 * 576 * 1024 * 2 / full.train)


def test_fewer_rows_shorten_the_training_alone() -> None:
    whole, tenth = (estimate(replace(GIVEN, fraction=fraction), "full") for fraction in (1.0, 0.1))
    assert tenth.train == pytest.approx(whole.train / 10)
    assert (tenth.evaluate, tenth.delta, tenth.feature_rate) == (
        whole.evaluate,
        whole.delta,
        pytest.approx(whole.feature_rate),
    )


def test_the_page_says_what_the_estimate_does() -> None:
    page = (Path(__file__).parents[1] / "docs" / "scale.md").read_text()
    assert table(GIVEN) in page
    assert f"takes {all_layers_hours(GIVEN):.1f} h on 8 GPUs" in page
    days = [estimate(replace(GIVEN, fraction=0.1), mode).sweep / 86400 for mode in ("full", "lora")]
    assert f"takes {days[0]:.1f} days with full parameters, {days[1]:.1f} with LoRA" in page
    hourly = estimate(replace(GIVEN, checkpoint_minutes=60), "full").checkpoint_rate
    assert f"makes it {hourly / 1e6:.0f} MB/s" in page
