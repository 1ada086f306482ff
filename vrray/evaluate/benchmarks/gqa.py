"""GQA (Hudson and Manning 2019): exact match on the balanced questions, as its `eval.py` computes it.

Predictions are what LLaVA's conversion makes of a model's text: lower case, without periods at the end. Consistency,
validity and plausibility are left out: they need all questions, or the file of choices and the scene graphs.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from vrray.data.records import shown
from vrray.errors import DataError
from vrray.evaluate.benchmarks.files import Row, find_file, read_object, rows_in, to_row
from vrray.evaluate.benchmarks.predictions import IDS, match_rows, read_predictions, take_cleaned
from vrray.evaluate.benchmarks.question import (
    Benchmark,
    Pairs,
    Question,
    Scored,
    Summary,
    mean_by,
    mean_score,
)

_NO_STEPS = ("exist", "query: name", "choose name")  # operations that do not count as steps of reasoning
_OPEN = "query"  # the structural type of open questions; all others have two possible answers


def _read(path: Path) -> tuple[Question, ...]:
    file = find_file(path, "testdev_balanced_questions.json", "*_balanced_questions.json", "*questions.json")
    whole = read_object(file)
    return tuple(
        _question(key, to_row(value, f"{whole.place}, question {shown(key)}")) for key, value in whole.values.items()
    )


def _question(key: str, row: Row) -> Question:
    if not row.has("answer"):
        raise DataError(f"{row.place}: lacks the field 'answer', as test splits do; give testdev or val")
    text = row.text("question")
    types, groups = row.inner("types"), row.inner("groups")
    labels = {
        "balanced": "yes" if row.values.get("isBalanced", True) else "no",
        "words": str(len(text.split())),
        **{name: str(types[name]) for name in ("structural", "semantic") if types.get(name) is not None},
    }
    if row.values.get("semantic"):
        labels["steps"] = str(sum(map(_is_step, rows_in(row, "semantic"))))
    if groups.get("global") is not None:
        labels["group"] = str(groups["global"])
    return Question(key, text, (row.text("answer"),), f"{row.text('imageId')}.jpg", labels=labels)


def _is_step(operation: Row) -> bool:
    said = f"{operation.text('operation')}: {operation.values.get('argument', '')}"
    return not any(name in said for name in _NO_STEPS)


def _clean(_: Question, text: str) -> str:
    return text.rstrip(".").lower()


def _match(questions: Sequence[Question], path: Path) -> Pairs:
    keyed = [(row.text(*IDS), row) for row in read_predictions(path)]
    take = take_cleaned(_clean, raw="text", submitted="prediction")
    pairs = match_rows(questions, path, keyed, take, may_lack=True)
    lacking = [question.id for question, prediction in pairs if prediction is None and _is_balanced(question)]
    if lacking:
        raise DataError(
            f"{path}: {len(lacking)} balanced questions have no prediction, the first {shown(lacking[0])}; "
            "answer them too"
        )
    return [(question, prediction) for question, prediction in pairs if _is_balanced(question)]


def _is_balanced(question: Question) -> bool:
    return question.labels["balanced"] == "yes"


def _summarise(scored: Sequence[Scored]) -> Summary:
    binary = [row for row in scored if row.question.labels.get("structural") not in (None, _OPEN)]
    open_ones = [row for row in scored if row.question.labels.get("structural") == _OPEN]
    shares = {name: mean_score(rows) for name, rows in (("binary", binary), ("open", open_ones)) if rows}
    by_type = {label: mean_by(scored, label) for label in ("structural", "semantic")}
    by_size = {
        label: dict(sorted(mean_by(scored, label).items(), key=lambda item: int(item[0])))
        for label in ("steps", "words")
    }
    return Summary(
        len(scored), mean_score(scored), {**shares, "distribution": _distribution(scored), **by_type, **by_size}
    )


def _distribution(scored: Sequence[Scored]) -> float | None:
    """How far the predicted answers of each group are from the true ones: chi-square / 100, weighted by group size."""
    gold: defaultdict[str, Counter[str]] = defaultdict(Counter)
    predicted: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in scored:
        group = row.question.labels.get("group")
        if group is not None and row.prediction is not None:
            gold[group][row.question.answers[0]] += 1
            predicted[group][row.prediction] += 1
    sizes = {group: answers.total() for group, answers in gold.items()}
    if not sizes:
        return None
    distances = {group: _chi_square(answers, predicted[group]) for group, answers in gold.items()}
    return sum(distances[group] * size for group, size in sizes.items()) / sum(sizes.values()) / 100


def _chi_square(expected: Mapping[str, int], observed: Mapping[str, int]) -> float:
    return sum((observed.get(answer, 0) - count) ** 2 / count for answer, count in expected.items())


GQA = Benchmark(
    name="gqa",
    figure="accuracy on the balanced questions",
    files="testdev_balanced_questions.json or its folder",
    read=_read,
    match=_match,
    score=lambda question, prediction: float(prediction == question.answers[0]),
    summarise=_summarise,
    clean=_clean,
)
