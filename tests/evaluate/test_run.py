"""Evaluation over ranks: every example once, in order, and summaries with numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ranks import run_ranks
from tiny import Ground

from vrray.data.tasks import Example, Task, TaskExamples
from vrray.evaluate.records import Answered, read_records, summarise, write_records
from vrray.evaluate.run import evaluate_tasks, latency_ms_per_token

COLOURS = Task("colours", "visual", "exact", "")
SINGLE = Task("single", "visual", "exact", "")
ANSWERS = Task("answers", "textual", "likelihood", "")
WORDS = Task("words", "textual", "choice", "")


@pytest.fixture
def tasks(ground: Ground) -> list[TaskExamples]:
    """Odd numbers of examples; of one task there is only one, so that a rank has none."""
    seen = tuple(Example(f"v{n}", "Which colour?", "red", image) for n, image in enumerate(ground.photos[:5]))
    chosen = tuple(Example(f"w{n}", f"It is {n} and", "a", options=("a", "b c", "d")) for n in range(3))
    return [
        TaskExamples(COLOURS, "select", seen, 0.25),
        TaskExamples(WORDS, "select", chosen, 0.3),
        TaskExamples(ANSWERS, "select", (Example("long", "What is it?", "a circle and a square"),), 0.0),
        TaskExamples(SINGLE, "select", (Example("only", "What is it?", "red", ground.photos[5]),), 0.25),
    ]


def everything(ground: Ground, tasks: list[TaskExamples]) -> dict[str, Any]:
    workspace = ground.workspace()
    return {
        "records": evaluate_tasks(workspace, tasks, batch=2),
        "blind": evaluate_tasks(workspace, tasks, blind=True, batch=2),
        "latency": latency_ms_per_token(workspace),
    }


def test_two_ranks_equal_one(ground: Ground, tasks: list[TaskExamples], one_rank: None) -> None:
    alone = everything(ground, tasks)
    # Some answers become right, so that scores, too, are carried along.
    right = {record.example: record.prediction for record in alone["records"][::2] if record.prediction}
    tasks = [
        replace(group, examples=tuple(replace(e, answer=right.get(e.id, "wrong")) for e in group.examples))
        for group in tasks
    ]
    alone = everything(ground, tasks)
    scores = {record.example: record.score for record in alone["records"]}
    assert 0 < scores.pop("long") < 1
    assert list(scores.values()) == [1, 0, 1, 0, 1, 0, 1, 0, 0]
    for found in run_ranks(everything, 2, ground, tasks):
        for kind in ("records", "blind"):
            assert [replace(r, score=0) for r in found[kind]] == [replace(r, score=0) for r in alone[kind]]
            assert [r.score for r in found[kind]] == pytest.approx([r.score for r in alone[kind]], rel=1e-4)


def test_records_are_in_the_order_of_the_examples(ground: Ground, tasks: list[TaskExamples], one_rank: None) -> None:
    records = evaluate_tasks(ground.workspace(), tasks)
    assert [(r.task, r.example) for r in records] == [(g.task.name, e.id) for g in tasks for e in g.examples]
    assert {(record.split, record.blind) for record in records} == {("select", False)}
    asked = [(e.question, e.image, e.answer) for group in tasks for e in group.examples]
    assert [(record.question, record.image, record.answer) for record in records] == asked
    assert all(record.latency_ms is None or record.latency_ms > 0 for record in records)


def test_blind_asks_visual_tasks_only_and_without_images(
    ground: Ground, tasks: list[TaskExamples], one_rank: None
) -> None:
    records = evaluate_tasks(ground.workspace(), tasks, blind=True)
    assert [record.task for record in records] == ["colours"] * 5 + ["single"]
    assert all(record.blind for record in records)
    assert len({record.prediction for record in records[:5]}) == 1


def test_latency_is_positive(ground: Ground, one_rank: None) -> None:
    workspace = ground.workspace()
    assert 0 < latency_ms_per_token(workspace) < 10_000


def record(task: str, example: str, *, score: float = 1.0, prediction: str = "x", blind: bool = False) -> Answered:
    return Answered(task, "select", example, "What?", None, "red", prediction, score, blind, 2.5)


def records_of(task: str, *scores: float) -> list[Answered]:
    return [record(task, f"{task}{n}", score=score) for n, score in enumerate(scores)]


def test_summary_by_hand(tasks: list[TaskExamples]) -> None:
    records = [*records_of("colours", 1, 1, 1, 1), *records_of("single", 0, 1), *records_of("words", 0, 0)]
    summary = summarise(records, tasks)
    assert summary["tasks"] == {"colours": 1.0, "single": 0.5, "words": 0.0}
    assert summary["score_visual"] == 0.75  # tasks count equally, whatever their size
    assert (summary["score_visual_low"], summary["score_visual_high"]) == (0.5, 1.0)
    assert [summary[f"score_textual{end}"] for end in ("", "_low", "_high")] == [0.0, 0.0, 0.0]


def test_summary_without_an_ability(tasks: list[TaskExamples]) -> None:
    summary = summarise(records_of("colours", 1, 0), tasks)
    assert summary["tasks"] == {"colours": 0.5}
    assert summary["score_visual"] == 0.5
    assert [summary[f"score_textual{end}"] for end in ("", "_low", "_high")] == [None, None, None]


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    records = [record("t", "e1", prediction='an "answer"\n'), record("t", "e2", prediction="", score=0.0, blind=True)]
    records.append(replace(records[0], image="a.png", latency_ms=None))
    write_records(tmp_path, records)
    assert read_records(tmp_path) == records
    assert [found.latency_ms for found in read_records(tmp_path)] == [2.5, 2.5, None]
