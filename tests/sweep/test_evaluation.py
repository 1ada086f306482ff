"""What an evaluation is of: a model, or rows of a sweep's table, and the questions behind it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import draw_photos

from vrray.errors import SpecError
from vrray.job_specs import EvaluateSpec
from vrray.models.loading import base_identity
from vrray.store import Store
from vrray.sweep import evaluated, evaluating
from vrray.sweep.answers import ANSWERS, FILE, Variant
from vrray.sweep.evaluation import Evaluation, prepare_evaluation

ROWS = [
    {"variant": variant, "placement": variant[:7], "status": status, "key": key, "removed_layers": removed, "seed": 0}
    for variant, status, key, removed in [
        ("all", "complete", "k1", []),
        ("uniform-2-prune1", "complete", "k2", [3]),
        ("top-2", "failed: lost", "k3", []),
    ]
]


@pytest.fixture
def options(tiny_model: Path, tmp_path: Path) -> dict[str, Any]:
    """A store with a sweep, and a task of 3 photos and a question without one."""
    store, buffer = Store(tmp_path / "store"), io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), buffer)
    store.write_bytes("sweeps/where/table.parquet", buffer.getvalue())
    store.write_text("sweeps/where/sweep.json", json.dumps({"context": {"model": str(tiny_model)}}))
    (tmp_path / "photos").mkdir()
    asked: list[tuple[str, dict[str, str]]] = [
        ("<image>\nWhich?", {"image": name}) for name in draw_photos(tmp_path / "photos", 3)
    ]
    records = [
        {"conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "red"}], **fields}
        for text, fields in [*asked, ("What is it?", {})]
    ]
    (tmp_path / "mine.json").write_text(json.dumps(records))
    (tmp_path / "tasks.yaml").write_text("{name: mine, data: mine.json, images: photos, metric: exact}")
    return {"storage": store.uri, "tasks": [str(tmp_path / "tasks.yaml")], "sweep": "where", "precision": "fp32"}


def prepare(options: dict[str, Any]) -> Evaluation:
    return prepare_evaluation(EvaluateSpec.parse(options), gpu=False)


def test_variants_of_a_sweep(options: dict[str, Any], tiny_model: Path) -> None:
    found = prepare(options)
    assert found.variants == (Variant("all", "k1"), Variant("uniform-2-prune1", "k2", (3,)))
    assert (found.path, found.base, found.template) == (tiny_model, base_identity(tiny_model), "chat")
    assert prepare({**options, "variants": ["uniform-2-prune1"]}).variants == (Variant("uniform-2-prune1", "k2", (3,)),)


def test_a_model_as_it_is(options: dict[str, Any], tiny_model: Path) -> None:
    del options["sweep"]
    assert prepare({**options, "model": str(tiny_model)}).variants == (Variant("model"),)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sweep": "when"}, r"--sweep when: no finished sweep of that name in .* \(it has where\)"),
        (
            {"variants": ["all", "top-2"]},
            "--variants top-2: no finished variant .* has all, uniform-2-prune1",
        ),
    ],
)
def test_unknown_sweeps_and_variants(options: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        prepare({**options, **changes})


def test_visual_tasks_are_asked_blind_too(options: dict[str, Any]) -> None:
    found = prepare(options)
    asked = [(part.variant.name, part.blind, len(part.examples)) for part in found.all_parts()]
    names = ("all", "uniform-2-prune1")
    assert asked == [(name, blind, 4) for name in names for blind in (False, True)]
    assert len(prepare({**options, "blind": False}).all_parts()) == 2


@pytest.mark.parametrize(("changes", "images"), [({}, [3]), ({"features": "live"}, []), ({"feature_budget": 0}, [])])
def test_features_are_stored_where_they_fit(
    options: dict[str, Any], changes: dict[str, Any], images: list[int]
) -> None:
    found = prepare({**options, **changes})
    chunks = evaluating._chunks(found, found.all_parts())
    assert [len(chunk.images) for chunk in chunks] == images
    blind = [part for part in found.all_parts() if part.blind]
    assert evaluating._chunks(found, blind) == []


def store_answers(found: Evaluation, said: dict[tuple[str, bool], list[str | None]]) -> None:
    """What variants said, with the images and without them; None is a question that could not be asked."""
    for part in found.all_parts():
        rows = [
            {"prediction": text, "problem": None if text else "too long", "latency_ms": 1.5}
            for text in said[part.variant.name, part.blind]
        ]

        def write(folder: Path, rows: list[dict[str, Any]] = rows) -> None:
            pq.write_table(pa.Table.from_pylist(rows), folder / FILE)

        found.store.put(ANSWERS, part.key, write)


def test_results_and_examples_of_stored_answers(options: dict[str, Any], tmp_path: Path) -> None:
    photo = next((tmp_path / "photos").iterdir())
    photo.unlink()
    found = prepare({**options, "variants": ["all"]})
    store_answers(found, {("all", False): ["Red.", None, "red"], ("all", True): ["blue", "red", "green"]})
    scores = evaluated._score(found, found.variants[0], found.tasks[0])
    (row,) = evaluated._results(found, found.tasks[0], {"all": scores})
    examples = scores.examples
    assert (row["variant"], row["task"], row["n"], row["failed"]) == ("all", "mine", 4, 2)
    assert (row["score"], row["mean"], row["blind_score"], row["blind_mean"]) == (0.5, 0.5, 0.25, 0.25)
    assert row["mean_low"] < 0.5 < row["mean_high"]
    assert len(examples) == 8
    seen = [each for each in examples if not each["blind"]]
    assert sorted(each["score"] for each in seen) == [0, 0, 1, 1]
    lost = {each["image"]: each["problem"] for each in seen if each["prediction"] is None}
    assert "No such file" in lost.pop(photo.name)
    assert list(lost.values()) == ["too long"]
    assert {each["latency_ms"] for each in seen} == {None, 1.5}
    assert {tuple(each["answers"]) for each in examples} == {("red",)}
    assert "Which?" in evaluated._asked(found, found.tasks[0])["prompt"]


@pytest.mark.parametrize(("split", "flag"), [("select", False), ("test", False), ("test", True)])
def test_variants_are_compared_in_pairs_and_with_the_best_where_they_may_be_chosen(
    options: dict[str, Any], tmp_path: Path, split: str, flag: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluated, "describe_machine", lambda *packages: {})  # which asks the cluster
    entry = f"{{name: mine, data: mine.json, images: photos, metric: exact, split: {split}}}"
    (tmp_path / "tasks.yaml").write_text(entry)
    found = prepare({**options, "blind": False, "choose_on_test": flag})
    store_answers(found, {("all", False): ["red"] * 4, ("uniform-2-prune1", False): ["red", "red", "red", "blue"]})
    evaluated.write_results(found)
    folder = "evaluations/evaluation"
    first, second = found.store.read_table(f"{folder}/results.parquet").to_pylist()
    assert (first["variant"], first["retention"], first["difference_high"]) == ("all", 1, 0)
    assert (second["retention"], second["difference"], second["difference_high"]) == (0.75, -0.25, 0)
    assert second["difference_low"] < -0.25
    choosing = split == "select" or flag
    assert [row["ties_best"] for row in (first, second)] == [True if choosing else None] * 2
    report = found.store.read_bytes(f"{folder}/report.md").decode()
    assert ("Chosen on test data" in report) == flag
    assert ("against the best" in report) == choosing
    assert "| 75.0 | -0.250 (-" in report


def test_without_all_there_is_no_difference(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluated, "describe_machine", lambda *packages: {})
    found = prepare({**options, "blind": False, "variants": ["uniform-2-prune1"]})
    store_answers(found, {("uniform-2-prune1", False): ["red"] * 4})
    evaluated.write_results(found)
    (row,) = found.store.read_table("evaluations/evaluation/results.parquet").to_pylist()
    assert (row["retention"], row["difference"], row["ties_best"]) == (None, None, None)
    assert "against" not in found.store.read_bytes("evaluations/evaluation/report.md").decode()
