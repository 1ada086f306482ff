"""The adapter for lmms-eval, in an environment that has lmms-eval: its answers are those that vrray gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny import IMAGE_TOKENS, draw_photos

import vrray
from vrray.data.encode import encode_prompt
from vrray.models.loading import load_model, load_processor

if find_spec("lmms_eval") is None:
    pytest.skip("lmms_eval is not installed (docs/evaluation.md)", allow_module_level=True)

ADAPTER = Path(__file__).parents[2] / "examples" / "lmms_eval_adapter.py"
SHARED = """
task: own_open
dataset_path: json
dataset_kwargs: {{data_files: {folder}/rows.json, cache_dir: {folder}/cache}}
test_split: train
doc_to_visual: !function looks.images
doc_to_text: question
metadata: [{{version: 0.0}}]
"""
OPEN = """
output_type: generate_until
doc_to_target: answer
generation_kwargs: {until: ["\\n\\n"], max_new_tokens: 5, temperature: 0, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
LOOKS = """
from PIL import Image


def images(row):
    return [Image.open(row["image"])] if row["image"] else []
"""


def write_tasks(folder: Path) -> list[dict[str, Any]]:
    """Questions about photos, and one without."""
    rows = [
        {"question": f"Which colour?{' Is it big?' * (number % 3)}", "image": str(folder / name), "answer": "green"}
        for number, name in enumerate(draw_photos(folder, 5))
    ]
    rows.append({"question": "What is it?", "image": "", "answer": "red"})
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "looks.py").write_text(LOOKS)
    (folder / "own_open.yaml").write_text(SHARED.format(folder=folder) + OPEN)
    return rows


@torch.inference_mode()
def vrray_answers(folder: Path, rows: list[dict[str, Any]]) -> list[str]:
    """Greedy answers to the prompts that vrray makes, one by one."""
    model, processor = load_model(folder), load_processor(folder)
    answers = []
    for row in rows:
        ids = encode_prompt(row["question"], processor, IMAGE_TOKENS, with_image=bool(row["image"]))
        pixels = {}
        if row["image"]:
            image = Image.open(row["image"]).convert("RGB")
            pixels = {"pixel_values": processor.image_processor(image, return_tensors="pt")["pixel_values"]}
        said = model.generate(input_ids=torch.tensor([ids]), **pixels, max_new_tokens=5, do_sample=False)
        text = processor.tokenizer.decode(said[0, len(ids) :], skip_special_tokens=True)
        answers.append(text.split("\n\n")[0].strip())
    return answers


def test_answers_are_those_of_vrray(tiny_model: Path, tmp_path: Path) -> None:
    rows, small, out = write_tasks(tmp_path), tmp_path / "small", tmp_path / "results"
    vrray.export(model=str(tiny_model), remove="1,4", out=small)
    options = ["--model_args", f"pretrained={small}", "--tasks", "own_open", "--include_path", str(tmp_path)]
    command = [sys.executable, str(ADAPTER), *options, "--batch_size", "2", "--output_path", str(out), "--log_samples"]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hub")}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    (file,) = out.rglob("*_samples_own_open.jsonl")
    samples = [json.loads(line) for line in file.read_text().splitlines()]
    found = {sample["doc_id"]: sample["filtered_resps"] for sample in samples}
    answers = vrray_answers(small, rows)
    assert [found[number] for number in range(len(rows))] == answers
    assert len(set(answers)) > 2
