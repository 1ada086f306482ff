"""Pruning: which layers may go, and a model that still generates with its cache when they are gone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import DEPTH, IMAGE_TOKENS, text_config, tiny_family, tiny_lvlm
from transformers import Qwen2Config, SmolLM3Config

from vrray.errors import PruningError
from vrray.models.loading import decoder_layers, load_model
from vrray.pruning import pruned, remove_layers
from vrray.region import place

REGION = place("0,3", DEPTH)
PLANS = [(1, 5), (1, 2, 4, 5)]


@pytest.fixture(scope="module")
def pristine(tiny_model: Path) -> Any:
    return load_model(tiny_model)


@pytest.fixture
def model(pristine: Any) -> Any:
    return copy.deepcopy(pristine)


@pytest.fixture(params=["llama", "qwen2", "smollm3", "gemma3"])
def families(request: pytest.FixtureRequest) -> Any:
    """Also text models whose configs have lists with an entry a layer: all alike, or of several kinds."""
    if request.param == "gemma3":
        return tiny_family("gemma3")
    kinds = {"llama": None, "qwen2": text_config(Qwen2Config), "smollm3": text_config(SmolLM3Config)}
    return tiny_lvlm(text=kinds[request.param])


def asked(model: Any) -> dict[str, Any]:
    ids = [1, *[model.config.image_token_id] * IMAGE_TOKENS, 40, 50, 60]
    pixels = torch.linspace(-2, 2, 3 * 28 * 28).reshape(1, 3, 28, 28)
    return {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids)).long(), "pixel_values": pixels}


@torch.inference_mode()
def answer(model: Any, *, cached: bool) -> list[int]:
    output = model.generate(**asked(model), max_new_tokens=10, min_new_tokens=10, do_sample=False, use_cache=cached)
    return output[0].tolist()


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    return model(**asked(model)).logits


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((1, 3), r"layers \[3\] belong to the region layers-0-3 and are protected"),
        ((6,), r"\[6\] are not distinct layers of 0\.\.5"),
        ((-1,), "are not distinct layers"),
        ((2, 2), "are not distinct layers"),
    ],
)
def test_wrong_layers_are_refused(model: Any, layers: tuple[int, ...], message: str) -> None:
    before = list(decoder_layers(model))
    with pytest.raises(PruningError, match=message):
        remove_layers(model, layers, REGION)
    with pytest.raises(PruningError, match=message), pruned(model, layers, REGION):
        pass
    assert list(decoder_layers(model)) == before


@pytest.mark.parametrize("layers", [(2, 4), (1,), ()])
def test_a_pruned_model_is_not_pruned_again(model: Any, layers: tuple[int, ...]) -> None:
    remove_layers(model, (1, 5), REGION)
    before = list(decoder_layers(model))
    message = (
        r"the model has 4 decoder layers, but the region layers-0-3 is about a decoder of 6; "
        r"layers are numbered as in the base: .* in one call"
    )
    with pytest.raises(PruningError, match=message):
        remove_layers(model, layers, REGION)
    with pytest.raises(PruningError, match=message), pruned(model, layers, REGION):
        pass
    assert list(decoder_layers(model)) == before
    assert model.config.text_config.num_hidden_layers == 4


def test_a_layer_of_the_region_goes_where_nothing_is_protected(model: Any) -> None:
    before = list(decoder_layers(model))
    remove_layers(model, (1, 3), REGION, protect=False)
    assert list(decoder_layers(model)) == [before[index] for index in (0, 2, 4, 5)]


def test_the_right_layers_go(model: Any) -> None:
    before = list(decoder_layers(model))
    remove_layers(model, (1, 5), REGION)
    assert list(decoder_layers(model)) == [before[index] for index in (0, 2, 3, 4)]
    assert [layer.self_attn.layer_idx for layer in decoder_layers(model)] == [0, 1, 2, 3]
    assert model.config.text_config.num_hidden_layers == model.get_decoder().config.num_hidden_layers == 4


@pytest.mark.parametrize("plan", PLANS)
def test_cached_and_uncached_answers_agree_also_after_reloading(
    families: Any, plan: tuple[int, ...], tmp_path: Path
) -> None:
    model, whole = families, answer(families, cached=True)
    remove_layers(model, plan, REGION)
    cached, before = answer(model, cached=True), logits(model)
    assert cached == answer(model, cached=False)
    assert cached != whole
    model.save_pretrained(tmp_path)
    reloaded = load_model(tmp_path)
    assert len(decoder_layers(reloaded)) == DEPTH - len(plan)
    assert torch.equal(logits(reloaded), before)
    assert answer(reloaded, cached=True) == answer(reloaded, cached=False) == cached


@pytest.mark.parametrize("plan", PLANS)
def test_pruned_restores_everything(families: Any, plan: tuple[int, ...]) -> None:
    model, before = families, logits(families)
    config, layers = model.config.to_dict(), list(decoder_layers(model))
    decoder_config = model.get_decoder().config.to_dict()
    with pruned(model, plan, REGION):
        assert len(decoder_layers(model)) == DEPTH - len(plan)
        assert answer(model, cached=True) == answer(model, cached=False)
        assert not torch.equal(logits(model), before)
    assert list(decoder_layers(model)) == layers
    assert [layer.self_attn.layer_idx for layer in layers] == list(range(DEPTH))
    assert torch.equal(logits(model), before)
    assert model.config.to_dict() == config
    assert model.get_decoder().config.to_dict() == decoder_config


def test_pruned_restores_after_an_error(model: Any, pristine: Any) -> None:
    with pytest.raises(RuntimeError, match="interrupted"), pruned(model, (1, 5), REGION):
        raise RuntimeError("interrupted")
    assert torch.equal(logits(model), logits(pristine))


def test_pruning_for_a_while_equals_pruning_for_good(model: Any, pristine: Any) -> None:
    remove_layers(model, (1, 5), REGION)
    with pruned(pristine, (1, 5), REGION):
        assert torch.equal(logits(pristine), logits(model))


def test_removing_nothing_changes_nothing(model: Any, pristine: Any) -> None:
    remove_layers(model, (), REGION)
    assert torch.equal(logits(model), logits(pristine))
    assert model.config.to_dict() == pristine.config.to_dict()
