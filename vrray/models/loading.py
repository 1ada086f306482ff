"""Finding a base model, its identity, its decoder and its size; loading it with a processor."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from vrray.errors import ModelError
from vrray.home import remembered, vrray_home
from vrray.models import tower  # noqa: F401  (registers the demo's vision tower)
from vrray.models.family import FAMILIES, check_supported, family_of, prepare_processor
from vrray.models.hub import converted_model, download_config, download_model, is_hub_id
from vrray.models.original import read_json
from vrray.models.presets import Conversation, Preset, find_preset, named_preset, presets
from vrray.models.smol import build_smol
from vrray.store import file_sha256

_TOWERS = {f"{family.tower.rpartition('.')[2]}." for family in FAMILIES.values()}
_ORIGINAL = re.compile(r"bunny-.*|llava_llama|.*LlavaLlamaForCausalLM|Bunny.*ForCausalLM")


@dataclass(frozen=True)
class ModelShape:
    """What a plan needs to know of a model, without its weights. Counts are numbers of parameters.

    `linear_widths` adds up inputs + outputs over the linear layers of one decoder layer; `image_tokens` is how many
    positions an image takes in the decoder; `vocabulary` is how many tokens the head tells apart.
    """

    depth: int
    hidden: int
    layer: int
    linear_widths: int
    projector: int
    tower: int
    total: int
    image_tokens: int
    tower_width: int
    vocabulary: int

    @property
    def feature_bytes(self) -> int:
        """Of the stored vision features of one image, in float16."""
        return 2 * self.image_tokens * self.tower_width

    @property
    def decoder(self) -> int:
        """Of the decoder with its embeddings and its head."""
        return self.total - self.tower - self.projector


def resolve_model(model: str) -> Path:
    """The local directory of a preset (built, downloaded or converted on first use), a model directory, or a hub id.

    Raises:
        ModelError: there is no such model, or its family is not supported, or it cannot be downloaded, or its LoRA
            adapters lie apart.
    """
    preset = named_preset(model)
    if preset is not None:
        return _preset_directory(preset)
    if (Path(model).expanduser() / "config.json").is_file():
        path = Path(model).expanduser().resolve()
        _check_family(path, str(path))
        _check_merged(path)
        return path
    _check_name(model)
    return _hub_directory(model)


def _check_merged(path: Path) -> None:
    """Refuse a variant that `vrray export` wrote without merging its adapters."""
    if (path / "adapter").is_dir():
        raise ModelError(
            f"{path} keeps its LoRA adapters apart, so its weights alone are half tuned; export it with --merge-lora"
        )


def model_config(model: str) -> PreTrainedConfig:
    """The configuration of what `resolve_model` takes, without its weights.

    Raises:
        ModelError: as `resolve_model`.
    """
    preset = named_preset(model)
    if preset is not None:
        return LlavaConfig(
            text_config=dict(preset.decoder),
            vision_config=dict(preset.tower),
            vision_feature_layer=preset.feature_layer,
            vision_feature_select_strategy=preset.features,
            image_seq_length=preset.image_tokens,
            projector_hidden_act="gelu",
            tie_word_embeddings=preset.decoder["tie_word_embeddings"],
        )
    path = Path(model).expanduser()
    if not (path / "config.json").is_file():
        _check_name(model)
        path = download_config(model)
    _check_family(path, model)
    return AutoConfig.from_pretrained(path, trust_remote_code=False)


def conversation(model: str, path: Path) -> Conversation:
    """The conversation template that a model was trained with.

    It is what its configuration says under `conversation` (`vrray convert` writes it), else that of the preset that
    `model` names, else the model's own chat template.

    Args:
        model: what the user named it by.
        path: its directory, as `resolve_model` gave it.

    Raises:
        ModelError: the configuration names an unknown template.
    """
    found = read_json(path / "config.json").get("conversation")
    if found is None:
        preset = find_preset(model)
        return "chat" if preset is None else preset.conversation
    if found not in get_args(Conversation):
        known = ", ".join(get_args(Conversation))
        raise ModelError(f"{path / 'config.json'}: conversation {found!r} is unknown; use one of {known}")
    return found


def _preset_directory(preset: Preset) -> Path:
    if preset.standard is not None:
        return _hub_directory(preset.standard)
    if preset.checkpoint is not None and preset.vision_tower is not None:
        return converted_model(preset.name, preset.checkpoint, preset.vision_tower)
    return build_smol(vrray_home())


def _hub_directory(model: str) -> Path:
    _check_family(download_config(model), model)  # before gigabytes are downloaded for nothing
    return download_model(model)


def _check_name(model: str) -> None:
    if not is_hub_id(model) or Path(model).expanduser().exists():
        known = ", ".join(preset.name for preset in presets())
        raise ModelError(
            f"model {model!r} is neither a preset ({known}), nor a directory with a config.json, nor a hub id such as "
            "organisation/name"
        )


def _check_family(path: Path, model: str) -> None:
    config = read_json(path / "config.json")
    kind = config.get("model_type")
    if any(_ORIGINAL.fullmatch(str(name)) for name in (kind, *(config.get("architectures") or []))):
        preset = find_preset(model)
        hint = "" if preset is None else f", or use the preset {preset.name}"
        raise ModelError(
            f"{model}: model_type {kind!r} has the layout of an original checkpoint; convert its directory once with "
            f"`vrray convert SRC OUT` and give OUT{hint}"
        )
    check_supported(config, model)


def load_model(path: Path, dtype: torch.dtype = torch.float32, attention: str | None = None) -> PreTrainedModel:
    """The model of a directory in evaluation mode, on the CPU, with nothing set to train.

    Args:
        attention: the decoder's: "flash_attention_2", "sdpa" or "eager"; None for what transformers takes by itself.

    Raises:
        ModelError: its files cannot be read, or a weight is missing (transformers alone would make one up), or the
            attention does not fit the model.
    """
    kind = read_json(path / "config.json").get("model_type")
    if attention == "flash_attention_2" and kind in FAMILIES and FAMILIES[kind].two_way_images:
        raise ModelError(
            f"{path}: {kind} lets the positions of an image attend to each other in both directions, which flash "
            "attention cannot; use --attention sdpa"
        )
    try:
        model, info = AutoModelForImageTextToText.from_pretrained(
            path, dtype=dtype, output_loading_info=True, attn_implementation=attention and {"text_config": attention}
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be loaded: {error}") from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ModelError(f"{path} lacks {len(missing)} weights, such as {missing[0]}; copy or convert it again")
    return model.eval().requires_grad_(False)


def load_processor(path: Path) -> Any:
    """The processor (tokenizer, image processor, chat template) of a model directory, giving one view of an image.

    Raises:
        ModelError: a part of it is missing, or a package that it needs.
    """
    try:
        processor = AutoProcessor.from_pretrained(path)
        # With torchvision installed, another backend would be taken, whose pixels differ from the original ones.
        processor.image_processor = AutoImageProcessor.from_pretrained(path, backend="pil")
    except (ImportError, OSError, ValueError) as error:
        raise ModelError(f"{path} has no usable processor: {error}") from error
    if not processor.chat_template:
        raise ModelError(f"{path} has no chat template; add a chat_template.jinja")
    return prepare_processor(processor)


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers, never those of the vision tower."""
    layers = model.get_submodule(family_of(model.config).layers)
    assert isinstance(layers, nn.ModuleList)
    return layers


