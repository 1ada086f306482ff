"""The table as typed rows: validation, order, and the sweep's ceiling."""

import pytest

from vrray.errors import StoreError
from vrray.report import draw_figures, format_leaderboard, render_report
from vrray.report.rows import Score, find_ceiling, group_trials, rank, read_rows, ties_best


@pytest.mark.parametrize("column", ["score_visual", "score_textual_high", "status", "peak_mib"])
def test_missing_column_is_named(sweep_table, column):
    table = sweep_table.drop_columns([column])
    for render in (format_leaderboard, draw_figures, lambda table: render_report(table, {})):
        with pytest.raises(StoreError, match=rf"lacks column {column}\b"):
            render(table)


def test_every_missing_column_is_named(sweep_table):
    with pytest.raises(StoreError, match="lacks columns variant, key"):
        read_rows(sweep_table.drop_columns(["variant", "key"]))


def test_rank_is_by_score_then_by_parameters(make_row, make_table):
    table = make_table(
        make_row("large", "uniform", visual=0.8, parameters=300),
        make_row("worse", "uniform", visual=0.7, parameters=100),
        make_row("small", "uniform", visual=0.8, parameters=200),
        make_row("textual-only", "uniform", score_visual=None),
        make_row("not-a-number", "uniform", score_visual=float("nan")),
    )
    names = [row.variant for row in rank(read_rows(table))]
    assert names == ["small", "large", "worse", "not-a-number", "textual-only"]


def test_tasks_are_the_other_score_columns(sweep_table):
    row = read_rows(sweep_table)[0]
    assert list(row.tasks) == ["easy-vqa", "easy-vqa-yesno", "capitals", "continents"]
    assert row.tasks["easy-vqa"] == pytest.approx(0.931)


def test_ceiling_is_unpruned_and_complete(make_row, make_failed, make_table, sweep_table):
    assert find_ceiling(read_rows(sweep_table)).variant == "all"
    table = make_table(make_failed("all", "all", "killed"), make_row("all-prune1", "all", removed=[3]))
    assert find_ceiling(read_rows(table)) is None


def test_the_best_does_not_tie_with_itself(make_row, make_table):
    best = make_row("best", "uniform", visual=0.90, ties_best_visual=True)
    near = make_row("near", "top", visual=0.87, ties_best_visual=True)
    far = make_row("far", "bottom", visual=0.85, ties_best_visual=False)
    ranked = rank(read_rows(make_table(best, near, far)))
    assert [ties_best(row, ranked) for row in ranked] == [False, True, False]


def test_scores_without_interval_overlap_nothing():
    assert not Score(0.9).overlaps(Score(0.9, 0.8, 1.0))


def test_trials_are_named_by_placement_unless_it_repeats(make_row, make_table):
    table = make_table(
        make_row("uniform-8-prune2", "uniform", removed=[3, 5]),
        make_row("uniform-8", "uniform"),
        make_row("uniform-4", "uniform", tuned=[0, 9, 19, 29]),
        make_row("top-8", "top"),
    )
    groups = group_trials(read_rows(table))
    assert list(groups) == ["uniform-8", "uniform-4", "top"]
    assert [row.variant for row in groups["uniform-8"]] == ["uniform-8", "uniform-8-prune2"]
