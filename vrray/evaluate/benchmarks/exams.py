"""MMLU, C-Eval and CMMLU: four options, by subject.

MMLU's figure is the share of all questions (`evaluate.py` of Hendrycks et al. 2021); that of C-Eval (Huang et al. 2023)
and CMMLU (Li et al. 2023) is the mean of the subjects.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vrray.data.records import shown
from vrray.errors import DataError
from vrray.evaluate.benchmarks.choices import stated_option
from vrray.evaluate.benchmarks.files import Row, read_csv, read_json, rows_of
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

_CHOICES = ("A", "B", "C", "D")
_MMLU = ("question", *_CHOICES, "answer")
_CMMLU_RESULT = ("id", "question", *_CHOICES, "answer", "prediction")
_PROBABILITY = "_choice{}_probs"
_ENDINGS = ("_test", "_val", "_dev")


def _read(path: Path, *, header: Sequence[str] | None, split: str) -> tuple[Question, ...]:
    folder = path / split if (path / split).is_dir() else path
    files = [folder] if folder.is_file() else sorted(folder.glob("*.csv"))
    if not files:
        raise DataError(f"{path}: has no {split}/*.csv, a file for each subject; check the path")
    return tuple(
        _question(row, _subject(file), number)
        for file in files
        for number, row in enumerate(read_csv(file, header=header))
    )


def _subject(file: Path) -> str:
    name = file.stem.removeprefix("results_")
    return next((name.removesuffix(ending) for ending in _ENDINGS if name.endswith(ending)), name)


def _question(row: Row, subject: str, number: int) -> Question:
    if not row.has("answer", "Answer"):
        raise DataError(f"{row.place}: lacks the field 'answer', which the test split withholds; give the split val")
    answer = row.text("answer", "Answer").strip()
    if answer not in _CHOICES:
        raise DataError(f"{row.place}: field 'answer' is {shown(answer)}; it should be A, B, C or D")
    return Question(
        id=f"{subject}/{row.text('id') if row.has('id') else number}",
        question=row.text("question", "Question"),
        answers=(answer,),
        options=tuple(row.text(choice) for choice in _CHOICES),
        labels={"subject": subject},
    )


def _match(questions: Sequence[Question], path: Path) -> Pairs:
    return match_rows(questions, path, list(_read_predictions(path)), take_text(TEXTS))


def _read_predictions(path: Path) -> Iterator[tuple[str, Row]]:
    """Predictions by question id: subject and number of the question in it.

    They come as rows with `question_id` "subject/0", or with `subject` and `id`; as C-Eval's submission, an object of
    subjects with an object of letters each; or as a folder of result files of MMLU's or CMMLU's script.
    """
    if path.is_dir():
        yield from _read_results(path)
        return
    whole = read_json(path)
    if isinstance(whole, dict) and whole and all(isinstance(value, dict) for value in whole.values()):
        for subject, letters in whole.items():
            for key, letter in letters.items():
                yield (
                    f"{subject}/{key}",
                    Row(f"{path}, subject {shown(subject)}, question {shown(key)}", {"text": letter}),
                )
        return
    for row in rows_of(whole, path):
        key = row.text(*IDS)
        yield f"{row.text('subject')}/{key}" if row.has("subject") else key, row


def _read_results(folder: Path) -> Iterator[tuple[str, Row]]:
    files = sorted(folder.glob("*.csv"))
    if not files:
        raise DataError(f"{folder}: has no results (.csv), one for each subject; give those or a JSONL")
    for file in files:
        cmmlu = file.name.startswith("results_")
        for number, row in enumerate(read_csv(file, header=_CMMLU_RESULT if cmmlu else None)):
            text = row.values["prediction"] if cmmlu else _likeliest(row)
            yield f"{_subject(file)}/{number}", Row(row.place, {"text": text})


def _likeliest(row: Row) -> str:
    """The letter of the greatest probability in a result of MMLU's script."""
    probabilities: dict[str, float] = {}
    for choice in _CHOICES:
        name = next((name for name in row.values if name.endswith(_PROBABILITY.format(choice))), None)
        if name is None:
            raise DataError(
                f"{row.place}: lacks a column *{_PROBABILITY.format(choice)}; give what `evaluate.py` wrote"
            )
        try:
            probabilities[choice] = float(row.values[name])
        except ValueError as error:
            raise DataError(f"{row.place}: column {name!r} is {shown(row.values[name])}; write a number") from error
    return max(probabilities, key=probabilities.__getitem__)


def _summarise(scored: Sequence[Scored], *, by_subject: bool) -> Summary:
    subjects = mean_by(scored, "subject")
    micro = mean_score(scored)
    macro = sum(figures["score"] for figures in subjects.values()) / len(subjects)
    detail: dict[str, Any] = {"question_mean": micro, "subject_mean": macro, "subjects": subjects}
    return Summary(len(scored), macro if by_subject else micro, detail)


def _score(question: Question, prediction: str) -> float:
    return float(stated_option(prediction) == question.answers[0])


MMLU = Benchmark(
    name="mmlu",
    figure="accuracy over all questions",
    files="the data folder with test/*_test.csv",
    read=partial(_read, header=_MMLU, split="test"),
    match=_match,
    score=_score,
    summarise=partial(_summarise, by_subject=False),
)
CEVAL = Benchmark(
    name="ceval",
    figure="mean accuracy of the subjects",
    files="the data folder with val/*_val.csv",
    read=partial(_read, header=None, split="val"),
    match=_match,
    score=_score,
    summarise=partial(_summarise, by_subject=True),
)
CMMLU = Benchmark(
    name="cmmlu",
    figure="mean accuracy of the subjects",
    files="the data folder with test/*.csv",
    read=partial(_read, header=None, split="test"),
    match=_match,
    score=_score,
    summarise=partial(_summarise, by_subject=True),
)
