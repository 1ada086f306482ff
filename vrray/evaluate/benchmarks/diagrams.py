"""AI2D (Kembhavi et al. 2016) and ChartQA (Masry et al. 2022), scored as in the Visual-Region repository.

Its scripts number the questions of the data sets `lmms-lab/ai2d` and `lmms-lab/ChartQA` in their order and write the
reference answer beside every prediction, so a file of predictions is enough. Where annotations are given too, both
must name the same answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from vrray.data.records import shown
from vrray.errors import DataError
from vrray.evaluate.benchmarks.choices import first_character
from vrray.evaluate.benchmarks.files import Row, find_file, read_object, read_table, to_row
from vrray.evaluate.benchmarks.predictions import IDS, match_rows, read_predictions
from vrray.evaluate.benchmarks.question import (
    LETTERS,
    Benchmark,
    Pairs,
    Question,
    letter_answer,
    mean_summary,
)

_EMBEDDED = "gt_answer"
_TEXTS = ("answer", "text", "prediction")
_TOLERANCE = 0.05
_AI2D_TEST_IDS = "ai2d_test_ids.csv"
_CHART_PARTS = ("test_human.json", "test_augmented.json")


def _read_ai2d(path: Path) -> tuple[Question, ...]:
    files = _ai2d_files(path)
    if not files:
        return _read_ai2d_release(_release(path))
    return tuple(_ai2d_question(row, number) for number, row in enumerate(read_table(files[0])))


def _release(path: Path) -> Path:
    return path / "ai2d" if (path / "ai2d" / "questions").is_dir() else path


def _ai2d_files(path: Path) -> list[Path]:
    """The file of the data set's rows; none for the release."""
    if (_release(path) / "questions").is_dir():
        return []
    return [find_file(path, "*test*.parquet", "*.parquet", "*test*.json*", "*.json", "*.jsonl")]


def _ai2d_question(row: Row, number: int) -> Question:
    """A row of the data set, or of a file of predictions that holds the reference."""
    if row.has(_EMBEDDED):
        return Question(row.text(*IDS), _prompt(row), letter_answer(_ai2d_index(row, _EMBEDDED, len(LETTERS))))
    options = row.texts("options")
    return Question(
        id=row.text(*IDS) if row.has(*IDS) else str(number),
        question=row.text("question"),
        answers=letter_answer(_ai2d_index(row, "answer", len(options))),
        image=_image(row, "image"),
        options=options,
    )


def _ai2d_index(row: Row, field: str, options: int) -> int:
    index = row.integer(field)
    if not 0 <= index < options:
        raise DataError(f"{row.place}: field {field!r} is {shown(index)}; write the place of an option, from 0")
    return index


def _read_ai2d_release(folder: Path) -> tuple[Question, ...]:
    """The questions of the original release; of the test images alone where their list is beside them."""
    files = sorted((folder / "questions").glob("*.json"))
    places = (folder / _AI2D_TEST_IDS, folder.parent / _AI2D_TEST_IDS)
    listed = next((place for place in places if place.is_file()), None)
    if listed is not None:
        wanted = {line.strip() for line in listed.read_text(encoding="utf-8").splitlines()}
        files = [file for file in files if file.name.split(".")[0] in wanted]
    if not files:
        raise DataError(f"{folder}: has no questions of test images; give the whole release")
    return tuple(question for file in files for question in _ai2d_release_questions(file))


def _ai2d_release_questions(file: Path) -> list[Question]:
    whole = read_object(file)
    questions = []
    for text, value in whole.inner("questions").items():
        row = to_row(value, f"{file}, question {shown(text)}")
        options = row.texts("answerTexts")
        answer = letter_answer(_ai2d_index(row, "correctAnswer", len(options)))
        questions.append(Question(row.text("questionId"), text, answer, whole.text("imageName"), options))
    return questions


