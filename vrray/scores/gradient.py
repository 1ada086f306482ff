"""Gradient importance: how much the loss would change, to first order, if a layer's weights were not there.

The sum over a layer's weights of |weight x gradient| (Molchanov et al. 2017, first-order Taylor expansion), of the
mean cross-entropy of one row's supervised tokens, and then the mean over rows. No tuned model is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vrray.data.batches import Batch
from vrray.models.loading import decoder_layers
from vrray.scores.forward import decode, row_losses


@contextmanager
def gradient_watch(model: nn.Module, *, recompute: bool = False) -> Iterator[Callable[[Batch], torch.Tensor]]:
    """A function that takes a batch of one row and gives `[layers]` in float64.

    A gradient is gone as soon as it has been looked at, so that one weight's is held at a time.

    Args:
        recompute: the layers' activations are computed again in the backward pass instead of being kept.
    """
    layers = decoder_layers(model)
    found = torch.zeros(len(layers), dtype=torch.float64)
    weights = [(index, weight) for index, layer in enumerate(layers) for weight in layer.parameters()]
    asked = [weight.requires_grad for _, weight in weights]

    def taker(index: int) -> Callable[[torch.Tensor], None]:
        def take(weight: torch.Tensor) -> None:
            assert weight.grad is not None
            found[index] += (weight.data.float() * weight.grad.float()).abs().sum().double().cpu()
            weight.grad = None

        return take

    def importance(batch: Batch) -> torch.Tensor:
        found.zero_()
        with torch.enable_grad():
            row_losses(model, batch, decode(model, batch)).sum().backward()
        return found.clone()

    for _, weight in weights:
        weight.requires_grad_(True)
    handles = [weight.register_post_accumulate_grad_hook(taker(index)) for index, weight in weights]
    try:
        for layer in layers if recompute else ():
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)  # type: ignore[assignment]
            # The switch works in training mode only, which the layer alone is in: nothing below it drops out.
            layer.gradient_checkpointing = layer.training = True  # type: ignore[assignment]
        yield importance
    finally:
        for layer in layers if recompute else ():
            layer.gradient_checkpointing = layer.training = False  # type: ignore[assignment]
        for handle in handles:
            handle.remove()
        for (_, weight), before in zip(weights, asked, strict=True):
            weight.requires_grad_(before)
