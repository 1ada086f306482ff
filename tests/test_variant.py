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
from tiny import DEPTH, text_config, tiny_lvlm

from vrray.errors import ModelError, PruningError, StoreError
from vrray.models.family import LLAVA
from vrray.models.loading import base_identity, load_model
from vrray.pruning import remove_layers
from vrray.region import Region, place
from vrray.specs import Recipe
from vrray.store import Store
from vrray.train.trainable import choose_trainable, delta_name
from vrray.variant import (
    DELTA,
    Delta,
    applied,
    apply_delta,
    load_variant,
    load_variants,
    merged_weight,
    share_tensors,
)

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
        (
            "lora",
            lambda d: with_tensor(d, UP.replace("weight", "lora_A"), 3, 8),
            r"up_proj\.weight has shape \[64, 8\], the base's is \[64, 32\]",
        ),
        (
            "lora",
            lambda d: with_tensor(d, UP.replace("weight", "lora_A"), 2, 32),
            r"up_proj have rank 2 and 3, not 3",
        ),
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


@pytest.fixture(scope="module")
def deltas(
    pristine: Any, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Store, str, dict[str, Delta]]:
    """A store with three deltas of one base."""
    base, store = base_identity(tiny_model), Store(tmp_path_factory.mktemp("deltas"))
    found = {
        "full": random_delta(pristine),
        "lora": random_delta(pristine, mode="lora"),
        "other": random_delta(pristine, place("0,3", DEPTH)),
    }
    for key, delta in found.items():
        store.put(DELTA, key, replace(delta, base=base).save)
    return store, base, found


VARIANTS: list[tuple[str, tuple[int, ...]]] = [
    ("full", ()),
    ("full", (0, 5)),
    ("lora", (2,)),
    ("other", (2,)),
    ("full", (0, 2, 3)),
]


def memory(*models: Any) -> dict[int, int]:
    """Bytes of the tensors of models, each storage once."""
    tensors = [tensor for model in models for tensor in (*model.parameters(), *model.buffers())]
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}


def test_variants_of_one_base_share_what_is_frozen(
    deltas: tuple[Store, str, dict[str, Delta]], tiny_model: Path, pristine: Any
) -> None:
    store, base, found = deltas
    models = load_variants(store, VARIANTS, tiny_model, base)
    first = dict(models[0].named_parameters())
    tuned = {name for name in found["full"].tensors if name in first}
    places = {name: parameter.data_ptr() for name, parameter in first.items()}
    whole, pruned = (model.get_decoder().layers for model in models[:2])
    assert [p.data_ptr() for p in whole[4].parameters()] == [p.data_ptr() for p in pruned[3].parameters()]
    lora = dict(models[2].named_parameters())
    for name in places:
        if "language_model.layers" not in name:
            assert (lora[name].data_ptr() == places[name]) == (name not in tuned), name
    # Together: the base, less what no variant has any more, and each delta once.
    changed = sum(tensor.nbytes for key in ("full", "other") for tensor in found[key].tensors.values())
    merged = {name for name in found["lora"].tensors if "lora" not in name}
    merged |= {name.replace("lora_A", "weight") for name in found["lora"].tensors if name.endswith("lora_A")}
    changed += sum(pristine.get_parameter(name).nbytes for name in merged)
    projector = sum(p.nbytes for p in pristine.model.multi_modal_projector.parameters())
    assert sum(memory(*models).values()) == sum(memory(pristine).values()) - projector + changed


def test_variants_side_by_side_are_those_alone(deltas: tuple[Store, str, dict[str, Delta]], tiny_model: Path) -> None:
    store, base, _ = deltas
    models = load_variants(store, VARIANTS, tiny_model, base)
    expected = [logits(load_variant(store, key, removed, tiny_model, base)) for key, removed in VARIANTS]
    for _ in range(2):  # in any order, again and again
        for model, (_, removed), alone in zip(models, VARIANTS, expected, strict=True):
            assert torch.equal(logits(model), alone)
            assert model.config.text_config.num_hidden_layers == DEPTH - len(removed)
    assert len({one.sum().item() for one in expected}) == len(VARIANTS)


def test_variants_in_another_precision(deltas: tuple[Store, str, dict[str, Delta]], tiny_model: Path) -> None:
    store, base, _ = deltas
    models = load_variants(store, [("full", ()), ("lora", (2,))], tiny_model, base, dtype=torch.bfloat16)
    assert {parameter.dtype for model in models for parameter in model.parameters()} == {torch.bfloat16}


def test_an_unprotected_plan_is_loaded_where_that_is_asked(
    deltas: tuple[Store, str, dict[str, Delta]], tiny_model: Path
) -> None:
    store, base, _ = deltas
    with pytest.raises(PruningError, match=r"\[1\] belong to the region"):
        load_variant(store, "full", (0, 1), tiny_model, base)
    model = load_variant(store, "full", (0, 1), tiny_model, base, protect=False)
    assert model.config.text_config.num_hidden_layers == DEPTH - 2


def test_a_model_that_shares_is_its_own(tiny_model: Path, pristine: Any) -> None:
    model = load_model(tiny_model)
    twin = share_tensors(model)
    assert memory(model) == memory(twin)
    remove_layers(twin, (0,), REGION)
    assert torch.equal(logits(model), logits(pristine))
    assert model.config.text_config.num_hidden_layers == DEPTH


def test_tied_embeddings_stay_tied_in_a_model_that_shares() -> None:
    model = tiny_lvlm(text=text_config(tie_word_embeddings=True))
    twin = share_tensors(model)
    assert twin.lm_head.weight is twin.get_input_embeddings().weight
    assert twin.lm_head.weight is not model.lm_head.weight
    assert twin.lm_head.weight.data_ptr() == model.lm_head.weight.data_ptr()
