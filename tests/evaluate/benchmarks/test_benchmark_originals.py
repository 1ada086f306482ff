"""Scores equal those that the original scripts printed, row by row."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from vrray.evaluate.benchmarks.choices import first_character, last_option
from vrray.evaluate.benchmarks.mmbench import submission_sheet
from vrray.evaluate.benchmarks.mmmu import parse_open
from vrray.evaluate.benchmarks.registry import BENCHMARKS
from vrray.evaluate.benchmarks.scienceqa import chosen_option
from vrray.evaluate.benchmarks.texts import is_among, normalize_vqa, scene_text_anls
from vrray.evaluate.grade import Grade, grade

SCORERS = Path(__file__).resolve().parents[3].parent / "shared" / "reference" / "scorers"
pytestmark = pytest.mark.skipif(not SCORERS.is_dir(), reason="the reference scores are not beside this repository")


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return json.loads((SCORERS / "expected.json").read_text())


def graded(task: str, predictions: str, annotations: str | None = None) -> Grade:
    return grade(task, SCORERS / predictions, None if annotations is None else SCORERS / annotations)


def scores(found: Grade) -> list[float]:
    return [row.score for row in found.rows]


def rows_of(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (SCORERS / name).read_text().splitlines()]


@pytest.mark.parametrize("predictions", ["predictions.jsonl", "testdev_balanced_predictions.json"])
@pytest.mark.parametrize("annotations", ["gqa", "gqa/testdev_balanced_questions.json"])
def test_gqa(expected: dict[str, Any], predictions: str, annotations: str) -> None:
    found = graded("gqa", f"gqa/{predictions}", annotations)
    assert found.n == 41  # of 50 questions the balanced ones
    assert found.score * 100 == pytest.approx(expected["gqa"]["accuracy_percent_2dp"], abs=0.005)
    text = expected["gqa"]["stdout"]
    assert f"Binary: {found.detail['binary']:.2%}\nOpen: {found.detail['open']:.2%}\n" in text
    assert f"Distribution: {found.detail['distribution']:.2f} (lower is better)" in text
    titles = {
        "structural": "structural type",
        "semantic": "semantic type",
        "steps": "steps number",
        "words": "words number",
    }
    for label, title in titles.items():
        lines = [f"  {name}: {row['score']:.2%} ({row['n']} questions)\n" for name, row in found.detail[label].items()]
        assert f"Accuracy / {title}:\n{''.join(lines)}\n" in f"{text}\n"


@pytest.mark.parametrize("annotations", ["textvqa", "textvqa/TextVQA_0.5.1_val.json"])
def test_textvqa(expected: dict[str, Any], annotations: str) -> None:
    found = graded("textvqa", "textvqa/predictions.jsonl", annotations)
    assert found.n == expected["textvqa"]["samples"]
    assert scores(found) == pytest.approx(expected["textvqa"]["per_row"], abs=1e-6)
    assert found.score * 100 == pytest.approx(expected["textvqa"]["accuracy_percent_2dp"], abs=0.005)


def test_the_normalisation_of_vqa() -> None:
    for row in json.loads((SCORERS / "textvqa/answer_normaliser.json").read_text()):
        assert normalize_vqa(row["raw"]) == row["normalised"]


def test_the_evaluators_of_st_vqa() -> None:
    expected = json.loads((SCORERS / "textvqa/stvqa.json").read_text())
    pairs = [(row["pred_answer"], row["gt_answers"]) for row in expected["rows"]]
    assert [scene_text_anls(*pair) for pair in pairs] == pytest.approx(expected["anls_per_row"], abs=1e-6)
    assert [is_among(*pair) for pair in pairs] == expected["accuracy_per_row"]


def test_a_file_of_st_vqa(tmp_path: Path) -> None:
    expected = json.loads((SCORERS / "textvqa/stvqa.json").read_text())
    rows = list(enumerate(expected["rows"]))
    data = [
        {"question_id": n, "question": f"q{n}", "answers": row["gt_answers"], "file_path": "a/b.jpg"} for n, row in rows
    ]
    (tmp_path / "train_task_3.json").write_text(json.dumps({"data": data}))
    answers = [{"question_id": n, "answer": row["pred_answer"]} for n, row in rows]
    (tmp_path / "mine.json").write_text(json.dumps(answers))
    found = grade("stvqa", tmp_path / "mine.json", tmp_path / "train_task_3.json")
    assert found.score == pytest.approx(expected["anls"], abs=1e-6)
    assert found.detail["accuracy"] == pytest.approx(expected["accuracy"], abs=1e-6)


def test_scienceqa(expected: dict[str, Any]) -> None:
    figures = expected["scienceqa"]
    found = graded("scienceqa", "scienceqa/predictions.jsonl", "scienceqa")
    assert found.n == figures["count"]
    assert sum(scores(found)) == figures["correct"]
    assert found.score * 100 == pytest.approx(figures["accuracy_percent"], abs=1e-6)
    assert found.detail["image_n"] == figures["image_count"]
    assert found.detail["image_accuracy"] * 100 == pytest.approx(figures["image_accuracy_percent"], abs=1e-6)
    assert found.detail["missing"] == 4
    texts = {row.question.id: (row.prediction or "FAILED", len(row.question.options)) for row in found.rows}
    assert {key: chosen_option(*text) for key, text in texts.items()} == figures["per_row_predicted_index"]


def test_the_images_of_scienceqa(expected: dict[str, Any]) -> None:
    found = graded("scienceqa-img", "scienceqa/predictions.jsonl", "scienceqa/problems.json")
    assert found.n == expected["scienceqa"]["image_count"]
    assert found.score * 100 == pytest.approx(expected["scienceqa"]["image_accuracy_percent"], abs=1e-6)
    assert sum(scores(found)) == expected["scienceqa"]["image_correct"]


@pytest.mark.parametrize("annotations", ["pope", "pope/coco"])
def test_pope(expected: dict[str, Any], annotations: str) -> None:
    found = graded("pope", "pope/predictions.jsonl", annotations)
    assert found.score == pytest.approx(expected["pope"]["average_f1"], abs=1e-6)
    for subset, figures in expected["pope"]["categories"].items():
        assert found.detail["subsets"][subset] == pytest.approx({"n": 18, **figures}, abs=1e-6)


def test_pope_without_the_file_of_questions(tmp_path: Path, expected: dict[str, Any]) -> None:
    """The order of the subsets is then known from the prompts."""
    shutil.copytree(SCORERS / "pope/coco", tmp_path / "coco")
    found = grade("pope", SCORERS / "pope/predictions.jsonl", tmp_path / "coco")
    assert found.score == pytest.approx(expected["pope"]["average_f1"], abs=1e-6)


@pytest.mark.parametrize("predictions", ["mme/answers/exp.jsonl", "mme/answers_upload/exp"])
@pytest.mark.parametrize("annotations", ["mme", "mme/MME_Benchmark_release_version"])
def test_mme(expected: dict[str, Any], predictions: str, annotations: str) -> None:
    found = graded("mme", predictions, annotations)
    assert found.n == 70
    assert found.score == pytest.approx(expected["mme"]["perception_total"], abs=1e-6)
    assert found.detail["cognition"] == pytest.approx(expected["mme"]["cognition_total"], abs=1e-6)
    points = {category: figures["points"] for category, figures in found.detail["categories"].items()}
    assert points == pytest.approx(expected["mme"]["tasks"], abs=1e-6)


@pytest.mark.parametrize("annotations", ["mmmu", "mmmu/answer_dict_val.json"])
def test_mmmu(expected: dict[str, Any], annotations: str) -> None:
    found = graded("mmmu", "mmmu/output.json", annotations)
    figures = dict(expected["mmmu"]["printed"])
    overall = figures.pop("Overall")
    assert (found.n, round(found.score, 3)) == (overall["num"], overall["acc"])
    groups = {f"Overall-{name}": value for name, value in found.detail["discipline"].items()}
    groups |= found.detail["subject"]
    assert {name: {"num": value["n"], "acc": round(value["score"], 3)} for name, value in groups.items()} == figures
    right = {row.question.id: row.score == 1 for row in found.rows}
    for row in json.loads((SCORERS / "mmmu/parse_open.json").read_text()):
        assert right[row["id"]] == row["correct"]


def test_the_parsing_of_mmmu() -> None:
    for row in json.loads((SCORERS / "mmmu/parse_multi_choice.json").read_text()):
        assert last_option(row["response"], row["all_choices"], list(row["index2ans"].values())) == row["parsed"]
    for row in json.loads((SCORERS / "mmmu/parse_open.json").read_text()):
        assert sorted(map(repr, parse_open(row["response"]))) == row["parsed_sorted"]


def test_raw_responses_of_mmmu_score_like_parsed_ones(tmp_path: Path, expected: dict[str, Any]) -> None:
    parts = ("parse_multi_choice.json", "parse_open.json")
    rows = [row for part in parts for row in json.loads((SCORERS / "mmmu" / part).read_text())]
    (tmp_path / "raw.json").write_text(json.dumps(rows))
    found = grade("mmmu", tmp_path / "raw.json", SCORERS / "mmmu")
    assert round(found.score, 3) == expected["mmmu"]["printed"]["Overall"]["acc"]


@pytest.mark.parametrize("task", ["docvqa", "infographicvqa"])
@pytest.mark.parametrize("predictions", ["predictions.jsonl", "submission.json"])
def test_docvqa(expected: dict[str, Any], task: str, predictions: str) -> None:
    found = graded(task, f"docvqa/{predictions}", "docvqa/ground_truth.json")
    assert found.score == pytest.approx(expected["docvqa"]["anls"], abs=1e-6)
    per_question = {row.question.id: row.score for row in found.rows}
    assert per_question == pytest.approx(expected["docvqa"]["per_question"], abs=1e-6)


@pytest.mark.parametrize("annotations", [None, "chartqa", "chartqa/predictions.jsonl"])
def test_chartqa(expected: dict[str, Any], annotations: str | None) -> None:
    found = graded("chartqa", "chartqa/predictions.jsonl", annotations)
    assert found.n == expected["chartqa"]["total"]
    assert scores(found) == expected["chartqa"]["per_row"]
    assert found.score * 100 == pytest.approx(expected["chartqa"]["accuracy_percent"], abs=1e-6)


@pytest.mark.parametrize("annotations", [None, "ai2d"])
def test_ai2d(expected: dict[str, Any], annotations: str | None) -> None:
    found = graded("ai2d", "ai2d/predictions.jsonl", annotations)
    assert found.n == expected["ai2d"]["total"]
    assert scores(found) == expected["ai2d"]["per_row"]
    assert found.score * 100 == pytest.approx(expected["ai2d"]["accuracy_percent"], abs=1e-6)
    texts = [row["answer"] for row in rows_of("ai2d/predictions.jsonl")]
    assert [first_character(text) for text in texts] == expected["ai2d"]["extracted"]


def test_seedbench(expected: dict[str, Any]) -> None:
    found = graded("seedbench", "seedbench/predictions.jsonl", "seedbench")
    figures = found.detail["question_type"] | found.detail["data_type"] | {"Total": {"score": found.score}}
    for name, percent in expected["seedbench"]["printed_percent_2dp"].items():
        assert figures[name]["score"] * 100 == pytest.approx(percent, abs=0.005)


def test_the_sheet_of_mmbench(expected: dict[str, Any]) -> None:
    columns, rows = submission_sheet(SCORERS / "mmbench/annotation.tsv", SCORERS / "mmbench/exp.jsonl")
    assert columns == expected["mmbench"]["columns"]
    assert [int(row[0]) for row in rows] == expected["mmbench"]["index"]
    assert [row[-1] for row in rows] == expected["mmbench"]["prediction"]


def test_a_model_is_scored_question_by_question_like_its_file(expected: dict[str, Any]) -> None:
    """What an evaluation calls: the text of a model for one question, without a file of predictions."""
    gqa = BENCHMARKS["gqa"]
    texts = {row["question_id"]: row["text"] for row in rows_of("gqa/predictions.jsonl")}
    questions = [question for question in gqa.read(SCORERS / "gqa") if question.labels["balanced"] == "yes"]
    right = sum(gqa.score_text(question, texts[question.id]) for question in questions)
    assert right / len(questions) * 100 == pytest.approx(expected["gqa"]["accuracy_percent_2dp"], abs=0.005)
