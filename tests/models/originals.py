"""Tiny random checkpoints in the original layouts, for what the reference fixtures do not hold."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
REFERENCE = SHARED / "reference" / "models"
TOKENIZERS = SHARED / "reference" / "conversations" / "tokenizers"

HIDDEN, WIDTH, DEPTH = 16, 8, 2
_SIZES: dict[str, Any] = {"num_hidden_layers": DEPTH, "num_attention_heads": 2, "intermediate_size": 24}
_MODELS = {"llama": (LlamaConfig, LlamaForCausalLM), "phi3": (Phi3Config, Phi3ForCausalLM)}
_ORIGINALS = {
    "bunny-llama": ("llama", "siglip"),
    "bunny-phi3": ("phi3", "siglip"),
    "llava": ("llama", "clip"),
    "llava_llama": ("llama", "clip"),
}
_TOWERS = {"clip": (CLIPVisionConfig, CLIPVisionModel), "siglip": (SiglipVisionConfig, SiglipVisionModel)}
Weights = dict[str, torch.Tensor]


def write_language_model(folder: Path, kind: str = "llama", vocabulary: int = 40, seed: int = 0, **more: Any) -> Path:
    """A plain language model as on the hub."""
    config_class, model_class = _MODELS[kind]
    sizes = {"hidden_size": HIDDEN, "vocab_size": vocabulary, "pad_token_id": 0, "initializer_range": 0.3}
    torch.manual_seed(seed)
    model = model_class(config_class(**_SIZES, **(sizes | {"tie_word_embeddings": False} | more)))
    model.save_pretrained(folder)
    return folder


def write_tower(folder: Path, kind: str = "clip", seed: int = 1) -> Path:
    """A tower with its preprocessing: images of 28 pixels, 4 patches."""
    config_class, model_class = _TOWERS[kind]
    torch.manual_seed(seed)
    model = model_class(config_class(**_SIZES, hidden_size=WIDTH, image_size=28, patch_size=14))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    change_weights(folder, _prefix)  # as on the hub
    clip = {"do_center_crop": True, "crop_size": 28, "size": {"shortest_edge": 28}}
    own = clip if kind == "clip" else {"size": {"height": 28, "width": 28}}
    name = "CLIPImageProcessor" if kind == "clip" else "SiglipImageProcessor"
    images = {"image_processor_type": name, "do_normalize": True, "resample": 3, **own}
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    return folder


def write_original(folder: Path, model_type: str = "llava", vocabulary: int = 40, **config: Any) -> Path:
    """A full fine-tune in `folder`/checkpoint with its tower in `folder`/tower."""
    text, tower = _ORIGINALS[model_type]
    checkpoint, plain = folder / "checkpoint", write_language_model(folder / "plain", text, vocabulary)
    write_tower(folder / "tower", tower)
    checkpoint.mkdir()
    weights = load_file(plain / "model.safetensors") | random_projector(seed=2)
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    values = json.loads((plain / "config.json").read_text()) | {
        "model_type": model_type,
        "architectures": ["OriginalForCausalLM"],
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": WIDTH,
        "mm_vision_tower": "../tower",
        "image_aspect_ratio": "pad",
    }
    (checkpoint / "config.json").write_text(json.dumps(values | config))
    return checkpoint


def write_lora(folder: Path, base: Path, **config: Any) -> Path:
    """A LoRA directory of rank 2 on layer 1's attention output and the MLP's down projection."""
    folder.mkdir()
    shutil.copy(base / "config.json", folder)
    torch.manual_seed(5)
    targets = {"model.layers.1.self_attn.o_proj": HIDDEN, "model.layers.1.mlp.down_proj": 24}
    factors = {}
    for module, inputs in targets.items():
        factors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(2, inputs)
        factors[f"base_model.model.{module}.lora_B.weight"] = torch.randn(HIDDEN, 2)
    save_file(factors, folder / "adapter_model.safetensors")
    values = {"peft_type": "LORA", "bias": "none", "r": 2, "lora_alpha": 4, "target_modules": list(targets)}
    values |= {"init_lora_weights": True, "base_model_name_or_path": "vicuna"}
    (folder / "adapter_config.json").write_text(json.dumps(values | config))
    projector = {f"base_model.model.{name}": tensor for name, tensor in random_projector(seed=6).items()}
    torch.save(projector, folder / "non_lora_trainables.bin")
    return folder


def _prefix(weights: Weights) -> None:
    for name in list(weights):
        weights[f"vision_model.{name.removeprefix('vision_model.')}"] = weights.pop(name)


def random_projector(seed: int) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"0.weight": (HIDDEN, WIDTH), "0.bias": (HIDDEN,), "2.weight": (HIDDEN, HIDDEN), "2.bias": (HIDDEN,)}
    return {f"model.mm_projector.{name}": torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def change_weights(folder: Path, change: Callable[[Weights], Any]) -> None:
    """Rewrite a directory's safetensors after a change in place."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")


def change_json(file: Path, changes: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(changes)))
