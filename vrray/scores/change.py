"""Parameter change ratio: how far tuning moved the weights of each layer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from vrray.models.family import family_of
from vrray.models.loading import decoder_layers
from vrray.variant import Change


def parameter_change(model: nn.Module, tuned: Mapping[str, Change]) -> list[float]:
    """A value a layer: the sum of `||W' - W|| / ||W||` over its linear maps (PAPER, layer scores).

    Args:
        model: has the weights W before tuning.
        tuned: makes the weights W' from W, by parameter name; those that are not in it did not change.
    """
    path = family_of(model.config).layers
    values = []
    for index, layer in enumerate(decoder_layers(model)):
        total = 0.0
        for name, module in layer.named_modules():
            change = tuned.get(f"{path}.{index}.{name}.weight")
            if isinstance(module, nn.Linear) and change is not None:
                total += change_ratio(module.weight.data, change(module.weight.data))
        values.append(total)
    return values


def change_ratio(before: torch.Tensor, after: torch.Tensor) -> float:
    """`||after - before|| / ||before||`, in float32."""
    before = before.float()
    difference = after.to(before.device, torch.float32) - before
    return float(difference.norm() / before.norm())
