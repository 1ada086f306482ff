"""Choosing what trains: the region's decoder layers (all parameters, or LoRA adapters) and the projector.

What is frozen can stay resident: it is taken out of DeepSpeed's sight by making frozen parameters buffers for the
time of a training, so that ZeRO-3 partitions only what trains (DESIGN, decision 7).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from vrray.errors import TrainingError
from vrray.models.family import family_of
from vrray.region import Region
from vrray.specs import Recipe

_ADAPTER = "vrray"


@dataclass(frozen=True)
class Trainable:
    """Names of the parameters that train, by part, as `model.named_parameters()` gives them."""

    region: dict[int, tuple[str, ...]]
    projector: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return (*(name for layer in self.region.values() for name in layer), *self.projector)


@contextmanager
def choose_trainable(model: nn.Module, region: Region, recipe: Recipe) -> Iterator[Trainable]:
    """Set `requires_grad` on exactly what trains (adding adapters for LoRA); on leaving, undo all of it.

    Raises:
        TrainingError: a layer of the region or the projector has no parameter.
    """
    family = family_of(model.config)
    paths = dict(zip(region.layers, region.module_paths(family.layers), strict=True))
    model.requires_grad_(False)
    if recipe.mode == "lora" and region.layers:
        _add_adapters(model, tuple(paths.values()), recipe)
    try:
        parts = {index: _parameters_below(model, path, recipe.mode) for index, path in paths.items()}
        trainable = Trainable(parts, _parameters_below(model, family.projector, "full"))
        for name in trainable.names:
            model.get_parameter(name).requires_grad_(True)
        yield trainable
    finally:
        _remove_adapters(model)
        model.requires_grad_(False)


@contextmanager
def frozen_as_buffers(model: nn.Module, wanted: bool = True) -> Iterator[None]:
    """Make every frozen parameter a buffer while inside; the same parameter objects come back on leaving."""
    if not wanted:
        yield
        return
    moved: list[tuple[nn.Module, str, nn.Parameter]] = []
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and not parameter.requires_grad:
                moved.append((module, name, parameter))
    for module, name, parameter in moved:
        del module._parameters[name]
        module.register_buffer(name, parameter.data)
    try:
        yield
    finally:
        for module, name, parameter in moved:
            del module._buffers[name]
            module.register_parameter(name, parameter)


@contextmanager
def tower_aside(model: nn.Module) -> Iterator[None]:
    """Take the vision tower out of the model while inside: it stays whole, and runs only on ranks that have images.

    Features come from the tower or from its cache (`vrray.data.features`), not through the model.
    """
    path, _, name = family_of(model.config).tower.rpartition(".")
    modules = model.get_submodule(path)._modules
    before = dict(modules)
    del modules[name]
    try:
        yield
    finally:
        modules.clear()
        modules.update(before)


def _parameters_below(model: nn.Module, path: str, mode: str) -> tuple[str, ...]:
    names = tuple(f"{path}.{name}" for name, _ in model.get_submodule(path).named_parameters())
    if mode == "lora":
        names = tuple(name for name in names if ".lora_" in name)
    if not names:
        raise TrainingError(f"{path} has no parameter to train (mode {mode})")
    return names


def _add_adapters(model: nn.Module, paths: tuple[str, ...], recipe: Recipe) -> None:
    linear = [
        f"{path}.{name}"
        for path in paths
        for name, module in model.get_submodule(path).named_modules()
        if isinstance(module, nn.Linear)
    ]
    config = LoraConfig(
        r=recipe.lora_rank, lora_alpha=recipe.lora_alpha, lora_dropout=recipe.lora_dropout, target_modules=linear
    )
    inject_adapter_in_model(config, model, adapter_name=_ADAPTER)


def _remove_adapters(model: nn.Module) -> None:
    for path, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config


def delta_name(name: str) -> str:
    """The name of a trained parameter in a delta: PEFT's adapter name is left out, other names stay."""
    for factor in ("lora_A", "lora_B"):
        name = name.replace(f".{factor}.{_ADAPTER}.weight", f".{factor}")
    return name
