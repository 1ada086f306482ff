"""An evaluation as a job on real Ray: a benchmark and a task of one's own from a YAML file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import draw_photos

from tests.cluster.commands import ROOT, flags
from vrray.store import Store

pytestmark = pytest.mark.ray

TASKS = """
- name: colours
  data: mine.json
  images: photos
  metric: contains
- benchmark: gqa
  annotations: testdev_balanced_questions.json
  images: photos
  limit: 6
  max_new_tokens: 3
"""


def write_data(folder: Path) -> None:
    (folder / "photos").mkdir()
    names = draw_photos(folder / "photos", 8)
    asked = [
        {"from": "human", "value": "<image>\nWhich colour?"},
        {"from": "gpt", "value": "red"},
    ]
    records = [{"id": name, "image": name, "conversations": asked} for name in [*names, "missing.png"]]
    (folder / "mine.json").write_text(json.dumps(records))
    for number, name in enumerate(names):
        (folder / "photos" / f"{number}.jpg").write_bytes((folder / "photos" / name).read_bytes())
    questions = {
        f"q{n}": {"question": f"Is it {n}?", "answer": "yes", "imageId": str(n), "isBalanced": True} for n in range(8)
    }
    (folder / "testdev_balanced_questions.json").write_text(json.dumps(questions))
    (folder / "tasks.yaml").write_text(TASKS)


def run_job(folder: Path, model: Path) -> tuple[str, dict[str, Any]]:
    options = {"model": model, "tasks": folder / "tasks.yaml", "storage": folder / "store", "workers": 2}
    command = [sys.executable, "jobs/evaluate.py", *flags({**options, "precision": "fp32"})]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout, json.loads(run.stdout.splitlines()[-1])


def test_an_evaluation_job(tiny_model: Path, tmp_path: Path) -> None:
    write_data(tmp_path)
    text, found = run_job(tmp_path, tiny_model)
    assert "28 questions to ask, 28 without an answer in the store" in text
    colours, gqa = found["results"]
    assert (colours["variant"], colours["task"], colours["n"], colours["failed"]) == ("model", "colours", 9, 1)
    assert (gqa["task"], gqa["n"], gqa["failed"]) == ("gqa", 6, 0)
    for row in found["results"]:
        assert 0 <= row["mean_low"] <= row["mean"] <= row["mean_high"] <= 1
        assert None not in (row["blind_score"], row["blind_mean"])
    report = Path(found["report"]).read_text()
    for said in ("Which colour?", "--tasks", "greedy, at most 3 new tokens", "transformers", "missing.png", "fp32"):
        assert said in report
    again, same = run_job(tmp_path, tiny_model)
    assert "28 questions to ask, 0 without an answer in the store" in again
    assert same == found
    assert len(Store(tmp_path / "store").keys("answers")) == 4
    from vrray.api import Evaluation

    examples = Evaluation(str(tmp_path / "store"), "evaluation").examples.to_pylist()
    assert len(examples) == 2 * (9 + 6)
    missing = [row for row in examples if row["problem"]]
    assert {(row["id"], row["prediction"], row["score"]) for row in missing} == {("missing.png", None, 0.0)}
    assert all(row["prediction"] is not None and row["answers"] for row in examples if not row["problem"])
