"""A LoRA delta as an adapter directory of PEFT, for the pruned base that it is written beside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from peft import LoraConfig
from safetensors.torch import save_file

from vrray.exporting.weights import layer_of, renumbered
from vrray.variant import Delta, adapter_pairs

FOLDER = "adapter"
_WRAPPED = "base_model.model."  # where PEFT keeps the model that it wraps


def write_adapter(folder: Path, delta: Delta, layers: str, kept: Sequence[int]) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors` into a new folder.

    Adapters of removed layers are left out, the others are numbered as in the pruned model.

    Args:
        layers: path of the decoder layers in the model.
        kept: the decoder layers that stay, ascending.
    """
    pairs = {
        renumbered(module, layers, kept): factors
        for module, factors in adapter_pairs(delta).items()
        if layer_of(module, layers) in kept
    }
    folder.mkdir()
    # Whole names, since a part of one could also mean a module of the vision tower.
    config = LoraConfig(
        r=delta.lora_rank,
        lora_alpha=delta.lora_alpha,
        lora_dropout=0.0,
        target_modules=sorted(pairs),
        inference_mode=True,
    )
    config.save_pretrained(folder)
    tensors = {}
    for module, factors in pairs.items():
        for name, factor in zip(("lora_A", "lora_B"), factors, strict=True):
            tensors[f"{_WRAPPED}{module}.{name}.weight"] = factor.contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
