"""Converted checkpoints compute what the original implementations computed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from originals import REFERENCE
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, GenerationConfig, LlavaForConditionalGeneration

from vrray.models.convert import convert
from vrray.models.loading import conversation, load_model, resolve_model

pytestmark = pytest.mark.skipif(not REFERENCE.is_dir(), reason="the reference fixtures are not there")

FAMILIES = ["bunny_llama3", "bunny_phi3", "llava15"]
KINDS = ["checkpoint", "stage1", "lora"]
VOCABULARY, IMAGE_ID, IMAGE_TOKENS = 320, 320, 9
CASES = [
    (kind, case)
    for kind, cases in {
        "checkpoint": ["one_image", "text_only", "two_images", "batch"],
        "stage1": ["one_image", "batch"],
        "lora": ["one_image", "text_only", "two_images", "batch"],
    }.items()
    for case in cases
]
Arrays = dict[str, np.ndarray[Any, Any]]


@dataclass
class Reference:
    """What the original implementation was given, and what it returned."""

    family: str
    inputs: Arrays
    outputs: Arrays

    def arguments(self, case: str) -> dict[str, Any]:
        """A case for `forward`: images at their full length, rows padded on the right."""
        rows = [expanded(row.tolist()) for row in self.inputs[f"{case}.input_ids"]]
        if case == "batch":
            rows = [
                expanded(row[mask == 1].tolist())
                for row, mask in zip(self.inputs["batch.input_ids"], self.inputs["batch.attention_mask"], strict=True)
            ]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        images = self.inputs.get(f"{case}.pixel_values_index", np.array([-1]))
        pixels = torch.tensor(self.inputs["pixel_values"])[[index for index in images.tolist() if index >= 0]]
        return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels if len(pixels) else None}


def expanded(ids: list[int]) -> list[int]:
    return [token for one in ids for token in ([IMAGE_ID] * IMAGE_TOKENS if one == -200 else [one])]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """The converted directory of a family's checkpoint, stage-1 or LoRA output."""
    done: dict[tuple[str, str], Path] = {}

    def get(family: str, kind: str) -> Path:
        if (family, kind) not in done:
            folder = REFERENCE / family
            base = None if kind == "checkpoint" else folder / "checkpoint"
            target = tmp_path_factory.mktemp("converted") / "out"
            done[family, kind] = convert(folder / kind, target, base=base)
        return done[family, kind]

    return get


@pytest.fixture(scope="module", params=FAMILIES)
def reference(request: pytest.FixtureRequest) -> Reference:
    folder = REFERENCE / request.param
    return Reference(request.param, dict(np.load(folder / "inputs.npz")), dict(np.load(folder / "outputs.npz")))


@pytest.fixture(scope="module")
def loaded(reference: Reference, converted: Callable[[str, str], Path]) -> Callable[[str], Any]:
    models: dict[str, Any] = {}

    def get(kind: str) -> Any:
        if kind not in models:
            models[kind] = load_model(converted(reference.family, kind))
        return models[kind]

    return get


@pytest.mark.parametrize(("kind", "case"), CASES)
@torch.inference_mode()
def test_logits(reference: Reference, loaded: Callable[[str], Any], kind: str, case: str) -> None:
    arguments = reference.arguments(case)
    prefix = "" if kind == "checkpoint" else f"{kind}."
    expected = torch.tensor(reference.outputs[f"{prefix}{case}.logits"])
    output = loaded(kind)(**arguments, output_hidden_states=True)
    found = output.logits[..., :VOCABULARY]
    assert found.shape == expected.shape
    if case == "batch":
        present = torch.tensor(reference.outputs["batch.expanded_attention_mask"]).bool()
        assert torch.equal(arguments["attention_mask"].bool(), present)
        labels = torch.tensor(reference.outputs["batch.expanded_labels"])[:, 1:]
        loss = torch.nn.functional.cross_entropy(found[:, :-1].flatten(0, 1), labels.flatten())
        assert loss.item() == pytest.approx(float(reference.outputs[f"{prefix}batch.loss"]), abs=1e-5)
        found, expected = found[present], expected[present]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    states = reference.outputs.get(f"{prefix}{case}.hidden_states")
    if states is not None:
        torch.testing.assert_close(torch.stack(output.hidden_states), torch.tensor(states), rtol=0, atol=1e-4)


