"""DocVQA (Mathew et al. 2021) and InfographicVQA (Mathew et al. 2022): ANLS, as their evaluation script computes it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from vrray.errors import DataError
from vrray.evaluate.benchmarks.files import Row, find_file, read_object, rows_in
from vrray.evaluate.benchmarks.predictions import IDS, match_rows, read_predictions, take_text
from vrray.evaluate.benchmarks.question import Benchmark, Pairs, Question, mean_summary
from vrray.evaluate.benchmarks.texts import document_anls

_TEXTS = ("answer", "text", "prediction")


def _read(path: Path, *, patterns: Sequence[str]) -> tuple[Question, ...]:
    whole = read_object(find_file(path, *patterns))
    return tuple(_question(row) for row in rows_in(whole, "data"))


def _question(row: Row) -> Question:
    if not row.has("answers"):
        raise DataError(f"{row.place}: lacks the field 'answers', as test splits do; give the validation split")
    return Question(
        id=str(row.integer("questionId", "question_id")),
        question=row.text("question"),
        answers=row.texts("answers"),
        image=row.text("image", "image_local_name") if row.has("image", "image_local_name") else None,
    )


def _match(questions: Sequence[Question], path: Path) -> Pairs:
    keyed = [(str(row.integer(*reversed(IDS[:2]))), row) for row in read_predictions(path, _TEXTS)]
    return match_rows(questions, path, keyed, take_text(_TEXTS))


def _score(question: Question, prediction: str) -> float:
    return document_anls(prediction, question.answers)


DOCVQA = Benchmark(
    name="docvqa",
    figure="ANLS",
    files="val_v1.0.json or its folder",
    read=partial(_read, patterns=("val_v1.0*.json", "val*.json", "ground_truth*.json", "*.json")),
    match=_match,
    score=_score,
    summarise=mean_summary,
)
INFOGRAPHICVQA = Benchmark(
    name="infographicvqa",
    figure="ANLS",
    files="infographicsVQA_val_v1.0.json or its folder",
    read=partial(_read, patterns=("infographicsVQA_val*.json", "val*.json", "ground_truth*.json", "*.json")),
    match=_match,
    score=_score,
    summarise=mean_summary,
)