def _read_chart_qa(path: Path) -> tuple[Question, ...]:
    rows = [(row, file.name.split(".")[0]) for file in _chart_files(path) for row in read_table(file)]
    return tuple(_chart_question(row, number, part) for number, (row, part) in enumerate(rows))


def _chart_files(path: Path) -> list[Path]:
    if path.is_dir() and all((path / part).is_file() for part in _CHART_PARTS):
        return [path / part for part in _CHART_PARTS]
    return [find_file(path, "*test*.parquet", "*.parquet", "*test*.json", "*.json", "*.jsonl")]


def _chart_question(row: Row, number: int, part: str) -> Question:
    """A row of the original release (`query`, `label`), of the data set, or of predictions with the reference."""
    if row.has(_EMBEDDED):
        labels = {"category": row.text("category")} if row.has("category") else {}
        return Question(row.text(*IDS), _prompt(row), row.texts(_EMBEDDED), labels=labels)
    return Question(
        id=row.text(*IDS) if row.has(*IDS) else str(number),
        question=row.text("query", "question"),
        answers=row.texts("label", "answer"),
        image=_image(row, "imgname", "image"),
        labels={"category": row.text("type") if row.has("type") else part},
    )


def _prompt(row: Row) -> str:
    return row.text("prompt") if row.has("prompt") else ""


def _image(row: Row, *names: str) -> str | None:
    value = row.value(*names) if row.has(*names) else None
    value = value.get("path") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


def _match(questions: Sequence[Question], path: Path, *, reference: Callable[[Question], str]) -> Pairs:
    def take(question: Question, row: Row) -> str:
        beside = row.text(_EMBEDDED) if row.has(_EMBEDDED) else None
        if beside is not None and beside != reference(question):
            raise DataError(
                f"{row.place}: field {_EMBEDDED!r} is {shown(beside)} where the annotations of {shown(question.id)} "
                f"have {shown(reference(question))}; give the annotations that were answered"
            )
        return row.text(*_TEXTS)

    rows = read_predictions(path, _TEXTS)
    return match_rows(questions, path, [(row.text(*IDS), row) for row in rows], take)


def _ai2d_reference(question: Question) -> str:
    return str(LETTERS.index(question.answers[0]))


def _score_ai2d(question: Question, prediction: str) -> float:
    """Whether the character found is the option's letter, or its number from 0, which the script accepts too."""
    found = first_character(prediction)
    answer = _ai2d_reference(question)
    return float(answer == (str("abcd".index(found)) if found in tuple("abcd") else found))


def relaxed_accuracy(prediction: str, answer: str) -> float:
    """Whether a number is within 5 % of the reference, or a text the same but for case (section 5.1 of the paper).

    As in the script a number is what `float` reads, so that 12 % or 1,000 count as texts.
    """
    prediction, answer = prediction.lower(), answer.lower()
    try:
        target = float(answer)
        return float(abs(float(prediction) - target) <= abs(target) * _TOLERANCE)
    except ValueError:
        return float(prediction == answer)


AI2D = Benchmark(
    name="ai2d",
    figure="accuracy",
    files="the release's folder, or the rows of lmms-lab/ai2d; none where predictions hold 'gt_answer'",
    read=_read_ai2d,
    match=partial(_match, reference=_ai2d_reference),
    score=_score_ai2d,
    summarise=mean_summary,
    holders=_ai2d_files,
    embedded=True,
)
CHARTQA = Benchmark(
    name="chartqa",
    figure="relaxed accuracy",
    files="the folder of test_human.json and test_augmented.json, or the rows of lmms-lab/ChartQA; none where "
    "predictions hold 'gt_answer'",
    read=_read_chart_qa,
    match=partial(_match, reference=lambda question: question.answers[0]),
    score=lambda question, prediction: relaxed_accuracy(prediction, question.answers[0]),
    summarise=lambda scored: mean_summary(scored, "category"),
    holders=_chart_files,
    embedded=True,
)
