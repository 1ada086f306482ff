"""What is read from a store, and what is said where it cannot be."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from reader_store import HOSTILE, live_state, write_live, write_sweep

from dashboard.catalogue import Catalogue
from dashboard.differences import compare, counts, select
from vrray.errors import DataError, StoreError
from vrray.store import Store


def test_sweeps_are_listed_newest_first_and_unfinished_ones_too(tmp_path: Path) -> None:
    store = write_sweep(tmp_path, "old")
    write_sweep(tmp_path, "new")
    write_live(store, "running", live_state(time.time()))
    for age, file in ((300, "old/table.parquet"), (200, "new/table.parquet"), (100, "running/live.json")):
        os.utime(tmp_path / "sweeps" / file, (time.time() - age,) * 2)
    assert Catalogue(store).sweeps() == ["running", "new", "old"]


def test_a_table_is_read_again_when_it_changes(tmp_path: Path) -> None:
    catalogue = Catalogue(write_sweep(tmp_path))
    first = catalogue.table("demo")
    assert catalogue.table("demo") is first
    write_sweep(tmp_path, removed=1)
    assert catalogue.table("demo").num_rows < first.num_rows


def test_what_is_missing_or_damaged_is_named_with_the_remedy(tmp_path: Path) -> None:
    store = write_sweep(tmp_path)
    catalogue = Catalogue(store)
    with pytest.raises(StoreError, match=r"no sweeps/other/table\.parquet.*run jobs/sweep\.py --name other"):
        catalogue.table("other")
    store.write_bytes("sweeps/demo/table.parquet", b"PAR1 but not really")
    with pytest.raises(StoreError, match=r"sweeps/demo/table\.parquet cannot be read"):
        catalogue.table("demo")
    store.write_bytes("sweeps/demo/live.json", b"{")
    with pytest.raises(StoreError, match=r"live\.json cannot be read"):
        catalogue.live("demo")
    (tmp_path / "sweeps" / "demo" / "questions.parquet").unlink()
    with pytest.raises(StoreError, match="before its questions were kept: run the same command again"):
        catalogue.examples("demo", "all")


@pytest.mark.parametrize("name", ["../demo", "a/../../b", "..", "", "/etc"])
def test_no_name_leads_out_of_the_store(tmp_path: Path, name: str) -> None:
    catalogue = Catalogue(write_sweep(tmp_path / "store"))
    for read in (catalogue.table, catalogue.context, catalogue.live):
        with pytest.raises(StoreError):
            read(name)


def test_examples_are_the_answers_with_their_questions(tmp_path: Path) -> None:
    table = Catalogue(write_sweep(tmp_path)).examples("demo", "uniform-3-prune2")
    rows = table.to_pylist()
    assert len(rows) == 20
    wrong = [row["example"] for row in rows if row["score"] == 0]
    assert sorted(wrong) == ["capitals/00", "capitals/01", "shapes/00", "shapes/01"]
    assert rows[0]["question"] == "Which shape is number 0?" and rows[0]["prediction"] == HOSTILE


def test_only_images_that_a_question_names_are_opened(tmp_path: Path) -> None:
    store = write_sweep(tmp_path)
    (tmp_path / "pictures" / "secret.png").write_bytes((tmp_path / "pictures" / "shape0.png").read_bytes())
    catalogue = Catalogue(store)
    image = catalogue.image("demo", "shape3.png")
    assert image is not None and image.size == (64, 48)
    for name in ("secret.png", "../pictures/shape3.png", str(tmp_path / "pictures" / "shape3.png"), ""):
        assert catalogue.image("demo", name) is None
    (tmp_path / "pictures" / "shape3.png").unlink()
    with pytest.raises(DataError, match=r"shape3\.png"):
        catalogue.image("demo", "shape3.png")


def test_where_two_variants_differ(tmp_path: Path) -> None:
    catalogue = Catalogue(write_sweep(tmp_path))
    pairs = compare(catalogue, "demo", "uniform-3", "uniform-3-prune3")
    found = counts(pairs, None)
    assert found == {"differ": 6, "lost": 6, "gained": 0, "both right": 14, "both wrong": 0, "all": 20}
    assert counts(pairs, "shapes")["lost"] == 3
    assert [pair.example for pair in select(pairs, "lost", "shapes")] == ["shapes/00", "shapes/01", "shapes/02"]
    assert counts(compare(catalogue, "demo", "uniform-3-prune3", "uniform-3"), None)["gained"] == 6
    with pytest.raises(StoreError, match="no answers of 'random-3-seed7'"):
        compare(catalogue, "demo", "uniform-3", "random-3-seed7")


def test_layer_scores_measured_and_of_a_sweep(tmp_path: Path) -> None:
    catalogue = Catalogue(write_sweep(tmp_path))
    scores, pairs = catalogue.scores("scores")
    assert list(scores) == ["angular", "bi"] and len(scores["bi"].values) == 12 and pairs.num_rows == 4
    assert catalogue.measured_scores() == ["scores"]
    assert catalogue.ranking_scores("demo")["key-all"].name == "angular"


def test_an_empty_store_has_nothing(tmp_path: Path) -> None:
    catalogue = Catalogue(Store(tmp_path / "nowhere"))
    assert catalogue.sweeps() == [] and catalogue.measured_scores() == []
