"""Benchmarks without an original figure here: their published definitions on worked examples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vrray.errors import DataError
from vrray.evaluate.benchmarks.mmbench import rotated
from vrray.evaluate.benchmarks.question import Question
from vrray.evaluate.benchmarks.registry import BENCHMARKS
from vrray.evaluate.grade import Grade, grade


def write_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def books() -> dict[str, Any]:
    return {
        "001": {
            "imageURL": "http://x/001.gif",
            "genre": "Law",
            "split": 3,
            "questions": ["Who wrote this book?", "Is this book about law?"],
            "answers": ["Ann Lee", "Yes"],
        },
        "002": {"imageURL": "http://x/2.jpg", "genre": "Art", "split": 3, "questions": ["Title?"], "answers": ["Art"]},
        "003": {"imageURL": "http://x/3.jpg", "genre": "Art", "split": 1, "questions": ["Title?"], "answers": ["No"]},
    }


def test_ocrvqa_is_exact_match_on_the_test_split(tmp_path: Path) -> None:
    annotations = write_json(tmp_path / "dataset.json", books())
    answers = [("001_0", "ann lee."), ("001_1", "no"), ("002_0", "The art")]
    predictions = write_lines(tmp_path / "p.jsonl", [{"question_id": key, "text": text} for key, text in answers])
    found = grade("ocrvqa", predictions, annotations)
    assert (found.n, found.score) == (3, pytest.approx(1 / 3))
    assert found.detail["genre"]["Law"] == {"n": 2, "score": 0.5}


def test_ocrvqa_finds_a_question_by_image_and_prompt(tmp_path: Path) -> None:
    rows = [
        {"question_id": "001", "prompt": "Is this book about law?\nAnswer with a word.", "text": "Yes"},
        {"question_id": "001", "prompt": "Who wrote this book?\nAnswer with a word.", "text": "Ann Lee"},
        {"question_id": "002", "prompt": "Title?\nAnswer with a word.", "text": "Art"},
    ]
    found = grade("ocrvqa", write_lines(tmp_path / "p.jsonl", rows), write_json(tmp_path / "dataset.json", books()))
    assert found.score == 1.0


def vqa_files(folder: Path) -> Path:
    given = {1: ["2"] * 10, 2: ["dog"] * 2 + ["cat"] * 8, 3: ["yes"] * 10}
    annotations = [
        {
            "question_id": key,
            "image_id": 42,
            "question_type": "what",
            "answer_type": "yes/no" if key == 3 else "other",
            "multiple_choice_answer": answers[0],
            "answers": [
                {"answer": answer, "answer_confidence": "yes", "answer_id": n} for n, answer in enumerate(answers)
            ],
        }
        for key, answers in given.items()
    ]
    questions = [{"question_id": key, "image_id": 42, "question": f"question {key}"} for key in given]
    write_json(folder / "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": questions})
    whole = {"data_subtype": "val2014", "annotations": annotations}
    return write_json(folder / "v2_mscoco_val2014_annotations.json", whole)


def test_vqav2(tmp_path: Path) -> None:
    answers = [
        {"question_id": 1, "answer": "two"},
        {"question_id": 2, "answer": "the dog"},
        {"question_id": 3, "answer": "no"},
    ]
    vqa_files(tmp_path)
    found = grade("vqav2", write_json(tmp_path / "mine" / "p.json", answers), tmp_path)
    assert [row.score for row in found.rows] == pytest.approx([1.0, 0.6, 0.0])
    assert found.score == pytest.approx(1.6 / 3)
    assert found.detail["answer_type"]["yes/no"] == {"n": 1, "score": 0.0}


def test_texts_of_llava_for_vqav2_are_first_converted_as_for_its_server(tmp_path: Path) -> None:
    rows = [{"question_id": key, "text": text} for key, text in ((1, "Two"), (2, "A cat,"), (3, "Yes?"))]
    found = grade("vqav2", write_lines(tmp_path / "p.jsonl", rows), vqa_files(tmp_path))
    assert [row.prediction for row in found.rows] == ["2", "cat", "yes"]
    assert found.score == 1.0


SHEET = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source", "l2-category"]


def sheet(path: Path, rows: list[tuple[int, list[str], str]]) -> Path:
    lines = ["\t".join(SHEET)]
    for index, options, answer in rows:
        cells = [str(index), "what?", "", *options, *[""] * (4 - len(options)), answer, "c", "aGk=", "s", "l"]
        lines.append("\t".join(cells))
    return write_text(path, "\n".join(lines) + "\n")


def test_mmbench_wants_every_pass_of_a_question_right(tmp_path: Path) -> None:
    """Question 7 is right in both passes, 9 in one of two, 11 has but one pass."""
    rows = [
        (7, ["cat", "dog"], "A"),
        (1000007, ["dog", "cat"], "B"),
        (9, ["red", "blue"], "A"),
        (1000009, ["blue", "red"], "B"),
        (11, ["up", "down", "left"], "C"),
    ]
    answers = {7: "A", 1000007: "the cat", 9: "A.", 1000009: "A", 11: "(C) left"}
    predictions = [{"question_id": key, "text": text} for key, text in answers.items()]
    found = grade("mmbench", write_lines(tmp_path / "p.jsonl", predictions), sheet(tmp_path / "mmbench_dev.tsv", rows))
    assert (found.n, found.score) == (3, pytest.approx(2 / 3))
    assert (found.detail["passes"], found.detail["vanilla_accuracy"]) == (5, pytest.approx(0.8))
    assert found.detail["category"] == {"c": {"n": 3, "score": pytest.approx(2 / 3)}}


def test_mmbench_in_rounds_of_llava(tmp_path: Path) -> None:
    """In round 1 the options are cat, dog -> dog, cat, and the letters stand where they stood."""
    annotations = sheet(tmp_path / "dev.tsv", [(7, ["cat", "dog"], "A"), (9, ["red", "blue"], "A")])
    answers = [(7, 0, "A"), (7, 1, "B"), (9, 0, "A"), (9, 1, "A")]
    rows = [{"question_id": key, "round_id": number, "text": text} for key, number, text in answers]
    found = grade("mmbench", write_lines(tmp_path / "p.jsonl", rows), annotations)
    assert (found.n, found.score, found.detail["vanilla_accuracy"]) == (2, 0.5, 0.75)
    rows.pop(1)
    found = grade("mmbench", write_lines(tmp_path / "p.jsonl", rows), annotations)
    assert (found.score, found.detail["missing"]) == (0.0, 1)


def test_rotating_options_keeps_the_right_one() -> None:
    question = Question("1", "q", ("B",), options=("x", "right", "z"))
    for rounds in range(6):
        turned = rotated(question, rounds)
        assert turned.options["ABC".index(turned.answers[0])] == "right"
        assert turned.options[0] == question.options[rounds % 3]


def hallusion(category: str, figure: int, asked: int, answer: int, visual: int) -> dict[str, Any]:
    return {
        "category": category,
        "subcategory": "map",
        "set_id": "3",
        "figure_id": str(figure),
        "question_id": str(asked),
        "visual_input": str(visual),
        "question": "q",
        "gt_answer": str(answer),
        "gt_answer_details": "d",
        "filename": "x",
    }


HALLUSION = [
    hallusion("VD", 0, 0, 1, 1),
    hallusion("VD", 0, 1, 0, 1),
    hallusion("VD", 1, 0, 0, 1),
    hallusion("VS", 0, 0, 1, 0),
    hallusion("VS", 1, 0, 1, 1),
    hallusion("VS", 2, 0, 0, 2),
]


def test_hallusionbench(tmp_path: Path) -> None:
    """The third answer is wrong. The fourth is unclear, which is right where no figure is shown."""
    answers = ["Yes.", "no", "Yes", "I cannot tell", "yes, it is", "The answer is no"]
    rows = [question | {"model_prediction": answer} for question, answer in zip(HALLUSION, answers, strict=True)]
    predictions = write_json(tmp_path / "mine.json", rows)
    found = grade("hallusionbench", predictions, write_json(tmp_path / "HallusionBench.json", HALLUSION))
    assert [row.score for row in found.rows] == [1, 1, 0, 1, 1, 1]
    assert (found.n, found.score) == (6, pytest.approx(5 / 6))
    assert found.detail["fAcc"] == pytest.approx(3 / 4)  # VD 0, VS 1 and VS 2, not VD 1; VS without a figure is none
    assert found.detail["qAcc"] == pytest.approx(2 / 3)  # VD question 0 is wrong for figure 1
    assert (found.detail["easy_qAcc"], found.detail["hard_qAcc"]) == (1.0, 0.5)
    assert found.detail["unclear"] == 1


def test_hallusionbench_in_the_order_of_the_questions_with_images(tmp_path: Path) -> None:
    """So the Visual-Region repository writes them."""
    asked = [question for question in HALLUSION if question["visual_input"] != "0"]
    rows = [{"question_id": q["question_id"], "category": q["category"], "answer": "Yes"} for q in asked]
    annotations = write_json(tmp_path / "HallusionBench.json", HALLUSION)
    found = grade("hallusionbench", write_lines(tmp_path / "p.jsonl", rows), annotations)
    assert (found.n, found.score) == (5, pytest.approx(2 / 5))
    rows.reverse()
    with pytest.raises(DataError, match=r"p\.jsonl, row 1: is question '0' of 'VS' where the annotations have 'VD_map"):
        grade("hallusionbench", write_lines(tmp_path / "p.jsonl", rows), annotations)


def test_the_only_unclear_answer_that_is_right_has_no_figure() -> None:
    bench = BENCHMARKS["hallusionbench"]
    shown = Question("a", "q", ("yes",), labels={"figure": "f", "pair": "p"})
    hidden = Question("b", "q", ("yes",), labels={"pair": "p"})
    assert (bench.score(shown, "hm"), bench.score(hidden, "hm"), bench.score(hidden, "no")) == (0.0, 1.0, 0.0)


def exam(folder: Path, name: str, lines: list[str]) -> None:
    write_text(folder / name, "\n".join(lines) + "\n")


def mmlu(folder: Path) -> Path:
    exam(folder, "test/law_test.csv", ['"What, then?",a,b,c,d,B', "q1,a,b,c,d,A", "q2,a,b,c,d,C"])
    exam(folder, "test/art_test.csv", ["q0,a,b,c,d,D"])
    return folder


def test_mmlu_is_the_share_of_all_questions(tmp_path: Path) -> None:
    rows = [{"question_id": key, "text": text} for key, text in (("law/0", "B"), ("law/1", "(A)"), ("law/2", "D"))]
    rows.append({"subject": "art", "id": 0, "text": "The answer is C"})  # type: ignore[dict-item]
    found = grade("mmlu", write_lines(tmp_path / "p.jsonl", rows), mmlu(tmp_path / "data"))
    assert (found.n, found.score) == (4, 0.5)
    assert found.detail["subject_mean"] == pytest.approx((2 / 3 + 0) / 2)
    assert found.detail["subjects"]["law"] == {"n": 3, "score": pytest.approx(2 / 3)}


def test_results_of_mmlus_script(tmp_path: Path) -> None:
    header = "0,1,2,3,4,5,ada_correct,ada_choiceA_probs,ada_choiceB_probs,ada_choiceC_probs,ada_choiceD_probs"
    rows = {"law": ["B,True,.1,.7,.1,.1", "A,True,.4,.2,.2,.2", "C,False,.4,.2,.2,.2"], "art": ["D,True,0,0,0,1e-3"]}
    for subject, ends in rows.items():
        exam(tmp_path, f"results/{subject}.csv", [header, *(f"q,a,b,c,d,{end}" for end in ends)])
    found = grade("mmlu", tmp_path / "results", mmlu(tmp_path / "data"))
    assert [row.prediction for row in found.rows] == ["D", "B", "A", "A"]
    assert found.score == 0.75


def test_ceval_is_the_mean_of_the_subjects(tmp_path: Path) -> None:
    exam(tmp_path, "val/law_val.csv", ["id,question,A,B,C,D,answer", "0,q,a,b,c,d,A", "1,q,a,b,c,d,B"])
    exam(tmp_path, "val/art_val.csv", ["id,question,A,B,C,D,answer", "0,q,a,b,c,d,C"])
    submission = {"law": {"0": "A", "1": "C"}, "art": {"0": "C"}}
    found = grade("ceval", write_json(tmp_path / "submission.json", submission), tmp_path)
    assert (found.n, found.score) == (3, 0.75)
    assert found.detail["question_mean"] == pytest.approx(2 / 3)


def test_results_of_cmmlus_script(tmp_path: Path) -> None:
    exam(tmp_path, "data/test/law.csv", [",Question,A,B,C,D,Answer", "0,q,a,b,c,d,A", "1,q,a,b,c,d,B"])
    exam(tmp_path, "data/test/art.csv", [",Question,A,B,C,D,Answer", "0,q,a,b,c,d,C"])
    exam(tmp_path, "mine/results_law.csv", ["0,q,a,b,c,d,A,A", '1,q,a,b,c,d,B,"答案是C,"'])
    exam(tmp_path, "mine/results_art.csv", ["0,q,a,b,c,d,C,C. c"])
    found = grade("cmmlu", tmp_path / "mine", tmp_path / "data")
    assert (found.n, found.score) == (3, 0.75)


def bbh(folder: Path, answers: dict[str, list[str]]) -> Grade:
    for task, targets in {"navigate": ["Yes", "No"], "snarks": ["(A)"]}.items():
        examples = [{"input": "q", "target": target} for target in targets]
        write_json(folder / "bbh" / f"{task}.json", {"canary": "c", "examples": examples})
    return grade("bbh", write_json(folder / "p.json", answers), folder)


def test_big_bench_hard_is_the_mean_of_the_tasks(tmp_path: Path) -> None:
    found = bbh(tmp_path, {"navigate": ["So the answer is Yes.", "no"], "snarks": ["the answer is (A)."]})
    assert (found.n, found.score) == (3, 0.75)
    assert found.detail["tasks"] == {"navigate": {"n": 2, "score": 0.5}, "snarks": {"n": 1, "score": 1.0}}
