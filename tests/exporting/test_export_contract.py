"""The contract of an export, family by family: plain transformers in a fresh process sees the variant in memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import contract
import pytest
import torch
from safetensors import safe_open
from tiny import DEPTH, build_family, build_tiny, text_config
from transformers import GenerationConfig, Phi3Config, Qwen2Config, SmolLM3Config

import vrray
from vrray.models.loading import decoder_layers, load_model
from vrray.pruning import remove_layers
from vrray.region import Region

REMOVED = [1, 5]


def tiny(**text: Any) -> Callable[[Path], Path]:
    return lambda folder: build_tiny(folder, text=text_config(**text))


def family(kind: str) -> Callable[[Path], Path]:
    return lambda folder: build_family(folder, kind)


BUILDERS = {
    "llava-llama": tiny(),
    "llava-tied": tiny(tie_word_embeddings=True),
    "llava-qwen2": tiny(kind=Qwen2Config),
    "llava-phi3": tiny(kind=Phi3Config, pad_token_id=0),
    "llava-smollm3": tiny(kind=SmolLM3Config, no_rope_layers=[1, 1, 0, 1, 0, 1]),
    **{kind: family(kind) for kind in ("internvl", "gemma3", "idefics3", "smolvlm")},
}
TIED = {"llava-tied", "gemma3", "smolvlm"}


@dataclass(frozen=True)
class Exported:
    source: Path
    out: Path
    expected: dict[str, Any]
    found: dict[str, Any]


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    """Every family exported, then all of them looked at by one fresh process without vrray."""
    folder = tmp_path_factory.mktemp("exports")
    expected = {}
    for kind, build in BUILDERS.items():
        source = build(folder / kind)
        GenerationConfig(eos_token_id=[2, 77], pad_token_id=0).save_pretrained(source)
        model = load_model(source)
        remove_layers(model, REMOVED, Region.none(DEPTH))
        expected[kind] = contract.observed(model)
        vrray.export(model=str(source), remove=REMOVED, out=folder / f"{kind}-out")
    outs = {kind: folder / f"{kind}-out" for kind in BUILDERS}
    found = contract.look([*outs.values()], folder / "found")
    return {kind: Exported(folder / kind, out, expected[kind], found[out]) for kind, out in outs.items()}


@pytest.fixture(params=BUILDERS)
def exported(request: pytest.FixtureRequest, exports: dict[str, Exported]) -> Exported:
    return exports[request.param]


def test_nothing_is_missing_or_left_over(exported: Exported) -> None:
    assert exported.found["problems"] == {}


def test_logits_are_those_of_the_variant_in_memory(exported: Exported) -> None:
    assert exported.found["dtype"] == exported.expected["dtype"] == torch.float32
    assert torch.equal(exported.found["logits"], exported.expected["logits"])
    assert not torch.allclose(contract.logits(load_model(exported.source)), exported.expected["logits"], atol=1e-2)


def test_cached_answers_are_uncached_ones(exported: Exported) -> None:
    assert exported.found["cached"] == exported.found["uncached"] == exported.expected["cached"]


def test_configuration(exported: Exported) -> None:
    found = exported.found
    assert (found["layers"], found["places"]) == (DEPTH - 2, list(range(DEPTH - 2)))
    assert found["lists"] == exported.expected["lists"]
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (exported.source, exported.out))
    assert after["text_config"].pop("num_hidden_layers") == DEPTH - 2
    for name in [name for name, value in before["text_config"].items() if isinstance(value, list)]:
        whole = before["text_config"][name]
        assert after["text_config"].pop(name) == [whole[layer] for layer in (0, 2, 3, 4)], name
        before["text_config"].pop(name)
    before["text_config"].pop("num_hidden_layers")
    parts = ("text_config", "vision_config")
    one, other = ({k: v for k, v in each.items() if k not in parts} for each in (before, after))
    assert one == other
    for part in parts:
        one, other = ({k: v for k, v in each[part].items() if k != "dtype"} for each in (before, after))
        assert one == other


def test_embeddings_stay_tied(exports: dict[str, Exported]) -> None:
    tied = {kind for kind, exported in exports.items() if exported.found["tied"]}
    assert tied >= TIED
    assert tied == {kind for kind, exported in exports.items() if exported.expected["tied"]}


def sizes(folder: Path) -> tuple[int, int]:
    """Bytes of the tensors of a weights file: by its tensors, and by its size without the header."""
    file = folder / "model.safetensors"
    with safe_open(file, "pt") as content:
        tensors = sum(content.get_tensor(name).nbytes for name in content.keys())  # noqa: SIM118
    header = int.from_bytes(file.read_bytes()[:8], "little")
    return tensors, file.stat().st_size - 8 - header


def test_parameters_and_file_fall_by_the_removed_layers(exported: Exported) -> None:
    model = load_model(exported.source)
    layers = sum(p.numel() for layer in REMOVED for p in decoder_layers(model)[layer].parameters())
    whole = sum(p.numel() for p in model.parameters())
    assert exported.found["parameters"] == exported.expected["parameters"] == whole - layers
    (before, before_file), (after, after_file) = sizes(exported.source), sizes(exported.out)
    assert before - after == before_file - after_file == 4 * layers


def test_processor_and_generation_settings_come_along(exported: Exported) -> None:
    assert exported.found["end"] == [2, 77]
    assert exported.found["prompt"] == "<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\n"
    for name in ("tokenizer.json", "processor_config.json", "chat_template.jinja", "generation_config.json"):
        assert (exported.out / name).read_bytes() == (exported.source / name).read_bytes()


def test_the_demo_needs_one_import_of_vrray(smol: Path, tmp_path: Path) -> None:
    vrray.export(model="smol", remove="3,29", out=tmp_path / "out")
    program = """
import sys, torch
from transformers import AutoModelForImageTextToText
import vrray.models.tower

model = AutoModelForImageTextToText.from_pretrained(sys.argv[1])
with torch.inference_mode():
    torch.save(model(input_ids=torch.tensor([[504, 3575, 282, 4649, 314]])).logits, sys.argv[2])
"""
    command = [sys.executable, "-c", program, str(tmp_path / "out"), str(tmp_path / "logits")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    model = load_model(smol)
    remove_layers(model, (3, 29), Region.none(30))
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([[504, 3575, 282, 4649, 314]])).logits
    assert torch.equal(torch.load(tmp_path / "logits"), expected)
    assert "import vrray.models.tower" in (tmp_path / "out" / "README.md").read_text()
