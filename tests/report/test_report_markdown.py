"""The Markdown report: sound tables, sentences that follow from the numbers, and nothing said that is not known."""

import re

import pyarrow as pa
import pytest

from vrray.report import draw_figures, render_report

CONTEXT = {"model": "smol", "command": "python sweep.py | tee\nlog", "seed": "0"}


def _tables(report: str) -> list[list[list[str]]]:
    """Every table of the report as rows of cells."""
    blocks = re.findall(r"(?:^\|.*\n?)+", report, flags=re.MULTILINE)
    return [[re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()] for block in blocks]


def _section(report: str, title: str) -> str:
    return report.split(f"## {title}", 1)[1].split("\n## ", 1)[0]


def test_tables_have_equal_rows(sweep_table, make_failed):
    failed = pa.Table.from_pylist([make_failed("x|y", "top", "a | b\n<c>")], schema=sweep_table.schema)
    tables = _tables(render_report(pa.concat_tables([sweep_table, failed]), CONTEXT))
    assert len(tables) == 6
    for table in tables:
        assert {len(row) for row in table} == {len(table[0])}
        assert all(set(cell.strip()) <= set(":-") for cell in table[1])


def test_context_is_shown_and_escaped(sweep_table):
    report = render_report(sweep_table, CONTEXT)
    assert "| command | python sweep.py \\| tee log |" in report
    assert "## What ran" not in render_report(sweep_table, {})


def test_answer_states_best_region_and_cost_of_pruning(sweep_table):
    answer = _section(render_report(sweep_table, {}), "Answer")
    assert "`all` with 0.931 (0.911 to 0.951), 30 of 30 layers tuned, none removed" in answer
    assert "4 of the 16 other variants cannot be told from it" in answer
    assert "Of the 3 regions that tune 8 of 30 layers (27 %), `uniform-8` scores best" in answer
    assert "keeps 99.0 % of the visual and 106.2 % of the textual score" in answer
    assert "Removing 4 layers (6,14,22,27) from `uniform-8`" in answer
    assert "by -4.2 percentage points, to 0.880 (0.860 to 0.900)" in answer
    assert "from 256.0 M to 240.0 M, its latency from 21.0 to 18.6 ms per token" in answer
    assert "with up to 3 layers removed, its interval still overlaps the unpruned one" in answer


def test_answer_without_all_claims_no_retention(sweep_without_all):
    report = render_report(sweep_without_all, {})
    answer = _section(report, "Answer")
    assert "without `all`, what it keeps is unknown" in answer
    assert "% of the visual" not in answer
    assert "retention needs a complete `all`" in report
    assert "Ceiling: unknown" in report
    assert "No variant was scored on the `test` split." in report


def test_answer_with_one_variant(make_row, make_table):
    answer = _section(render_report(make_table(make_row("uniform-8", "uniform")), {}), "Answer")
    assert "it is the only variant with a score" in answer
    assert "`uniform-8` tunes 8 of 30 layers (27 %) and scores 0.900" in answer
    assert "the cost of pruning is unknown" in answer


def test_answer_without_intervals_claims_no_certainty(make_row, make_table):
    bare = {"score_visual_low": None, "score_visual_high": None}
    table = make_table(make_row("a", "top", **bare), make_row("a-prune1", "top", visual=0.8, removed=[2], **bare))
    answer = _section(render_report(table, {}), "Answer")
    assert "how certain that is cannot be said" in answer
    assert "overlap" not in answer


def test_region_nearest_to_a_quarter_is_chosen(make_row, make_table):
    table = make_table(
        make_row("uniform-16", "uniform", tuned=list(range(16)), visual=0.95),
        make_row("uniform-8", "uniform", visual=0.9),
        make_row("uniform-2", "uniform", tuned=[3, 9], visual=0.92),
    )
    assert "`uniform-8` tunes 8 of 30 layers" in _section(render_report(table, {}), "Answer")


def test_pruning_that_helps_is_reported_as_a_gain(make_row, make_table):
    table = make_table(make_row("a", "top", visual=0.8), make_row("a-prune1", "top", visual=0.82, removed=[2]))
    answer = _section(render_report(table, {}), "Answer")
    assert "Removing 1 layer (2) from `a`" in answer
    assert "by +2.0 percentage points" in answer


def test_figures_are_those_that_are_drawn(sweep_table):
    linked = re.findall(r"!\[[^\]]+\]\(figures/([^)]+)\)", render_report(sweep_table, {}))
    assert linked == list(draw_figures(sweep_table))


def test_task_and_test_scores(sweep_table):
    report = render_report(sweep_table, {})
    assert "| `uniform-8` | 0.922 | 0.912 | 0.902 | 0.892 |" in _section(report, "Score by task")
    held_out = _section(report, "Held-out test")
    assert "| `uniform-8` | 0.911 (0.890 to 0.932) | 0.609 (0.587 to 0.631) | 0.922 |" in held_out
    assert "prune" not in held_out


def test_failed_variants_and_reasons(make_row, make_failed, make_table, sweep_table):
    table = make_table(make_failed("top-8", "top", "worker died | rank 1\nsee <log>"), make_row("a", "all"))
    report = render_report(table, {})
    assert "## Without scores (1 of 2)" in report
    assert r"| `top-8` | failed | worker died \| rank 1 see \<log\> |" in report
    assert "top-8" not in _section(report, "Leaderboard")
    assert "## Without scores" not in render_report(sweep_table, {})


@pytest.mark.parametrize("reason", [None, "killed"])
def test_nothing_complete(make_failed, make_table, reason):
    table = make_table(*([make_failed("top-8", "top", reason)] if reason else []))
    report = render_report(table, CONTEXT)
    assert "this sweep has no answer yet" in report
    assert "No complete variant." in report
    assert "None" not in report and "nan" not in report


def test_text_is_stable(sweep_table):
    assert render_report(sweep_table, CONTEXT) == render_report(sweep_table, dict(CONTEXT))
    assert "None" not in render_report(sweep_table, CONTEXT)
