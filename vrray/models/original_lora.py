"""LoRA adapters as PEFT saves them, merged into the weights they belong to, tensor by tensor."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vrray.errors import ModelError
from vrray.models.original import Weight, file_tensors, finite, read_json
from vrray.variant import merged_weight

PREFIX = "base_model.model."  # what PEFT puts before the names of the model it wraps
_NEEDED = {"peft_type": "LORA", "bias": "none"}
# Each changes what merging means, or which layers are adapted; the original code bases use none of them.
_REFUSED = (
    "use_dora",
    "use_rslora",
    "use_qalora",
    "fan_in_fan_out",
    "lora_bias",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "layer_replication",
    "exclude_modules",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
)
_STARTS = (True, False, None, "gaussian")  # others change the base's weights as well
_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<factor>[AB])\.weight")
_LINEAR = re.compile(r"(?P<module>model\.layers\.(?P<layer>\d+)\..+_proj)\.weight")


def merge_adapters(folder: Path, weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """All weights, those that an adapter belongs to as `W + lora_alpha / r * B A` in W's own precision.

    Args:
        folder: holds `adapter_config.json` and `adapter_model.safetensors` or `.bin`.
        weights: the base's, by their names in the original code bases.

    Raises:
        ModelError: a setting is not supported, or an adapter is missing, misshapen or belongs to no weight.
    """
    config = _checked_config(folder / "adapter_config.json")
    factors = _factors(folder)
    _check_targets(config, factors, weights, folder)
    merged = dict(weights)
    for module, pair in factors.items():
        name = f"{module}.weight"
        if name not in weights or len(weights[name].shape) != 2:
            raise ModelError(f"{next(iter(pair.values())).source} belongs to no linear layer of the base")
        merged[name] = _merged(weights[name], pair, config["r"], config["lora_alpha"], f"{folder}: {module}")
    return merged


def _checked_config(file: Path) -> dict[str, Any]:
    config = read_json(file)
    wrong = {key: config.get(key) for key, value in _NEEDED.items() if config.get(key) != value}
    wrong |= {key: config[key] for key in _REFUSED if config.get(key)}
    if config.get("init_lora_weights") not in _STARTS:
        wrong["init_lora_weights"] = config["init_lora_weights"]
    for key in ("r", "lora_alpha"):
        if not isinstance(config.get(key), (int, float)) or not config[key] > 0:
            wrong[key] = config.get(key)
    if wrong:
        shown = ", ".join(f"{key} {value!r}" for key, value in wrong.items())
        raise ModelError(f"{file}: {shown} is not supported; merge such an adapter with PEFT first")
    return config


def _factors(folder: Path) -> dict[str, dict[str, Weight]]:
    """The factors A and B of every adapted module, by its name in the original code bases."""
    files = [folder / "adapter_model.safetensors", folder / "adapter_model.bin"]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise ModelError(f"{folder} has neither adapter_model.safetensors nor adapter_model.bin")
    factors: dict[str, dict[str, Weight]] = {}
    for name, weight in file_tensors(file).items():
        match = _KEY.fullmatch(name.removeprefix(PREFIX))
        if match is None:
            raise ModelError(f"{weight.source} is neither lora_A nor lora_B of a linear layer")
        factors.setdefault(match["module"], {})[match["factor"]] = weight
    for module, pair in factors.items():
        if len(pair) != 2:
            raise ModelError(f"{file}: {module} has lora_{next(iter(pair))} only")
    return factors


def _check_targets(
    config: Mapping[str, Any], adapted: Iterable[str], weights: Mapping[str, Weight], folder: Path
) -> None:
    """Every decoder layer's linear layer that `target_modules` names has an adapter, and nothing else has one."""
    targets = config.get("target_modules")
    layers = config.get("layers_to_transform")
    if isinstance(targets, str) or not targets:
        raise ModelError(f"{folder / 'adapter_config.json'}: target_modules must be a list of names, found {targets!r}")
    named = set(targets)
    chosen = None if layers is None else {layers} if isinstance(layers, int) else set(layers)

    def wanted(module: str) -> bool:
        return any(module == target or module.endswith(f".{target}") for target in named)

    expected = {
        match["module"]
        for match in map(_LINEAR.fullmatch, weights)
        if match and wanted(match["module"]) and (chosen is None or int(match["layer"]) in chosen)
    }
    if missing := sorted(expected - set(adapted)):
        raise ModelError(
            f"{folder} lacks the adapter of {missing[0]}, which target_modules names ({len(missing)} in all)"
        )
    if extra := sorted(module for module in adapted if not wanted(module)):
        raise ModelError(f"{folder} has an adapter for {extra[0]}, which target_modules does not name")


def _merged(base: Weight, pair: Mapping[str, Weight], rank: int, alpha: int, source: str) -> Weight:
    outputs, inputs = base.shape
    for factor, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
        if pair[factor].shape != shape:
            raise ModelError(f"{pair[factor].source} has shape {list(pair[factor].shape)}, needs {list(shape)}")
    return Weight(base.shape, base.dtype, source, partial(_merge, base, pair, rank, alpha, source))


def _merge(base: Weight, pair: Mapping[str, Weight], rank: int, alpha: int, source: str) -> torch.Tensor:
    return finite(merged_weight(base.load(), pair["A"].load(), pair["B"].load(), rank, alpha), source)
