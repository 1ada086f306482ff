"""Deltas and variants: strict about what they fit, exact about what they restore."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import DEPTH

from vrray.errors import ModelError, PruningError, StoreError
from vrray.models.family import LLAVA
from vrray.models.loading import base_identity, load_model
from vrray.pruning import remove_layers
from vrray.region import Region, place
from vrray.specs import Recipe
from vrray.store import Store
from vrray.train.trainable import choose_trainable, delta_name
from vrray.variant import DELTA, Delta, applied, apply_delta, load_variant, merged_weight

REGION = place("1,4", DEPTH)
IDS = torch.tensor([[1, 40, 50, 60, 70, 2, 30, 90]])
UP = f"{LLAVA.layers}.4.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def pristine(tiny_model: Path) -> Any:
    return load_model(tiny_model)


@pytest.fixture
def model(pristine: Any) -> Any:
    return copy.deepcopy(pristine)


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=IDS).logits


def random_delta(model: Any, region: Region = REGION, mode: str = "full") -> Delta:
    """What a training of this region could have given."""
    recipe = Recipe(mode=mode, lora_rank=3, lora_alpha=12, lora_dropout=0.0)
    generator = torch.Generator().manual_seed(7)
    with choose_trainable(model, region, recipe) as trainable:
        shapes = {delta_name(name): model.get_parameter(name).shape for name in trainable.names}
    tensors = {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}
    rank = (recipe.lora_rank, recipe.lora_alpha) if mode == "lora" else (0, 0)
    return Delta(tensors, region, "base", mode, *rank)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_delta_is_read_as_it_was_written(model: Any, mode: str, tmp_path: Path) -> None:
    delta = random_delta(model, mode=mode)
    delta.save(tmp_path)
    read = Delta.load(tmp_path)
    assert replace(read, tensors={}) == replace(delta, tensors={})
    assert read.tensors.keys() == delta.tensors.keys()
    assert all(torch.equal(read.tensors[name], tensor) for name, tensor in delta.tensors.items())


def damage(name: str, content: str | None) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_text(content)

    return act


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (damage("delta.safetensors", None), "does not hold a delta"),
        (damage("delta.safetensors", "not tensors"), "does not hold a delta"),
        (damage("region.json", json.dumps({"layers": [9]})), "does not hold a delta: missing region fields"),
        (damage("delta.json", "{"), "does not hold a delta"),
        (damage("delta.json", json.dumps({"format": 99})), "is of another format; train it again"),
    ],
)
def test_damaged_deltas(model: Any, act: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    random_delta(model).save(tmp_path)
    act(tmp_path)
    with pytest.raises(StoreError, match=message):
        Delta.load(tmp_path)


@pytest.mark.parametrize("region", [REGION, Region.none(DEPTH), place("all", DEPTH)])
def test_a_delta_sets_exactly_its_tensors(model: Any, pristine: Any, region: Region) -> None:
    delta = random_delta(model, region)
    apply_delta(model, delta, "base")
    for name, parameter in model.named_parameters():
        expected = delta.tensors[name] if name in delta.tensors else pristine.get_parameter(name)
        assert torch.equal(parameter, expected), name
    assert len(delta.tensors) == 4 + 9 * len(region)


def without(delta: Delta, name: str) -> Delta:
    return replace(delta, tensors={key: tensor for key, tensor in delta.tensors.items() if key != name})


def with_tensor(delta: Delta, name: str, *shape: int) -> Delta:
    return replace(delta, tensors=delta.tensors | {name: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("mode", "change", "message"),
    [
        ("full", lambda d: replace(d, base="other"), "belongs to base other, this base is base"),
        ("full", lambda d: without(d, UP), rf"missing \['{UP}'\], unexpected \[\]"),
        ("full", lambda d: without(d, f"{LLAVA.projector}.linear_1.bias"), r"missing \['.*linear_1\.bias'\]"),
        ("full", lambda d: with_tensor(d, "lm_head.weight", 2), r"missing \[\], unexpected \['lm_head\.weight'\]"),
        ("full", lambda d: with_tensor(d, UP.replace(".4.", ".3."), 64, 32), r"unexpected \['.*layers\.3\.mlp"),
        (
            "full",
            lambda d: with_tensor(d, UP, 32, 64),
            r"up_proj\.weight has shape \[32, 64\], the base's is \[64, 32\]",
        ),
        ("full", lambda d: replace(d, region=place("1", DEPTH)), r"unexpected \['.*layers\.4\."),
        ("lora", lambda d: without(d, UP.replace("weight", "lora_B")), "lora_A without its lora_B"),
        ("lora", lambda d: without(d, UP.replace("weight", "lora_A")), rf"missing \['{UP}'\]"),
    ],
)
def test_a_delta_that_does_not_fit_changes_nothing(
    model: Any, pristine: Any, mode: str, change: Callable[[Delta], Delta], message: str
) -> None:
    delta = change(random_delta(model, mode=mode))
    with pytest.raises(ModelError, match=message):
        apply_delta(model, delta, "base")
    with pytest.raises(ModelError, match=message), applied(model, delta, "base"):
        pass
    assert torch.equal(logits(model), logits(pristine))


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_applied_restores_bit_by_bit(model: Any, pristine: Any, mode: str) -> None:
    delta = random_delta(model, mode=mode)
    places = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    with pytest.raises(RuntimeError, match="interrupted"), applied(model, delta, "base"):
        assert not torch.allclose(logits(model), logits(pristine), atol=1e-2)
        raise RuntimeError("interrupted")
    assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == places
    assert all(torch.equal(parameter, pristine.get_parameter(name)) for name, parameter in model.named_parameters())


def test_merged_adapters_equal_peft(model: Any, pristine: Any) -> None:
    delta = random_delta(model, mode="lora")
    recipe = Recipe(mode="lora", lora_rank=3, lora_alpha=12, lora_dropout=0.0)
    adapted = copy.deepcopy(pristine)
    with choose_trainable(adapted, REGION, recipe) as trainable:
        assert {delta_name(name) for name in trainable.names} == delta.tensors.keys()
        for name in trainable.names:
            adapted.get_parameter(name).data.copy_(delta.tensors[delta_name(name)])
        expected = logits(adapted)
    apply_delta(model, delta, "base")
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(pristine), expected, atol=1e-2)


def test_a_merge_by_hand() -> None:
    a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]])
    merged = merged_weight(torch.ones(2, 2), a, b, rank=2, alpha=6)
    assert merged.tolist() == [[10.0, 19.0], [13.0, 25.0]]
    assert merged_weight(torch.ones(2, 2).bfloat16(), a, b, 2, 6).dtype == torch.bfloat16


def test_a_variant_is_base_delta_and_plan(model: Any, tiny_model: Path, tmp_path: Path) -> None:
    base, store = base_identity(tiny_model), Store(tmp_path)
    delta = replace(random_delta(model), base=base)
    store.put(DELTA, "k", delta.save)
    apply_delta(model, delta, base)
    remove_layers(model, (2, 5), REGION)
    assert torch.equal(logits(load_variant(store, "k", (2, 5), tiny_model, base)), logits(model))
    with pytest.raises(ModelError, match=f"belongs to base {base}, this base is another"):
        load_variant(store, "k", (), tiny_model, "another")
    with pytest.raises(PruningError, match=r"\[4\] belong to the region"):
        load_variant(store, "k", (2, 4), tiny_model, base)
    with pytest.raises(StoreError, match="no complete artefact delta/absent"):
        load_variant(store, "absent", (), tiny_model, base)
