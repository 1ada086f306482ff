"""`vrray grade`: what it prints, and what it says of files that are not right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_benchmark_published import write_json, write_lines, write_text

from vrray.cli import main
from vrray.errors import DataError
from vrray.evaluate.benchmarks.mmbench import submission_sheet
from vrray.evaluate.benchmarks.mme import COGNITION, PERCEPTION
from vrray.evaluate.benchmarks.registry import find_benchmark

QUESTIONS = {
    str(number): {"question": f"what is {number}?", "answer": answer, "imageId": "n1", "isBalanced": True}
    for number, answer in enumerate(("red", "blue", "left"))
}


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    status = main(["grade", *(str(argument) for argument in arguments)])
    captured = capsys.readouterr()
    assert (status, captured.err) == (0, "")
    return json.loads(captured.out)


def refused(capsys: pytest.CaptureFixture[str], task: str, predictions: Path, annotations: Path | None) -> str:
    arguments = ["--task", task, "--predictions", str(predictions)]
    if annotations is not None:
        arguments += ["--annotations", str(annotations)]
    assert main(["grade", *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return write_json(tmp_path / "testdev_balanced_questions.json", QUESTIONS)


def rows(*texts: str) -> list[dict[str, Any]]:
    return [
        {"question_id": str(number), "prompt": "p", "text": text, "answer_id": "x", "model_id": "m", "metadata": {}}
        for number, text in enumerate(texts)
    ]


def test_one_json_object(capsys: pytest.CaptureFixture[str], tmp_path: Path, questions: Path) -> None:
    predictions = write_lines(tmp_path / "p.jsonl", rows("Red.", "green", "LEFT"))
    found = run(capsys, "--task", "gqa", "--predictions", predictions, "--annotations", questions)
    assert list(found) == ["task", "n", "score", "detail"]
    assert (found["task"], found["n"], found["score"]) == ("gqa", 3, pytest.approx(2 / 3))


@pytest.mark.parametrize("name", ["GQA", "ScienceQA-IMG", "scienceqa_img", "SEED-Bench", "OCR-VQA", "HallusionBench"])
def test_names_as_people_write_them(name: str) -> None:
    assert find_benchmark(name).name.replace("-", "") == name.lower().replace("-", "").replace("_", "")


def test_an_unknown_task(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    message = refused(capsys, "sciencqa", tmp_path / "p.jsonl", tmp_path)
    assert "task 'sciencqa' is unknown; did you mean 'scienceqa'? known are ocrvqa, docvqa," in message


@pytest.mark.parametrize("form", ["list", "lines", "numbers", "object", "byte order mark"])
def test_forms_of_predictions(capsys: pytest.CaptureFixture[str], tmp_path: Path, questions: Path, form: str) -> None:
    answers = rows("red", "blue", "left")
    path = tmp_path / "p.json"
    if form == "list":
        write_json(path, answers)
    elif form == "object":
        write_json(path, {row["question_id"]: row["text"] for row in answers})
    elif form == "numbers":
        write_lines(path, [row | {"question_id": int(row["question_id"])} for row in answers])
    else:
        write_lines(path, answers)
    if form == "byte order mark":
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert run(capsys, "--task", "gqa", "--predictions", path, "--annotations", questions.parent)["score"] == 1.0


def test_an_answer_that_was_submitted_is_not_converted(tmp_path: Path, questions: Path, capsys: Any) -> None:
    answers = [{"questionId": "0", "prediction": "Red"}, {"questionId": "1", "prediction": "blue"}]
    path = write_json(tmp_path / "p.json", [*answers, {"questionId": "2", "prediction": "left."}])
    assert run(capsys, "--task", "gqa", "--predictions", path, "--annotations", questions)["score"] == pytest.approx(
        1 / 3
    )


def test_a_file_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path, questions: Path) -> None:
    predictions = write_lines(tmp_path / "p.jsonl", rows("red", "blue", "left"))
    assert "none.jsonl: no such file; check the path" in refused(capsys, "gqa", tmp_path / "none.jsonl", questions)
    assert "none: no such file or folder; check" in refused(capsys, "gqa", predictions, tmp_path / "none")
    assert "task 'gqa' needs --annotations: testdev_balanced" in refused(capsys, "gqa", predictions, None)
    (tmp_path / "empty").mkdir()
    message = refused(capsys, "gqa", predictions, tmp_path / "empty")
    assert "empty: holds none of testdev_balanced_questions.json, " in message
    assert "cannot be read (Is a directory)" in refused(capsys, "gqa", tmp_path, questions)


def test_a_folder_with_two_candidates(capsys: pytest.CaptureFixture[str], tmp_path: Path, questions: Path) -> None:
    questions.rename(tmp_path / "a_balanced_questions.json")
    write_json(tmp_path / "b_balanced_questions.json", QUESTIONS)
    message = refused(capsys, "gqa", write_lines(tmp_path / "p.jsonl", rows("red")), tmp_path)
    assert "2 files match *_balanced_questions.json (a_balanced_questions.json, b_balanced_questions.json)" in message


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (rows("red", "blue"), "1 balanced questions have no prediction, the first '2'"),
        ([*rows("red", "blue", "left"), *rows("red")], "row 4: repeats '0' of {path}, row 1; keep one of them"),
        ([*rows("red", "blue", "left"), {"question_id": "9", "text": "x"}], "row 4: '9' is not among the 3 questions"),
        ([{"question_id": "0"}], "row 1: lacks the field 'text' or 'prediction'; its fields are question_id"),
        ([{"text": "red"}], "row 1: lacks the field 'question_id' or 'questionId' or 'id'; its fields are text"),
        ([{"question_id": "0", "text": None}], "row 1: lacks the field 'text' or 'prediction'"),
        ([{"question_id": "0", "text": ["red"]}], "row 1: field 'text' is ['red']; write a text"),
        ([{"question_id": {}, "text": "red"}], "row 1: field 'question_id' is {}; write a text"),
        ([{"question_id": True, "text": "red"}], "row 1: field 'question_id' is True; write a text"),
    ],
)
def test_rows_that_are_not_right(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, questions: Path, lines: list[dict[str, Any]], message: str
) -> None:
    path = write_lines(tmp_path / "p.jsonl", lines)
    assert message.replace("{path}", str(path)) in refused(capsys, "gqa", path, questions)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "p.jsonl: has no predictions"),
        ("[]", "p.jsonl: has no predictions"),
        ("{}", "p.jsonl: has no predictions"),
        ("[1]", "p.jsonl, row 1: found 1; write an object"),
        ('{"question_id": "0", "text": "red"}\n{"question_id"', "p.jsonl, row 2 (line 2): invalid JSON"),
        ('[{"question_id": "0", "text": "red"},', "p.jsonl, line 1: invalid JSON"),
        ("[" * 100_000, "p.jsonl: nested too deeply"),
    ],
)
def test_files_that_are_not_right(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, questions: Path, text: str, message: str
) -> None:
    assert message in refused(capsys, "gqa", write_text(tmp_path / "p.jsonl", text), questions)


def test_bytes_that_are_not_utf8(capsys: pytest.CaptureFixture[str], tmp_path: Path, questions: Path) -> None:
    (tmp_path / "p.jsonl").write_bytes(b'{"text": "\xff"}')
    assert "p.jsonl: byte 10 is not UTF-8" in refused(capsys, "gqa", tmp_path / "p.jsonl", questions)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "holds a list of 0; this benchmark's file is one JSON object"),
        ({"1": {"question": "q", "imageId": "n"}}, "question '1': lacks the field 'answer', as test splits do"),
        ({"1": "q"}, "question '1': found 'q'; write an object"),
        ({"1": {"question": "q", "answer": "a", "imageId": "n", "types": 3}}, "field 'types' is 3; write an object"),
    ],
)
def test_annotations_that_are_not_right(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, value: Any, message: str
) -> None:
    annotations = write_json(tmp_path / "questions.json", value)
    assert message in refused(capsys, "gqa", write_lines(tmp_path / "p.jsonl", rows("red")), annotations)


def test_annotations_of_another_benchmark(capsys: pytest.CaptureFixture[str], tmp_path: Path, questions: Path) -> None:
    predictions = write_lines(tmp_path / "p.jsonl", rows("red"))
    assert "lacks the field 'data'" in refused(capsys, "textvqa", predictions, questions)
    assert "is no id such as 'validation_Math_1'" in refused(
        capsys,
        "mmmu",
        predictions,
        write_json(tmp_path / "a.json", {"x": {"ground_truth": "A", "question_type": "open"}}),
    )


def test_a_test_split_without_answers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    asked = {"questionId": 1, "question": "q", "image": "x.png"}
    annotations = write_json(tmp_path / "test.json", {"data": [asked]})
    predictions = write_json(tmp_path / "p.json", [{"questionId": 1, "answer": "x"}])
    message = refused(capsys, "docvqa", predictions, annotations)
    assert "test.json, data 1: lacks the field 'answers', as test splits do; give the validation split" in message


def test_two_questions_of_one_id(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    asked = {"questionId": 1, "question": "q", "answers": ["a"]}
    annotations = write_json(tmp_path / "val.json", {"data": [asked, asked]})
    predictions = write_json(tmp_path / "p.json", [{"questionId": "1", "answer": "x"}])
    assert "two questions of the annotations have the id '1'" in refused(capsys, "docvqa", predictions, annotations)


def test_a_prompt_that_asks_something_else(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    asked = {"question_id": 5, "image_id": "im", "question": "What brand?", "answers": ["x"] * 10}
    annotations = write_json(tmp_path / "TextVQA_0.5.1_val.json", {"data": [asked]})

    def answered(prompt: str) -> Path:
        return write_lines(tmp_path / "p.jsonl", [{"question_id": "im", "prompt": prompt, "text": "x"}])

    found = run(
        capsys, "--task", "textvqa", "--predictions", answered("WHAT brand?\nAnswer."), "--annotations", annotations
    )
    assert found["score"] == 1.0
    message = refused(capsys, "textvqa", answered("What colour?\nAnswer."), annotations)
    assert "row 1: the annotations have no question 'What colour?' about 'im'" in message
    assert "field 'prompt' is 'What brand?'" in refused(capsys, "textvqa", answered("What brand?"), annotations)


def pope(folder: Path) -> Path:
    for subset in ("random", "popular"):
        labels = [{"question_id": 1, "image": "1.jpg", "text": f"Is there a {subset} cup?", "label": "yes"}]
        write_lines(folder / f"coco_pope_{subset}.json", labels)
    return folder


def test_pope_by_order(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Without the file of questions the prompts tell the order of the subsets, and nothing else does."""
    answers = [
        {"question_id": 7, "prompt": "Is there a random cup?\nAnswer.", "text": "Yes"},
        {"question_id": 8, "prompt": "Is there a popular cup?\nAnswer.", "text": "No"},
    ]
    predictions = write_lines(tmp_path / "p.jsonl", answers)
    found = run(capsys, "--task", "pope", "--predictions", predictions, "--annotations", pope(tmp_path))
    assert found["detail"]["subsets"]["random"]["f1"] == 1.0
    assert found["detail"]["subsets"]["popular"] == {
        "n": 1, "accuracy": 0.0, "precision": 0.0, "recall": 0.0, "f1": 0.0, "yes_ratio": 0.0
    }  # fmt: skip
    blank = write_lines(tmp_path / "p.jsonl", [{"question_id": row["question_id"], "text": "x"} for row in answers])
    assert "more than one order of the subsets" in refused(capsys, "pope", blank, tmp_path)
    other = write_lines(tmp_path / "p.jsonl", [row | {"prompt": "Is it?"} for row in answers])
    assert "row 1: no order of the subsets popular, random fits" in refused(capsys, "pope", other, tmp_path)
    fewer = write_lines(tmp_path / "p.jsonl", answers[:1])
    assert "1 predictions for 2 labels" in refused(capsys, "pope", fewer, tmp_path)


