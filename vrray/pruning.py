"""Removing decoder layers from a model so that it still generates with a cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from vrray.errors import PruningError
from vrray.models.family import family_of
from vrray.models.loading import decoder_layers
from vrray.plans import removable
from vrray.region import Region

# What configurations list layer by layer.
_PER_LAYER = ("layer_types", "no_rope_layers", "mlp_layer_types")


def remove_layers(model: nn.Module, layers: Sequence[int], region: Region, *, protect: bool = True) -> None:
    """Remove decoder layers (numbered as in the base) for good: renumber the cache's indices, correct the config.

    Args:
        protect: refuse to remove a layer of the region.

    Raises:
        PruningError: a layer lies in the region or is not there, or the model has lost layers before.
    """
    current = decoder_layers(model)
    _check(len(current), layers, region, protect)
    kept = [index for index in range(region.depth) if index not in set(layers)]
    lists = [{name: [kind[index] for index in kept] for name, kind in each.items()} for each in _layer_lists(model)]
    _install(model, [current[index] for index in kept], lists)


@contextmanager
def pruned(model: nn.Module, layers: Sequence[int], region: Region, *, protect: bool = True) -> Iterator[None]:
    """`remove_layers` for a while: the base's layers, numbers and config come back on leaving."""
    whole, lists = list(decoder_layers(model)), _layer_lists(model)
    remove_layers(model, layers, region, protect=protect)
    try:
        yield
    finally:
        _install(model, whole, lists)


def _check(depth: int, layers: Sequence[int], region: Region, protect: bool) -> None:
    if depth != region.depth:
        raise PruningError(
            f"the model has {depth} decoder layers, but the region {region.name} is about a decoder of {region.depth}; "
            "layers are numbered as in the base: start from the whole base and remove all of them in one call"
        )
    protected = sorted(set(layers) & set(region.layers) - set(removable(region)))
    if protected and protect:
        raise PruningError(f"layers {protected} belong to the region {region.name} and are protected from pruning")
    outside = [layer for layer in layers if not 0 <= layer < region.depth]
    if outside or len(set(layers)) != len(layers):
        raise PruningError(f"layers {list(layers)} are not distinct layers of 0..{region.depth - 1}")


def _install(model: nn.Module, layers: list[nn.Module], lists: list[dict[str, list[Any]]]) -> None:
    parent, _, name = family_of(model.config).layers.rpartition(".")
    setattr(model.get_submodule(parent), name, nn.ModuleList(layers))
    for index, layer in enumerate(layers):
        layer.self_attn.layer_idx = index  # type: ignore[union-attr]
    for config, values in zip(_text_configs(model), lists, strict=True):
        config.num_hidden_layers = len(layers)
        for key, value in values.items():
            setattr(config, key, value)


def _layer_lists(model: nn.Module) -> list[dict[str, list[Any]]]:
    """What each config lists layer by layer, such as the kind of attention."""
    return [
        {name: values for name in _PER_LAYER if (values := getattr(config, name, None))}
        for config in _text_configs(model)
    ]


def _text_configs(model: nn.Module) -> list[Any]:
    decoder = model.get_submodule(family_of(model.config).decoder)
    configs: list[Any] = [model.config.text_config, decoder.config]  # type: ignore[union-attr]
    return configs if configs[0] is not configs[1] else configs[:1]
