"""An evaluation as Markdown and as lines for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vrray.report.text import escape_markdown, format_code, format_number, format_text_table

Rows = Sequence[Mapping[str, Any]]
_PROBLEMS = 10  # that are shown; all are in examples.parquet


def render_evaluation(results: Rows, tasks: Rows, examples: Rows, context: Mapping[str, str]) -> str:
    """The text of report.md.

    Args:
        results: a row a variant and task, as in results.parquet.
        tasks: how each task was asked.
        examples: the example records; of those with a problem the first are shown.
        context: what ran, shown as given.
    """
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
        ]
        for row in results
    ]
    asked = [
        [
            format_code(task["task"]),
            format_code(task["scoring"]),
            str(task["questions"]),
            escape_markdown(task["decoding"]),
            format_code(task["data"]),
        ]
        for task in tasks
    ]
    what = [[escape_markdown(name), escape_markdown(value)] for name, value in context.items() if name != "command"]
    sections = [
        "# Evaluation",
        "## Scores",
        format_text_table(["variant", "task", "n", "failed", "score", "mean", "blind score", "blind mean"], scores),
        "`score` is the main figure as the benchmark's own script computes it, `mean` the plain mean of the questions' "
        "scores with its 95 % bootstrap interval. Blind: asked without the images. Questions that failed could not be "
        "asked and count as wrong.",
        "## What ran",
        format_text_table(["what", "value"], what),
        "```\n" + context["command"] + "\n```",
        "## How it was asked",
        format_text_table(["task", "scored by", "questions", "decoding", "data"], asked),
        "The first question of each task, as the model reads it; an image stands where it is placed:",
        *(f"{format_code(task['task'])}\n\n{_verbatim(task['prompt'])}" for task in tasks),
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


def format_results(results: Rows) -> str:
    """A line a variant and task."""
    header = ("variant", "task", "n", "failed", "score", "mean", "blind score")
    lines = [
        (
            row["variant"],
            row["task"],
            str(row["n"]),
            str(row["failed"]),
            format_number(row["score"]),
            _interval(row),
            format_number(row["blind_score"]),
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


def _verbatim(text: str) -> str:
    """Text in a fence that it does not end itself."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text}\n{fence}"
