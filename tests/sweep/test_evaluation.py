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
from vrray.models.loading import base_identity
from vrray.specs import EvaluateSpec
from vrray.store import Store
from vrray.sweep import evaluated, evaluating
from vrray.sweep.answers import ANSWERS, FILE, Variant
from vrray.sweep.evaluation import Evaluation, prepare_evaluation

ROWS = [
    {"variant": "all", "status": "complete", "key": "k1", "removed_layers": []},
    {"variant": "uniform-2-prune1", "status": "complete", "key": "k2", "removed_layers": [3]},
    {"variant": "top-2", "status": "failed: lost", "key": "k3", "removed_layers": []},
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


def test_results_and_examples_of_stored_answers(options: dict[str, Any], tmp_path: Path) -> None:
    photo = next((tmp_path / "photos").iterdir())
    photo.unlink()
    found = prepare({**options, "variants": ["all"]})
    said = {False: ["Red.", None, "red"], True: ["blue", "red", "green"]}
    for part in found.all_parts():
        rows = [{"prediction": text, "problem": None if text else "too long"} for text in said[part.blind]]

        def write(folder: Path, rows: list[dict[str, Any]] = rows) -> None:
            pq.write_table(pa.Table.from_pylist(rows), folder / FILE)

        found.store.put(ANSWERS, part.key, write)
    row, examples = evaluated._result(found, found.variants[0], found.tasks[0])
    assert (row["variant"], row["task"], row["n"], row["failed"]) == ("all", "mine", 4, 2)
    assert (row["score"], row["mean"], row["blind_score"], row["blind_mean"]) == (0.5, 0.5, 0.25, 0.25)
    assert row["mean_low"] < 0.5 < row["mean_high"]
    assert len(examples) == 8
    seen = [each for each in examples if not each["blind"]]
    assert sorted(each["score"] for each in seen) == [0, 0, 1, 1]
    lost = {each["image"]: each["problem"] for each in seen if each["prediction"] is None}
    assert "No such file" in lost.pop(photo.name)
    assert list(lost.values()) == ["too long"]
    assert {tuple(each["answers"]) for each in examples} == {("red",)}
    assert "Which?" in evaluated._asked(found, found.tasks[0])["prompt"]
