"""Official files become questions that an evaluation can ask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_benchmark_published import HALLUSION, books, mmlu, sheet, vqa_files, write_json, write_lines, write_text

from vrray.errors import DataError
from vrray.evaluate.benchmarks.mme import COGNITION, PERCEPTION
from vrray.evaluate.benchmarks.question import Question
from vrray.evaluate.benchmarks.registry import BENCHMARKS
from vrray.evaluate.grade import grade

SCORERS = Path(__file__).resolve().parents[3].parent / "shared" / "reference" / "scorers"


def read(task: str, path: Path) -> tuple[Question, ...]:
    return BENCHMARKS[task].read(path)


@pytest.mark.skipif(not SCORERS.is_dir(), reason="the reference scores are not beside this repository")
@pytest.mark.parametrize(
    ("task", "folder", "count", "first"),
    [
        ("gqa", "gqa", 50, ("10001100", "don't walk", "n0.jpg", 0)),
        ("textvqa", "textvqa", 45, ("30000", "samsung", "514f7eb07551913f.jpg", 0)),
        ("docvqa", "docvqa", 40, ("50000", "dog", "x.png", 0)),
        ("scienceqa", "scienceqa", 48, ("78", "D", "78/image.png", 5)),
        ("scienceqa-img", "scienceqa", 25, ("78", "D", "78/image.png", 5)),
        ("seedbench", "seedbench", 44, ("0", "A", "0", 4)),
        ("pope", "pope", 54, ("37", "no", "COCO_0.jpg", 0)),
        ("mmmu", "mmmu", 40, ("validation_Math_1", "Monet", None, 0)),
    ],
)
def test_the_reference_files(task: str, folder: str, count: int, first: tuple[str, str, str | None, int]) -> None:
    questions = read(task, SCORERS / folder)
    assert len(questions) == len({question.id for question in questions}) == count
    question = questions[0]
    assert (question.id, question.answers[0], question.image, len(question.options)) == first
    for question in questions:
        assert question.answers
        assert not question.options or len(question.answers[0]) == 1


def test_ocrvqa(tmp_path: Path) -> None:
    questions = read("ocrvqa", write_json(tmp_path / "dataset.json", books()))
    assert [(q.id, q.question, q.answers, q.image) for q in questions] == [
        ("001_0", "Who wrote this book?", ("Ann Lee",), "001.gif"),
        ("001_1", "Is this book about law?", ("Yes",), "001.gif"),
        ("002_0", "Title?", ("Art",), "002.jpg"),
    ]


def test_vqav2_with_and_without_its_questions(tmp_path: Path) -> None:
    annotations = vqa_files(tmp_path)
    question = read("vqav2", annotations)[0]
    assert (question.question, question.image) == ("question 1", "COCO_val2014_000000000042.jpg")
    assert question.answers == ("2",) * 10
    (tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json").unlink()
    assert read("vqav2", annotations)[0].question == ""


def test_mmbench(tmp_path: Path) -> None:
    rows = [(7, ["cat", "dog"], "A"), (1000007, ["dog", "cat"], "B")]
    first, second = read("mmbench", sheet(tmp_path / "mmbench_dev.tsv", rows))
    assert (first.question, first.options, first.answers) == ("what?", ("cat", "dog"), ("A",))
    assert first.labels["circular"] == second.labels["circular"] == "7"


def test_mmbench_with_a_hint_a_quoted_cell_and_a_large_image(tmp_path: Path) -> None:
    image = "A" * 300_000  # more than the csv module takes by itself
    text = f'index\tquestion\thint\tA\tB\tanswer\timage\n7\t"two\nlines ""quoted"""\tlook\tx\ty\tB\t{image}\n'
    (question,) = read("mmbench", write_text(tmp_path / "dev.tsv", text))
    assert question.question == 'look\ntwo\nlines "quoted"'
    assert (question.options, question.answers) == (("x", "y"), ("B",))


def test_mme_with_images_beside_the_questions(tmp_path: Path) -> None:
    for category in (*PERCEPTION, *COGNITION):
        write_text(tmp_path / category / "questions_answers_YN" / "1.txt", "Is it?\tYes\r\nIs it not?\tNo\r\n")
    (tmp_path / "OCR" / "images").mkdir()
    (tmp_path / "OCR" / "images" / "1.jpg").touch()
    questions = read("mme", tmp_path)
    assert len(questions) == 28
    images = {question.labels["category"]: question.image for question in questions}
    assert (images["OCR"], images["count"]) == ("OCR/images/1.jpg", None)
    assert {question.answers for question in questions} == {("yes",), ("no",)}


def test_hallusionbench(tmp_path: Path) -> None:
    questions = read("hallusionbench", write_json(tmp_path / "HallusionBench.json", HALLUSION))
    assert [(q.id, q.answers[0], q.image) for q in questions[2:4]] == [
        ("VD_map_3_1_0", "no", "VD/map/3_1.png"),
        ("VS_map_3_0_0", "yes", None),
    ]


def mmmu_rows() -> list[dict[str, Any]]:
    image = {"bytes": b"png", "path": "validation_Math_1_1.png"}
    return [
        {
            "id": "validation_Math_1",
            "question": "<image 1> which?",
            "options": "['red', \"it's blue\"]",
            "answer": "B",
            "question_type": "multiple-choice",
            "image_1": image,
        },
        {
            "id": "validation_Math_2",
            "question": "how many?",
            "options": "[]",
            "answer": "['8', '8.0']",
            "question_type": "open",
            "image_1": image,
        },
    ]


