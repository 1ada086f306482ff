"""The report of an evaluation, and its lines for a terminal."""

from __future__ import annotations

from typing import Any

from vrray.report.evaluation import format_results, render_evaluation

ROW: dict[str, Any] = {
    "variant": "all",
    "task": "pope",
    "n": 30,
    "failed": 1,
    "score": 0.51234,
    "mean": 0.6,
    "mean_low": 0.4,
    "mean_high": 0.8,
    "blind_score": 0.25,
    "blind_mean": 0.3,
    **dict.fromkeys(("retention", "difference", "difference_low", "difference_high", "ties_best")),
}
TASK = {
    "task": "pope",
    "scoring": "pope",
    "questions": 30,
    "split": "test",
    "chosen_on_test": False,
    "decoding": "greedy, at most 32 new tokens",
    "data": "abc123",
    "prompt": "USER: <image>\nIs there a ```dog```?",
}


def render(problem: str | None = None) -> str:
    examples = [{"task": "pope", "id": "q|1", "problem": problem}]
    return render_evaluation([ROW], [TASK], examples, {"model": "tiny_1", "command": "python jobs/evaluate.py"})


def test_every_figure_is_in_the_report() -> None:
    text = render()
    assert "| `all` | `pope` | 30 | 1 | 0.512 | 0.600 (0.400 to 0.800) | 0.250 | 0.300 |" in text
    assert "| `pope` | `pope` | 30 | test | greedy, at most 32 new tokens | `abc123` |" in text
    assert "```\npython jobs/evaluate.py\n```" in text
    assert "````\nUSER: <image>\nIs there a ```dog```?\n````" in text  # the prompt does not end its own fence
    assert "could not be asked\n" not in text


def test_problems_are_listed() -> None:
    assert "| `pope` | `q\\|1` | no such file \\| here |" in render("no such file | here")


def test_terminal_lines() -> None:
    blindless = {**ROW, "task": "mmlu", "blind_score": None}
    head, first, second = format_results([ROW, blindless]).splitlines()
    assert head.split() == ["variant", "task", "n", "failed", "score", "mean", "blind", "score", "against", "all"]
    assert first.split()[4:] == ["0.512", "0.600", "(0.400", "to", "0.800)", "0.250", "-"]
    assert second.split()[-2:] == ["-", "-"]
