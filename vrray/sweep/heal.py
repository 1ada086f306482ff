"""The delta of a healed variant: it was trained with layers gone, and belongs to the whole base all the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from vrray.variant import Delta


def in_base(tensors: Mapping[str, torch.Tensor], layers_path: str, left: Sequence[int]) -> dict[str, torch.Tensor]:
    """Tensors with the numbers that their layers have in the base.

    Args:
        layers_path: where the decoder's layer list is in the model.
        left: the layers that were there in the training, by their numbers in the base.
    """
    renamed = {}
    for name, tensor in tensors.items():
        if name.startswith(f"{layers_path}."):
            number, _, rest = name.removeprefix(f"{layers_path}.").partition(".")
            name = f"{layers_path}.{left[int(number)]}.{rest}"
        renamed[name] = tensor
    return renamed


def stacked(first: Delta, second: Delta) -> Delta:
    """One delta that does what both do one after the other.

    Full weights of the second replace those of the first. The factors of both adapters stand side by side:
    `[B1 B2] [A1; A2] = B1 A1 + B2 A2`, with the scale `alpha / rank` that both have. Layers that the second lacks,
    because they were gone, stay as they were in the first.
    """
    if second.mode == "full":
        return replace(second, tensors={**first.tensors, **second.tensors})
    tensors = {**first.tensors, **second.tensors}
    for name, ours in first.tensors.items():
        if name.endswith((".lora_A", ".lora_B")):
            theirs = second.tensors.get(name, torch.zeros_like(ours))
            tensors[name] = torch.cat([ours, theirs], dim=0 if name.endswith(".lora_A") else 1)
    return replace(
        second,
        tensors=tensors,
        lora_rank=first.lora_rank + second.lora_rank,
        lora_alpha=first.lora_alpha + second.lora_alpha,
    )
