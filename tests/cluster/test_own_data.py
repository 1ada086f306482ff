"""Sweeps that start Ray themselves: on data of one's own, with embedded images, scored on rows that are held out."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

import vrray
from tests.cluster.commands import OPTIONS
from tests.cluster.own_data import write_own_data
from vrray.cli import main
from vrray.errors import ClusterError
from vrray.store import Store

pytestmark = pytest.mark.ray


def test_a_sweep_on_ones_own_data_in_a_bucket(tiny_model: Path, tmp_path: Path, gcs_folder: str) -> None:
    write_own_data(tmp_path / "mine.parquet")
    options = {**OPTIONS, "placements": ["uniform"], "precision": "fp32", "name": "mine"}
    del options["tasks"]
    sweep = vrray.tune_layers(
        **options,
        model=str(tiny_model),
        data=str(tmp_path / "mine.parquet"),
        features="live",
        storage=gcs_folder,
    )
    rows = {row["variant"]: row for row in sweep.table.to_pylist()}
    assert set(rows) == {"uniform-2", "uniform-2-prune1", "untuned"}
    for row in rows.values():
        assert row["status"] == "complete"
        assert 0 <= row["score_held-out"] <= 1  # answers are one word: an exact match
        assert 0 < row["score_held-out-text"] < 1  # answers are sentences: the probability of their tokens
        assert row["score_textual_low"] <= row["score_textual"] <= row["score_textual_high"]
    assert rows[sweep.best()["variant"]]["test_score_visual"] is not None
    assert Store(gcs_folder).keys("features") == []
    assert sorted(Store(gcs_folder).names("sweeps")) == ["mine"]
    assert main(["store", "verify", "--store", gcs_folder]) == 0


def test_a_cluster_that_is_too_small_is_refused_with_figures(tmp_path: Path) -> None:
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        with pytest.raises(ClusterError, match=r"needs 2 workers .*has 1 CPUs .*--workers"):
            vrray.tune_layers(**OPTIONS, storage=str(tmp_path))
    finally:
        ray.shutdown()
