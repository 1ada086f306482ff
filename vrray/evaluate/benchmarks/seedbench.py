"""SEED-Bench (Li et al. 2023): the chosen letter, as LLaVA's `convert_seed_for_submission.py` compares it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vrray.data.records import shown
from vrray.errors import DataError
from vrray.evaluate.benchmarks.files import Row, find_file, read_object, rows_in
from vrray.evaluate.benchmarks.predictions import IDS, match_rows, read_predictions, take_text
from vrray.evaluate.benchmarks.question import Benchmark, Pairs, Question, mean_summary

_CHOICES = ("choice_a", "choice_b", "choice_c", "choice_d")


def _read(path: Path) -> tuple[Question, ...]:
    whole = read_object(find_file(path, "SEED-Bench*.json", "*.json"))
    names = {str(number): name for name, number in whole.inner("question_type").items()}
    return tuple(_question(row, names) for row in rows_in(whole, "questions"))


def _question(row: Row, names: dict[str, str]) -> Question:
    answer = row.text("answer")
    if answer not in ("A", "B", "C", "D"):
        raise DataError(f"{row.place}: field 'answer' is {shown(answer)}; it should be A, B, C or D")
    kind = row.text("question_type_id")
    return Question(
        id=_key(row, "question_id"),
        question=row.text("question"),
        answers=(answer,),
        image=row.text("data_id"),
        options=tuple(row.text(choice) for choice in _CHOICES),
        labels={"question_type": names.get(kind, kind), "data_type": row.text("data_type")},
    )


def _key(row: Row, *names: str) -> str:
    """An id, of which leading zeros do not count where it is a number."""
    text = row.text(*names)
    return text.lstrip("0") or "0" if text.isdecimal() else text


def _match(questions: Sequence[Question], path: Path) -> Pairs:
    keyed = [(_key(row, *IDS), row) for row in read_predictions(path)]
    return match_rows(questions, path, keyed, take_text(), may_lack=True)


SEEDBENCH = Benchmark(
    name="seedbench",
    figure="accuracy on images and videos",
    files="SEED-Bench.json or its folder",
    read=_read,
    match=_match,
    score=lambda question, prediction: float(prediction == question.answers[0]),
    summarise=lambda scored: mean_summary(scored, "data_type", "question_type"),
)