def test_pope_with_questions_of_another_release(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pope(tmp_path / "coco")
    asked = [
        {"question_id": n, "image": "1.jpg", "text": "q", "category": s} for n, s in enumerate(("random", "popular"))
    ]
    write_lines(tmp_path / "llava_pope_test.jsonl", asked)
    predictions = write_lines(tmp_path / "p.jsonl", [{"question_id": n, "text": "Yes"} for n in (1, 0)])
    assert run(capsys, "--task", "pope", "--predictions", predictions, "--annotations", tmp_path)["score"] == 1.0
    asked[0]["image"] = "2.jpg"
    write_lines(tmp_path / "llava_pope_test.jsonl", asked)
    assert "row 1: is about '2.jpg', its label in" in refused(capsys, "pope", predictions, tmp_path)
    write_lines(tmp_path / "llava_pope_test.jsonl", asked[1:])
    assert "1 labels with 0 questions of 'random'" in refused(capsys, "pope", predictions, tmp_path)


def mme(folder: Path) -> Path:
    for category in (*PERCEPTION, *COGNITION):
        write_text(folder / category / "a.b.txt", "Is it?  Please answer yes or no.\tYes\nIs it not?\tNo\n")
    return folder


def test_mme_in_any_order(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The two questions of an image belong together, wherever their predictions stand."""
    suffix = "Answer the question using a single word or phrase."
    answers = [
        {"question_id": f"{category}/images/a.b.jpg", "prompt": f"<image>\n{asked}\n{suffix}", "text": text}
        for asked, text in (("Is it?", "Yes"), ("Is it not? Please answer yes or no.", "No"))
        for category in (*PERCEPTION, *COGNITION)
    ]
    path = write_lines(tmp_path / "p.jsonl", answers)
    found = run(capsys, "--task", "mme", "--predictions", path, "--annotations", mme(tmp_path / "mme"))
    assert (found["score"], found["detail"]["cognition"], found["n"]) == (2000.0, 800.0, 28)
    message = refused(capsys, "mme", write_lines(path, [answers[0] | {"prompt": "Was it?"}]), tmp_path / "mme")
    assert "row 1: 'existence/a: Was it?' is not among the 28 questions" in message
    message = refused(capsys, "mme", write_lines(path, [answers[0] | {"question_id": "a.b.jpg"}]), tmp_path / "mme")
    assert "row 1: 'a.b.jpg' is no image of MME; write it as 'existence/0001.png'" in message


def test_an_incomplete_release_of_mme(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder, path = mme(tmp_path / "mme"), write_lines(tmp_path / "p.jsonl", rows("x"))
    (folder / "count" / "a.b.txt").write_text("Is it?\tYes\n")
    assert "a.b.txt: 1 questions where MME has two an image" in refused(capsys, "mme", path, folder)
    (folder / "count" / "a.b.txt").write_text("Is it?\tYes\nIs it not?\tmaybe\n")
    assert "a.b.txt, line 2: " in refused(capsys, "mme", path, folder)
    (folder / "count" / "a.b.txt").unlink()
    assert "count: has no files of questions (.txt)" in refused(capsys, "mme", path, folder)
    (folder / "count").rmdir()
    assert "lacks the category 'count'" in refused(capsys, "mme", path, folder)
    assert "no such folder; give MME_Benchmark_release_version" in refused(capsys, "mme", path, path)


def test_missing_predictions_are_wrong_only_where_the_script_says_so(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked = [
        {
            "question_id": str(n),
            "question_type_id": 1,
            "data_type": "image",
            "data_id": "d",
            "question": "q",
            "answer": "A",
        }
        | {f"choice_{letter}": letter for letter in "abcd"}
        for n in range(4)
    ]
    annotations = write_json(tmp_path / "SEED-Bench.json", {"question_type": {"Scene": 1}, "questions": asked})
    predictions = write_lines(tmp_path / "p.jsonl", rows("A"))
    found = run(capsys, "--task", "seedbench", "--predictions", predictions, "--annotations", annotations)
    assert (found["n"], found["score"], found["detail"]["missing"]) == (4, 0.25, 3)


def test_exams_without_answers_or_results(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", rows("A"))
    write_text(tmp_path / "ceval" / "law_test.csv", "id,question,A,B,C,D\n0,q,a,b,c,d\n")
    message = refused(capsys, "ceval", path, tmp_path / "ceval")
    assert (
        "law_test.csv, row 1: lacks the field 'answer', which the test split withholds; give the split val" in message
    )
    write_text(tmp_path / "mmlu" / "law_test.csv", "q,a,b,c,d,A\nq,a,b\n")
    assert "row 2: 3 cells where 6 columns are" in refused(capsys, "mmlu", path, tmp_path / "mmlu")
    write_text(tmp_path / "mmlu" / "law_test.csv", "q,a,b,c,d,E\n")
    assert "row 1: field 'answer' is 'E'; it should be A, B, C or D" in refused(capsys, "mmlu", path, tmp_path / "mmlu")
    write_text(tmp_path / "mmlu" / "law_test.csv", "q,a,b,c,d,A\n")
    write_text(tmp_path / "results" / "law.csv", "0,1,2,3,4,5\nq,a,b,c,d,A\n")
    message = refused(capsys, "mmlu", tmp_path / "results", tmp_path / "mmlu")
    assert "law.csv, row 1: lacks a column *_choiceA_probs" in message


def test_a_test_split_of_mmbench_gives_a_sheet(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    annotations = write_text(tmp_path / "test.tsv", "index\tquestion\tA\tB\timage\n7\tq\tx\ty\taGk=\n")
    predictions = write_lines(tmp_path / "p.jsonl", [{"question_id": 7, "text": "A"}])
    assert "row 1: lacks the field 'answer'" in refused(capsys, "mmbench", predictions, annotations)
    columns, cells = submission_sheet(annotations, predictions)
    assert (columns, cells) == (["index", "question", "A", "B", "prediction"], [["7", "q", "x", "y", "A"]])
    with pytest.raises(DataError, match=r"p\.jsonl, row 1: question '8' is not in"):
        submission_sheet(annotations, write_lines(tmp_path / "p.jsonl", [{"question_id": 8, "text": "A"}]))
