"""Finding a base model, its identity, its decoder and its size; loading it with a processor."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from vrray.errors import ModelError
from vrray.home import vrray_home
from vrray.models import tower  # noqa: F401  (registers the demo's vision tower)
from vrray.models.smol import build_smol

PRESETS = {"smol": build_smol}
PROJECTOR = "model.multi_modal_projector"
LAYERS = "model.language_model.layers"


@dataclass(frozen=True)
class ModelShape:
    """What a plan needs to know of a model, without its weights. Counts are numbers of parameters.

    `linear_widths` adds up inputs + outputs over the linear layers of one decoder layer; `image_tokens` is how many
    positions an image takes in the decoder.
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


def resolve_model(model: str) -> Path:
    """The local directory of a preset (built on first use) or of a Hugging Face model directory.

    Raises:
        ModelError: there is no such preset or directory, or it is not a LLaVA-family model directory.
    """
    if model in PRESETS:
        return PRESETS[model](vrray_home())
    path = Path(model).expanduser()
    if not (path / "config.json").is_file():
        known = ", ".join(sorted(PRESETS))
        raise ModelError(f"model {model!r} is neither a preset ({known}) nor a directory with a config.json")
    kind = json.loads((path / "config.json").read_text()).get("model_type")
    if kind != "llava":
        raise ModelError(f"{path}: model_type {kind!r} is not supported; a LlavaForConditionalGeneration is needed")
    return path.resolve()


def load_model(path: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model of a directory in evaluation mode, on the CPU, with nothing set to train.

    Raises:
        ModelError: its files cannot be read, or a weight is missing (transformers alone would make one up).
    """
    try:
        model, info = AutoModelForImageTextToText.from_pretrained(path, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be loaded: {error}") from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ModelError(f"{path} lacks {len(missing)} weights, such as {missing[0]}; copy or convert it again")
    return model.eval().requires_grad_(False)


def load_processor(path: Path) -> Any:
    """The processor (tokenizer, image processor, chat template) of a model directory.

    Raises:
        ModelError: a part of it is missing.
    """
    try:
        processor = AutoProcessor.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} has no usable processor: {error}") from error
    if not processor.chat_template:
        raise ModelError(f"{path} has no chat template; add a chat_template.jinja")
    return processor


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers, never those of the vision tower."""
    layers = model.get_submodule(LAYERS)
    assert isinstance(layers, nn.ModuleList)
    return layers


def model_shape(path: Path) -> ModelShape:
    """Sizes of a model from its configuration alone; the weights are not read."""
    config = AutoConfig.from_pretrained(path)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)

    def count(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    layers = decoder_layers(model)
    return ModelShape(
        depth=len(layers),
        hidden=config.text_config.hidden_size,
        layer=count(layers[0]),
        linear_widths=sum(m.in_features + m.out_features for m in layers[0].modules() if isinstance(m, nn.Linear)),
        projector=count(model.get_submodule(PROJECTOR)),
        tower=count(model.get_submodule("model.vision_tower")),
        total=count(model),
        image_tokens=config.image_seq_length,
        tower_width=model.get_submodule(PROJECTOR).linear_1.in_features,
    )


def base_identity(path: Path) -> str:
    """SHA-256 over a model directory's configuration, tokenizer and weights: 16 hex digits.

    Hashes of weight files are remembered in the vrray home by path, size and modification time.
    """
    digest = hashlib.sha256()
    names = [
        "config.json",
        "chat_template.jinja",
        "processor_config.json",
        "preprocessor_config.json",
        "tokenizer.json",
    ]
    names += sorted(file.name for file in path.glob("*.safetensors"))
    if names[-1] == "tokenizer.json":
        raise ModelError(f"{path} has no *.safetensors; convert its weights to safetensors first")
    for name in names:
        if (path / name).is_file():
            digest.update(f"{name}={_file_hash(path / name)};".encode())
    return digest.hexdigest()[:16]


def _file_hash(path: Path) -> str:
    status = path.stat()
    memo_name = hashlib.sha256(f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}".encode()).hexdigest()[:24]
    memo = vrray_home() / "hashes" / memo_name
    if memo.is_file():
        return memo.read_text()
    with path.open("rb") as stream:
        value = hashlib.file_digest(stream, "sha256").hexdigest()
    memo.parent.mkdir(parents=True, exist_ok=True)
    scratch = memo.with_suffix(f".{os.getpid()}")
    scratch.write_text(value)
    os.replace(scratch, memo)
    return value
