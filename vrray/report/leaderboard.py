"""The leaderboard as plain text, for a terminal or a log."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from vrray.report.findings import state_ceiling, state_floor
from vrray.report.rows import Row, failed, name_split, rank, read_rows, ties_best
from vrray.report.text import (
    DASH,
    format_duration,
    format_layers,
    format_millions,
    format_number,
    format_percent,
    format_score,
)

DEFAULT_WIDTH = 100
MOST_LINES = 60


def format_leaderboard(table: pa.Table, *, width: int | None = None, color: bool = False) -> str:
    """The sweep's variants as text, best first: by visual score, then by fewer parameters.

    Beneath the table: what the marks mean, the floor and the ceiling, and what has no scores, with the reason. Of more
    than `MOST_LINES` variants the first are listed.

    Args:
        table: a row a variant, as the sweep writes it.
        width: columns of the terminal, 100 by default; the less important columns are left out where they do not fit.
        color: whether to add ANSI colours.

    Raises:
        StoreError: the table lacks a column.
    """
    rows = read_rows(table)
    ranked = rank(rows)
    output = io.StringIO()
    console = _console(output, width or DEFAULT_WIDTH, color)
    if ranked:
        console.print(_fit_table(console, ranked[:MOST_LINES]))
        if len(ranked) > MOST_LINES:
            console.print(Text(f"The best {MOST_LINES} of {len(ranked):,} variants; report.md has all."))
        for note in _notes(ranked):
            console.print(note)
    else:
        console.print(Text("No complete variant."))
    without = failed(rows)
    for row in without[:MOST_LINES]:
        console.print(Text.assemble((f"{row.outcome}: {row.variant}:", "red"), f" {row.failure}"))
    if len(without) > MOST_LINES:
        console.print(Text(f"and {len(without) - MOST_LINES:,} more variants without scores; report.md has all."))
    return "".join(f"{line.rstrip()}\n" for line in output.getvalue().splitlines())


@dataclass(frozen=True, slots=True)
class _Column:
    header: str
    cell: Callable[[Row], str]
    importance: int
    right: bool = True


_COLUMNS: tuple[_Column, ...] = (
    _Column("visual\nscore", lambda row: format_score(row.visual), 9, right=False),
    _Column("visual\nkept %", lambda row: format_percent(row.retention_visual), 8),
    _Column("text\nscore", lambda row: format_number(row.textual.value if row.textual else None), 6),
    _Column("text\nkept %", lambda row: format_percent(row.retention_textual), 7),
    _Column("\ntuned", lambda row: str(len(row.tuned)), 4),
    _Column("layers\nremoved", lambda row: format_layers(row.removed), 5, right=False),
    _Column("params\nM", lambda row: format_millions(row.parameters), 3),
    _Column("ms/\ntoken", lambda row: format_number(row.latency, 1), 2),
    _Column("train\ntime", lambda row: format_duration(row.train_seconds), 1),
)


def _console(output: io.StringIO, width: int, color: bool) -> Console:
    return Console(
        file=output,
        width=width,
        force_terminal=color,
        force_jupyter=False,
        color_system="standard" if color else None,
        legacy_windows=False,
        highlight=False,
        markup=False,
        emoji=False,
    )


def _fit_table(console: Console, ranked: Sequence[Row]) -> Table:
    """The table with as many columns as the console's width holds, the least important left out first."""
    columns = [column for column in _COLUMNS if any(column.cell(row) != DASH for row in ranked)] or [_COLUMNS[0]]
    unbounded = console.options.update(max_width=10_000)
    while True:
        for spaced in (True, False):
            table = _build_table(ranked, columns, spaced)
            if Measurement.get(console, unbounded, table).maximum <= console.width:
                return table
        if len(columns) == 1:
            return table
        columns.remove(min(columns, key=lambda column: column.importance))


def _build_table(ranked: Sequence[Row], columns: Sequence[_Column], spaced: bool) -> Table:
    padding = (0, 1) if spaced else 0
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True, padding=padding)
    table.add_column("", min_width=1)
    table.add_column("\nvariant", overflow="fold")
    for column in columns:
        table.add_column(Text(column.header), justify="right" if column.right else "left", overflow="fold")
    for place, row in enumerate(ranked):
        cells = ("=" if ties_best(row, ranked) else "", row.variant, *(column.cell(row) for column in columns))
        table.add_row(*map(Text, cells), style="bold green" if place == 0 else None)
    return table


def _notes(ranked: Sequence[Row]) -> list[Text]:
    notes = [f"Scores are fractions on the {name_split(ranked)} split; ± is half the 95 % bootstrap interval."]
    if any(ties_best(row, ranked) for row in ranked):
        best = ranked[0].variant
        notes.append(f"= : its visual score cannot be told from the best ({best}): the paired 95 % interval holds 0.")
    return [Text(note) for note in (*notes, state_floor(ranked), state_ceiling(ranked))]
