"""Adapters are merged as PEFT merges them, and anything else than plain LoRA is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from originals import HIDDEN, Weights, change_json, write_language_model, write_lora
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from vrray.errors import ModelError
from vrray.models.original import checkpoint_tensors
from vrray.models.original_lora import merge_adapters

A, B = (f"base_model.model.model.layers.1.mlp.down_proj.lora_{factor}.weight" for factor in "AB")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_language_model(tmp_path / "base")


@pytest.fixture
def lora(tmp_path: Path, base: Path) -> Path:
    return write_lora(tmp_path / "lora", base)


def merged(lora: Path, base: Path) -> Weights:
    return {name: weight.load() for name, weight in merge_adapters(lora, checkpoint_tensors(base)).items()}


def change_factors(lora: Path, **changes: torch.Tensor | None) -> None:
    factors = load_file(lora / "adapter_model.safetensors")
    changed = {name: tensor for name, tensor in (factors | changes).items() if tensor is not None}
    save_file(changed, lora / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("targets", "layers", "changed"),
    [
        (["q_proj", "down_proj"], None, 4),
        (["q_proj", "down_proj"], [1], 2),
        (["q_proj", "down_proj"], 0, 2),
        (["model.layers.0.mlp.up_proj"], None, 1),
    ],
)
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_it_merges_as_peft_does(
    tmp_path: Path, base: Path, targets: list[str], layers: Any, changed: int, kind: str
) -> None:
    torch.manual_seed(3)
    config = LoraConfig(r=3, lora_alpha=5, target_modules=targets, layers_to_transform=layers)
    model = get_peft_model(LlamaForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    model.save_pretrained(tmp_path / "peft", safe_serialization=True)
    if kind == "bin":
        file = tmp_path / "peft" / "adapter_model.safetensors"
        torch.save(load_file(file), file.with_suffix(".bin"))
        file.unlink()
    expected = model.merge_and_unload().state_dict()
    found = merged(tmp_path / "peft", base)
    before = checkpoint_tensors(base)
    assert sum(not torch.equal(found[name], before[name].load()) for name in found) == changed
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name])


def test_the_base_keeps_its_precision(tmp_path: Path, lora: Path) -> None:
    base = write_language_model(tmp_path / "half", dtype=torch.float16)
    weights = {name: tensor.half() for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(weights, base / "model.safetensors")
    factors = load_file(lora / "adapter_model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    found = merged(lora, base)[name]
    assert found.dtype == torch.float16
    exact = weights[name].double() + 2 * factors[B].double() @ factors[A].double()
    assert (found.double() - exact).abs().max() <= exact.abs().max() * 2**-11


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "use_dora True"),
        ({"use_rslora": True}, "use_rslora True"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out True"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save \['lm_head'\]"),
        ({"bias": "lora_only"}, "bias 'lora_only'"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"peft_type": "LOHA"}, "peft_type 'LOHA'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
        ({"r": 0}, "r 0"),
        ({"lora_alpha": None}, "lora_alpha None"),
        ({"target_modules": "all-linear"}, "target_modules must be a list of names, found 'all-linear'"),
        ({"r": 3}, r"lora_A\.weight has shape \[2, (16|24)\], needs \[3, (16|24)\]"),
        ({"target_modules": ["o_proj", "down_proj"]}, r"lacks the adapter of model\.layers\.0\.mlp\.down_proj"),
        ({"target_modules": ["model.layers.1.mlp.down_proj"]}, r"an adapter for model\.layers\.1\.self_attn\.o_proj"),
    ],
)
def test_settings_that_are_refused(lora: Path, base: Path, changes: dict[str, Any], message: str) -> None:
    change_json(lora / "adapter_config.json", changes)
    with pytest.raises(ModelError, match=message):
        merged(lora, base)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({A: None}, r"model\.layers\.1\.mlp\.down_proj has lora_B only"),
        ({A: None, B: None}, r"lacks the adapter of model\.layers\.1\.mlp\.down_proj"),
        ({A: torch.ones(2, 23)}, r"lora_A\.weight has shape \[2, 23\], needs \[2, 24\]"),
        ({B: torch.ones(HIDDEN, 3)}, r"lora_B\.weight has shape \[16, 3\], needs \[16, 2\]"),
        ({B: torch.full((HIDDEN, 2), float("nan"))}, r"down_proj\.lora_B\.weight holds values that are not finite"),
        ({A.replace("lora_A", "lora_embedding_A"): torch.ones(2)}, "neither lora_A nor lora_B"),
        ({B.replace("lora_B.weight", "lora_magnitude_vector"): torch.ones(2)}, "neither lora_A nor lora_B"),
    ],
)
def test_factors_that_are_refused(lora: Path, base: Path, changes: dict[str, Any], message: str) -> None:
    change_factors(lora, **changes)
    with pytest.raises(ModelError, match=message):
        merged(lora, base)


@pytest.mark.parametrize("module", ["model.layers.7.mlp.down_proj", "model.norm", "model.mystery"])
def test_an_adapter_for_an_unknown_module(lora: Path, base: Path, module: str) -> None:
    change_json(lora / "adapter_config.json", {"target_modules": [module, "model.layers.1.mlp.down_proj"]})
    keys = load_file(lora / "adapter_model.safetensors")
    others = dict.fromkeys([key for key in keys if "o_proj" in key])
    new = {f"base_model.model.{module}.lora_{f}.weight": torch.ones(2, 2) for f in "AB"}
    change_factors(lora, **others, **new)
    with pytest.raises(ModelError, match="belongs to no linear layer of the base"):
        merged(lora, base)


def test_no_adapter_at_all(lora: Path, base: Path) -> None:
    (lora / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has neither adapter_model\.safetensors nor adapter_model\.bin"):
        merged(lora, base)
