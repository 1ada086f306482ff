"""BIG-Bench Hard (Suzgun et al. 2023): exact match of the final answer; the figure is the mean of the task files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from vrray.data.records import shown
from vrray.errors import DataError
from vrray.evaluate.benchmarks.files import Row, read_json, read_object, rows_in, rows_of
from vrray.evaluate.benchmarks.predictions import IDS, TEXTS, match_rows, take_text
from vrray.evaluate.benchmarks.question import (
    Benchmark,
    Pairs,
    Question,
    Scored,
    Summary,
    mean_by,
    mean_score,
)

_STATES = "answer is"


def _read(path: Path) -> tuple[Question, ...]:
    folder = path / "bbh" if (path / "bbh").is_dir() else path
    files = [folder] if folder.is_file() else sorted(folder.glob("*.json"))
    if not files:
        raise DataError(f"{path}: has no files of tasks such as boolean_expressions.json; check the path")
    return tuple(
        Question(
            id=f"{file.stem}/{number}",
            question=row.text("input"),
            answers=(row.text("target"),),
            labels={"task": file.stem},
        )
        for file in files
        for number, row in enumerate(rows_in(read_object(file), "examples"))
    )


def final_answer(text: str) -> str:
    """What stands behind the last "answer is", as the prompts of the benchmark have it, without the final period."""
    stated = text.rpartition(_STATES)[2] if _STATES in text else text
    lines = stated.strip().splitlines()
    return lines[0].strip().removesuffix(".").strip() if lines else ""


def _match(questions: Sequence[Question], path: Path) -> Pairs:
    return match_rows(questions, path, list(_read_predictions(path)), take_text(TEXTS))


def _read_predictions(path: Path) -> Iterator[tuple[str, Row]]:
    """Rows with `question_id` "task/0", or with `task` and `id`; or an object of tasks with a list of texts each."""
    whole = read_json(path)
    if isinstance(whole, dict) and whole and all(isinstance(value, list) for value in whole.values()):
        for task, texts in whole.items():
            for number, text in enumerate(texts):
                yield f"{task}/{number}", Row(f"{path}, task {shown(task)}, answer {number + 1}", {"text": text})
        return
    for row in rows_of(whole, path):
        key = row.text(*IDS)
        yield f"{row.text('task')}/{key}" if row.has("task") else key, row


def _summarise(scored: Sequence[Scored]) -> Summary:
    tasks = mean_by(scored, "task")
    macro = sum(figures["score"] for figures in tasks.values()) / len(tasks)
    return Summary(len(scored), macro, {"question_mean": mean_score(scored), "task_mean": macro, "tasks": tasks})


BBH = Benchmark(
    name="bbh",
    figure="mean accuracy of the tasks",
    files="the repository's folder bbh of one JSON a task",
    read=_read,
    match=_match,
    score=lambda question, prediction: float(final_answer(prediction) == question.answers[0].strip()),
    summarise=_summarise,
)
