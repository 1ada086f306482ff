"""The table of a sweep, sorted and filtered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from reader_store import write_large, write_sweep

from dashboard.board import Board, Filter
from dashboard.catalogue import Catalogue
from dashboard.figures import retention, scatter
from dashboard.leaderboard import PAGE, View, detail, leaderboard, shown_page
from vrray.errors import StoreError
from vrray.report.rows import rank, read_rows


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Catalogue(write_sweep(tmp_path)).board("demo")


def test_the_order_is_that_of_the_report(board: Board) -> None:
    scored = [row.variant for row in rank(read_rows(board.table)) if row.visual]
    assert [board.variants[row] for row in board.ranked] == scored
    assert board.best is not None and board.variants[board.best] == "all"


def test_every_filter_leaves_what_passes(board: Board) -> None:
    def names(**limits: object) -> set[str]:
        return {board.variants[row] for row in board.select(Filter(**limits))}  # type: ignore[arg-type]

    assert names(placements=("top",)) == {"top-3", *(f"top-3-prune{count}" for count in range(1, 5))}
    assert names(placements=("top",), removed=(2, 3)) == {"top-3-prune2", "top-3-prune3"}
    assert names(tuned=(0,)) == {"untuned"}
    assert names(parameters=126.0) == {f"{name}-prune4" for name in ("all", "uniform-3", "bottom-3", "top-3")}
    assert names(latency=26.5) == names(parameters=126.0)
    assert names(retention=0.97) == {"all", "all-prune1", "uniform-3"}
    assert len(names()) == 21, "all but the one that failed"


@pytest.mark.parametrize("name", ["visual", "kept_textual", "tuned", "removed", "parameters", "latency"])
@pytest.mark.parametrize("descending", [True, False])
def test_numbers_sort_both_ways(board: Board, name: str, descending: bool) -> None:
    values = board.numbers[name][board.select(Filter(), name, descending)]
    assert list(values) == sorted(values, reverse=descending)


def test_no_variant_of_the_front_is_beaten(board: Board) -> None:
    everything = board.select(Filter())
    front = set(board.front("parameters", everything).tolist())
    score, size = board.numbers["visual"], board.numbers["parameters"]
    for row in everything:
        beaten = any(score[o] >= score[row] and size[o] <= size[row] and (score[o], size[o]) != (score[row], size[row])
                     for o in everything)  # fmt: skip
        assert (row in front) == (not beaten), board.variants[row]


def test_ties_are_those_of_the_table_where_it_has_them(board: Board) -> None:
    overlapping = {board.variants[row] for row in np.flatnonzero(board.tied)}
    assert overlapping and "all" not in overlapping and "top-3-prune4" not in overlapping
    said = pa.array([name == "top-3-prune4" for name in board.variants])
    place = board.table.column_names.index("ties_best_visual")
    told = Board.of(board.table.set_column(place, "ties_best_visual", said))
    assert {told.variants[row] for row in np.flatnonzero(told.tied)} == {"top-3-prune4"}


def test_what_is_kept_has_the_interval_of_the_paired_difference(board: Board) -> None:
    place = board.places["uniform-3"]  # 0.78 of 0.80, and the difference is known to 0.04
    shown = [board.numbers[f"kept_visual{end}"][place] for end in ("_low", "", "_high")]
    assert shown == pytest.approx([0.925, 0.975, 1.025])
    assert "97.5% ±5.0" in leaderboard(board, View(), board.select(Filter()))
    assert "97.5% (92.5% to 102.5%)" in detail(board, "demo", "runs", "uniform-3")
    ceiling = detail(board, "demo", "runs", "all")
    assert "<dd>100.0%</dd>" in ceiling, "nothing is compared with itself"
    few = board.select(Filter(placements=("uniform", "all"), removed=(0, 1)))
    assert retention(board, few).count("v-whisker") == 2 * 3, "of all but the ceiling, in two panels"


def test_of_several_seeds_mean_and_range_are_drawn(tmp_path: Path) -> None:
    board = Catalogue(write_sweep(tmp_path, seeds=3)).board("demo")
    found = board.select(Filter(placements=("uniform",), removed=(0,)))
    assert len(found) == 3 and retention(board, found).count("v-whisker") == 2


def test_a_table_of_another_version_says_what_it_lacks(board: Board) -> None:
    with pytest.raises(StoreError, match="retention_visual"):
        Board.of(board.table.drop_columns(["retention_visual"]))


def test_clicks_sort_turn_pages_and_choose() -> None:
    view = View().picked("sort:latency")
    assert (view.sort, view.descending) == ("latency", False), "the fastest first"
    assert view.picked("sort:latency").descending
    assert view.picked("page:3").page == 3
    assert view.picked("variant:a:b").chosen == "a:b"
    for nonsense in ("", "sort:key", "page:-1", "page:x", "delete:all"):
        assert view.picked(nonsense) == view


def test_ten_thousand_variants_are_sorted_filtered_and_drawn(tmp_path: Path) -> None:
    board = Catalogue(write_large(tmp_path)).board("large")
    view = View("latency", False, page=7)
    found = board.select(Filter(placements=("uniform", "random"), retention=0.7), view.sort, view.descending)
    table, figure = leaderboard(board, view, found), scatter(board, found, "latency", "")
    assert len(shown_page(view, found)) == PAGE and table.count("<tr") == PAGE + 1
    assert figure.count("data-pick") < 1500 < len(found)
    values = board.numbers["latency"][found]
    assert list(values) == sorted(values) and (board.numbers["kept_visual"][found] >= 0.7).all()
