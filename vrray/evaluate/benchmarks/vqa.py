"""TextVQA, ST-VQA, VQAv2 and OCR-VQA: short answers compared as texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vrray.data.records import shown
from vrray.errors import DataError
from vrray.evaluate.benchmarks.files import Row, find_file, read_object, rows_in, to_row
from vrray.evaluate.benchmarks.predictions import (
    by_image_and_question,
    match_by_id,
    match_rows,
    read_predictions,
    take_cleaned,
    take_text,
)
from vrray.evaluate.benchmarks.question import (
    Benchmark,
    Pairs,
    Question,
    Scored,
    Summary,
    mean_score,
    mean_summary,
)
from vrray.evaluate.benchmarks.texts import (
    is_among,
    normalize_vqa,
    scene_text_anls,
    text_vqa_accuracy,
    vqa_accuracy,
)
from vrray.metrics import exact_match

_TEXT_VQA_ANSWERS = 10
_OCR_VQA_TEST = 3  # its `split` is 1 for training, 2 for validation, 3 for test


def _read_text_vqa(path: Path) -> tuple[Question, ...]:
    whole = read_object(find_file(path, "TextVQA_*_val.json", "*val*.json", "TextVQA_*.json"))
    return tuple(_text_vqa_question(row) for row in rows_in(whole, "data"))


def _text_vqa_question(row: Row) -> Question:
    if not row.has("answers"):
        raise DataError(f"{row.place}: lacks the field 'answers', as the test split does; give the validation split")
    answers = row.texts("answers")
    if len(answers) != _TEXT_VQA_ANSWERS:
        raise DataError(f"{row.place}: {len(answers)} answers where TextVQA has {_TEXT_VQA_ANSWERS}; repair the row")
    image = row.text("image_id")
    return Question(
        id=row.text("question_id"),
        question=row.text("question"),
        answers=answers,
        image=f"{image}.jpg",
        labels={"image_id": image},
    )


def _match_by_image(questions: Sequence[Question], path: Path) -> Pairs:
    return match_rows(questions, path, by_image_and_question(questions, read_predictions(path)), take_text())


TEXTVQA = Benchmark(
    name="textvqa",
    figure="VQA accuracy",
    files="TextVQA_0.5.1_val.json or its folder",
    read=_read_text_vqa,
    match=_match_by_image,
    score=lambda question, prediction: text_vqa_accuracy(prediction, question.answers),
    summarise=mean_summary,
)


def _read_st_vqa(path: Path) -> tuple[Question, ...]:
    whole = read_object(find_file(path, "*task*3*.json", "*.json"))
    return tuple(
        Question(
            id=row.text("question_id"),
            question=row.text("question"),
            answers=row.texts("answers"),
            image=row.text("file_path", "file_name") if row.has("file_path", "file_name") else None,
        )
        for row in rows_in(whole, "data")
    )


def _summarise_st_vqa(scored: Sequence[Scored]) -> Summary:
    answered = [(row.question, row.prediction) for row in scored if row.prediction is not None]
    exact = sum(is_among(prediction, question.answers) for question, prediction in answered)
    return Summary(len(scored), mean_score(scored), {"accuracy": exact / len(scored)})


STVQA = Benchmark(
    name="stvqa",
    figure="ANLS",
    files="train_task_3.json or another task's file with answers",
    read=_read_st_vqa,
    match=match_by_id,
    score=lambda question, prediction: scene_text_anls(prediction, question.answers),
    summarise=_summarise_st_vqa,
)


def _read_vqa_v2(path: Path) -> tuple[Question, ...]:
    file = find_file(path, "v2_mscoco_val*_annotations.json", "*annotations.json")
    whole = read_object(file)
    texts = _question_texts(file)
    subset = whole.text("data_subtype") if whole.has("data_subtype") else "val2014"
    return tuple(_vqa_v2_question(row, subset, texts) for row in rows_in(whole, "annotations"))


def _question_texts(annotations: Path) -> dict[str, str] | None:
    """The questions' texts from the file beside the annotations, where it is there."""
    name = annotations.name.replace("_mscoco_", "_OpenEnded_mscoco_").replace("_annotations", "_questions")
    file = annotations.with_name(name)
    if file == annotations or not file.is_file():
        return None
    return {row.text("question_id"): row.text("question") for row in rows_in(read_object(file), "questions")}


def _vqa_v2_question(row: Row, subset: str, texts: dict[str, str] | None) -> Question:
    members = row.value("answers")
    if not isinstance(members, list) or not members:
        raise DataError(f"{row.place}: field 'answers' is no list of answers; give the official annotations")
    key = row.text("question_id")
    if texts is not None and key not in texts:
        raise DataError(f"{row.place}: the file of questions lacks {shown(key)}; give the two files of one split")
    labels = {name: row.text(name) for name in ("answer_type", "question_type") if row.has(name)}
    return Question(
        id=key,
        question=texts[key] if texts is not None else "",
        answers=tuple(to_row(member, f"{row.place}, answer {n}").text("answer") for n, member in enumerate(members, 1)),
        image=f"COCO_{subset}_{row.integer('image_id'):012d}.jpg",
        labels=labels,
    )


def _clean_vqa_v2(_: Question, text: str) -> str:
    return normalize_vqa(text)


def _match_vqa_v2(questions: Sequence[Question], path: Path) -> Pairs:
    keyed = [(row.text("question_id"), row) for row in read_predictions(path)]
    return match_rows(questions, path, keyed, take_cleaned(_clean_vqa_v2, raw="text", submitted="answer"))


VQAV2 = Benchmark(
    name="vqav2",
    figure="VQA accuracy",
    files="v2_mscoco_val2014_annotations.json or its folder, with the questions beside it",
    read=_read_vqa_v2,
    match=_match_vqa_v2,
    score=lambda question, prediction: vqa_accuracy(prediction, question.answers),
    summarise=lambda scored: mean_summary(scored, "answer_type", "question_type"),
    clean=_clean_vqa_v2,
)


def _read_ocr_vqa(path: Path) -> tuple[Question, ...]:
    whole = read_object(find_file(path, "dataset.json", "*.json"))
    books = [to_row(value, f"{whole.place}, book {shown(key)}") for key, value in whole.values.items()]
    questions = [
        question
        for key, book in zip(whole.values, books, strict=True)
        if book.integer("split") == _OCR_VQA_TEST
        for question in _ocr_vqa_questions(key, book)
    ]
    if not questions:
        raise DataError(f"{whole.place}: no book has the split {_OCR_VQA_TEST}, which is the test; give dataset.json")
    return tuple(questions)


def _ocr_vqa_questions(key: str, book: Row) -> list[Question]:
    asked, answers = book.texts("questions"), book.texts("answers")
    if len(asked) != len(answers):
        raise DataError(f"{book.place}: {len(asked)} questions and {len(answers)} answers; repair it")
    labels = {"image_id": key} | ({"genre": book.text("genre")} if book.has("genre") else {})
    suffix = Path(book.text("imageURL")).suffix if book.has("imageURL") else ""
    return [
        Question(f"{key}_{number}", question, (answer,), f"{key}{suffix or '.jpg'}", labels=labels)
        for number, (question, answer) in enumerate(zip(asked, answers, strict=True))
    ]


OCRVQA = Benchmark(
    name="ocrvqa",
    figure="accuracy",
    files="dataset.json or its folder",
    read=_read_ocr_vqa,
    match=_match_by_image,
    score=lambda question, prediction: float(exact_match(prediction, question.answers[0])),
    summarise=lambda scored: mean_summary(scored, "genre"),
)
