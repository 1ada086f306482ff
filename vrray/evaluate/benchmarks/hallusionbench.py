"""HallusionBench (Guan et al. 2024): accuracy of all questions, of figures and of question pairs.

The figures are those of its `evaluation.py`. There GPT-4 judges whether an answer is correct, incorrect or unclear;
here yes or no is read from the answer, and an answer with neither is unclear. An unclear answer is right only for a
question of visual supplement that is asked without its figure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from vrray.data.records import shown
from vrray.errors import DataError
from vrray.evaluate.benchmarks.files import Row, find_file, read_table, unique
from vrray.evaluate.benchmarks.predictions import IDS, match_rows, read_predictions, take_text
from vrray.evaluate.benchmarks.question import (
    Benchmark,
    Pairs,
    Question,
    Scored,
    Summary,
    group_by,
    mean_by,
    mean_score,
)

_PARTS = ("category", "subcategory", "set_id", "figure_id", "question_id")
_TEXTS = ("model_prediction", "text", "answer", "prediction")
_SUPPLEMENT = "VS"  # visual supplement; VD is visually dependent
_NO_FIGURE = "0"
_WORDS = re.compile(r"[a-z]+")


def _read(path: Path) -> tuple[Question, ...]:
    rows = read_table(_file(path))
    questions = [_question(row) for row in rows]
    unique((question.id, row.place, None) for question, row in zip(questions, rows, strict=True))
    return tuple(questions)


def _file(path: Path) -> Path:
    return find_file(path, "HallusionBench.json", "HallusionBench*.json", "*.parquet")


def _question(row: Row) -> Question:
    parts = {part: row.text(part) for part in _PARTS}
    answer = row.text("gt_answer")
    if answer not in ("0", "1"):
        raise DataError(f"{row.place}: field 'gt_answer' is {shown(answer)}; it should be 0 (no) or 1 (yes)")
    image = None
    if row.text("visual_input") != "0":
        image = f"{parts['category']}/{parts['subcategory']}/{parts['set_id']}_{parts['figure_id']}.png"
    asked, figure = parts["question_id"], parts["figure_id"]
    of_set = "_".join(parts[part] for part in _PARTS[:3])
    labels = {
        "category": parts["category"],
        "subcategory": parts["subcategory"],
        "number": asked,
        "figure_id": figure,
        "pair": f"{of_set}_{asked}",
    }
    if parts["category"] != _SUPPLEMENT or figure != _NO_FIGURE:
        labels["figure"] = f"{of_set}_{figure}"
    return Question(_key(row), row.text("question"), ("yes" if answer == "1" else "no",), image, labels=labels)


def _key(row: Row) -> str:
    return "_".join(row.text(part) for part in _PARTS)


def yes_or_no(text: str) -> str:
    """`yes` or `no` as the first word, or as the only one of the two in the text; else `unclear`."""
    words = _WORDS.findall(text.lower())
    if words and words[0] in ("yes", "no"):
        return words[0]
    found = {"yes", "no"}.intersection(words)
    return found.pop() if len(found) == 1 else "unclear"


def _match(questions: Sequence[Question], path: Path) -> Pairs:
    """Rows by their five parts, by the id that these make, or else in the order of the questions.

    They may leave out all questions that are asked without an image.
    """
    rows = read_predictions(path, _TEXTS)
    keys = [_key(row) if row.has("set_id") and row.has("figure_id") else row.text(*IDS) for row in rows]
    with_image = [question for question in questions if question.image is not None]
    told = set(keys)
    if told.isdisjoint(question.id for question in questions):
        asked = questions if len(rows) == len(questions) else with_image
        keys = [question.id for question in _in_order(asked, rows, path)]
    else:
        asked = with_image if told.isdisjoint(q.id for q in questions if q.image is None) else questions
    return match_rows(asked, path, list(zip(keys, rows, strict=True)), take_text(_TEXTS))


def _in_order(questions: Sequence[Question], rows: Sequence[Row], path: Path) -> Sequence[Question]:
    if len(rows) != len(questions):
        raise DataError(
            f"{path}: {len(rows)} predictions for {len(questions)} questions; without "
            f"{', '.join(_PARTS)} they meet the questions by their order"
        )
    for question, row in zip(questions, rows, strict=True):
        told = (row.text(*IDS), row.text("category") if row.has("category") else question.labels["category"])
        if told != (question.labels["number"], question.labels["category"]):
            raise DataError(
                f"{row.place}: is question {shown(told[0])} of {shown(told[1])} where the annotations "
                f"have {shown(question.id)}; put the predictions in the order of the annotations"
            )
    return questions


def _score(question: Question, prediction: str) -> float:
    said = yes_or_no(prediction)
    if said == "unclear":
        return float("figure" not in question.labels)
    return float(said == question.answers[0])


def _summarise(scored: Sequence[Scored]) -> Summary:
    easy = [row for row in scored if row.question.labels["figure_id"] == _NO_FIGURE]
    hard = [row for row in scored if row.question.labels["figure_id"] != _NO_FIGURE]
    detail = {
        "aAcc": mean_score(scored),
        "fAcc": _all_right(scored, "figure"),
        "qAcc": _all_right(scored, "pair"),
        "easy_qAcc": _all_right(easy, "pair"),
        "hard_qAcc": _all_right(hard, "pair"),
        "unclear": sum(row.prediction is not None and yes_or_no(row.prediction) == "unclear" for row in scored),
        "category": mean_by(scored, "category"),
        "subcategory": mean_by(scored, "subcategory"),
    }
    return Summary(len(scored), mean_score(scored), detail)


def _all_right(scored: Sequence[Scored], label: str) -> float | None:
    """The share of groups in which every answer is right; None without groups."""
    groups = group_by(scored, label).values()
    return sum(all(row.score == 1 for row in rows) for rows in groups) / len(groups) if groups else None


HALLUSIONBENCH = Benchmark(
    name="hallusionbench",
    figure="accuracy of all questions (aAcc)",
    files="HallusionBench.json or its folder",
    read=_read,
    match=_match,
    score=_score,
    summarise=_summarise,
    holders=lambda path: [_file(path)],
)
