"""`vrray lm-eval`: local tasks of lm-evaluation-harness, on an exported model with layers removed."""

from __future__ import annotations

import json
import shutil
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer

import vrray
from vrray.cli import main
from vrray.evaluate import harness
from vrray.models.loading import base_identity

needs_lm_eval = pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm_eval is not installed (extra lm-eval)")

ROWS = [
    {"question": "Which colour?", "options": ["red", "green", "a grey circle"], "answer": 0},
    {"question": "What is it?", "options": ["a circle", "a square"], "answer": 1},
    {"question": "Is it in this picture?", "options": ["yes", "no"], "answer": 0},
    {"question": "Which has the big circle?", "options": ["blue", "red"], "answer": 1},
]
SHARED = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {rows}, cache_dir: {cache}}}
test_split: train
doc_to_text: "{{{{question}}}}"
metadata: {{version: {version}}}
"""
CHOICE = """
output_type: multiple_choice
doc_to_choice: "{{options}}"
doc_to_target: answer
"""
OPEN = """
output_type: generate_until
doc_to_target: "{{options[answer]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 4, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
# As the templates of LLaVA on model hubs, it drops a message whose content is a text instead of parts.
PARTS_ONLY = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}: "
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def exported(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without two of its layers, whose chat template takes parts only."""
    out = tmp_path_factory.mktemp("lm-eval") / "small"
    vrray.export(model=str(tiny_model), remove="1,4", out=out)
    (out / "chat_template.jinja").write_text(PARTS_ONLY)
    return out


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two tasks over four questions."""
    import lm_eval.tasks

    # The harness's own tasks are thousands, and take seconds to list.
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", partial(lm_eval.tasks.TaskManager, include_defaults=False))
    folder, rows = tmp_path / "tasks", tmp_path / "rows.json"
    folder.mkdir()
    rows.write_text(json.dumps(ROWS))
    for name, version, text in (("own-choice", 2.5, CHOICE), ("own-open", 1, OPEN)):
        shared = SHARED.format(name=name, version=version, rows=rows, cache=tmp_path / "cache")
        (folder / f"{name}.yaml").write_text(shared + text)
    return folder


class Plain:
    """What plain transformers makes of an exported directory."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForImageTextToText.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    @torch.inference_mode()
    def likelihood(self, question: str, option: str) -> float:
        begin = len(self.tokenizer(question)["input_ids"])
        ids = torch.tensor([self.tokenizer(f"{question} {option}")["input_ids"]])
        log_probabilities = self.model(input_ids=ids).logits.log_softmax(-1)[0, begin - 1 : -1]
        return float(log_probabilities.gather(1, ids[0, begin:, None]).sum())

    @torch.inference_mode()
    def answer(self, prompt: str) -> str:
        ids = torch.tensor([self.tokenizer(prompt, add_special_tokens=False)["input_ids"]])
        said = self.model.generate(input_ids=ids, max_new_tokens=4, do_sample=False)[0, ids.shape[1] :]
        return str(self.tokenizer.decode(said, skip_special_tokens=True)).partition("\n")[0]


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main(["lm-eval", *(str(argument) for argument in arguments)]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["lm-eval", *(str(argument) for argument in arguments)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


@needs_lm_eval
def test_choices_and_answers(exported: Path, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results.json"
    named = ["--model", exported, "--tasks", "own-choice", "own-open", "--include-path", tasks, "--batch", 3]
    found = run(capsys, *named, "--out", out)
    assert (found["model"], found["identity"], found["dtype"]) == (str(exported), base_identity(exported), "float32")
    assert set(found["packages"]) == {"lm_eval", "vrray", "torch", "transformers"}
    assert found["versions"] == {"own-choice": 2.5, "own-open": 1.0}
    assert {name: count["effective"] for name, count in found["n-samples"].items()} == {"own-choice": 4, "own-open": 4}
    assert "samples" not in found

    plain, samples = Plain(exported), json.loads(out.read_text())["samples"]
    right = 0
    for row, sample in zip(ROWS, samples["own-choice"], strict=True):
        likelihoods = [plain.likelihood(row["question"], option) for option in row["options"]]
        assert [float(value) for ((value, _),) in sample["resps"]] == pytest.approx(likelihoods, abs=1e-3)
        right += likelihoods.index(max(likelihoods)) == row["answer"]
    assert found["results"]["own-choice"]["acc,none"] == right / 4
    said = [sample["resps"][0][0] for sample in samples["own-open"]]
    assert said == [plain.answer(row["question"]) for row in ROWS]
    exact = sum(text == row["options"][row["answer"]] for text, row in zip(said, ROWS, strict=True))
    assert found["results"]["own-open"]["exact_match,none"] == exact / 4


@needs_lm_eval
def test_the_chat_template_and_a_limit(
    exported: Path, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results.json"
    file = tasks / "own-open.yaml"
    found = run(capsys, "--model", exported, "--tasks", file, "--limit", 2, "--chat-template", "--out", out)
    assert (found["limit"], found["chat_template"]) == (2, True)
    (samples,) = json.loads(out.read_text())["samples"].values()
    prompts = [sample["arguments"][0][0] for sample in samples]
    assert prompts == [f"<|im_start|>user: {row['question']}<|im_end|><|im_start|>assistant: " for row in ROWS[:2]]
    plain = Plain(exported)
    assert [sample["resps"][0][0] for sample in samples] == [plain.answer(prompt) for prompt in prompts]


@needs_lm_eval
def test_what_does_not_fit_is_refused(
    exported: Path, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--model", exported, "--tasks", "own-open", "--include-path"]
    assert "lm_eval" in (said := refused(capsys, *asked[:2], "--tasks", "own-opne", "--include-path", tasks))
    assert "no task or group of that name; did you mean 'own-open'?" in said
    assert f"--include-path {tmp_path / 'absent'} is no folder" in refused(capsys, *asked, tmp_path / "absent")
    beyond = tmp_path / "absent" / "out.json"
    assert f"--out {beyond}: there is no folder" in refused(capsys, *asked, tasks, "--out", beyond)
    (tmp_path / "rows.json").unlink()
    assert "the tasks own-open cannot be asked: " in refused(capsys, *asked, tasks)
    half = tmp_path / "half"
    shutil.copytree(exported, half)
    (half / "adapter").mkdir()
    said = refused(capsys, "--model", half, "--tasks", "own-open", "--include-path", tasks)
    assert "keeps its LoRA adapters apart" in said
    assert "--merge-lora" in said


def test_without_the_package(
    exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    said = refused(capsys, "--model", exported, "--tasks", "anything")
    assert said == (
        "error: lm-evaluation-harness is not installed; install the extra lm-eval: pip install 'vrray[lm-eval]'\n"
    )
