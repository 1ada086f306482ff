"""Images that are trained on and asked about: found in sweeps and evaluations, counted by task, listed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vrray.data.blobs import embedded_name
from vrray.data.images import Images, examine
from vrray.data.ingest import trained_images
from vrray.data.records import Record, Turn, write_records
from vrray.job_specs import EvaluateSpec
from vrray.specs import SweepSpec
from vrray.store import Store
from vrray.sweep import leaks, run
from vrray.sweep.evaluation import prepare_evaluation
from vrray.sweep.leaks import Asked, Leaks, find_leaks, sweep_leaks, training_of, training_of_sweep
from vrray.sweep.prepare import Prepared, prepare
from vrray.sweep.table import sweep_table

OPTIONS: dict[str, Any] = {
    "layers": [2],
    "prune": [0],
    "examples": 40,
    "global_batch": 4,
    "projector_steps": 2,
    "precision": "fp32",
}


def draw(folder: Path, count: int) -> list[str]:
    """Pictures of a few areas of different colours; the names of the files."""
    generator = np.random.default_rng(5)
    folder.mkdir(exist_ok=True)
    names = [f"{number}.png" for number in range(count)]
    for name in names:
        areas = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        areas.resize((64, 48), Image.Resampling.BICUBIC).save(folder / name)
    return names


def records(names: list[str]) -> list[Record]:
    return [Record(name, (name,), (Turn("<image>\nWhich colour?", "red"),)) for name in names]


def prepared(model: Path, store: Store, data: Path, **options: Any) -> Prepared:
    spec = SweepSpec.parse({"model": str(model), "data": str(data), **OPTIONS, **options})
    return prepare(spec, store, gpu=False, worker_memory=8 << 30)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def plan(tiny_model: Path, store: Store, tmp_path: Path) -> Prepared:
    """A sweep on 40 pictures and on its own held-out ones, of which two are trained on under other names."""
    names = draw(tmp_path / "photos", 40)
    write_records(tmp_path / "photos" / "mine.jsonl", records(names))
    first = prepared(tiny_model, store, tmp_path / "photos" / "mine.jsonl", max_steps=20)
    held = sorted({e.image for group in (*first.site.select, *first.test) for e in group.examples if e.image})
    assert len(held) > 2
    trained = sorted(trained_images(store, first.data.key).names)
    shutil.copyfile(tmp_path / "photos" / held[0], tmp_path / "photos" / trained[0])
    Image.open(tmp_path / "photos" / held[1]).crop((1, 1, 64, 48)).save(tmp_path / "photos" / trained[1])
    return prepared(tiny_model, store, tmp_path / "photos" / "mine.jsonl", max_steps=21)


def by_match(found: Leaks) -> dict[str, set[tuple[str, str]]]:
    rows = found.pairs.to_pylist()
    return {kind: {(r["image"], r["training_image"]) for r in rows if r["match"] == kind} for kind in ("exact", "near")}


def asked_in(plan: Prepared) -> list[str]:
    return sorted({e.image for group in (*plan.site.select, *plan.test) for e in group.examples if e.image})


def test_held_out_rows_are_compared_with_the_others(plan: Prepared, store: Store) -> None:
    found = sweep_leaks(store, plan)
    held, trained = asked_in(plan), sorted(trained_images(store, plan.data.key).names)
    assert by_match(found) == {"exact": {(held[0], trained[0])}, "near": {(held[1], trained[1])}}
    assert {row["distance"] for row in found.pairs.to_pylist() if row["match"] == "exact"} == {0}
    counts = {leaked.split: leaked for leaked in found.tasks}
    assert set(counts) == {"select", "test"} and {leaked.task for leaked in found.tasks} == {"held-out"}
    assert sum(leaked.images for leaked in found.tasks) == len(held)
    assert [
        sum(getattr(leaked, name) for leaked in found.tasks) for name in ("leaked", "exact", "leaked_questions")
    ] == [2, 1, 2]
    assert found.text().startswith(
        f"held-out: 2 of {len(held)} images are also in the training data (1 exactly, 1 near"
    )
    assert found.to_json()[0]["task"] == "held-out"


def test_the_report_and_its_files_tell_of_them(plan: Prepared, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "describe_machine", lambda *_: {"machine": "none"})
    trials = [plan.space.trial(config) for config in plan.space.configs()]
    table = sweep_table(store, plan, trials, {trial.key: "lost" for trial in trials})
    found = sweep_leaks(store, plan)
    run._write(store, plan, table, found, 1.0)
    folder = f"sweeps/{plan.spec.name}"
    assert f"held-out: 2 of {len(asked_in(plan))} images" in store.read_bytes(f"{folder}/report.md").decode()
    assert store.read_table(f"{folder}/leaks.parquet").to_pylist() == found.pairs.to_pylist()
    about = json.loads(store.read_bytes(f"{folder}/sweep.json"))
    assert sum(task["leaked"] for task in about["leaks"]) == 2
    assert training_of_sweep(store, plan.spec.name) == training_of(plan)


def test_what_was_compared_is_not_compared_again(plan: Prepared, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    found = sweep_leaks(store, plan)
    monkeypatch.setattr(leaks, "_pairs", lambda *_: pytest.fail("compared again"))
    assert sweep_leaks(store, plan) == found


def test_a_picture_that_is_gone_by_now_is_no_error(plan: Prepared, store: Store, tmp_path: Path) -> None:
    (tmp_path / "photos" / sorted(trained_images(store, plan.data.key).names)[1]).unlink()
    found = sweep_leaks(store, plan)
    assert len(by_match(found)["exact"]) == 1 and not by_match(found)["near"]
    assert found.uncompared == 1
    assert "1 pairs of alike images could not be compared" in found.text()
    assert not store.keys(leaks.KIND)  # so that the next start looks again


def test_images_of_any_task_are_compared(plan: Prepared, store: Store, tmp_path: Path) -> None:
    training = training_of(plan)
    trained = trained_images(store, plan.data.key).names
    (tmp_path / "asked").mkdir()
    shutil.copyfile(tmp_path / "photos" / trained[2], tmp_path / "asked" / "same.png")
    Image.open(tmp_path / "photos" / trained[3]).convert("RGB").save(tmp_path / "asked" / "again.jpg", quality=50)
    Image.new("RGB", (64, 48), "orange").save(tmp_path / "asked" / "new.png")
    images = Images({"": tmp_path / "asked"})
    opened = {name: examine(images.read(name), name) for name in ("same.png", "again.jpg", "new.png")}
    groups = [
        Asked("a", "", ("same.png", "same.png", "new.png", None, "lost.png")),
        Asked("b", "", ("again.jpg", "new.png")),
        Asked("texts", "", (None, None)),
    ]
    found = find_leaks(store, training, groups, opened, images)
    assert by_match(found) == {"exact": {("same.png", trained[2])}, "near": {("again.jpg", trained[3])}}
    counted = [
        (leaked.task, leaked.images, leaked.leaked, leaked.exact, leaked.leaked_questions) for leaked in found.tasks
    ]
    assert counted == [("a", 2, 1, 1, 2), ("b", 2, 1, 0, 1)]
    assert found.text() == (
        "a: 1 of 2 images are also in the training data (1 exactly, 0 nearly; 2 of 5 questions); "
        "b: 1 of 2 (0 exactly, 1 nearly; 1 of 2 questions)"
    )
    assert find_leaks(store, training, groups[2:], opened, images).text() == "no task has images"


def test_an_evaluation_of_a_sweep_knows_what_was_trained_on(
    plan: Prepared, store: Store, tiny_model: Path, tmp_path: Path
) -> None:
    about: dict[str, Any] = {"context": {"model": str(tiny_model)}, "training": training_of(plan).to_json()}
    store.write_text("sweeps/where/sweep.json", json.dumps(about))
    row = {"variant": "all", "placement": "all", "seed": 0, "status": "complete", "key": "k1", "removed_layers": []}
    store.write_table("sweeps/where/table.parquet", pa.Table.from_pylist([row]))
    trained = trained_images(store, plan.data.key).names[:2]
    said = [{"from": "human", "value": "<image>\nWhich?"}, {"from": "gpt", "value": "red"}]
    asked = [{"image": name, "conversations": said} for name in (*trained, asked_in(plan)[2])]
    (tmp_path / "mine.json").write_text(json.dumps(asked))
    (tmp_path / "tasks.yaml").write_text("{name: mine, data: mine.json, images: photos, metric: exact}")
    options = {"storage": store.uri, "tasks": [str(tmp_path / "tasks.yaml")], "precision": "fp32"}
    found = prepare_evaluation(EvaluateSpec.parse({**options, "sweep": "where"}), gpu=False)
    assert found.leaks is not None
    assert by_match(found.leaks)["exact"] == {(f"mine:{name}", name) for name in trained}
    assert found.leaks_text().startswith("mine: 2 of 3 images are also in the training data")
    alone = prepare_evaluation(EvaluateSpec.parse({**options, "model": str(tiny_model)}), gpu=False)
    assert alone.leaks is None and "not known" in alone.leaks_text()
    del about["training"]
    store.write_text("sweeps/where/sweep.json", json.dumps(about))
    assert training_of_sweep(store, "where") is None
    older = prepare_evaluation(EvaluateSpec.parse({**options, "sweep": "where"}), gpu=False)
    assert "run the sweep again" in older.leaks_text()


def test_embedded_pictures_are_compared_too(tiny_model: Path, store: Store, tmp_path: Path) -> None:
    names = draw(tmp_path, 30)
    rows = [
        {
            "image": {"bytes": (tmp_path / name).read_bytes(), "path": name},
            "conversations": [{"from": "human", "value": "<image>\nWhich?"}, {"from": "gpt", "value": "red"}],
        }
        for name in names
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "mine.parquet")
    plan = prepared(tiny_model, store, tmp_path / "mine.parquet", max_steps=20)
    assert plan.site.embedded and not len(sweep_leaks(store, plan).pairs)
    (tmp_path / "asked").mkdir()
    known = {name: Images({"": tmp_path}).read(name) for name in names}
    for name in names:
        Image.open(tmp_path / name).resize((128, 96)).save(tmp_path / "asked" / name)
    images = Images({"": tmp_path / "asked"})
    opened = {name: examine(images.read(name), name) for name in names}
    found = find_leaks(store, training_of(plan), [Asked("a", "", tuple(names))], opened, images)
    trained = set(trained_images(store, plan.data.key).names)
    expected = {(n, name) for n, data in known.items() if (name := embedded_name(data)) in trained}
    assert expected and by_match(found) == {"exact": set(), "near": expected}
