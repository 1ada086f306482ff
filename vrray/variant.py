"""Deltas (what a trial produced) and variants (base + delta + pruning plan)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from vrray.errors import ModelError, StoreError
from vrray.models.family import family_of
from vrray.pruning import remove_layers
from vrray.region import Region
from vrray.store import Store

DELTA = "delta"
_FORMAT = 1


@dataclass(frozen=True)
class Delta:
    """The tensors that trained, by parameter name, with the region and the identity of the base they belong to.

    For LoRA the tensors are the adapters' factors, named `<weight's module>.lora_A` and `.lora_B`.
    """

    tensors: dict[str, torch.Tensor]
    region: Region
    base: str
    mode: Literal["full", "lora"]
    lora_rank: int = 0
    lora_alpha: int = 0

    def save(self, folder: Path) -> None:
        """Write `delta.safetensors`, `region.json` and `delta.json` into an existing folder."""
        save_file({name: tensor.contiguous() for name, tensor in self.tensors.items()}, folder / "delta.safetensors")
        (folder / "region.json").write_text(json.dumps(self.region.to_json(), indent=1))
        about = {
            "format": _FORMAT,
            "base": self.base,
            "mode": self.mode,
            "lora_rank": self.lora_rank,
            "lora_alpha": self.lora_alpha,
        }
        (folder / "delta.json").write_text(json.dumps(about, indent=1))

    @classmethod
    def load(cls, folder: Path) -> Delta:
        """
        Raises:
            StoreError: a file is missing or of another format.
        """
        try:
            about = json.loads((folder / "delta.json").read_text())
            region = Region.from_json(json.loads((folder / "region.json").read_text()))
            tensors = load_file(folder / "delta.safetensors")
        except (OSError, ValueError, SafetensorError) as error:
            raise StoreError(f"{folder} does not hold a delta: {error}") from error
        if about.pop("format", None) != _FORMAT:
            raise StoreError(f"{folder}/delta.json is of another format; train it again with this version")
        return cls(tensors=tensors, region=region, **about)


@contextmanager
def applied(model: nn.Module, delta: Delta, base: str) -> Iterator[None]:
    """Set a delta's weights on a base model, adapters merged; the base's own weights come back on leaving.

    Raises:
        ModelError: the delta belongs to another base, or lacks a tensor, or has one too many or of another shape.
    """
    originals = _exchange(model, _new_weights(model, delta, base))
    try:
        yield
    finally:
        _exchange(model, originals)


def apply_delta(model: nn.Module, delta: Delta, base: str) -> None:
    """Like `applied`, for good."""
    _exchange(model, _new_weights(model, delta, base))


def load_variant(store: Store, key: str, removed: tuple[int, ...], base_path: Path, base: str) -> Any:
    """The model of a variant, ready to generate.

    Raises:
        StoreError: there is no complete delta under this key.
        ModelError: it belongs to another base.
        PruningError: a removed layer lies in the region.
    """
    from vrray.models.loading import load_model

    with store.open(DELTA, key) as folder:
        delta = Delta.load(folder)
        model = load_model(base_path)
        apply_delta(model, delta, base)
    remove_layers(model, removed, delta.region)
    return model


def _new_weights(model: nn.Module, delta: Delta, base: str) -> dict[str, torch.Tensor]:
    if delta.base != base:
        raise ModelError(f"the delta belongs to base {delta.base}, this base is {base}; load the one it was trained on")
    weights = dict(delta.tensors)
    if delta.mode == "lora":
        weights = _merge_adapters(model, delta)
    expected = _expected_names(model, delta)
    missing, extra = sorted(expected - weights.keys()), sorted(weights.keys() - expected)
    if missing or extra:
        raise ModelError(f"the delta does not fit its region: missing {missing[:3]}, unexpected {extra[:3]}")
    for name, tensor in weights.items():
        shape = model.get_parameter(name).shape
        if tensor.shape != shape:
            raise ModelError(f"the delta's {name} has shape {list(tensor.shape)}, the base's is {list(shape)}")
    return weights


def _expected_names(model: nn.Module, delta: Delta) -> set[str]:
    family = family_of(model.config)
    projector = model.get_submodule(family.projector)
    names = {f"{family.projector}.{name}" for name, _ in projector.named_parameters()}
    for path in delta.region.module_paths(family.layers):
        layer = model.get_submodule(path)
        if delta.mode == "full":
            names |= {f"{path}.{name}" for name, _ in layer.named_parameters()}
        else:
            names |= {
                f"{path}.{name}.weight" for name, module in layer.named_modules() if isinstance(module, nn.Linear)
            }
    return names


def _merge_adapters(model: nn.Module, delta: Delta) -> dict[str, torch.Tensor]:
    weights = {name: tensor for name, tensor in delta.tensors.items() if not name.endswith((".lora_A", ".lora_B"))}
    for name, a in delta.tensors.items():
        if not name.endswith(".lora_A"):
            continue
        module = name.removesuffix(".lora_A")
        b = delta.tensors.get(f"{module}.lora_B")
        if b is None:
            raise ModelError(f"the delta has {name} without its lora_B")
        base = model.get_parameter(f"{module}.weight")
        weights[f"{module}.weight"] = merged_weight(base.data, a, b, delta.lora_rank, delta.lora_alpha)
    return weights


def merged_weight(base: torch.Tensor, a: torch.Tensor, b: torch.Tensor, rank: int, alpha: int) -> torch.Tensor:
    """`base + alpha / rank * B A`, computed in float32 (Hu et al. 2021, equation 3)."""
    product = b.to(base.device, torch.float32) @ a.to(base.device, torch.float32)
    return (base.float() + (alpha / rank) * product).to(base.dtype)


def _exchange(model: nn.Module, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Point parameters at other tensors; the tensors that they had are returned, untouched."""
    before = {}
    for name, tensor in weights.items():
        parameter = model.get_parameter(name)
        before[name] = parameter.data
        parameter.data = tensor.to(parameter.device, parameter.dtype)
    return before
