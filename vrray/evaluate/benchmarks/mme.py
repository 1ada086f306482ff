"""MME (Fu et al. 2023): yes or no, two questions an image; points are accuracy and accuracy+ of each category x 100.

Perception has ten categories and thus 2,000 points, cognition four and 800. Predictions are read as the benchmark's
`calculation.py` reads them; those of LLaVA are found by category, image and prompt as in its conversion.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vrray.data.records import shown
from vrray.errors import DataError
from vrray.evaluate.benchmarks.files import Row, read_lines
from vrray.evaluate.benchmarks.predictions import IDS, match_rows, read_predictions, take_text
from vrray.evaluate.benchmarks.question import (
    Benchmark,
    Pairs,
    Question,
    Scored,
    Summary,
    group_by,
    mean_score,
)

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")

_RELEASE = "MME_Benchmark_release_version"
_IMAGE_SUFFIXES = (".jpg", ".png", ".jpeg")
_INSTRUCTIONS = ("Answer the question using a single word or phrase.", "Please answer yes or no.")
_PREFIX = 4  # characters of an answer that count


def _read(path: Path) -> tuple[Question, ...]:
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; give {_RELEASE}, which has a folder for each category")
    root = path / _RELEASE if (path / _RELEASE).is_dir() else path
    lacking = [category for category in (*PERCEPTION, *COGNITION) if not (root / category).is_dir()]
    if lacking:
        raise DataError(f"{root}: lacks the category {lacking[0]!r}; give {_RELEASE} with all 14 folders")
    return tuple(question for category in (*PERCEPTION, *COGNITION) for question in _read_category(root, category))


def _read_category(root: Path, category: str) -> list[Question]:
    folder = root / category
    split = (folder / "questions_answers_YN").is_dir()
    texts = folder / "questions_answers_YN" if split else folder
    images = folder / "images" if split else folder
    files = sorted(file for file in texts.glob("*.txt") if file.is_file())
    if not files:
        raise DataError(f"{texts}: has no files of questions (.txt); give the whole release")
    return [question for file in files for question in _read_image(root, category, file, images)]


def _read_image(root: Path, category: str, file: Path, images: Path) -> list[Question]:
    lines = [line for line in read_lines(file) if line.strip()]
    if len(lines) != 2:
        raise DataError(f"{file}: {len(lines)} questions where MME has two an image; repair the file")
    present = (images / f"{file.stem}{suffix}" for suffix in _IMAGE_SUFFIXES)
    image = next((found for found in present if found.is_file()), None)
    questions = []
    for number, line in enumerate(lines, start=1):
        text, tab, answer = line.strip().partition("\t")
        if not tab or answer.lower() not in ("yes", "no"):
            raise DataError(f"{file}, line {number}: {shown(line)}; write the question, a tab, and Yes or No")
        questions.append(
            Question(
                id=_key(category, _name(file.name), text),
                question=text,
                answers=(answer.lower(),),
                image=f"{image.relative_to(root)}" if image else None,
                labels={"category": category, "image": f"{category}/{_name(file.name)}"},
            )
        )
    return questions


def _name(file: str) -> str:
    """What the files of an image and of its questions share."""
    return file.split(".")[0]


def _key(category: str, image: str, prompt: str) -> str:
    """Of a question by its prompt: instructions and spaces do not count, as those of the release differ in them."""
    for instruction in _INSTRUCTIONS:
        prompt = prompt.replace(instruction, " ")
    return f"{category}/{image}: {' '.join(prompt.replace('<image>', ' ').split())}"


def yes_or_no(text: str) -> str:
    """`yes`, `no` or `other`: what stands within the first four characters."""
    start = text.lower()[:_PREFIX]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def _match(questions: Sequence[Question], path: Path) -> Pairs:
    if path.is_dir():
        return match_rows(questions, path, list(_read_results(path)), take_text())
    keyed = []
    for row in read_predictions(path):
        image = row.text(*IDS)
        category, slash, name = image.partition("/")
        if not slash:
            raise DataError(f"{row.place}: {shown(image)} is no image of MME; write it as 'existence/0001.png'")
        keyed.append((_key(category, _name(name.rpartition("/")[2]), row.text("prompt")), row))
    return match_rows(questions, path, keyed, take_text())


def _read_results(folder: Path) -> Iterable[tuple[str, Row]]:
    """The rows of the files that `calculation.py` takes: image, question, answer and prediction behind tabs."""
    files = sorted(folder.glob("*.txt"))
    if not files:
        raise DataError(f"{folder}: has no results such as existence.txt; give those of `calculation.py`, or a JSONL")
    for file in files:
        for number, line in enumerate(read_lines(file), start=1):
            place, cells = f"{file}, line {number}", line.split("\t")
            if len(cells) != 4:
                raise DataError(f"{place}: {len(cells)} cells; write image, question, answer and prediction")
            image, prompt, _, prediction = cells
            yield _key(file.stem, _name(image), prompt), Row(place, {"text": prediction})


def _summarise(scored: Sequence[Scored]) -> Summary:
    by_category = group_by(scored, "category")
    figures = {category: _figures(rows) for category, rows in by_category.items()}
    perception, cognition = (
        sum(figures[category]["points"] for category in categories if category in figures)
        for categories in (PERCEPTION, COGNITION)
    )
    detail = {"perception": perception, "cognition": cognition, "categories": figures}
    return Summary(len(scored), perception, detail)


def _figures(rows: Sequence[Scored]) -> dict[str, Any]:
    images = list(group_by(rows, "image").values())
    accuracy = mean_score(rows)
    both = sum(all(row.score == 1 for row in pair) for pair in images) / len(images)
    other = sum(row.prediction is None or yes_or_no(row.prediction) == "other" for row in rows)
    points = accuracy * 100 + both * 100
    return {"n": len(rows), "accuracy": accuracy, "accuracy_plus": both, "points": points, "other": other}


MME = Benchmark(
    name="mme",
    figure="perception points, of 2,000",
    files=f"the folder {_RELEASE}",
    read=_read,
    match=_match,
    score=lambda question, prediction: float(yes_or_no(prediction) == question.answers[0]),
    summarise=_summarise,
)
