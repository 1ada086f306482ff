"""The weights of an export: those of the base's files, layers left out, the rest renumbered, trained ones changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from vrray.errors import ModelError
from vrray.models.family import family_of
from vrray.models.original import Weight, checkpoint_tensors, finite
from vrray.variant import Change

# How parameters are called in files, where that differs: `save_pretrained` and the hub keep older names.
_OLD_NAMES = {
    "language_model.model.": "model.language_model.",
    "language_model.lm_head.": "lm_head.",
    "multi_modal_projector.": "model.multi_modal_projector.",
}


def base_weights(path: Path, model: nn.Module) -> dict[str, Weight]:
    """The weights of a model directory by their names in its files; nothing is read yet.

    Args:
        model: what its configuration describes, also on the meta device.

    Raises:
        ModelError: a weight of decoder or projector is missing, unexpected, or of another shape.
    """
    weights = checkpoint_tensors(path)
    found = {parameter_name(name): weight for name, weight in weights.items()}
    family, known = family_of(model.config), model.state_dict()
    parts = (f"{family.decoder}.", f"{family.projector}.")
    needed = {name for name, _ in model.named_parameters() if name.startswith((*parts, "lm_head."))}
    if missing := sorted(needed - found.keys()):
        raise ModelError(f"{path} lacks {len(missing)} weights, such as {missing[0]}; copy or convert it again")
    for name, weight in found.items():
        if not name.startswith(parts):
            continue
        if name not in known:
            raise ModelError(f"{weight.source} is no part of the model that {path / 'config.json'} describes")
        if weight.shape != known[name].shape:
            shapes = f"shape {list(weight.shape)}, the model needs {list(known[name].shape)}"
            raise ModelError(f"{weight.source} has {shapes}; copy or convert it again")
    return weights


def exported_weights(
    weights: Mapping[str, Weight],
    layers: str,
    kept: Sequence[int],
    changes: Mapping[str, Change],
    dtype: torch.dtype | None = None,
) -> dict[str, Weight]:
    """The weights to write, by their names in files.

    Args:
        layers: path of the decoder layers in the model.
        kept: the decoder layers that stay, ascending.
        changes: what becomes of parameters, by name; the others are copied.
        dtype: of all floating-point weights; None leaves each as it is.
    """
    exported = {}
    for name, weight in weights.items():
        parameter = parameter_name(name)
        layer = layer_of(parameter, layers)
        if layer is not None and layer not in kept:
            continue
        if dtype is not None and weight.dtype.is_floating_point:
            weight = dataclasses.replace(weight, dtype=dtype, load=partial(_cast, weight, dtype))
        if parameter in changes:
            weight = dataclasses.replace(weight, load=partial(_changed, weight, changes[parameter]))
        place = name if layer is None else _renumbered(name, layer, kept.index(layer))
        exported[place] = weight
    return exported


def parameter_name(name: str) -> str:
    """The name in the model of a parameter of decoder, head or projector, from its name in a file."""
    for old, new in _OLD_NAMES.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def layer_of(parameter: str, layers: str) -> int | None:
    """The decoder layer that a parameter or module belongs to."""
    number = parameter.removeprefix(f"{layers}.").partition(".")[0]
    return int(number) if parameter.startswith(f"{layers}.") and number.isdigit() else None


def renumbered(parameter: str, layers: str, kept: Sequence[int]) -> str:
    """The name in the pruned model of a parameter or module of a layer that stays."""
    layer = layer_of(parameter, layers)
    return parameter if layer is None else _renumbered(parameter, layer, kept.index(layer))


def _renumbered(name: str, layer: int, place: int) -> str:
    """The decoder's layers come first in its names: their number is the first of this value behind `layers`."""
    return name.replace(f"layers.{layer}.", f"layers.{place}.", 1)


def _cast(weight: Weight, dtype: torch.dtype) -> torch.Tensor:
    tensor = weight.load().to(dtype)
    if dtype == torch.float16 and not bool(tensor.isfinite().all()):
        raise ModelError(f"{weight.source} has values beyond {torch.finfo(dtype).max:g}; use --dtype bf16")
    return tensor


def _changed(weight: Weight, change: Change) -> torch.Tensor:
    return finite(change(weight.load()), f"what becomes of {weight.source}")
