"""Reports of sweeps with a thousand trainings: what is left out is said, and what is shown can be read."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from vrray.report import draw_figures, format_leaderboard, render_report
from vrray.report.figures import MOST_TRAININGS, choose_drawn
from vrray.report.leaderboard import MOST_LINES
from vrray.report.rows import read_rows

SEEDS, REMOVED = 400, 3


@pytest.fixture
def many(make_row, make_failed, make_table):
    """1,200 variants of 400 trainings, the later the better; the baselines are the worst; 100 that failed."""
    rows = [make_row("all-seed0", "all", visual=0.01), make_row("untuned", "none", visual=0.0)]
    for seed in range(SEEDS):
        for count in range(REMOVED):
            name = f"uniform-8-seed{seed}" + (f"-prune{count}" if count else "")
            score = 0.2 + 0.001 * seed - 0.01 * count
            rows.append(make_row(name, "uniform", visual=score, removed=list(range(count))))
    return make_table(*rows, *(make_failed(f"top-8-seed{seed}", "top", "killed") for seed in range(100)))


def test_figures_draw_the_baselines_and_the_best(many):
    drawn = choose_drawn(read_rows(many))
    trainings = {row.trial for row in drawn}
    best = {f"uniform-8-seed{seed}" for seed in range(SEEDS - MOST_TRAININGS + 2, SEEDS)}
    assert trainings == best | {"all-seed0", "untuned"}
    assert len(drawn) == (MOST_TRAININGS - 2) * REMOVED + 2  # with all their variants
    for data in draw_figures(many).values():
        assert max(Image.open(io.BytesIO(data)).size) < 5000


def test_few_trainings_are_drawn_as_they_are(sweep_table):
    rows = read_rows(sweep_table)
    assert choose_drawn(rows) == rows


def test_the_report_lists_all_and_says_what_is_drawn(many):
    report = render_report(many, {})
    assert f"Drawn are the baselines and the best of the 502 trainings, {MOST_TRAININGS} in all." in report
    assert report.count("| `uniform-8-seed7-prune2` |") == 3  # leaderboard, tasks, cost
    assert report.count("| killed |") == 100


def test_a_terminal_gets_the_best(many):
    text = format_leaderboard(many)
    lines = text.splitlines()
    assert sum("uniform-8-seed" in line for line in lines) in (MOST_LINES, MOST_LINES + 1)  # a note may name the best
    assert f"The best {MOST_LINES} of 1,202 variants; report.md has all." in lines
    assert lines[-1] == f"and {100 - MOST_LINES} more variants without scores; report.md has all."