def test_mmmu_in_parquet(tmp_path: Path) -> None:
    (tmp_path / "Math").mkdir()
    pq.write_table(pa.Table.from_pylist(mmmu_rows()), tmp_path / "Math" / "validation-00000-of-00001.parquet")
    choice, open_one = read("mmmu", tmp_path)
    assert (choice.options, choice.answers, choice.image) == (("red", "it's blue"), ("B",), "validation_Math_1_1.png")
    assert (open_one.options, open_one.answers) == ((), ("8", "8.0"))
    assert choice.labels["discipline"] == "Science"
    rows = [
        {"id": "validation_Math_1", "response": "It surely must be that it's blue"},
        {"id": "validation_Math_2", "response": "8"},
    ]
    found = grade("mmmu", write_lines(tmp_path / "p.jsonl", rows), tmp_path)
    assert ([row.prediction for row in found.rows], found.score) == (["B", "8"], 1.0)


@pytest.mark.parametrize("options", ["[red", "['a', open('x')]", "[1, {}]"])
def test_options_of_mmmu_are_literals_and_nothing_else(tmp_path: Path, options: str) -> None:
    path = write_json(tmp_path / "rows.json", [mmmu_rows()[1] | {"options": options, "image_1": None}])
    with pytest.raises(DataError, match=r"rows\.json, row 1: field 'options' is .*; write "):
        read("mmmu", path)


def test_the_release_of_ai2d(tmp_path: Path) -> None:
    for number in (0, 1):
        asked = {"answerTexts": ["x", "y"], "correctAnswer": 1, "questionId": f"{number}.png-0", "abcLabel": False}
        write_json(
            tmp_path / "ai2d" / "questions" / f"{number}.png.json",
            {"imageName": f"{number}.png", "questions": {"Which?": asked}},
        )
    assert [question.id for question in read("ai2d", tmp_path)] == ["0.png-0", "1.png-0"]
    write_text(tmp_path / "ai2d_test_ids.csv", "1\n")
    (question,) = read("ai2d", tmp_path)
    assert question == Question("1.png-0", "Which?", ("B",), "1.png", ("x", "y"))


def test_rows_of_ai2d_and_their_predictions(tmp_path: Path) -> None:
    data = [{"question": "Which?", "options": ["x", "y"], "answer": "1", "image": {"bytes": b"", "path": "a.png"}}]
    pq.write_table(pa.Table.from_pylist(data), tmp_path / "test-00000.parquet")
    (question,) = read("ai2d", tmp_path)
    assert question == Question("0", "Which?", ("B",), "a.png", ("x", "y"))
    rows = [{"question_id": 0, "answer": "B", "gt_answer": "1"}]
    assert grade("ai2d", write_lines(tmp_path / "p.jsonl", rows), tmp_path).score == 1.0
    rows[0]["gt_answer"] = "0"
    with pytest.raises(DataError, match=r"row 1: field 'gt_answer' is '0' where the annotations of '0' have '1'"):
        grade("ai2d", write_lines(tmp_path / "p.jsonl", rows), tmp_path)


def test_the_release_of_chartqa(tmp_path: Path) -> None:
    human = [{"imgname": "1.png", "query": "how many?", "label": "14"}]
    write_json(tmp_path / "test_human.json", human)
    assert read("chartqa", tmp_path / "test_human.json")[0] == Question(
        "0", "how many?", ("14",), "1.png", labels={"category": "test_human"}
    )
    write_json(tmp_path / "test_augmented.json", [{"imgname": "2.png", "query": "which?", "label": "red"}])
    questions = read("chartqa", tmp_path)
    assert [(q.id, q.labels["category"]) for q in questions] == [("0", "test_human"), ("1", "test_augmented")]
    rows = [{"question_id": 0, "answer": "14.5"}, {"question_id": "1", "answer": "Red"}]
    found = grade("chartqa", write_lines(tmp_path / "p.jsonl", rows), tmp_path)
    assert (found.n, found.score) == (2, 1.0)


def test_mmlu(tmp_path: Path) -> None:
    questions = read("mmlu", mmlu(tmp_path))
    assert [question.id for question in questions] == ["art/0", "law/0", "law/1", "law/2"]
    labels = {"subject": "law"}
    assert questions[1] == Question("law/0", "What, then?", ("B",), options=("a", "b", "c", "d"), labels=labels)


def test_every_benchmark_says_what_it_measures_and_where_from() -> None:
    assert len(BENCHMARKS) == 21
    for name, benchmark in BENCHMARKS.items():
        assert benchmark.name == name
        assert benchmark.figure
        assert benchmark.files
    text = (Path(__file__).resolve().parents[3] / "docs" / "evaluation.md").read_text()
    assert all(f"| `{name}` |" in text for name in BENCHMARKS)


def test_a_question_is_a_value() -> None:
    assert hash(Question("1", "q", ("a",), labels={"x": "y"})) == hash(Question("1", "q", ("a",)))
    assert json.dumps(Question("1", "q", ("a",)).answers) == '["a"]'
