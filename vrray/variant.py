"""Deltas (what a trial produced) and variants (base + delta + pruning plan)."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
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
Change = Callable[[torch.Tensor], torch.Tensor]  # from the base's tensor to the variant's, on its device, in its type
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
    originals = _exchange(model, changes(model, delta, base))
    try:
        yield
    finally:
        for name, tensor in originals.items():
            model.get_parameter(name).data = tensor


def apply_delta(model: nn.Module, delta: Delta, base: str) -> None:
    """Like `applied`, for good."""
    _exchange(model, changes(model, delta, base))


def load_delta(store: Store, key: str) -> Delta:
    """
    Raises:
        StoreError: there is no complete delta under this key.
    """
    with store.open(DELTA, key) as folder:
        return Delta.load(folder)


def load_variant(
    store: Store, key: str, removed: tuple[int, ...], base_path: Path, base: str, *, protect: bool = True
) -> Any:
    """The model of a variant, ready to generate; see `load_variants`."""
    (model,) = load_variants(store, [(key, removed)], base_path, base, protect=protect)
    return model


def load_variants(
    store: Store,
    variants: Sequence[tuple[str, tuple[int, ...]]],
    base_path: Path,
    base: str,
    *,
    protect: bool = True,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> list[Any]:
    """The models of several variants of one base, side by side: each can generate at any time.

    They share the memory of every tensor that is frozen, and those of one delta also what it holds: together they take
    one base and each delta once, whatever is removed. Moving one of them to another device takes it out of that.

    Args:
        variants: keys of deltas, and the layers that are removed.
        protect: refuse to remove a layer of a delta's region.

    Raises:
        StoreError: there is no complete delta under a key.
        ModelError: it belongs to another base.
        PruningError: a removed layer lies in the region.
    """
    from vrray.models.loading import load_model

    deltas = {key: load_delta(store, key) for key, _ in variants}
    whole = load_model(base_path, dtype).to(device)
    tuned = {key: share_tensors(whole) for key in deltas}
    for key, delta in deltas.items():
        apply_delta(tuned[key], delta, base)
    models = [share_tensors(tuned[key]) for key, _ in variants]
    for model, (key, removed) in zip(models, variants, strict=True):
        remove_layers(model, removed, deltas[key].region, protect=protect)
    return models


def share_tensors(model: Any) -> Any:
    """A model with modules and a configuration of its own, whose parameters and buffers lie in the memory of `model`.

    Setting `.data` of a parameter, removing layers or moving one of the two leaves the other as it is; writing into a
    tensor changes both.
    """
    shared: dict[int, Any] = {
        id(parameter): nn.Parameter(parameter.data, requires_grad=False) for parameter in model.parameters()
    }
    shared |= {id(buffer): buffer for buffer in model.buffers()}
    return copy.deepcopy(model, shared)


def changes(model: nn.Module, delta: Delta, base: str) -> dict[str, Change]:
    """What a delta does to the parameters of its base, by parameter name; the model may be on the meta device.

    Raises:
        ModelError: the delta belongs to another base, or lacks a tensor, or has one too many or of another shape.
    """
    if delta.base != base:
        raise ModelError(f"the delta belongs to base {delta.base}, this base is {base}; load the one it was trained on")
    plain = {name: tensor for name, tensor in delta.tensors.items() if not name.endswith((".lora_A", ".lora_B"))}
    pairs = adapter_pairs(delta)
    shapes = {name: tensor.shape for name, tensor in plain.items()}
    shapes |= {f"{module}.weight": torch.Size((len(b), a.shape[1])) for module, (a, b) in pairs.items()}
    expected = _expected_names(model, delta)
    missing, extra = sorted(expected - shapes.keys()), sorted(shapes.keys() - expected)
    if missing or extra:
        raise ModelError(f"the delta does not fit its region: missing {missing[:3]}, unexpected {extra[:3]}")
    for name, found in shapes.items():
        shape = model.get_parameter(name).shape
        if found != shape:
            raise ModelError(f"the delta's {name} has shape {list(found)}, the base's is {list(shape)}")
    return {name: _replacement(tensor) for name, tensor in plain.items()} | {
        f"{module}.weight": _merge(a, b, delta) for module, (a, b) in pairs.items()
    }


def adapter_pairs(delta: Delta) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The factors A `[rank, inputs]` and B `[outputs, rank]` of a LoRA delta, by the name of their linear layer.

    Raises:
        ModelError: a factor is alone, or of another rank.
    """
    pairs = {}
    for name, a in delta.tensors.items():
        if not name.endswith(".lora_A"):
            continue
        module = name.removesuffix(".lora_A")
        b = delta.tensors.get(f"{module}.lora_B")
        if b is None:
            raise ModelError(f"the delta has {name} without its lora_B")
        if not len(a) == b.shape[1] == delta.lora_rank:
            raise ModelError(f"the factors of {module} have rank {len(a)} and {b.shape[1]}, not {delta.lora_rank}")
        pairs[module] = (a, b)
    return pairs


def _replacement(tensor: torch.Tensor) -> Change:
    return lambda base: tensor.to(base.device, base.dtype)


def _merge(a: torch.Tensor, b: torch.Tensor, delta: Delta) -> Change:
    return lambda base: merged_weight(base, a, b, delta.lora_rank, delta.lora_alpha)


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


def merged_weight(base: torch.Tensor, a: torch.Tensor, b: torch.Tensor, rank: int, alpha: int) -> torch.Tensor:
    """`base + alpha / rank * B A`, computed in float32 (Hu et al. 2021, equation 3)."""
    product = b.to(base.device, torch.float32) @ a.to(base.device, torch.float32)
    return (base.float() + (alpha / rank) * product).to(base.dtype)


def _exchange(model: nn.Module, wanted: dict[str, Change]) -> dict[str, torch.Tensor]:
    """Point parameters at other tensors; the tensors that they had are returned, untouched."""
    before = {name: model.get_parameter(name).data for name in wanted}
    after = {name: change(before[name]) for name, change in wanted.items()}
    for name, tensor in after.items():
        model.get_parameter(name).data = tensor
    return before
