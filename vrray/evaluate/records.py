"""Example records: what a variant answered to each question of an evaluation; summaries. Light to import."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vrray.data.tasks import ABILITIES, Ability, TaskExamples
from vrray.metrics import mean_interval
from vrray.store import read_parquet

_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("task", "split", "example", "question", "image", "answer", "prediction")]
    + [("score", pa.float64()), ("blind", pa.bool_()), ("latency_ms", pa.float64())]
)


@dataclass(frozen=True)
class Answered:
    """One example as a variant answered it.

    Attributes:
        example: its id within the task and split.
        image: its name among the sweep's images.
        score: 0 or 1, or the mean probability of the answer's tokens; `prediction` is "" then.
        latency_ms: the time of its batch divided by the questions in it; None where nothing was answered.
    """

    task: str
    split: str
    example: str
    question: str
    image: str | None
    answer: str
    prediction: str
    score: float
    blind: bool
    latency_ms: float | None = field(default=None, compare=False)


def write_records(folder: Path, records: Sequence[Answered]) -> None:
    """Write `examples.parquet`, a row an example."""
    pq.write_table(pa.Table.from_pylist([vars(record) for record in records], _SCHEMA), folder / "examples.parquet")


def read_records(folder: Path) -> list[Answered]:
    return [Answered(**row) for row in read_parquet(folder / "examples.parquet").to_pylist()]


def summarise(records: Sequence[Answered], tasks: Sequence[TaskExamples]) -> dict[str, Any]:
    """Scores by task, and for each ability the mean of its tasks with a 95 % bootstrap interval (None: no task)."""
    by_task = {name: scores for ability in ABILITIES for name, scores in scores_of(records, tasks, ability).items()}
    summary: dict[str, Any] = {"tasks": {name: sum(scores) / len(scores) for name, scores in by_task.items()}}
    for ability in ABILITIES:
        members = scores_of(records, tasks, ability)
        value, low, high = mean_interval(list(members.values())) if members else (None, None, None)
        summary |= {f"score_{ability}": value, f"score_{ability}_low": low, f"score_{ability}_high": high}
    return summary


def scores_of(records: Sequence[Answered], tasks: Sequence[TaskExamples], ability: Ability) -> dict[str, list[float]]:
    """The scores of an ability's tasks, by task, in the order of `tasks` and of the records."""
    found: dict[str, list[float]] = {group.task.name: [] for group in tasks if group.task.ability == ability}
    for record in records:
        if record.task in found:
            found[record.task].append(record.score)
    return {name: scores for name, scores in found.items() if scores}
