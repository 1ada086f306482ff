"""The training loss: projector, decoder, and the head on supervised positions only.

Shapes: R rows of a micro-batch, T tokens of its longest row, H hidden size, S supervised tokens, I images,
N tokens of an image, W width of the tower's features, V vocabulary. Packed rows are one row of all their tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vrray.data.batches import Batch
from vrray.models.family import family_of, project_features, vocabulary_logits

_SHORT = 256  # tokens of a row


class SupervisedLoss(nn.Module):
    """Cross-entropy summed over a micro-batch's supervised tokens, times `scale`.

    The head sees supervised positions only. The projector runs on every rank in every step, also when no row of the
    micro-batch has an image, so that ranks never run different modules, neither forward nor backward.
    """

    def __init__(self, lvlm: nn.Module):
        super().__init__()
        self.lvlm = lvlm
        self.family = family_of(lvlm.config)

    def forward(self, batch: Batch, scale: float) -> torch.Tensor:
        features_INW = batch.features
        idle = len(features_INW) == 0
        if idle:
            features_INW = features_INW.new_zeros((1, *features_INW.shape[1:]))
        image_INH = project_features(self.lvlm, features_INW)
        joined = _joined(self.lvlm.get_submodule(self.family.decoder), image_INH) if idle else nullcontext()
        with joined:
            logits_SV = supervised_logits(self.lvlm, batch, image_INH[:0] if idle else image_INH)
        return nn.functional.cross_entropy(logits_SV, batch.targets, reduction="sum") * scale


def supervised_logits(lvlm: Any, batch: Batch, image_INH: torch.Tensor) -> torch.Tensor:
    """`[S, V]`, in float32.

    Args:
        image_INH: the projected features of the batch's images; there may be none.
    """
    family = family_of(lvlm.config)
    with _attention_kernel(image_INH, batch.input_ids.shape[1]):
        hidden_RTH = lvlm.model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            mm_encoder_outputs=family.encoded(image_INH) if len(image_INH) else None,
            use_cache=False,
            **family.token_inputs(lvlm.config, batch.input_ids),
        ).last_hidden_state
    return vocabulary_logits(lvlm, hidden_RTH.flatten(0, 1)[batch.positions])


def _attention_kernel(image_INH: torch.Tensor, tokens: int) -> AbstractContextManager[Any]:
    """On CPUs the fused kernel's backward pass is slow in bf16 unless rows are long (docs/benchmarks.md)."""
    plain = image_INH.device.type == "cpu" and image_INH.dtype == torch.bfloat16 and tokens <= _SHORT
    return sdpa_kernel(SDPBackend.MATH) if plain else nullcontext()


@contextmanager
def _joined(decoder: nn.Module, image_INH: torch.Tensor) -> Iterator[None]:
    """Add zero times the projector's output to what enters the decoder, where features would have been filled in.

    Gradients then run down through every decoder layer to the projector, as they do on ranks that have images. The
    embedding's own output must stay without a gradient: else it would be gathered in this rank's backward pass only.
    """
    zero = 0.0 * image_INH.sum()

    def add_zero(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "inputs_embeds": kwargs["inputs_embeds"] + zero}

    handle = decoder.register_forward_pre_hook(add_zero, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
