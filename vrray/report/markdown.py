"""The report of a sweep as Markdown: what ran, the answer, the tables, the figures, and how to read them."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from vrray.report.asked import asked_section
from vrray.report.figures import LAYERS, REMOVED, RETENTION, choose_drawn
from vrray.report.findings import state_ceiling, state_findings, state_floor
from vrray.report.retention_plot import shows_retention
from vrray.report.rows import Row, failed, group_trials, name_split, rank, read_rows, ties_best
from vrray.report.text import (
    DASH,
    escape_markdown,
    format_code,
    format_difference,
    format_duration,
    format_interval,
    format_layers,
    format_millions,
    format_number,
    format_percent,
    format_table,
)

Cells = Sequence[str]


def render_report(table: pa.Table, context: Mapping[str, str], tasks: Sequence[Mapping[str, Any]] = ()) -> str:
    """The text of report.md; it refers to the figures of `draw_figures` as files of the folder `figures`.

    Args:
        table: a row a variant, as the sweep writes it.
        context: what ran, such as model, data, command, machine, seed, versions, wall time: shown as given.
        tasks: how each task was asked on each split.

    Raises:
        StoreError: the table lacks a column.
    """
    rows = read_rows(table)
    ranked = rank(rows)
    sections = [
        "# Sweep report",
        *_context_section(context),
        "## Answer",
        " ".join(state_findings(rows)),
        *_leaderboard_section(ranked),
        *_figures_section(rows),
        *_tasks_section(ranked),
        *_test_section(ranked),
        *_cost_section(ranked),
        *asked_section(tasks),
        *_failed_section(failed(rows), len(rows)),
        *_reading_section(rows),
    ]
    return "\n\n".join(sections) + "\n"


def _context_section(context: Mapping[str, str]) -> list[str]:
    if not context:
        return []
    cells = [(escape_markdown(name), escape_markdown(str(value))) for name, value in context.items()]
    return ["## What ran", format_table(("what", "value"), cells)]


def _leaderboard_section(ranked: Sequence[Row]) -> list[str]:
    if not ranked:
        return ["## Leaderboard", "No complete variant."]
    header = (
        "rank",
        "variant",
        "visual (95 %)",
        "visual kept %",
        "visual against `all`",
        "textual (95 %)",
        "textual kept %",
        "textual against `all`",
        "blind",
        "tuned",
        "removed",
        "parameters (M)",
    )
    cells = [
        (
            f"{place} =" if ties_best(row, ranked) else str(place),
            format_code(row.variant),
            format_interval(row.visual),
            format_percent(row.retention_visual),
            format_difference(row.difference_visual),
            format_interval(row.textual),
            format_percent(row.retention_textual),
            format_difference(row.difference_textual),
            format_number(row.blind),
            f"{len(row.tuned)} of {row.depth}",
            format_layers(row.removed),
            format_millions(row.parameters),
        )
        for place, row in enumerate(ranked, start=1)
    ]
    split = format_code(name_split(ranked))
    notes = [f"Scores on the {split} split, best first by visual score, then by fewer parameters."]
    if any(ties_best(row, ranked) for row in ranked):
        best = format_code(ranked[0].variant)
        notes.append(f"`=`: the paired 95 % interval of the visual difference to {best} holds 0.")
    if shows_retention(ranked):
        notes.append("Against `all`: the difference to tuning all layers, with its paired 95 % interval.")
    bounds = escape_markdown(f"{state_floor(ranked)} {state_ceiling(ranked)}")
    return ["## Leaderboard", " ".join(notes), format_table(header, cells, left=(1, 10)), bounds]


def _figures_section(rows: Sequence[Row]) -> list[str]:
    split = format_code(name_split(rows))
    if shows_retention(rows):
        kept = f"Retention of the unpruned variants in % of the score of tuning all layers, {split} split"
    else:
        kept = f"Scores of the unpruned variants as fractions, {split} split; retention needs a complete `all`"
    captions = {
        RETENTION: f"{kept}. Whiskers: 95 % bootstrap interval of the variant's score.",
        REMOVED: f"Visual score (fraction, {split} split) against the number of decoder layers removed after tuning. "
        "Bands and whiskers: 95 % bootstrap interval. Dotted: the floors, where measured.",
        LAYERS: "Decoder layers (numbered from 0) that each variant tunes, keeps as they were, and removes; "
        f"at the right its visual score (fraction, {split} split) ± half the 95 % interval.",
    }
    figures = [f"![{text.replace('`', '')}](figures/{name})\n\n*{text}*" for name, text in captions.items()]
    drawn, trainings = len(group_trials(choose_drawn(rows))), len(group_trials(rows))
    note = f"Drawn are the baselines and the best of the {trainings:,} trainings, {drawn} in all."
    return ["## Figures", *([note] if drawn < trainings else []), *figures]


def _tasks_section(ranked: Sequence[Row]) -> list[str]:
    tasks = list(ranked[0].tasks) if ranked else []
    if not tasks:
        return []
    cells = [(format_code(row.variant), *(format_number(row.tasks[task]) for task in tasks)) for row in ranked]
    header = ("variant", *map(escape_markdown, tasks))
    return ["## Score by task", f"Fractions, {format_code(name_split(ranked))} split.", format_table(header, cells)]


def _test_section(ranked: Sequence[Row]) -> list[str]:
    tested = [row for row in ranked if row.has_test]
    if not tested:
        return ["## Held-out test", "No variant was scored on the `test` split."]
    header = ("variant", "test visual (95 %)", "test textual (95 %)", f"{name_split(ranked)} visual")
    cells = [
        (
            format_code(row.variant),
            format_interval(row.test_visual),
            format_interval(row.test_textual),
            format_number(row.visual.value if row.visual else None),
        )
        for row in tested
    ]
    note = "Examples that no choice was made on; only the chosen variant and the baselines are scored on them."
    return ["## Held-out test", note, format_table(header, cells)]


def _cost_section(ranked: Sequence[Row]) -> list[str]:
    if not ranked:
        return []
    header = ("variant", "parameters (M)", "trained (M)", "training", "s per step", "ms per token", "peak MiB")
    cells = [
        (
            format_code(row.variant),
            format_millions(row.parameters),
            format_millions(row.trained_parameters),
            format_duration(row.train_seconds),
            format_number(row.step_seconds, 2),
            format_number(row.latency, 1),
            format_number(row.peak_mib, 0),
        )
        for row in ranked
    ]
    note = "Variants of one training share its time; pruning itself trains nothing, and healing is not counted."
    return ["## Cost", note, format_table(header, cells)]


def _failed_section(failures: Sequence[Row], total: int) -> list[str]:
    if not failures:
        return []
    cells = [
        (format_code(row.variant), escape_markdown(row.outcome), escape_markdown(row.failure or DASH))
        for row in failures
    ]
    header = ("variant", "status", "reason")
    return [f"## Without scores ({len(failures)} of {total})", format_table(header, cells, left=(0, 1, 2))]


def _reading_section(rows: Sequence[Row]) -> list[str]:
    split = format_code(name_split(rows))
    points = [
        f"**Splits.** Variants are ranked and chosen on {split}. The best of many is flattered by chance there, "
        "so quote the `test` score of the chosen variant.",
        "**Retention** (kept %) is a variant's score divided by that of tuning all layers in the same sweep."
        + ("" if shows_retention(rows) else " This sweep has no complete `all` variant, so there is none."),
        "**Floors.** The question-only guess answers from the question alone; blind is the tuned model without the "
        "image. A visual score near them says nothing about seeing.",
        "**Interval.** 95 % bootstrap interval over the examples. It covers the choice of examples, not that of the "
        "training seed. Two variants answer the same examples, so their difference is resampled in pairs: its interval "
        "is narrower than the two look side by side. One that holds 0 does not prove two variants equal.",
        "**Removed** layers are outside the tuned region, unless all layers were tuned or the sweep protected others; "
        "numbers start at 0.",
        f"**{DASH}** was not measured.",
    ]
    return ["## How to read this", "\n".join(f"- {point}" for point in points)]
