"""What lies beside a sweep's table so that its answers can be looked at: questions, evaluations, where images are."""

from __future__ import annotations

import json

import pyarrow as pa

from vrray.store import Store
from vrray.sweep.prepare import Prepared
from vrray.sweep.trial import EVALUATION, evaluation_key

QUESTIONS, EVALUATIONS, IMAGES = "questions.parquet", "evaluations.parquet", "images.json"
_QUESTIONS = pa.schema(
    [(name, pa.string()) for name in ("task", "ability", "metric", "split", "example", "question", "answer", "image")]
    + [("options", pa.list_(pa.string()))]
)
_EVALUATIONS = pa.schema([(name, pa.string()) for name in ("variant", "split", "evaluation")])


def write_shown(store: Store, prepared: Prepared, table: pa.Table) -> None:
    """Write them to the sweep's folder: a row a question, a row a variant and split, and the image folders."""
    folder = f"sweeps/{prepared.spec.name}"
    splits = {"select": prepared.site.select, "test": prepared.test}
    questions = [
        {
            **{name: getattr(group.task, name) for name in ("ability", "metric")},
            "task": group.task.name,
            "split": split,
            "example": example.id,
            **{name: getattr(example, name) for name in ("question", "answer", "image")},
            "options": list(example.options),
        }
        for split, groups in splits.items()
        for group in groups
        for example in group.examples
    ]
    evaluations = []
    for row in table.select(["variant", "key", "removed_layers", "status"]).to_pylist():
        for split, groups in splits.items():
            key = evaluation_key(row["key"], row["removed_layers"], groups, False)
            if row["status"] == "complete" and store.has(EVALUATION, key):
                evaluations.append({"variant": row["variant"], "split": split, "evaluation": key})
    images = {"roots": prepared.site.images.roots, "embedded": list(prepared.site.embedded)}
    store.write_table(f"{folder}/{QUESTIONS}", pa.Table.from_pylist(questions, schema=_QUESTIONS))
    store.write_table(f"{folder}/{EVALUATIONS}", pa.Table.from_pylist(evaluations, schema=_EVALUATIONS))
    store.write_text(f"{folder}/{IMAGES}", json.dumps(images, indent=1))
