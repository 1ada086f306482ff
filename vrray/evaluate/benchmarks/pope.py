"""POPE (Li et al. 2023): is an object in the image? Three subsets of negatives: random, popular, adversarial.

The figures are those of LLaVA's `eval_pope.py`, which knows a prediction's subset by a file of questions, and its label
by its place within the subset. Without that file predictions stand in the order of the labels, subset by subset.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from pathlib import Path

from vrray.data.records import shown
from vrray.errors import DataError
from vrray.evaluate.benchmarks.files import Row, read_table, unique
from vrray.evaluate.benchmarks.predictions import IDS, match_rows, read_predictions, take_text
from vrray.evaluate.benchmarks.question import Benchmark, Pairs, Question, Scored, Summary, group_by

_PREFIX = "coco_pope_"
_QUESTION_FILES = ("llava_pope_test.jsonl", "questions.jsonl")
_NEGATIONS = {"No", "not", "no"}


def _read(path: Path) -> tuple[Question, ...]:
    folder = path / "coco" if (path / "coco").is_dir() else path
    files = [path] if path.is_file() else sorted(folder.glob(f"{_PREFIX}*.json"))
    if not files:
        raise DataError(f"{path}: has no {_PREFIX}*.json; give the folder that holds the three of them")
    subsets = {file.stem.removeprefix(_PREFIX): read_table(file) for file in files}
    asked = _read_asked(files[0].parent)
    return tuple(
        question
        for subset, labels in subsets.items()
        for question in _questions(subset, labels, None if asked is None else asked.get(subset, []))
    )


def _read_asked(folder: Path) -> dict[str, list[Row]] | None:
    """The rows of LLaVA's file of questions by subset, where it is in the folder of the labels or the one above."""
    places = [place / name for place in (folder, folder.parent) for name in _QUESTION_FILES]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        return None
    subsets: dict[str, list[Row]] = {}
    for row in read_table(file):
        subsets.setdefault(row.text("category"), []).append(row)
    unique((row.text(*IDS), row.place, row) for rows in subsets.values() for row in rows)
    return subsets


def _questions(subset: str, labels: Sequence[Row], asked: Sequence[Row] | None) -> list[Question]:
    if asked is not None and len(asked) != len(labels):
        place = labels[0].place
        raise DataError(
            f"{place}: {len(labels)} labels with {len(asked)} questions of {shown(subset)}; give one release"
        )
    questions = []
    for number, row in enumerate(labels):
        image = row.text("image")
        if asked is not None and asked[number].text("image") != image:
            other = asked[number]
            raise DataError(
                f"{other.place}: is about {shown(other.text('image'))}, its label in {row.place} about {shown(image)}"
            )
        questions.append(
            Question(
                id=asked[number].text(*IDS) if asked is not None else f"{subset}/{number + 1}",
                question=row.text("text"),
                answers=(_label(row),),
                image=image,
                labels={"subset": subset, "identified": "no" if asked is None else "yes"},
            )
        )
    return questions


def _label(row: Row) -> str:
    label = row.text("label")
    if label not in ("yes", "no"):
        raise DataError(f"{row.place}: field 'label' is {shown(label)}; it should be yes or no")
    return label


def yes_or_no(text: str) -> str:
    """`no` where the first sentence has the word No, no or not, else `yes`."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if _NEGATIONS.intersection(words) else "yes"


def _match(questions: Sequence[Question], path: Path) -> Pairs:
    rows = read_predictions(path)
    if all(question.labels["identified"] == "yes" for question in questions):
        return match_rows(questions, path, [(row.text(*IDS), row) for row in rows], take_text())
    if len(rows) != len(questions):
        raise DataError(f"{path}: {len(rows)} predictions for {len(questions)} labels, which they meet by their order")
    ordered = _in_order(questions, rows)
    return [(question, row.text("text", "answer", "prediction")) for question, row in zip(ordered, rows, strict=True)]


def _in_order(questions: Sequence[Question], rows: Sequence[Row]) -> Sequence[Question]:
    """The questions in the order of subsets in which the prompts of the predictions ask them.

    Raises:
        DataError: no order of the subsets fits, or without prompts more than one could.
    """
    subsets: dict[str, list[Question]] = {}
    for question in questions:
        subsets.setdefault(question.labels["subset"], []).append(question)
    orders = [[question for part in order for question in part] for order in permutations(subsets.values())]
    fitting = [order for order in orders if all(map(_fits, order, rows))]
    if len(fitting) != 1:
        found = "no order" if not fitting else "more than one order"
        raise DataError(
            f"{rows[0].place}: {found} of the subsets {', '.join(subsets)} fits the prompts of the predictions; "
            f"put {_QUESTION_FILES[0]}, which was answered, beside the labels"
        )
    return fitting[0]


def _fits(question: Question, row: Row) -> bool:
    return not row.has("prompt", "question") or question.question in row.text("prompt", "question")


def _summarise(scored: Sequence[Scored]) -> Summary:
    subsets = {subset: _figures(rows) for subset, rows in group_by(scored, "subset").items()}
    f1 = sum(figures["f1"] for figures in subsets.values()) / len(subsets)
    return Summary(len(scored), f1, {"subsets": subsets})


def _figures(rows: Sequence[Scored]) -> dict[str, float]:
    said = [row.prediction is not None and yes_or_no(row.prediction) == "yes" for row in rows]
    right = sum(yes and row.question.answers[0] == "yes" for yes, row in zip(said, rows, strict=True))
    present = sum(row.question.answers[0] == "yes" for row in rows)
    precision = right / sum(said) if any(said) else 0.0
    recall = right / present if present else 0.0
    return {
        "n": len(rows),
        "accuracy": sum(row.score for row in rows) / len(rows),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if right else 0.0,
        "yes_ratio": sum(said) / len(rows),
    }


POPE = Benchmark(
    name="pope",
    figure="mean F1 of the subsets",
    files="the folder of coco_pope_*.json, with llava_pope_test.jsonl in it or above it",
    read=_read,
    match=_match,
    score=lambda question, prediction: float(yes_or_no(prediction) == question.answers[0]),
    summarise=_summarise,
)
