"""Original Bunny and LLaVA checkpoints: what a directory holds, and where each weight of the model comes from.

Weights are named as in the original code bases: `model.layers.0...`, `model.mm_projector.0...`,
`model.vision_tower.vision_tower.vision_model...`, `lm_head.weight`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from vrray.errors import ModelError
from vrray.models.original import Weight, checkpoint_tensors, file_tensors, has_weights, read_json
from vrray.models.original_lora import PREFIX, merge_adapters

PROJECTOR = "model.mm_projector."
TOWER = "model.vision_tower."
INNER_TOWER = "model.vision_tower.vision_tower."
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_PROJECTOR_SEED = 0
_TOWERS = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}
_TEXT_SIDE = re.compile(r"text_model\..*|(text|visual)_projection\..*|logit_(scale|bias)")  # of a whole CLIP or SigLIP
_TOWER_LAYER = re.compile(re.escape(INNER_TOWER) + r"vision_model\.encoder\.layers\.(\d+)\..*")


@dataclass(frozen=True)
class Family:
    """What a `model_type` of the original code bases stands for; a plain language model has no tower of its own."""

    text: Literal["llama", "phi3"]
    conversation: Literal["llama", "phi3", "vicuna_v1"]
    tower: Literal["clip", "siglip"] | None = None


_LLAVA = Family("llama", "vicuna_v1", "clip")
FAMILIES: Mapping[str, Family] = {
    "bunny-llama": Family("llama", "llama", "siglip"),
    "bunny-phi3": Family("phi3", "phi3", "siglip"),
    "llava": _LLAVA,
    "llava_llama": _LLAVA,
    "llama": Family("llama", "llama"),
    "phi3": Family("phi3", "phi3"),
}


@dataclass(frozen=True)
class Original:
    """A model in the original layout, put together from its directories; nothing of its weights is in memory.

    Attributes:
        config: the directory's `config.json`.
        tower: where the tower's `config.json` and `preprocessor_config.json` are.
        vision: values of the tower's configuration.
        feature_layer: the tower's hidden states that enter the projector.
        class_token: whether the class token of a CLIP tower enters it as well.
        pad: whether images are padded to a square.
        fresh_projector: the projector was made up rather than found.
    """

    folder: Path
    config: Mapping[str, Any]
    family: Family
    weights: Mapping[str, Weight]
    tower: Path
    vision: Mapping[str, Any]
    feature_layer: int
    class_token: bool
    pad: bool
    fresh_projector: bool


def find_original(source: Path, *, vision_tower: Path | None, base: Path | None, projector: Path | None) -> Original:
    """The model that a directory holds, completed by the others: see `vrray.models.convert.convert`.

    Raises:
        ModelError: a directory or file is not what it should be, or the model has a part that is not supported.
    """
    config, family = _read_config(source)
    _refuse_unsupported(config, family, source)
    adapted = (source / "adapter_config.json").is_file()
    stage_1 = not adapted and (source / "mm_projector.bin").is_file() and not has_weights(source)
    if adapted or stage_1:
        weights = _base_weights(source, config, family, base)
    elif base is not None:
        raise ModelError(f"--base is for a LoRA or stage-1 directory; {source} is a model by itself")
    else:
        weights = _model_weights(source, family)
    if adapted:
        weights = _replaced(weights, _trained_beside(source, projector))
    if stage_1:
        weights = _replaced(weights, _projector_tensors(source / "mm_projector.bin"))
    if projector is not None:
        weights = _replaced(weights, _projector_tensors(projector))
    tower = _find_tower(source, config, family, vision_tower)
    vision, kind = _tower_config(tower, family, config, source)
    layer = config.get("mm_vision_select_layer", -2) if family.tower == "clip" else -2
    weights, vision, layer = _with_tower(source, config, weights, tower, vision, layer)
    fresh = family.tower is None and projector is None
    if fresh:
        weights |= _fresh_projector(vision["hidden_size"], weights)
    if adapted:
        weights = merge_adapters(source, weights)
    return Original(
        folder=source,
        config=config,
        family=family,
        weights=weights,
        tower=tower,
        vision=vision | {"model_type": _TOWERS[kind]},
        feature_layer=layer,
        class_token=config.get("mm_vision_select_feature") == "cls_patch" and kind == "clip",
        pad=family.tower is None or config.get("image_aspect_ratio") == "pad",
        fresh_projector=fresh,
    )


def _read_config(folder: Path) -> tuple[dict[str, Any], Family]:
    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    if kind == "llava" and (
        "text_config" in config or "LlavaForConditionalGeneration" in str(config.get("architectures"))
    ):
        raise ModelError(f"{folder} is a LlavaForConditionalGeneration already; use it as it is")
    if not isinstance(kind, str) or kind not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ModelError(f"{folder / 'config.json'}: model_type {kind!r} cannot be converted; known are {known}")
    return config, FAMILIES[kind]


def _model_weights(folder: Path, family: Family) -> dict[str, Weight]:
    weights = checkpoint_tensors(folder)
    if family.tower is None:
        beside = [weight.source for name, weight in weights.items() if name.startswith((PROJECTOR, TOWER))]
        if beside:
            raise ModelError(f"{beside[0]} does not belong to a plain language model; is the model_type right?")
    return weights


def _base_weights(source: Path, config: Mapping[str, Any], family: Family, base: Path | None) -> dict[str, Weight]:
    if family.tower is None:
        raise ModelError(f"{source / 'config.json'}: model_type {config['model_type']!r} is no Bunny or LLaVA model")
    if base is None:
        adapter = source / "adapter_config.json"
        named = (
            f" (it was trained on {read_json(adapter).get('base_model_name_or_path')!r})" if adapter.is_file() else ""
        )
        raise ModelError(f"{source} is only a part of a model; name the rest with --base DIR{named}")
    base_config, base_family = _read_config(base)
    if base_family.text != family.text or base_family.tower not in (None, family.tower):
        raise ModelError(f"--base {base} is a {base_config['model_type']}, {source} needs a {config['model_type']}")
    return _model_weights(base, base_family)


def _trained_beside(source: Path, projector: Path | None) -> dict[str, Weight]:
    """What a LoRA training changed in full: the projector, and the tower where it trained."""
    file = source / "non_lora_trainables.bin"
    if file.is_file():
        return {name.removeprefix(PREFIX): weight for name, weight in file_tensors(file).items()}
    if projector is None:
        raise ModelError(f"{source} lacks non_lora_trainables.bin with the tuned projector; or name one by --projector")
    return {}


def _projector_tensors(file: Path) -> dict[str, Weight]:
    tensors = {}
    for name, weight in file_tensors(file).items():
        own = name.removeprefix(PREFIX)
        own = f"model.{own}" if own.startswith("mm_projector.") else own
        if not own.startswith(PROJECTOR):
            raise ModelError(f"{weight.source} is no part of a projector")
        tensors[own] = weight
    return tensors


def _replaced(weights: Mapping[str, Weight], new: Mapping[str, Weight]) -> dict[str, Weight]:
    """A projector or a tower is replaced whole, so that one that lacks a part does not go unnoticed."""
    wholes = tuple(part for part in (PROJECTOR, TOWER) if any(name.startswith(part) for name in new))
    return {name: weight for name, weight in weights.items() if not name.startswith(wholes)} | dict(new)


def _refuse_unsupported(config: Mapping[str, Any], family: Family, source: Path) -> None:
    wrong = {key: config[key] for key in ("quantization_config",) if config.get(key)}
    if family.tower is not None:
        used = ("use_s2", "mm_use_im_start_end", "mm_use_im_patch_token", "mm_resampler_type")
        wrong |= {key: config[key] for key in used if config.get(key)}
        possible: dict[str, tuple[Any, ...]] = {
            "mm_projector_type": ("mlp2x_gelu",),
            "mm_patch_merge_type": (None, "flat"),
            "mm_vision_select_feature": (None, "patch", "cls_patch"),
            "image_aspect_ratio": (None, "square", "pad"),
        }
        wrong |= {key: config.get(key) for key, values in possible.items() if config.get(key) not in values}
        if not isinstance(config.get("mm_vision_select_layer", -2), int):
            wrong["mm_vision_select_layer"] = config["mm_vision_select_layer"]
    if wrong:
        shown = ", ".join(f"{key} {value!r}" for key, value in wrong.items())
        raise ModelError(f"{source / 'config.json'}: {shown} cannot be expressed by LlavaForConditionalGeneration")


def _find_tower(source: Path, config: Mapping[str, Any], family: Family, vision_tower: Path | None) -> Path:
    if vision_tower is not None:
        return vision_tower
    if family.tower is None:
        raise ModelError(f"{source} is a language model; name the vision tower to join it with by --vision-tower DIR")
    named = config.get("mm_vision_tower")
    if not isinstance(named, str) or not (source / named / "config.json").is_file():
        raise ModelError(
            f"{source / 'config.json'}: mm_vision_tower {named!r} is not a local directory; download it and name it "
            "by --vision-tower DIR (its two configurations are needed even where the checkpoint holds its weights)"
        )
    return source / named


def _tower_config(
    tower: Path, family: Family, config: Mapping[str, Any], source: Path
) -> tuple[dict[str, Any], Literal["clip", "siglip"]]:
    """Values of a tower's configuration, also where it is a whole CLIP or SigLIP with a text model beside."""
    vision = read_json(tower / "config.json")
    found = vision.get("model_type")
    if found in _TOWERS:
        vision = vision.get("vision_config") or {}
    kind: Literal["clip", "siglip"] = "siglip" if str(found).startswith("siglip") else "clip"
    if found not in (kind, _TOWERS[kind]) or family.tower not in (None, kind):
        needed = family.tower or "clip or siglip"
        raise ModelError(f"{tower / 'config.json'}: model_type {found!r} is no {needed} tower, which {source} needs")
    sizes = ("hidden_size", "num_hidden_layers", "image_size", "patch_size")
    if missing := [key for key in sizes if not isinstance(vision.get(key), int)]:
        raise ModelError(f"{tower / 'config.json'} does not say the tower's {missing[0]}")
    if config.get("mm_hidden_size", vision["hidden_size"]) != vision["hidden_size"]:
        raise ModelError(
            f"{tower} is {vision['hidden_size']} wide, {source} needs mm_hidden_size {config['mm_hidden_size']}"
        )
    return vision, kind


