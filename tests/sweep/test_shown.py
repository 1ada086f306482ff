"""What lies beside a sweep's table: its questions, and which evaluation is whose."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa

from vrray.data.images import Images
from vrray.data.tasks import Example, Task, TaskExamples
from vrray.store import Store
from vrray.sweep.shown import write_shown
from vrray.sweep.trial import evaluation_key


def test_questions_and_evaluations_are_found_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    task = Task("shapes", "visual", "exact", "about shapes")
    select, test = (
        (TaskExamples(task, split, (Example(f"{split}/0", "What is it?", "circle", "a.png"),), 0.1),)
        for split in ("select", "test")
    )
    site = SimpleNamespace(select=select, images=Images({"": tmp_path}), embedded=("rows-1",))
    prepared = SimpleNamespace(spec=SimpleNamespace(name="demo"), site=site, test=test)
    rows = [
        {"variant": "uniform-8", "key": "k", "removed_layers": [], "status": "complete"},
        {"variant": "uniform-8-prune1", "key": "k", "removed_layers": [3], "status": "complete"},
        {"variant": "top-8", "key": "t", "removed_layers": [], "status": "failed: lost"},
    ]
    keys = [evaluation_key("k", removed, select, False) for removed in ([], [3])]
    for key in (*keys, evaluation_key("k", [], test, False)):
        store.put("evaluation", key, lambda folder: (folder / "examples.parquet").write_bytes(b"") and None)

    write_shown(store, prepared, pa.Table.from_pylist(rows))  # type: ignore[arg-type]

    found = store.read_table("sweeps/demo/evaluations.parquet").to_pylist()
    assert [(row["variant"], row["split"], row["evaluation"]) for row in found] == [
        ("uniform-8", "select", keys[0]),
        ("uniform-8", "test", evaluation_key("k", [], test, False)),
        ("uniform-8-prune1", "select", keys[1]),
    ]
    questions = store.read_table("sweeps/demo/questions.parquet").to_pylist()
    assert [(row["split"], row["example"], row["image"]) for row in questions] == [
        ("select", "select/0", "a.png"),
        ("test", "test/0", "a.png"),
    ]
    about = json.loads(store.read_bytes("sweeps/demo/images.json"))
    assert about == {"roots": {"": str(tmp_path)}, "embedded": ["rows-1"]}
