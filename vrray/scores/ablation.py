"""Ablation loss: the rise of a row's loss when one layer is skipped, for every layer.

What enters layer l is the same whichever later layer is skipped, so it is computed once: skipping layer l costs the
layers above it only, and all L layers together about L / 2 forward passes. One prefix and one tail are held at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from vrray.data.batches import Batch
from vrray.models.family import family_of
from vrray.models.loading import decoder_layers
from vrray.scores.forward import decode, row_losses


@torch.inference_mode()
def ablation_losses(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows' losses `[rows]`, and what each layer's absence adds to them `[rows, layers]`, in float64."""
    layers = decoder_layers(model)
    norm = model.get_submodule(f"{family_of(model.config).decoder}.norm")
    calls: list[dict[str, Any]] = []
    entered: list[torch.Tensor] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not entered:
            entered.append(args[0] if args else kwargs["hidden_states"])
        calls.append({name: value for name, value in kwargs.items() if name != "hidden_states"})

    handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    try:
        whole = row_losses(model, batch, decode(model, batch))
    finally:
        for handle in handles:
            handle.remove()

    def run(layer: int, hidden: torch.Tensor) -> torch.Tensor:
        output = layers[layer](hidden, **calls[layer])
        return output[0] if isinstance(output, tuple) else output

    return whole, torch.stack(list(_rises(run, entered[0], model, batch, norm, whole)), dim=1)


def _rises(
    run: Callable[[int, torch.Tensor], torch.Tensor],
    prefix: torch.Tensor,
    model: Any,
    batch: Batch,
    norm: nn.Module,
    whole: torch.Tensor,
) -> Iterator[torch.Tensor]:
    depth = len(decoder_layers(model))
    for skipped in range(depth):
        hidden = prefix
        for layer in range(skipped + 1, depth):
            hidden = run(layer, hidden)
        yield row_losses(model, batch, norm(hidden)) - whole
        if skipped < depth - 1:
            prefix = run(skipped, prefix)