@torch.inference_mode()
def test_image_features(reference: Reference, loaded: Callable[[str], Any]) -> None:
    model = loaded("checkpoint")
    pixels, entering = torch.tensor(reference.inputs["pixel_values"]), []
    model.model.multi_modal_projector.register_forward_pre_hook(lambda _, args: entering.append(args[0]))
    features = torch.stack(model.get_image_features(pixels).pooler_output)
    torch.testing.assert_close(features, torch.tensor(reference.outputs["image_features"]), rtol=0, atol=1e-4)
    torch.testing.assert_close(entering[0], torch.tensor(reference.outputs["tower_features"]), rtol=0, atol=1e-4)


@torch.inference_mode()
def test_greedy_ids(reference: Reference, loaded: Callable[[str], Any]) -> None:
    arguments = reference.arguments("one_image")
    output = loaded("checkpoint").generate(**arguments, do_sample=False, max_new_tokens=8, min_new_tokens=8)
    new = output[0, arguments["input_ids"].shape[1] :]
    np.testing.assert_array_equal(new.numpy(), reference.outputs["one_image.greedy_ids"])


@torch.inference_mode()
def test_added_rows_are_never_generated(reference: Reference, loaded: Callable[[str], Any]) -> None:
    model, arguments = loaded("checkpoint"), reference.arguments("one_image")
    head = model.lm_head.weight
    before = head[VOCABULARY:].clone()
    assert not before.any()
    state = model(**arguments, output_hidden_states=True).hidden_states[-1][0, -1]
    try:
        head[VOCABULARY:] = 100 * state  # what a training could make of them
        assert model(**arguments).logits[0, -1].argmax() >= VOCABULARY
        output = model.generate(**arguments, do_sample=False, max_new_tokens=4, min_new_tokens=4)
        assert output[0, arguments["input_ids"].shape[1] :].max() < VOCABULARY
    finally:
        head[VOCABULARY:] = before


def test_pixels(reference: Reference, converted: Callable[[str, str], Path]) -> None:
    processor = AutoImageProcessor.from_pretrained(converted(reference.family, "checkpoint"), backend="pil")
    images = [Image.open(REFERENCE / reference.family / f"image_{number}.png") for number in range(3)]
    found = processor(images=images, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(found, reference.inputs["pixel_values"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_directory(reference: Reference, converted: Callable[[str, str], Path], kind: str) -> None:
    folder = converted(reference.family, kind)
    model, info = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    config = AutoConfig.from_pretrained(folder)
    template = {"bunny_llama3": "llama", "bunny_phi3": "phi3", "llava15": "vicuna_v1"}[reference.family]
    assert config.conversation == conversation("", folder) == template
    assert (config.image_token_index, config.text_config.vocab_size) == (IMAGE_ID, 384)
    assert config.text_config.original_vocab_size == VOCABULARY
    embedding = model.get_input_embeddings().weight
    torch.testing.assert_close(embedding[VOCABULARY:], embedding[:VOCABULARY].mean(0).expand(64, -1))
    generation = GenerationConfig.from_pretrained(folder)
    assert generation.suppress_tokens == list(range(VOCABULARY, 384))
    assert (generation.bos_token_id, generation.eos_token_id) == (1, 2)
    assert resolve_model(str(folder)) == folder.resolve()


def test_reload_in_a_fresh_process(converted: Callable[[str, str], Path], tmp_path: Path) -> None:
    cases = {}
    for family in FAMILIES:
        folder = REFERENCE / family
        given = Reference(family, dict(np.load(folder / "inputs.npz")), dict(np.load(folder / "outputs.npz")))
        torch.save(given.arguments("one_image"), tmp_path / f"{family}.pt")
        cases[family] = [str(converted(family, "lora")), str(tmp_path / f"{family}.pt")]
    script = (
        "import json, sys, torch\n"
        "from transformers import LlavaForConditionalGeneration\n"
        "for family, (folder, file) in json.loads(sys.argv[1]).items():\n"
        "    model = LlavaForConditionalGeneration.from_pretrained(folder).eval()\n"
        "    torch.save(model(**torch.load(file)).logits.detach(), file)\n"
        "assert 'vrray' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script, json.dumps(cases)], check=True, cwd=tmp_path)
    for family, (_, file) in cases.items():
        expected = torch.tensor(np.load(REFERENCE / family / "outputs.npz")["lora.one_image.logits"])
        torch.testing.assert_close(torch.load(file)[..., :VOCABULARY], expected, rtol=0, atol=1e-4)
