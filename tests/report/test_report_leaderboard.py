"""The leaderboard as text: order, marks, bounds, widths, failures."""

import pytest

from vrray.report import format_leaderboard

WIDTHS = (100, 80, 60, 40)


def _names(text: str) -> list[str]:
    """The variants in the order of the table's lines."""
    body = text.split("─\n", 1)[1].split("Scores are", 1)[0]
    return [line.lstrip("= ").split()[0] for line in body.splitlines()]


def _line(text: str, variant: str) -> str:
    return next(line for line in text.splitlines() if variant in line.split())


def test_best_comes_first(sweep_table):
    names = _names(format_leaderboard(sweep_table))
    assert names[:3] == ["all", "uniform-8", "uniform-8-prune1"]
    assert names[-1] == "none"
    assert len(names) == sweep_table.num_rows


def test_line_holds_the_numbers(sweep_table):
    line = _line(format_leaderboard(sweep_table), "uniform-8-prune3")
    assert line.split() == [
        "=",
        "uniform-8-prune3",
        "0.894",
        "±0.020",
        "96.0",
        "0.597",
        "102.1",
        "8",
        "6,14,22",
        "244.0",
        "19.2",
        "6m36s",
    ]


def test_a_tie_with_the_best_is_marked_and_explained(sweep_table):
    text = format_leaderboard(sweep_table)
    assert _line(text, "uniform-8-prune3").startswith("=")
    assert not _line(text, "uniform-8-prune4").startswith("=")
    assert "= : its visual score cannot be told from the best (all)" in text


def test_no_mark_without_a_tie(make_row, make_table):
    table = make_table(make_row("a", "all", visual=0.9, half=0.01), make_row("b", "top", visual=0.5, half=0.01))
    assert "=" not in format_leaderboard(table)


def test_floor_and_ceiling(sweep_table):
    text = format_leaderboard(sweep_table)
    assert "question-only guess 0.180 visual, 0.250 textual. Blind (without the image): 0.230 to 0.270." in text
    assert "Ceiling: full tuning (all) 0.931 ±0.020 visual, 0.585 ±0.020 textual." in text


def test_without_all_there_is_no_retention(sweep_without_all):
    text = format_leaderboard(sweep_without_all)
    assert "kept" not in text
    assert "Ceiling: unknown" in text


@pytest.mark.parametrize("width", WIDTHS)
def test_lines_fit_and_do_not_wrap(sweep_table, width):
    text = format_leaderboard(sweep_table, width=width)
    assert max(map(len, text.splitlines())) <= width
    assert len(_names(text)) == sweep_table.num_rows


def test_all_columns_fit_the_default_width(sweep_table):
    header = " ".join(format_leaderboard(sweep_table).splitlines()[:2])
    assert header.count("kept %") == 2
    assert {"tuned", "removed", "M", "token", "time"} <= set(header.split())


def test_narrower_widths_keep_the_important_columns(sweep_table):
    headers = [" ".join(format_leaderboard(sweep_table, width=width).splitlines()[:2]) for width in WIDTHS]
    counts = [len(header.split()) for header in headers]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]
    assert all("visual" in header for header in headers)


def test_failed_rows_come_last_with_their_reason(make_failed, make_row, make_table):
    failed = make_failed("top-8", "top", "CUDA out of memory:\n  tried [3.2] GiB")
    lines = format_leaderboard(make_table(failed, make_row("uniform-8", "uniform"))).splitlines()
    assert lines[-1] == "failed: top-8: CUDA out of memory: tried [3.2] GiB"


@pytest.mark.parametrize("status", ["not run: --max-trials 4 reached", "stopped at step 9: --max-time 8h reached"])
def test_what_a_budget_left_out_is_not_called_failed(status, make_failed, make_row, make_table):
    lines = format_leaderboard(make_table(make_failed("top-8", "top", "", status=status), make_row("a", "all")))
    outcome, _, reason = status.partition(": ")
    assert lines.splitlines()[-1] == f"{outcome}: top-8: {reason}"


def test_only_failed_rows(make_failed, make_table):
    text = format_leaderboard(make_table(make_failed("top-8", "top", "killed")))
    assert text == "No complete variant.\nfailed: top-8: killed\n"


def test_empty_table(make_table):
    assert format_leaderboard(make_table()) == "No complete variant.\n"


def test_color_only_on_request(sweep_table, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[" not in format_leaderboard(sweep_table)
    assert "\x1b[" in format_leaderboard(sweep_table, color=True)


def test_names_are_not_read_as_markup(make_row, make_table):
    assert "[red]x[/red]:smile:" in format_leaderboard(make_table(make_row("[red]x[/red]:smile:", "explicit")))
