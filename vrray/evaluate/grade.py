"""Scoring predictions that exist already, in the official formats of the benchmarks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vrray.errors import DataError
from vrray.evaluate.benchmarks.question import Scored, score_pairs
from vrray.evaluate.benchmarks.registry import find_benchmark


@dataclass(frozen=True)
class Grade:
    """A benchmark's figures over a file of predictions.

    Attributes:
        task: the benchmark's name.
        n: how many questions were scored.
        score: the benchmark's main figure as a fraction; of MME the perception points.
        detail: the figures beside it.
        rows: every question with its prediction and its own score.
    """

    task: str
    n: int
    score: float
    detail: Mapping[str, Any]
    rows: tuple[Scored, ...]

    def to_json(self) -> dict[str, Any]:
        """What `vrray grade` prints."""
        return {"task": self.task, "n": self.n, "score": self.score, "detail": dict(self.detail)}


def grade(task: str, predictions: str | os.PathLike[str], annotations: str | os.PathLike[str] | None = None) -> Grade:
    """Score a file of predictions against the annotations of a benchmark.

    Args:
        task: a benchmark's name (see `vrray.evaluate.benchmarks.registry.BENCHMARKS`).
        predictions: the file that LLaVA's or the benchmark's own script writes; for some benchmarks a folder.
        annotations: the benchmark's own file or folder; not needed where the predictions hold the reference answers.

    Raises:
        DataError: the task is unknown, or a file is missing, malformed or not of that benchmark.
    """
    benchmark = find_benchmark(task)
    if annotations is None and not benchmark.embedded:
        raise DataError(f"task {benchmark.name!r} needs --annotations: {benchmark.files}")
    questions = benchmark.read(Path(predictions if annotations is None else annotations))
    rows = score_pairs(benchmark, benchmark.match(questions, Path(predictions)))
    summary = benchmark.summarise(rows)
    return Grade(benchmark.name, summary.n, summary.score, summary.detail, rows)
