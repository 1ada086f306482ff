"""A sweep on data of one's own, on real Ray: embedded images, computed live, scored on rows that are held out."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import draw_photos

import vrray
from tests.cluster.commands import OPTIONS
from vrray.data.records import Turn
from vrray.store import Store

pytestmark = pytest.mark.ray


def write_data(path: Path, photos: Path) -> None:
    turns = [(Turn("<image>\nWhich colour?", name[:-4].split("-")[1]), name) for name in draw_photos(photos, 40)]
    turns += [(Turn(f"What is {n}?", "a small circle and a big square"), None) for n in range(40)]
    images = [None if name is None else {"bytes": (photos / name).read_bytes(), "path": name} for _, name in turns]
    said = [[{"from": "human", "value": t.user}, {"from": "gpt", "value": t.assistant}] for t, _ in turns]
    pq.write_table(pa.table({"image": images, "conversations": said}), path)


def test_a_sweep_on_ones_own_data(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    write_data(tmp_path / "mine.parquet", tmp_path / "photos")
    options = {**OPTIONS, "placements": ["uniform"], "precision": "fp32", "name": "mine"}
    del options["tasks"]
    sweep = vrray.tune_layers(
        **options,
        model=str(tiny_model),
        data=str(tmp_path / "mine.parquet"),
        features="live",
        storage=str(tmp_path / "store"),
    )
    rows = {row["variant"]: row for row in sweep.table.to_pylist()}
    assert set(rows) == {"uniform-2", "uniform-2-prune1", "untuned"}
    for row in rows.values():
        assert row["status"] == "complete"
        assert 0 <= row["score_held-out"] <= 1  # answers are one word: an exact match
        assert 0 < row["score_held-out-text"] < 1  # answers are sentences: the probability of their tokens
        assert row["score_textual_low"] <= row["score_textual"] <= row["score_textual_high"]
    assert rows[sweep.best()["variant"]]["test_score_visual"] is not None
    assert Store(tmp_path / "store").keys("features") == []
