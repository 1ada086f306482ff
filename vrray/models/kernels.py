"""Faster kernels where the machine has them: flash attention and Liger are detected, never required."""

from __future__ import annotations

from typing import Any, Literal

from transformers.integrations.liger import apply_liger_kernel
from transformers.utils import is_flash_attn_2_available, is_liger_kernel_available

from vrray.errors import ModelError

Attention = Literal["auto", "flash_attention_2", "sdpa", "eager"]


def choose_attention(wanted: Attention, *, gpu: bool, precision: Literal["bf16", "fp32"]) -> str:
    """The attention implementation to load a model with.

    Raises:
        ModelError: flash attention is asked for where it cannot run.
    """
    usable = gpu and precision == "bf16" and is_flash_attn_2_available()
    if wanted == "flash_attention_2" and not usable:
        raise ModelError(
            "flash_attention_2 needs a GPU, bf16 and the package flash-attn "
            f"(found: GPU {gpu}, {precision}, installed {is_flash_attn_2_available()}); use --attention auto"
        )
    if wanted == "auto":
        return "flash_attention_2" if usable else "sdpa"
    return wanted


def fuse_kernels(model: Any, *, gpu: bool) -> None:
    """Put Liger's fused kernels (normalisation, rotary embedding, gated MLP) into a model's decoder.

    Raises:
        ModelError: they cannot run here.
    """
    if not (gpu and is_liger_kernel_available()):
        raise ModelError(
            f"liger needs a GPU and the package liger-kernel (found: GPU {gpu}, installed "
            f"{is_liger_kernel_available()}); leave --liger away"
        )
    # The loss is vrray's own: it sees supervised positions only, and needs no fused head.
    apply_liger_kernel(model.get_decoder(), {"fused_linear_cross_entropy": False, "cross_entropy": False})
