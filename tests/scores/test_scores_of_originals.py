"""The numbers that the original implementation gives for the reference models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vrray.models.convert import convert
from vrray.models.loading import decoder_layers, load_model
from vrray.scores.change import change_ratio, parameter_change
from vrray.scores.states import StateScores, Tokens, angular_distance, block_influence

REFERENCE = Path(__file__).resolve().parents[2].parent / "shared" / "reference"
pytestmark = pytest.mark.skipif(not REFERENCE.is_dir(), reason="the reference fixtures are not there")
FAMILIES = ["bunny_llama3", "bunny_phi3", "llava15"]
IMAGE_ID, IMAGE_TOKENS = 320, 9


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return json.loads((REFERENCE / "layer_scores" / "expected.json").read_text())


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Any]:
    """A family's name, its model, and the model with its LoRA merged."""
    family, folder = request.param, REFERENCE / "models" / request.param
    out = tmp_path_factory.mktemp(family)
    base = convert(folder / "checkpoint", out / "base")
    lora = convert(folder / "lora", out / "lora", base=folder / "checkpoint")
    return family, load_model(base), load_model(lora)


def state_scores(model: Any, family: str, case: str) -> list[float]:
    """Block Influence over every token of a case, as the original code has it."""
    inputs = np.load(REFERENCE / "models" / family / "inputs.npz")
    ids = [
        t for i in inputs[f"{case}.input_ids"][0].tolist() for t in ([IMAGE_ID] * IMAGE_TOKENS if i == -200 else [i])
    ]
    ids_T = torch.tensor([ids])
    pixels = torch.tensor(inputs["pixel_values"])[inputs[f"{case}.pixel_values_index"]] if case == "one_image" else None
    everything, image = torch.ones_like(ids_T, dtype=torch.bool), ids_T == IMAGE_ID
    with StateScores(model) as scores, torch.inference_mode():
        scores.tokens = Tokens(everything, everything & ~image, image)
        model.model(input_ids=ids_T, pixel_values=pixels, use_cache=False)
    return scores.rows["bi"][0][0].tolist()


def test_block_influence(model: tuple[str, Any, Any], expected: dict[str, Any]) -> None:
    family, base, lora = model
    numbers = expected[family]["block_influence"]
    one, text = state_scores(base, family, "one_image"), state_scores(base, family, "text_only")
    assert one == pytest.approx(numbers["one_image"], abs=1e-5)
    assert text == pytest.approx(numbers["text_only"], abs=1e-5)
    assert np.mean([one, text], axis=0) == pytest.approx(numbers["running_mean_of_one_image_and_text_only"], abs=1e-5)
    assert state_scores(lora, family, "one_image") == pytest.approx(numbers["lora.one_image"], abs=1e-5)
    assert np.argsort(one).tolist() == numbers["ascending_order_one_image"]


def change(base: Any, changed: Any) -> list[float]:
    """The original divides by the norm of the changed weights: seen from there, the base is what changed."""
    return parameter_change(changed, {name: lambda _, w=weight: w for name, weight in base.named_parameters()})


def test_parameter_change(model: tuple[str, Any, Any], expected: dict[str, Any]) -> None:
    family, base, lora = model
    numbers = expected[family]
    assert change(base, lora) == pytest.approx(
        numbers["lora_merged_vs_base"]["parameter_change_rate"], rel=1e-4, abs=1e-6
    )
    layers = decoder_layers(base)
    before = [{name: weight.clone() for name, weight in layer.state_dict().items()} for layer in layers]
    changed = load_model(Path(base.config._name_or_path))
    for index, layer in enumerate(decoder_layers(changed)):
        layer.load_state_dict(before[(index + 1) % len(before)])
    copied = numbers["next_layer_copy_vs_base"]["parameter_change_rate"]
    assert change(base, changed) == pytest.approx(copied, rel=1e-4)
    for index, layer in enumerate(decoder_layers(changed)):
        layer.load_state_dict({name: weight * 1.01 for name, weight in before[index].items()})
    assert change(base, changed) == pytest.approx(numbers["scaled_1p01_vs_base"]["parameter_change_rate"], rel=1e-4)


def test_synthetic_states(expected: dict[str, Any]) -> None:
    numbers, states = expected["synthetic"], np.load(REFERENCE / "layer_scores" / "synthetic.npz")
    a, b = torch.tensor(states["a"]), torch.tensor(states["b"])
    zeros = torch.tensor(states["a_zero_rows"])
    everything = torch.ones(1, len(a), dtype=torch.bool)
    text = everything.clone()
    text[:, 32:-12] = False

    def influence(first: torch.Tensor, chosen: torch.Tensor, dtype: torch.dtype = torch.float32) -> float:
        return float(block_influence(first[None].to(dtype), b[None].to(dtype), chosen))

    def by_kind(first: torch.Tensor) -> float:
        return (influence(first, text) + influence(first, ~text)) / 2

    assert influence(a, everything) == pytest.approx(numbers["calc_blockInfluence"], abs=1e-5)
    assert influence(zeros, everything) == pytest.approx(numbers["calc_blockInfluence_with_zero_rows"], abs=1e-5)
    assert influence(a, everything, torch.half) == pytest.approx(numbers["half_precision_inputs"], abs=1e-4)
    assert by_kind(a) == pytest.approx(numbers["text_img_calc_blockInfluence"], abs=1e-5)
    assert by_kind(zeros) == pytest.approx(numbers["text_img_with_zero_rows"], abs=1e-5)
    for pair, (changed, base) in {"pairwise": (a, b), "pairwise_swapped": (b, a)}.items():
        assert change_ratio(changed, base) == pytest.approx(numbers[pair]["parameter_change_rate"], rel=1e-4)
        angle = float(angular_distance(changed.flatten(), base.flatten()))
        assert angle == pytest.approx(numbers[pair]["angular_distance"], abs=2e-3)
