"""What trains: the region's decoder layers and the projector, nothing else, and no trace afterwards."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from tiny import DEPTH, text_config, tiny_lvlm
from torch import nn

from vrray.models.family import LLAVA
from vrray.models.loading import load_model
from vrray.region import Region, place
from vrray.specs import Recipe
from vrray.train.trainable import choose_trainable, delta_name, frozen_as_buffers, tower_aside

FULL = Recipe(mode="full")
LORA = Recipe(mode="lora", lora_rank=2)
LINEARS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return load_model(tiny_model)


def require_gradients(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=torch.tensor([[1, 40, 50, 60, 2]])).logits


@pytest.mark.parametrize("region", [place("1", DEPTH), place("0,5", DEPTH), place("all", DEPTH), Region.none(DEPTH)])
def test_the_region_and_the_projector_train(model: Any, region: Region) -> None:
    wanted = re.compile(
        rf"{re.escape(LLAVA.layers)}\.({'|'.join(map(str, region)) or 'none'})\.|{re.escape(LLAVA.projector)}\."
    )
    expected = {name for name, _ in model.named_parameters() if wanted.match(name)}
    with choose_trainable(model, region, FULL) as trainable:
        assert require_gradients(model) == set(trainable.names) == expected
        assert len(trainable.names) == len(expected) == 4 + 9 * len(region)
        assert not any("vision_tower" in name for name in trainable.names)
        assert list(trainable.region) == list(region)
        for layer, names in trainable.region.items():
            assert all(name.startswith(f"{LLAVA.layers}.{layer}.") for name in names)
    assert require_gradients(model) == set()


def test_frozen_again_after_an_error(model: Any) -> None:
    for recipe in (FULL, LORA):
        with pytest.raises(RuntimeError, match="interrupted"), choose_trainable(model, place("1", DEPTH), recipe):
            raise RuntimeError("interrupted")
        assert require_gradients(model) == set()
        assert not any(isinstance(module, LoraLayer) for module in model.modules())


def test_adapters_sit_on_the_regions_linears_only(model: Any) -> None:
    region = place("1,4", DEPTH)
    before, names, modules = logits(model), dict(model.named_parameters()), dict(model.named_modules())
    with choose_trainable(model, region, LORA) as trainable:
        adapted = {name for name, module in model.named_modules() if isinstance(module, LoraLayer)}
        assert {name.rpartition(".")[2] for name in adapted} == LINEARS
        assert len(adapted) == len(LINEARS) * len(region)
        assert all(name.startswith((f"{LLAVA.layers}.1.", f"{LLAVA.layers}.4.")) for name in adapted)
        assert require_gradients(model) == set(trainable.names)
        assert len(trainable.names) == 4 + 2 * len(adapted)
        assert all(".lora_" in name for layer in trainable.region.values() for name in layer)
        assert torch.equal(logits(model), before)  # B is zero at the start
    assert dict(model.named_parameters()) == names
    assert dict(model.named_modules()) == modules
    assert not hasattr(model, "peft_config")
    assert torch.equal(logits(model), before)


def test_lora_without_a_region_trains_the_projector(model: Any) -> None:
    with choose_trainable(model, Region.none(DEPTH), LORA) as trainable:
        assert require_gradients(model) == set(trainable.names) == set(trainable.projector)
        assert not any(isinstance(module, LoraLayer) for module in model.modules())


def test_names_in_a_delta() -> None:
    path = f"{LLAVA.layers}.1.mlp.up_proj"
    assert delta_name(f"{path}.lora_A.vrray.weight") == f"{path}.lora_A"
    assert delta_name(f"{path}.lora_B.vrray.weight") == f"{path}.lora_B"
    assert delta_name(f"{path}.weight") == f"{path}.weight"


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("recipe", [FULL, LORA], ids=["full", "lora"])
def test_frozen_parameters_come_back_as_they_were(tied: bool, recipe: Recipe) -> None:
    model = tiny_lvlm(text=text_config(tie_word_embeddings=tied))
    embedding = model.model.language_model.embed_tokens
    assert (model.lm_head.weight is embedding.weight) == tied
    before = logits(model)
    with choose_trainable(model, place("1,4", DEPTH), recipe) as trainable:
        inside = dict(model.named_parameters(remove_duplicate=False))
        with (
            pytest.raises(RuntimeError, match="interrupted"),
            frozen_as_buffers(model),
        ):
            assert {name for name, _ in model.named_parameters()} == set(trainable.names)
            assert torch.equal(logits(model), before)
            raise RuntimeError("interrupted")
        after = dict(model.named_parameters(remove_duplicate=False))
        assert after.keys() == inside.keys()
        assert all(after[name] is parameter for name, parameter in inside.items())
    assert (model.lm_head.weight is embedding.weight) == tied
    assert torch.equal(logits(model), before)


def test_frozen_parameters_stay_where_partitioning_wants_them(model: Any) -> None:
    names = [name for name, _ in model.named_parameters()]
    with choose_trainable(model, place("1", DEPTH), FULL), frozen_as_buffers(model, wanted=False):
        assert [name for name, _ in model.named_parameters()] == names


def test_the_tower_comes_back_to_its_place(model: Any) -> None:
    names, tower = [name for name, _ in model.named_modules()], model.model.vision_tower
    with pytest.raises(RuntimeError, match="interrupted"), tower_aside(model):
        assert [name for name, _ in model.named_modules()] == [name for name in names if "vision_tower" not in name]
        with frozen_as_buffers(model):
            assert next(tower.parameters()) is not None  # it can still run by itself
        raise RuntimeError("interrupted")
    assert model.model.vision_tower is tower
    assert [name for name, _ in model.named_modules()] == names


def test_gradients_flow_through_frozen_layers_to_the_region(model: Any) -> None:
    with choose_trainable(model, place("0", DEPTH), FULL) as trainable, frozen_as_buffers(model):
        model(input_ids=torch.tensor([[1, 40, 50]])).logits.sum().backward()
        got = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert got == set(trainable.region[0])
        model.zero_grad(set_to_none=True)
