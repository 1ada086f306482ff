"""An evaluation as Markdown and as lines for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vrray.report.asked import asked_section
from vrray.report.rows import Score
from vrray.report.text import (
    escape_markdown,
    format_code,
    format_difference,
    format_number,
    format_percent,
    format_text_table,
)

Rows = Sequence[Mapping[str, Any]]
_PROBLEMS = 10  # that are shown; all are in examples.parquet
_COMPARED = (
    "Kept: the mean divided by that of all-layer tuning with the same seed; against `all`: their difference with its "
    "95 % paired bootstrap interval."
)
_CHOSEN = (
    "Against the best: `=` where the paired interval of the difference to the best mean of the task holds 0, so that "
    "the two cannot be told apart on these questions."
)


def render_evaluation(results: Rows, tasks: Rows, examples: Rows, context: Mapping[str, str]) -> str:
    """The text of report.md.

    Args:
        results: a row a variant and task, as in results.parquet.
        tasks: how each task was asked.
        examples: the example records; of those with a problem the first are shown.
        context: what ran, shown as given.
    """
    choosing = any(row["ties_best"] is not None for row in results)
    compared = any(row["difference"] is not None for row in results)
    scores = [
        [
            format_code(row["variant"]),
            format_code(row["task"]),
            str(row["n"]),
            str(row["failed"]),
            format_number(row["score"]),
            _interval(row),
            format_number(row["blind_score"]),
            format_number(row["blind_mean"]),
            *([format_percent(row["retention"]), format_difference(_difference(row))] if compared else []),
            *(["" if row["ties_best"] is None else "=" if row["ties_best"] else "less"] if choosing else []),
        ]
        for row in results
    ]
    header = ["variant", "task", "n", "failed", "score", "mean", "blind score", "blind mean"]
    header += (["kept %", "against `all`"] if compared else []) + (["against the best"] if choosing else [])
    what = [[escape_markdown(name), escape_markdown(value)] for name, value in context.items() if name != "command"]
    sections = [
        "# Evaluation",
        "## Scores",
        format_text_table(header, scores),
        "`score` is the main figure as the benchmark's own script computes it, `mean` the plain mean of the questions' "
        "scores with its 95 % bootstrap interval. Blind: asked without the images. Questions that failed could not be "
        "asked and count as wrong.",
        *([_COMPARED] if compared else []),
        *([_CHOSEN] if choosing else []),
        *(_stamp(tasks)),
        "## What ran",
        format_text_table(["what", "value"], what),
        "```\n" + context["command"] + "\n```",
        *asked_section(tasks),
    ]
    if failed := [row for row in examples if row["problem"] is not None]:
        shown = [
            [format_code(row["task"]), format_code(row["id"]), escape_markdown(row["problem"])]
            for row in failed[:_PROBLEMS]
        ]
        sections += [
            "## Questions that could not be asked",
            f"{len(failed)} records in examples.parquet have a `problem`; the first are:",
            format_text_table(["task", "question", "problem"], shown),
        ]
    return "\n\n".join(sections) + "\n"


def _stamp(tasks: Rows) -> list[str]:
    """Says where the best were looked for among test figures."""
    names = [format_code(task["task"]) for task in tasks if task["chosen_on_test"]]
    if not names:
        return []
    return [
        f"**Chosen on test data** (`--choose-on-test`): {', '.join(names)}. The best of several variants is flattered "
        "by chance there; its figures are no held-out result."
    ]


def _difference(row: Mapping[str, Any]) -> Score | None:
    if row["difference"] is None:
        return None
    return Score(row["difference"], row["difference_low"], row["difference_high"])


def format_results(results: Rows) -> str:
    """A line a variant and task."""
    header = ("variant", "task", "n", "failed", "score", "mean", "blind score", "against all")
    lines = [
        (
            row["variant"],
            row["task"],
            str(row["n"]),
            str(row["failed"]),
            format_number(row["score"]),
            _interval(row),
            format_number(row["blind_score"]),
            format_difference(_difference(row)),
        )
        for row in results
    ]
    widths = [max(len(line[column]) for line in (header, *lines)) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (header, *lines)
    )


def _interval(row: Mapping[str, Any]) -> str:
    return f"{row['mean']:.3f} ({row['mean_low']:.3f} to {row['mean_high']:.3f})"
