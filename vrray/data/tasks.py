"""Evaluation tasks, their examples, and the floor below which a score shows nothing."""

from __future__ import annotations

import os
import reprlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from vrray.data.records import parse_image_path, read_rows, write_rows
from vrray.errors import DataError
from vrray.metrics import normalize_answer
from vrray.store import content_key

Ability = Literal["visual", "textual"]
ABILITIES: tuple[Ability, ...] = ("visual", "textual")
Metric = Literal["exact", "choice", "likelihood"]
Split = Literal["select", "test"]

MAX_NEW_TOKENS = 6  # of a generated answer; part of an evaluation's key


@dataclass(frozen=True)
class Example:
    """One question. ``image`` is relative to the image root; ``options`` of a choice task hold the answer."""

    id: str
    question: str
    answer: str
    image: str | None = None
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """A named set of examples: ``exact`` compares a generated answer, ``choice`` the options' log-likelihoods."""

    name: str
    ability: Ability
    metric: Metric
    description: str


@dataclass(frozen=True)
class TaskExamples:
    """A task with the examples of one split, and its blind floor there."""

    task: Task
    split: Split
    examples: tuple[Example, ...]
    floor: float

    @cached_property
    def content(self) -> str:
        """A hash of the examples: every question with its answer."""
        return content_key({"examples": [vars(example) for example in self.examples]})


def read_examples(path: str | os.PathLike[str]) -> tuple[Example, ...]:
    """Reads examples from JSONL (or a JSON list).

    Raises:
        DataError: the file or one of its rows is missing or malformed; names the file, line and field.
    """
    examples: dict[str, Example] = {}
    for place, row in read_rows(path):
        example = _parse_example(row, place)
        if example.id in examples:
            raise DataError(f"{place}: field 'id' repeats {example.id!r}; make ids unique")
        examples[example.id] = example
    return tuple(examples.values())


def write_examples(path: str | os.PathLike[str], examples: Iterable[Example]) -> None:
    """Writes JSONL, an example a line; a reader sees the old file or the whole new one."""
    write_rows(path, (_to_row(example) for example in examples))


def prior_floor(examples: Sequence[Example], reference: Sequence[Example] | Mapping[str, Example]) -> float:
    """The expected accuracy of the best guess that sees the question only.

    The guess is the answer most frequent in ``reference`` for the very same question text, else the most frequent
    of all its answers; where there are options only they count, and without evidence the guess is any of them.
    Equally frequent answers share evenly.

    Raises:
        DataError: there are no examples.
    """
    if not examples:
        raise DataError("cannot take the floor of 0 examples; give at least one")
    known = reference.values() if isinstance(reference, Mapping) else reference
    by_question: defaultdict[str, Counter[str]] = defaultdict(Counter)
    overall: Counter[str] = Counter()
    for example in known:
        by_question[example.question][normalize_answer(example.answer)] += 1
        overall[normalize_answer(example.answer)] += 1
    return sum(_expected_score(example, by_question.get(example.question), overall) for example in examples) / len(
        examples
    )


def _expected_score(example: Example, same_question: Counter[str] | None, overall: Counter[str]) -> float:
    options = {normalize_answer(option) for option in example.options}
    guesses = _most_frequent(same_question, options) or _most_frequent(overall, options) or options
    return 1 / len(guesses) if normalize_answer(example.answer) in guesses else 0.0


def _most_frequent(counts: Counter[str] | None, options: set[str]) -> set[str]:
    allowed = {answer: count for answer, count in (counts or {}).items() if not options or answer in options}
    most = max(allowed.values(), default=0)
    return {answer for answer, count in allowed.items() if count == most}


def _parse_example(row: object, place: str) -> Example:
    if not isinstance(row, dict):
        raise DataError(f"{place}: found {reprlib.repr(row)}; write an object with id, question and answer")
    unknown = sorted(row.keys() - {"id", "question", "answer", "image", "options"})
    if unknown:
        raise DataError(f"{place}: unknown field {unknown[0]!r}; keep id, question, answer, image and options")
    example = Example(
        id=_parse_text(row, "id", place),
        question=_parse_text(row, "question", place),
        answer=_parse_text(row, "answer", place),
        image=parse_image_path(row.get("image"), place),
        options=_parse_options(row.get("options", []), place),
    )
    if example.options and example.answer not in example.options:
        raise DataError(f"{place}: field 'options' lacks the answer {example.answer!r}; add it")
    return example


def _parse_text(row: Mapping[str, object], field: str, place: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{place}: field {field!r} is {reprlib.repr(value)}; write a text that is not blank")
    return value


def _parse_options(value: object, place: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(option, str) and option.strip() for option in value):
        raise DataError(f"{place}: field 'options' is {reprlib.repr(value)}; write a list of texts, or leave it out")
    if len(value) == 1 or len({normalize_answer(option) for option in value}) < len(value):
        raise DataError(f"{place}: field 'options' is {reprlib.repr(value)}; write at least two different options")
    return tuple(value)


def _to_row(example: Example) -> dict[str, Any]:
    row: dict[str, Any] = {"id": example.id, "question": example.question, "answer": example.answer}
    if example.image is not None:
        row["image"] = example.image
    if example.options:
        row["options"] = list(example.options)
    return row
