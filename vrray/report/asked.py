"""How tasks were asked, as a section of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vrray.report.text import escape_markdown, format_code, format_text_table

_HEADER = ("task", "scored by", "questions", "split", "decoding", "data")


def asked_section(tasks: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table of the tasks, and the first question of each with the words around it; nothing without tasks."""
    if not tasks:
        return []
    cells = [
        [
            format_code(task["task"]),
            format_code(task["scoring"]),
            str(task["questions"]),
            task["split"],
            escape_markdown(task["decoding"]),
            format_code(task["data"]),
        ]
        for task in tasks
    ]
    prompts = {task["task"]: task["prompt"] for task in reversed(tasks)}
    return [
        "## How it was asked",
        format_text_table(_HEADER, cells),
        "`data` is a hash of the questions, their answers and the contents of their images. The first question of each "
        "task, as the model reads it; an image stands where it is placed:",
        *(f"{format_code(name)}\n\n{_verbatim(prompts[name])}" for name in dict.fromkeys(t["task"] for t in tasks)),
    ]


def _verbatim(text: str) -> str:
    """Text in a fence that it does not end itself."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text}\n{fence}"
