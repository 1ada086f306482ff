"""The presets against the published sizes of what they stand for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from vrray.models import Preset, presets
from vrray.models.loading import ModelShape, model_config, shape_of
from vrray.models.presets import Conversation, find_preset
from vrray.region import place
from vrray.specs import SMOL_RECIPE, Recipe, RunSpec

PAPER = [preset for preset in presets() if preset.name != "smol"]
BY_NAME = {preset.name: preset for preset in presets()}


def count(config: object, auto: type) -> int:
    with torch.device("meta"):
        model = auto.from_config(config)  # type: ignore[attr-defined]
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.fixture(scope="module")
def shapes() -> dict[str, ModelShape]:
    return {preset.name: shape_of(model_config(preset.name)) for preset in presets()}


def test_the_presets() -> None:
    assert list(BY_NAME) == ["bunny-llama3-8b", "bunny-phi3-4b", "llava-1.5-7b", "llava-1.5-13b", "smol"]


@pytest.mark.parametrize(
    ("name", "decoder", "tower"),
    [
        ("bunny-llama3-8b", 8_030_261_248, 428_225_600),
        ("bunny-phi3-4b", 3_821_079_552, 428_225_600),
        ("llava-1.5-7b", 6_738_415_616, 303_507_456),
        ("llava-1.5-13b", 13_015_864_320, 303_507_456),
        ("smol", 134_515_008, 3_371_008),
    ],
)
def test_sizes_are_those_of_the_real_models(shapes: dict[str, ModelShape], name: str, decoder: int, tower: int) -> None:
    config, shape = model_config(name), shapes[name]
    assert count(config.text_config, AutoModelForCausalLM) == shape.decoder == decoder
    assert count(config.vision_config, AutoModel) == shape.tower == tower
    assert shape.total == decoder + tower + shape.projector


@pytest.mark.parametrize("preset", PAPER, ids=lambda preset: preset.name)
def test_sizes_by_hand(shapes: dict[str, ModelShape], preset: Preset) -> None:
    shape, values, tower = shapes[preset.name], preset.decoder, preset.tower
    hidden, inner = values["hidden_size"], values["intermediate_size"]
    keys = hidden * values["num_key_value_heads"] // values["num_attention_heads"]
    assert shape.layer == 2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * inner + 2 * hidden
    assert shape.decoder == shape.depth * shape.layer + 2 * values["vocab_size"] * hidden + hidden
    assert (shape.depth, shape.hidden, shape.vocabulary) == (
        values["num_hidden_layers"],
        hidden,
        values["vocab_size"],
    )
    width = tower["hidden_size"]
    assert shape.projector == width * hidden + hidden + hidden * hidden + hidden  # mlp2x_gelu
    assert (shape.image_tokens, shape.tower_width) == (preset.image_tokens, width)


@pytest.mark.parametrize(
    ("name", "tokens", "width"),
    [("bunny-llama3-8b", 729, 1152), ("bunny-phi3-4b", 729, 1152), ("llava-1.5-7b", 576, 1024), ("smol", 9, 1280)],
)
def test_tokens_of_an_image(shapes: dict[str, ModelShape], name: str, tokens: int, width: int) -> None:
    assert (shapes[name].image_tokens, shapes[name].tower_width) == (tokens, width)


def test_the_class_token_is_left_out_where_the_tower_has_one() -> None:
    strategies = {p.tower["model_type"]: (p.features, p.feature_layer) for p in PAPER}
    assert strategies == {"clip_vision_model": ("default", -2), "siglip_vision_model": ("full", -2)}
    config = model_config("llava-1.5-7b")
    assert (config.vision_feature_select_strategy, config.vision_feature_layer) == ("default", -2)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("bunny-llama3-8b", (1, 5, 9, 13, 19, 23, 27, 31)),
        ("bunny-phi3-4b", (0, 4, 8, 12, 16, 20, 24, 28)),
        ("llava-1.5-7b", (0, 4, 8, 12, 16, 20, 24, 28)),
        ("llava-1.5-13b", (0, 4, 8, 13, 17, 22, 26, 31, 35)),
        ("smol", place("uniform", 30, 0.25).layers),
    ],
)
def test_the_papers_region(shapes: dict[str, ModelShape], name: str, layers: tuple[int, ...]) -> None:
    region = BY_NAME[name].region
    assert (region.layers, region.depth) == (layers, shapes[name].depth)


@pytest.mark.parametrize("preset", presets(), ids=lambda preset: preset.name)
def test_a_run_takes_the_presets_recipe(preset: Preset) -> None:
    assert RunSpec.parse({"model": preset.name}).recipe() == preset.recipe


def test_the_papers_recipe() -> None:
    for preset in PAPER:
        recipe = preset.recipe
        assert (recipe.mode, recipe.lora_rank, recipe.lora_alpha, recipe.lora_dropout) == ("lora", 128, 256, 0.05)
        assert (recipe.learning_rate, recipe.projector_learning_rate) == (2e-4, 2e-5)
        assert (recipe.global_batch, recipe.epochs, recipe.max_steps) == (128, 1, None)
        assert (recipe.warmup_ratio, recipe.weight_decay, recipe.max_length) == (0.03, 0, 2048)
        full = RunSpec.parse({"model": preset.name, "mode": "full"}).recipe()
        assert full == Recipe(mode="full", learning_rate=2e-5)
    assert BY_NAME["smol"].recipe == SMOL_RECIPE


def test_conversations_and_images() -> None:
    found = {preset.name: preset.conversation for preset in presets()}
    assert found == {
        "bunny-llama3-8b": "llama",
        "bunny-phi3-4b": "phi3",
        "llava-1.5-7b": "vicuna_v1",
        "llava-1.5-13b": "vicuna_v1",
        "smol": "chat",
    }
    assert {preset.images for preset in presets()} == {"pad"}
    assert {preset.projector for preset in presets()} == {"mlp2x_gelu"}
    templates = get_args(RunSpec.model_fields["template"].annotation)
    assert set(get_args(Conversation)) == set(templates) - {"auto"}


def test_where_weights_are() -> None:
    for preset in PAPER:
        ids = (preset.checkpoint, preset.language_model, preset.vision_tower)
        assert all(name is not None and name.count("/") == 1 for name in ids)
        assert (preset.standard is not None) == preset.name.startswith("llava")
        assert preset.checkpoint is not None
        assert find_preset(preset.name) is find_preset(preset.checkpoint) is find_preset(f"{preset.checkpoint}@x")
    assert find_preset("llava-hf/llava-1.5-13b-hf") is BY_NAME["llava-1.5-13b"]
    assert find_preset("llava-hf/llava-1.5-34b-hf") is find_preset("lmsys/vicuna-7b-v1.5") is None


def test_the_demos_preset_is_what_is_built(smol: Path, shapes: dict[str, ModelShape]) -> None:
    built = json.loads((smol / "config.json").read_text())
    for part, values in (("text_config", BY_NAME["smol"].decoder), ("vision_config", BY_NAME["smol"].tower)):
        for name, value in values.items():
            assert built[part][name] == (pytest.approx(value) if isinstance(value, float) else value)
    assert built["vision_feature_layer"] == BY_NAME["smol"].feature_layer
    assert built["vision_feature_select_strategy"] == BY_NAME["smol"].features
    assert shapes["smol"].image_tokens == built["image_seq_length"]


def test_presets_are_listed_without_heavy_imports() -> None:
    code = "import sys, vrray.models as m; m.presets(); print({'torch', 'transformers', 'ray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
