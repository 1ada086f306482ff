"""What the readers of all benchmarks give, and what a scorer and a summary of a benchmark are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vrray.errors import DataError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Question:
    """One question of an official file.

    Attributes:
        id: unique within its benchmark.
        question: its text, without options and instructions; "" where the annotation file holds answers alone.
        answers: all reference answers, in the file's order; of a choice the letter of the option, `A` first.
        image: the image's name as the benchmark ships it, relative to its image folder.
        options: the texts behind the letters; none for an open question.
        labels: what the benchmark groups its figures by, such as a category.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    image: str | None = None
    options: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Scored:
    """A question with its prediction as the scorer took it (None: there was none) and its score, 0 to 1."""

    question: Question
    prediction: str | None
    score: float


@dataclass(frozen=True)
class Summary:
    """The main figure over `n` questions, and the figures beside it."""

    n: int
    score: float
    detail: Mapping[str, Any]


Pairs = Sequence[tuple[Question, str | None]]


@dataclass(frozen=True)
class Benchmark:
    """How one benchmark is read and scored.

    Attributes:
        name: what `--task` names it.
        figure: the main figure in words.
        files: the annotation file or folder, in words.
        read: the questions of an annotation file or folder.
        match: the questions with the predictions of a file, as `score` takes them; None for one that is missing.
        score: of one question and its prediction, 0 to 1.
        summarise: the benchmark's figures over scored questions; those without a prediction have the score 0.
        clean: a model's text as the benchmark's script turns it into a prediction, before it is scored.
        holders: the files of an annotation path of which `read` makes every row a question, in this order; their rows
            may hold the images, too.
        embedded: whether files of predictions hold the reference answers, so that no annotations are needed.
    """

    name: str
    figure: str
    files: str
    read: Callable[[Path], tuple[Question, ...]]
    match: Callable[[Sequence[Question], Path], Pairs]
    score: Callable[[Question, str], float]
    summarise: Callable[[Sequence[Scored]], Summary]
    clean: Callable[[Question, str], str] = lambda _, text: text
    holders: Callable[[Path], Sequence[Path]] = lambda _: ()
    embedded: bool = False

    def score_text(self, question: Question, text: str) -> float:
        """The score of what a model generated for one question."""
        return self.score(question, self.clean(question, text))


def score_pairs(benchmark: Benchmark, pairs: Pairs) -> tuple[Scored, ...]:
    """The pairs with their scores, in their order."""
    return tuple(
        Scored(question, prediction, 0.0 if prediction is None else benchmark.score(question, prediction))
        for question, prediction in pairs
    )


def mean_summary(scored: Sequence[Scored], *labels: str) -> Summary:
    """The mean score of all questions, and by each of some labels.

    Raises:
        DataError: there are no questions.
    """
    detail: dict[str, Any] = {label: groups for label in labels if (groups := mean_by(scored, label))}
    missing = sum(row.prediction is None for row in scored)
    return Summary(len(scored), mean_score(scored), detail | ({"missing": missing} if missing else {}))


def mean_score(scored: Sequence[Scored]) -> float:
    """The mean score.

    Raises:
        DataError: there are no questions.
    """
    if not scored:
        raise DataError("there are 0 questions to score; give annotations with at least one")
    return sum(row.score for row in scored) / len(scored)


def mean_by(scored: Iterable[Scored], label: str) -> dict[str, dict[str, float]]:
    """Number and mean score by the value of a label, sorted; questions without the label are left out."""
    return {
        value: {"n": len(rows), "score": mean_score(rows)} for value, rows in sorted(group_by(scored, label).items())
    }


def group_by(scored: Iterable[Scored], label: str) -> dict[str, list[Scored]]:
    """The rows by the value of a label; questions without the label are left out."""
    groups: defaultdict[str, list[Scored]] = defaultdict(list)
    for row in scored:
        if label in row.question.labels:
            groups[row.question.labels[label]].append(row)
    return dict(groups)


def letter_answer(index: int) -> tuple[str, ...]:
    """The answers of a choice whose right option has a place, from 0."""
    return (LETTERS[index],)
