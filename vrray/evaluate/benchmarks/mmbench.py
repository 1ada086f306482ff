"""MMBench (Liu et al. 2023): circular evaluation, and the sheet that its site takes.

A question counts when the model is right in every pass, each with the options rotated by one. Passes are rows of the
annotations whose indices differ by millions, or rounds of the predictions (`round_id`), as LLaVA's script writes them
with `--all-rounds`. Options are matched as in step 1 of the paper; where that finds none, ChatGPT would be asked, and
the answer is wrong here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vrray.data.records import shown
from vrray.errors import DataError
from vrray.evaluate.benchmarks.choices import matched_option
from vrray.evaluate.benchmarks.files import Row, find_file, iter_csv
from vrray.evaluate.benchmarks.predictions import match_rows, read_predictions, take_text
from vrray.evaluate.benchmarks.question import (
    LETTERS,
    Benchmark,
    Pairs,
    Question,
    Scored,
    Summary,
    group_by,
    mean_by,
    mean_score,
)

_CIRCULAR = 10**6  # by which the indices of one question's passes differ
_CHOICES = "ABCD"
_LEFT_OUT = ("hint", "category", "source", "image", "comment", "l2-category")  # of the submission sheet
_PREDICTION_COLUMN = 6


def _read(path: Path) -> tuple[Question, ...]:
    return tuple(_question(row) for row in _read_rows(path))


def _read_rows(path: Path) -> list[Row]:
    """The rows without their images, which are most of the file."""
    rows = iter_csv(_file(path), delimiter="\t")
    found = [Row(row.place, {name: cell for name, cell in row.values.items() if name != "image"}) for row in rows]
    if not found:
        raise DataError(f"{path}: has no rows; give a file with at least one")
    return found


def _file(path: Path) -> Path:
    return find_file(path, "mmbench_dev*.tsv", "*dev*.tsv", "*.tsv")


def _question(row: Row) -> Question:
    index = row.integer("index")
    if not row.values.get("answer"):
        raise DataError(
            f"{row.place}: lacks the field 'answer', as test splits do; give a dev split, "
            "or send the sheet of `submission_sheet` to the benchmark's site"
        )
    options = _options(row)
    answer = row.text("answer")
    if answer not in tuple(_CHOICES[: len(options)]):
        raise DataError(f"{row.place}: field 'answer' is {shown(answer)} with {len(options)} options; repair the row")
    hint = row.values.get("hint") or ""
    return Question(
        id=str(index),
        question=f"{hint}\n{row.text('question')}" if hint else row.text("question"),
        answers=(answer,),
        image=f"{index % _CIRCULAR}.jpg",
        options=options,
        labels={
            "circular": str(index % _CIRCULAR),
            **{name: row.text(name) for name in ("category", "l2-category") if row.values.get(name)},
        },
    )


def _options(row: Row) -> tuple[str, ...]:
    """The options before the first that is empty."""
    texts: list[str] = []
    for letter in _CHOICES:
        text = row.values.get(letter) or ""
        if not text:
            break
        texts.append(text)
    return tuple(texts)


def rotated(question: Question, rounds: int) -> Question:
    """The question with its options moved to the front by a number of places, and an id of its own."""
    turn = rounds % len(question.options)
    options = question.options[turn:] + question.options[:turn]
    place = (LETTERS.index(question.answers[0]) - turn) % len(options)
    return replace(question, id=f"{question.id}, round {rounds}", options=options, answers=(LETTERS[place],))


def _match(questions: Sequence[Question], path: Path) -> Pairs:
    rows = read_predictions(path)
    if not any(row.has("round_id") and row.integer("round_id") > 0 for row in rows):
        return match_rows(questions, path, [(_key(row), row) for row in rows], take_text(), may_lack=True)
    passes = [rotated(question, number) for question in questions for number in range(len(question.options))]
    keyed = [(f"{_key(row)}, round {row.integer('round_id')}", row) for row in rows]
    return match_rows(passes, path, keyed, take_text(), may_lack=True)


def _key(row: Row) -> str:
    return str(row.integer("question_id", "index"))


def submission_sheet(annotations: Path, predictions: Path) -> tuple[list[str], list[list[str]]]:
    """The columns and rows of the sheet that MMBench's site takes, as LLaVA's conversion writes it.

    A question without a prediction keeps an empty cell; of several rounds the last one counts.

    Raises:
        DataError: a file is missing or malformed, or a prediction is for no row of the annotations.
    """
    rows = _read_rows(annotations)
    texts = {row.text("index"): "" for row in rows}
    for row in read_predictions(predictions):
        if _key(row) not in texts:
            raise DataError(f"{row.place}: question {shown(_key(row))} is not in {annotations}; give what was answered")
        texts[_key(row)] = row.text("text", "prediction", "answer")
    columns = [name for name in rows[0].values if name not in _LEFT_OUT]
    columns.insert(_PREDICTION_COLUMN, "prediction")
    cells = [{**row.values, "prediction": texts[row.text("index")]} for row in rows]
    return columns, [[str(values[column]) for column in columns] for values in cells]


def _score(question: Question, prediction: str) -> float:
    return float(matched_option(prediction, question.options) == question.answers[0])


def _summarise(scored: Sequence[Scored]) -> Summary:
    circular = [_weakest(passes) for passes in group_by(scored, "circular").values()]
    detail = {
        "passes": len(scored),
        "vanilla_accuracy": mean_score(scored),
        "unmatched": sum(
            row.prediction is not None and not matched_option(row.prediction, row.question.options) for row in scored
        ),
        "missing": sum(row.prediction is None for row in scored),
        "category": mean_by(circular, "category"),
        "l2-category": mean_by(circular, "l2-category"),
    }
    return Summary(len(circular), mean_score(circular), detail)


def _weakest(passes: Sequence[Scored]) -> Scored:
    return min(passes, key=lambda row: row.score)


MMBENCH = Benchmark(
    name="mmbench",
    figure="accuracy with circular evaluation",
    files="mmbench_dev_20230712.tsv or its folder",
    read=_read,
    match=_match,
    score=_score,
    summarise=_summarise,
    holders=lambda path: [_file(path)],
)
