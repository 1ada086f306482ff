"""Files of predictions, and which question each of their rows answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from vrray.data.records import shown
from vrray.errors import DataError
from vrray.evaluate.benchmarks.files import Row, read_json, read_table, rows_of, some_of, unique
from vrray.evaluate.benchmarks.question import Pairs, Question

IDS = ("question_id", "questionId", "id")
TEXTS = ("text", "answer", "prediction")  # `text` is what LLaVA's scripts write

Take = Callable[[Question, Row], str]


def read_predictions(path: Path, texts: Sequence[str] = TEXTS) -> list[Row]:
    """The rows of JSON, JSONL or Parquet, or of an object that maps ids to texts.

    Raises:
        DataError: the file cannot be read, or has no rows.
    """
    if path.suffix == ".parquet":
        return read_table(path)
    whole = read_json(path)
    if isinstance(whole, dict) and not any(name in whole for name in (*IDS, *texts)):
        whole = [{IDS[0]: name, texts[0]: text} for name, text in whole.items()]
    rows = rows_of(whole, path)
    if not rows:
        raise DataError(f"{path}: has no predictions; give a file with one for each question")
    return rows


def match_by_id(
    questions: Sequence[Question],
    path: Path,
    *,
    texts: Sequence[str] = TEXTS,
    may_lack: bool = False,
    may_exceed: bool = False,
) -> Pairs:
    """The questions with the predictions whose `question_id` (or `questionId`, `id`) is theirs.

    Args:
        texts: the fields that may hold a prediction, the first that is there counts.
        may_lack: give None for questions without a prediction instead of refusing them.
        may_exceed: pass over predictions for other questions instead of refusing them.

    Raises:
        DataError: a row lacks a field, two have one id, an id is unknown, or a question has no prediction.
    """
    rows = read_predictions(path, texts)
    keyed = [(row.text(*IDS), row) for row in rows]
    return match_rows(questions, path, keyed, take_text(texts), may_lack=may_lack, may_exceed=may_exceed)


def take_text(texts: Sequence[str] = TEXTS) -> Take:
    """Takes the first of some fields as it stands."""
    return lambda _, row: row.text(*texts)


def take_cleaned(clean: Callable[[Question, str], str], raw: str, submitted: str) -> Take:
    """Takes `submitted` as it stands, or else what the benchmark's conversion makes of `raw`."""
    return lambda question, row: (
        row.text(submitted) if not row.has(raw) and row.has(submitted) else clean(question, row.text(raw, submitted))
    )


def match_rows(
    questions: Sequence[Question],
    path: Path,
    keyed: Sequence[tuple[str, Row]],
    take: Take,
    *,
    may_lack: bool = False,
    may_exceed: bool = False,
) -> Pairs:
    """The questions with the rows under their ids (see `match_by_id`)."""
    found: dict[str, Row] = unique((key, row.place, row) for key, row in keyed)
    known = {question.id for question in questions}
    if len(known) < len(questions):
        twice = next(key for key, count in Counter(question.id for question in questions).items() if count > 1)
        raise DataError(f"two questions of the annotations have the id {shown(twice)}; keep one of them")
    for key, row in found.items():
        if key not in known and not may_exceed:
            raise DataError(
                f"{row.place}: {shown(key)} is not among the {len(known)} questions of the annotations, such as "
                f"{some_of([question.id for question in questions])}; give the annotations that were answered"
            )
    missing = [question.id for question in questions if question.id not in found]
    if missing and not may_lack:
        raise DataError(
            f"{path}: {len(missing)} of {len(questions)} questions have no prediction "
            f"({some_of(missing)}); answer them too"
        )
    return [(question, take(question, found[question.id]) if question.id in found else None) for question in questions]


def by_image_and_question(questions: Sequence[Question], rows: Sequence[Row]) -> list[tuple[str, Row]]:
    """The rows with their question's id, where `question_id` may also be the image's and the prompt tells which.

    LLaVA's scripts write them so for TextVQA. The prompt is theirs: the question, a line of instructions, and
    perhaps a line of OCR tokens.

    Raises:
        DataError: no question or prompt of the annotations is meant.
    """
    ids = {question.id for question in questions}
    by_prompt = {(question.labels.get("image_id"), question.question.lower()): question.id for question in questions}
    return [(_question_id(row, ids, by_prompt), row) for row in rows]


def _question_id(row: Row, ids: set[str], by_prompt: dict[tuple[str | None, str], str]) -> str:
    key = row.text(*IDS)
    if key in ids or not row.has("prompt"):
        return key
    asked = _asked(row.text("prompt"), row.place)
    found = by_prompt.get((key, asked.lower()))
    if found is None:
        raise DataError(
            f"{row.place}: the annotations have no question {shown(asked)} about {shown(key)}; "
            "give the annotations that were answered"
        )
    return found


def _asked(prompt: str, place: str) -> str:
    """The question in a prompt of LLaVA's evaluation of TextVQA."""
    if prompt.startswith("OCR tokens: "):
        _, begin, rest = prompt.partition("Question: ")
        question, end, _ = rest.partition(" Short answer:")
        if begin and end:
            return question
    lines = prompt.split("\n")
    if len(lines) == 3 and "Reference OCR token: " in prompt:
        return lines[1] if prompt.startswith("Reference OCR token:") else lines[0]
    if len(lines) == 2:
        return lines[0]
    raise DataError(
        f"{place}: field 'prompt' is {shown(prompt)}; write the question and one line of instructions, "
        "or the question's own id as 'question_id'"
    )
