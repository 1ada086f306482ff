"""Task files: benchmarks and records of one's own, and what is wrong with an entry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from vrray.errors import DataError, SpecError, VrrayError
from vrray.evaluate.questions import LETTER, SHORT, AskedTask, score_answers
from vrray.evaluate.task_file import read_tasks
from vrray.store import Store


def record(question: str, answer: str, **fields: Any) -> dict[str, Any]:
    value = f"<image>\n{question}" if "image" in fields else question
    return {"conversations": [{"from": "human", "value": value}, {"from": "gpt", "value": answer}], **fields}


def write(folder: Path, entry: Any, records: list[dict[str, Any]] | None = None) -> str:
    (folder / "mine.json").write_text(json.dumps(records or [record("What?", "red", image="a.png")]))
    (folder / "tasks.yaml").write_text(yaml.safe_dump(entry))
    return str(folder / "tasks.yaml")


def read(*names: str, limit: int | None = None, short_answers: bool = True) -> tuple[AskedTask, ...]:
    store = Store(Path(names[0]).parent / "store")
    return read_tasks(names, split="test", limit=limit, short_answers=short_answers, store=store)


SCORERS = Path(__file__).resolve().parents[2].parent / "shared" / "reference" / "scorers"
MINE = {"name": "mine", "data": "mine.json", "images": "photos", "metric": "exact"}


def write_vqa(folder: Path) -> dict[str, Any]:
    """The two files of VQAv2, in their official form."""
    answers = [{"answer": "2"}] * 10
    rows = [{"question_id": n, "image_id": n, "answers": answers, "answer_type": "number"} for n in range(6)]
    asked = [{"question_id": n, "question": f"How many, {n}?"} for n in range(6)]
    (folder / "v2_mscoco_val2014_annotations.json").write_text(json.dumps({"annotations": rows}))
    (folder / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(json.dumps({"questions": asked}))
    return {"benchmark": "vqav2", "annotations": "v2_mscoco_val2014_annotations.json", "images": "coco"}


def test_records_of_ones_own(tmp_path: Path) -> None:
    records = [
        record("Which colour?", " red ", image="a.png"),
        record("What is it?", "a dog", answers=["a dog", "dog"], id="second"),
    ]
    (task,) = read(write(tmp_path, {**MINE, "instruction": "Be brief.", "max_new_tokens": 5}, records))
    assert (task.name, task.scoring, task.official, task.max_new_tokens) == ("mine", "exact", False, 5)
    assert task.images == str(tmp_path / "photos")  # seen from the file, not from where the command runs
    assert [(q.id, q.answers, q.image) for q in task.questions] == [
        ("1", ("red",), "a.png"),
        ("second", ("a dog", "dog"), None),
    ]
    assert task.prompts == ("Which colour?\nBe brief.", "What is it?\nBe brief.")
    scored, summary = score_answers(task, ["Red", "dog."])
    assert [row.score for row in scored] == [1, 1]
    assert score_answers(task, [None, "cat"])[1].score == 0
    assert summary.n == 2


def test_a_benchmark_is_asked_and_scored_as_its_scripts_do(tmp_path: Path) -> None:
    (task,) = read(write(tmp_path, write_vqa(tmp_path)))
    assert (task.name, task.official, len(task.questions)) == ("vqav2", True, 6)
    assert task.prompts[0] == f"How many, 0?\n{SHORT}"
    assert task.example(0).image == "vqav2:COCO_val2014_000000000000.jpg"
    scored, summary = score_answers(task, ["Two.", "two", "2", "3", "", None])
    assert [row.score for row in scored] == [1, 1, 1, 0, 0, 0]
    assert [scored[0].prediction, scored[5].prediction] == ["2", None]
    assert (summary.score, summary.detail["answer_type"]) == (0.5, {"number": {"n": 6, "score": 0.5}})
    (plain,) = read(str(tmp_path / "tasks.yaml"), short_answers=False)
    assert plain.prompts[0] == "How many, 0?"


def test_options_stand_behind_the_question(tmp_path: Path) -> None:
    row = {"question": "Which?", "options": ["a cat", "a dog"], "answer": "1", "image": {"path": "0.png"}}
    (tmp_path / "test.json").write_text(json.dumps([row]))
    (task,) = read(
        write(tmp_path, {"name": "pictures", "benchmark": "ai2d", "annotations": "test.json", "images": "."})
    )
    assert task.prompts == (f"Which?\nA. a cat\nB. a dog\n{LETTER}",)
    assert score_answers(task, ["B"])[1].score == 1


def test_a_limit_draws_the_same_questions_whatever_their_order(tmp_path: Path) -> None:
    records = [record(f"What is {n}?", "red", id=n) for n in range(20)]
    (few,) = read(write(tmp_path, MINE, records), limit=5)
    (own,) = read(write(tmp_path, {**MINE, "limit": 5}, records[::-1]), limit=2)
    ids = [question.id for question in few.questions]
    assert len(ids) == 5
    assert ids == sorted(ids, key=int) != ["0", "1", "2", "3", "4"]
    assert [question.id for question in own.questions] == ids[::-1]
    assert few.prompts == tuple(f"What is {n}?" for n in ids)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "x"}, "task 1: give either benchmark with annotations, or data with metric"),
        ({**MINE, "metric": "exactly"}, "task 1: option metric"),
        ({**MINE, "image": "photos"}, "task 1: unknown option 'image'; did you mean 'images'"),
        ({"name": "x", "data": "mine.json"}, "data and metric go together"),
        ({"benchmark": "gqa"}, "benchmark and annotations go together"),
        ([MINE, {"data": "mine.json", "metric": "exact"}], "task 2: name is missing"),
        ([MINE, MINE], "two tasks are named 'mine'"),
        ("mine", "found 'mine'; write name"),
        ({"name": "mine", "data": "mine.json", "metric": "exact"}, "say in which folder these are: images: FOLDER"),
    ],
)
def test_wrong_entries(entry: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        read(write(tmp_path, entry))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("records", "metric", "message"),
    [
        ([record("What?", " ")], "exact", "row 1: the question or an answer is blank"),
        ([record("What?", "b", id="x"), record("Who?", "b", id="x")], "exact", "row 2: field 'id' repeats 'x'"),
        ([record("What?", "b")], "choice", "metric choice needs A, B, C or D"),
        ([{"conversations": record("What?", "b")["conversations"] * 2}], "exact", "one question a record"),
        ([{"id": 1}], "exact", "mine.json, row 1"),
    ],
)
def test_wrong_records(records: list[dict[str, Any]], metric: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(write(tmp_path, {**MINE, "metric": metric}, records))
    assert message in str(caught.value)


def test_questions_without_their_texts_are_refused(tmp_path: Path) -> None:
    entry = write_vqa(tmp_path)
    (tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json").unlink()
    with pytest.raises(DataError, match="has no text for question '0'"):
        read(write(tmp_path, entry))


@pytest.mark.parametrize(("name", "message"), [("easy-vqua", "unknown task"), ("no.yaml", "No such file")])
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(VrrayError, match=message):
        read(name)


@pytest.mark.skipif(not SCORERS.is_dir(), reason="the reference files are not beside this repository")
@pytest.mark.parametrize(
    ("benchmark", "best", "ending"),
    [
        ("gqa", 1, SHORT),
        ("docvqa", 1, SHORT),
        ("pope", 1, SHORT),
        ("scienceqa", 1, LETTER),
        ("seedbench", 1, LETTER),
        ("mme", 2000, "Please answer yes or no."),
    ],
)
def test_official_files(benchmark: str, best: float, ending: str, tmp_path: Path) -> None:
    folder = str(SCORERS / benchmark)
    (task,) = read(write(tmp_path, {"benchmark": benchmark, "annotations": folder, "images": folder}))
    assert all(prompt.endswith(ending) for prompt in task.prompts)
    assert score_answers(task, [question.answers[0] for question in task.questions])[1].score == best
    assert score_answers(task, [None] * len(task.questions))[1].score == 0


def test_letters_are_chosen_from(tmp_path: Path) -> None:
    (task,) = read(write(tmp_path, {**MINE, "metric": "choice", "method": "choose"}, [record("A or B?", "B")]))
    assert (task.method, task.example(0).options) == ("choose", ("A", "B", "C", "D"))
    (task,) = read(write(tmp_path, {**MINE, "metric": "choice"}, [record("A or B?", "B")]))
    assert (task.method, task.example(0).options) == ("generate", ())


@pytest.mark.parametrize(("name", "options"), [("scienceqa", None), ("pope", ("Yes", "No"))])
def test_benchmarks_are_answered_by_likelihood(tmp_path: Path, name: str, options: tuple[str, ...] | None) -> None:
    if not SCORERS.exists():
        pytest.skip(f"{SCORERS} is not there")
    entry = {"benchmark": name, "annotations": str(SCORERS / name), "images": "photos", "method": "choose"}
    (task,) = read(write(tmp_path, entry))
    for place, question in enumerate(task.questions):
        assert task.example(place).options == (options or tuple("ABCDE"[: len(question.options)]))
    scored, _ = score_answers(task, [task.example(place).options[0] for place in range(len(task.questions))])
    assert 0 < sum(row.score for row in scored) < len(scored)


def test_an_open_question_has_nothing_to_choose_from(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"task .mine. has questions without options .* write method: generate"):
        read(write(tmp_path, {**MINE, "method": "choose"}))


def test_a_task_may_be_for_choosing(tmp_path: Path) -> None:
    assert [read(write(tmp_path, {**MINE, **entry}))[0].split for entry in ({}, {"split": "select"})] == [
        "test",
        "select",
    ]
