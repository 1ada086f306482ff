"""ScienceQA (Lu et al. 2022): accuracy of the chosen option, as LLaVA's `eval_science_qa.py` computes it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from vrray.data.records import shown
from vrray.errors import DataError
from vrray.evaluate.benchmarks.files import Row, find_file, read_object, to_row
from vrray.evaluate.benchmarks.predictions import match_by_id
from vrray.evaluate.benchmarks.question import (
    LETTERS,
    Benchmark,
    Question,
    Scored,
    Summary,
    letter_answer,
    mean_score,
    mean_summary,
)

_OPTIONS = "ABCDE"
_STATED = re.compile("The answer is ([A-Z]).")  # with any character behind the letter, as in the script


def _read(path: Path, *, images_only: bool) -> tuple[Question, ...]:
    problems_file = find_file(path, "problems.json")
    problems = read_object(problems_file)
    splits = read_object(problems_file.with_name("pid_splits.json"))
    keys = splits.texts("test")
    unknown = [key for key in keys if key not in problems.values]
    if unknown:
        raise DataError(
            f"{problems.place}: lacks problem {shown(unknown[0])} of {splits.place}; give the two of one release"
        )
    questions = [
        _question(key, to_row(problems.values[key], f"{problems.place}, problem {shown(key)}")) for key in keys
    ]
    return tuple(question for question in questions if question.image or not images_only)


def _question(key: str, row: Row) -> Question:
    options, answer = row.texts("choices"), row.integer("answer")
    if not 0 <= answer < len(options) <= len(LETTERS):
        raise DataError(f"{row.place}: field 'answer' is {answer} with {len(options)} choices; repair the row")
    return Question(
        id=key,
        question=row.text("question"),
        answers=letter_answer(answer),
        image=f"{key}/{row.text('image')}" if row.has("image") else None,
        options=options,
        labels={name: row.text(name) for name in ("subject", "grade") if row.has(name)},
    )


def chosen_option(text: str, options: int) -> int:
    """The index of the option that a text chooses, or -1: the letter alone, "A. ...", or "The answer is A." once."""
    if text[:1] in tuple(_OPTIONS) and text[1:3] in ("", ". "):
        letter = text[0]
    else:
        stated = _STATED.findall(text)
        letter = stated[0] if len(stated) == 1 else ""
    return _OPTIONS.index(letter) if letter in tuple(_OPTIONS[:options]) else -1


def _score(question: Question, prediction: str) -> float:
    chosen = chosen_option(prediction, len(question.options))
    return float(chosen >= 0 and LETTERS[chosen] == question.answers[0])


def _summarise(scored: Sequence[Scored]) -> Summary:
    summary = mean_summary(scored, "subject", "grade")
    # The script knows an image by the prompt of a prediction, so those without one do not count there.
    images = [row for row in scored if row.question.image and row.prediction is not None]
    shown = {"image_n": len(images), "image_accuracy": mean_score(images)} if images else {}
    return Summary(summary.n, summary.score, {**shown, **summary.detail})


def _summarise_images(scored: Sequence[Scored]) -> Summary:
    answered = [row for row in scored if row.prediction is not None]
    summary = mean_summary(answered, "subject", "grade")
    missing = len(scored) - len(answered)
    return Summary(summary.n, summary.score, {**summary.detail, **({"missing": missing} if missing else {})})


SCIENCEQA = Benchmark(
    name="scienceqa",
    figure="accuracy on the test split",
    files="the folder of problems.json and pid_splits.json",
    read=partial(_read, images_only=False),
    match=partial(match_by_id, may_lack=True),
    score=_score,
    summarise=_summarise,
)
SCIENCEQA_IMG = Benchmark(
    name="scienceqa-img",
    figure="accuracy on the questions with an image",
    files="the folder of problems.json and pid_splits.json",
    read=partial(_read, images_only=True),
    match=partial(match_by_id, may_lack=True, may_exceed=True),
    score=_score,
    summarise=_summarise_images,
)