def model_shape(path: Path) -> ModelShape:
    """Sizes of the model in a directory, from its configuration alone; the weights are not read."""
    return shape_of(AutoConfig.from_pretrained(path, trust_remote_code=False))


def shape_of(config: PreTrainedConfig) -> ModelShape:
    """Sizes of the model that a configuration describes; no memory is taken for its weights."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)

    def count(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    family, layers = family_of(config), decoder_layers(model)
    image_tokens, tower_width = family.feature_shape(config)
    return ModelShape(
        depth=len(layers),
        hidden=config.text_config.hidden_size,
        layer=count(layers[0]),
        linear_widths=sum(m.in_features + m.out_features for m in layers[0].modules() if isinstance(m, nn.Linear)),
        projector=count(model.get_submodule(family.projector)),
        tower=count(model.get_submodule(family.tower)),
        total=count(model),
        image_tokens=image_tokens,
        tower_width=tower_width,
        vocabulary=config.text_config.vocab_size,
    )


def base_identity(path: Path) -> str:
    """SHA-256 over a model directory's configuration, tokenizer and weights: 16 hex digits.

    Hashes of files are remembered in the vrray home by path, size and modification time.
    """
    names = [
        "config.json",
        "chat_template.jinja",
        "processor_config.json",
        "preprocessor_config.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
    ]
    files = [path / name for name in names if (path / name).is_file()] + _weight_files(path)
    return _digest(f"{file.name}={remembered(file, file_sha256)};" for file in files)


def tower_identity(path: Path) -> str:
    """SHA-256 over what an image's features follow from: the tower's configuration and weights, the layer that is
    read, and the preprocessing: 16 hex digits.
    """
    config = read_json(path / "config.json")
    settings = FAMILIES[config["model_type"]].feature_settings
    read = {name: config.get(name) for name in ("vision_config", *settings)}
    images = load_processor(path).image_processor.to_dict()
    weights = (remembered(file, _tower_hash) for file in _weight_files(path))
    return _digest([json.dumps([read, images], sort_keys=True), *weights])


def _digest(parts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode())
    return digest.hexdigest()[:16]


def _weight_files(path: Path) -> list[Path]:
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{path} has no *.safetensors; convert its weights to safetensors first")
    return files


def _tower_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with safe_open(path, "pt") as weights:
        names = weights.keys()
        for name in sorted(name for name in names if any(tower in name for tower in _TOWERS)):
            tensor = weights.get_tensor(name).contiguous()
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode())
            digest.update(tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
