"""MMMU (Yue et al. 2024): exact letters, and open answers that hold a reference's number or text.

Responses are parsed as in its `eval_utils.py`; where that draws an option at random because none can be found, the
answer is wrong here.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vrray.data.records import shown
from vrray.errors import DataError
from vrray.evaluate.benchmarks.choices import last_option
from vrray.evaluate.benchmarks.files import Row, find_file, read_json, read_table, rows_of, to_row
from vrray.evaluate.benchmarks.predictions import IDS, match_by_id, match_rows
from vrray.evaluate.benchmarks.question import (
    LETTERS,
    Benchmark,
    Pairs,
    Question,
    Scored,
    Summary,
    mean_summary,
)

_CHOICE = "multiple-choice"
_RAW = ("response", "text", "prediction")
_MOST_OPTIONS = 9
_ID = re.compile(r"(?:validation|dev|test)_(\w+?)_\d+$")
_DISCIPLINES = {
    "Art and Design": "Art Art_Theory Design Music",
    "Business": "Accounting Economics Finance Manage Marketing",
    "Science": "Biology Chemistry Geography Math Physics",
    "Health and Medicine": "Basic_Medical_Science Clinical_Medicine Diagnostics_and_Laboratory_Medicine Pharmacy "
    "Public_Health",
    "Humanities and Social Science": "History Literature Sociology Psychology",
    "Tech and Engineering": "Agriculture Architecture_and_Engineering Computer_Science Electronics Energy_and_Power "
    "Materials Mechanical_Engineering",
}
_DISCIPLINE_OF = {subject: name for name, subjects in _DISCIPLINES.items() for subject in subjects.split()}

_KEYS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_TRIVIAL = {":", ",", ".", "!", "?", ";", "'"}
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def _read(path: Path) -> tuple[Question, ...]:
    files = _files(path)
    if files[0].suffix == ".parquet":
        return tuple(_question(row) for file in files for row in read_table(file))
    (file,) = files
    whole = read_json(file)
    if isinstance(whole, dict) and not any(name in whole for name in IDS):
        return tuple(
            _answer_question(key, to_row(value, f"{file}, question {shown(key)}")) for key, value in whole.items()
        )
    return tuple(_question(row) for row in rows_of(whole, file))


def _files(path: Path) -> list[Path]:
    parts = sorted(path.rglob("validation-*.parquet")) if path.is_dir() else []
    return parts or [find_file(path, "answer_dict_val.json", "answer_dict*.json", "*.parquet")]


def _answer_question(key: str, row: Row) -> Question:
    """A question of the answer dictionary, which holds neither texts nor options."""
    return Question(key, "", row.texts("ground_truth"), labels=_labels(key, row))


def _question(row: Row) -> Question:
    key, options = row.text("id"), _literal(row, "options") if row.has("options") else ()
    answers = _literal(row, "answer")
    if answers == ("?",):
        raise DataError(f"{row.place}: its answer is withheld, as in the test split; give the validation split")
    return Question(key, row.text("question"), answers, _image(row), options, _labels(key, row))


def _image(row: Row) -> str | None:
    for name in ("image_1", "image"):
        value = row.values.get(name)
        value = value.get("path") if isinstance(value, dict) else value
        if isinstance(value, str) and value:
            return value
    return None


def _literal(row: Row, name: str) -> tuple[str, ...]:
    """A field that is a list, or the Python text of one, or one text."""
    value = row.value(name)
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise DataError(f"{row.place}: field {name!r} is {shown(value)}; write a list of texts") from error
        if value == []:
            return ()
        return Row(row.place, {name: value}).texts(name)
    return () if value == [] else row.texts(name)


def _labels(key: str, row: Row) -> dict[str, str]:
    found = _ID.match(key)
    if found is None or found[1] not in _DISCIPLINE_OF:
        raise DataError(f"{row.place}: {shown(key)} is no id such as 'validation_Math_1'; give MMMU's own ids")
    subject = found[1]
    kind = row.text("question_type")
    return {"discipline": _DISCIPLINE_OF[subject], "subject": subject, "question_type": kind}


def _is_choice(question: Question) -> bool:
    return question.labels["question_type"] == _CHOICE


def clean_response(question: Question, response: str) -> str:
    """The letter that a response chooses, "" for none; an open response stays as it is."""
    if not _is_choice(question):
        return response
    letters = LETTERS[: len(question.options) or _MOST_OPTIONS]
    return last_option(response, letters, question.options)


def _match(questions: Sequence[Question], path: Path) -> Pairs:
    """An object of parsed answers by id, as the scripts write it, or rows of raw responses."""
    whole = read_json(path) if path.suffix != ".parquet" else None
    if isinstance(whole, dict) and not any(name in whole for name in IDS):
        return match_by_id(questions, path)
    rows = rows_of(whole, path) if whole is not None else read_table(path)
    keyed = [(row.text("id", "question_id"), row) for row in rows]
    return match_rows(questions, path, keyed, _take)


def _take(question: Question, row: Row) -> str:
    if row.has("index2ans") and not question.options:
        question = replace(question, options=tuple(str(text) for text in row.inner("index2ans").values()))
    return clean_response(question, row.text(*_RAW))


def _score(question: Question, prediction: str) -> float:
    if _is_choice(question):
        return float(prediction in question.answers)
    accepted = [form for answer in question.answers for form in normalize(answer)]
    return float(any(_holds(part, accepted) for part in parse_open(prediction)))


def _holds(part: str | float, accepted: Sequence[str | float]) -> bool:
    if isinstance(part, str):
        return any(isinstance(form, str) and form in part for form in accepted)
    return part in accepted


def parse_open(response: str) -> set[str | float]:
    """The texts and numbers that an open response may mean: what stands behind its last key words."""
    response = response.strip().strip(".").lower()
    lines = response.split("\n")
    parts = []
    for number, line in enumerate(lines, start=1):
        keys = (*_KEYS, "=") if number == len(lines) else _KEYS
        shortest = ""
        for tail in (line.rpartition(key)[2].strip() for key in keys if key in line):
            if not shortest or len(tail) < len(shortest):  # as in the script: an empty tail gives way to the next
                shortest = tail
        if shortest and shortest not in _TRIVIAL:
            parts.append(shortest)
    parts = parts or [response]
    found = [*parts, *(number for part in parts for pattern in _NUMBERS for number in pattern.findall(part))]
    return {form for text in found for form in normalize(text)}


def normalize(text: str) -> list[str | float]:
    """A number rounded to two decimals, or the text in lower case; one letter must stand at a word's end."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def _summarise(scored: Sequence[Scored]) -> Summary:
    return mean_summary(scored, "discipline", "subject", "question_type")


MMMU = Benchmark(
    name="mmmu",
    figure="accuracy",
    files="answer_dict_val.json, or the data set's folder of Parquet files",
    read=_read,
    match=_match,
    score=_score,
    summarise=_summarise,
    clean=clean_response,
    holders=_files,
)