def _with_tower(
    source: Path,
    config: Mapping[str, Any],
    weights: Mapping[str, Weight],
    tower: Path,
    vision: dict[str, Any],
    layer: int,
) -> tuple[dict[str, Weight], dict[str, Any], int]:
    """Weights with the tower's, its configuration, and the layer that is read.

    The originals use the tower in the checkpoint only where it was trained, and the separate one otherwise, even where
    the checkpoint holds a copy.
    """
    if not -vision["num_hidden_layers"] <= layer + 1 <= vision["num_hidden_layers"] + 1:
        raise ModelError(
            f"{source}: mm_vision_select_layer {layer}, but {tower} has {vision['num_hidden_layers']} layers"
        )
    inside = {name: weight for name, weight in weights.items() if name.startswith(TOWER)}
    rest = {name: weight for name, weight in weights.items() if not name.startswith(TOWER)}
    trained = [key for key in ("unfreeze_vision_tower", "unfreeze_mm_vision_tower") if config.get(key)]
    if not trained:
        return rest | _tower_tensors(tower), vision, layer
    if not inside:
        raise ModelError(f"{source / 'config.json'}: {trained[0]} is true, but no weights {INNER_TOWER}* are there")
    depth = 1 + max((int(match[1]) for match in map(_TOWER_LAYER.fullmatch, inside) if match), default=0)
    if layer == -2 and depth == vision["num_hidden_layers"] - 1:  # saved without the last layer, which nothing reads
        vision, layer = vision | {"num_hidden_layers": depth}, -1
    if not any(name.startswith(f"{INNER_TOWER}vision_model.head.") for name in inside):  # nothing reads it either
        vision = vision | {"vision_use_head": False}
    return rest | inside, vision, layer


def _tower_tensors(tower: Path) -> dict[str, Weight]:
    """Under the names that the tower has in a checkpoint; newer directories leave `vision_model.` away."""
    own = {name: weight for name, weight in checkpoint_tensors(tower).items() if not _TEXT_SIDE.fullmatch(name)}
    return {f"{INNER_TOWER}vision_model.{name.removeprefix('vision_model.')}": weight for name, weight in own.items()}


def _fresh_projector(width: int, weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """Two linear layers as the originals initialise them, in the decoder's precision."""
    if EMBEDDING not in weights:
        return {}  # the model lacks more than a projector, which is found later
    hidden, dtype = weights[EMBEDDING].shape[-1], weights[EMBEDDING].dtype
    shapes = {"0.weight": (hidden, width), "0.bias": (hidden,), "2.weight": (hidden, hidden), "2.bias": (hidden,)}
    return {
        f"{PROJECTOR}{name}": Weight(shape, dtype, "the fresh projector", partial(_fresh, width, hidden, name, dtype))
        for name, shape in shapes.items()
    }


def _fresh(width: int, hidden: int, name: str, dtype: torch.dtype) -> torch.Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_PROJECTOR_SEED)
        projector = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden))
    return projector.state_dict()[name].to(dtype)
