"""The demo and the four LVLMs of the paper: what they are made of, how they are tuned, and where their weights are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vrray.region import Region, place
from vrray.specs import RECIPES, Recipe

Conversation = Literal["chat", "llama", "phi3", "vicuna_v1", "bunny"]


@dataclass(frozen=True)
class Preset:
    """A model by name.

    Attributes:
        decoder, tower: values of the decoder's and the vision tower's configurations, `model_type` among them; without
            what a standard directory adds, such as a vocabulary entry for the image.
        feature_layer: the tower's hidden states that enter the projector, counted from the end.
        features: "full" takes every position, "default" leaves the class token out.
        projector: two linear layers with GELU between them.
        conversation: the template that it was trained with; "chat" is the model's own.
        images: "pad" pads to a square with the mean colour.
        region: the decoder layers that the paper tunes.
        recipe: how they are tuned.
        checkpoint, language_model, vision_tower: hub ids of the original checkpoint and of what it was made from;
            None for the demo, which is built from packages.
        standard: hub id of a `LlavaForConditionalGeneration` directory with the checkpoint's weights; None where
            the checkpoint has to be converted.
    """

    name: str
    decoder: Mapping[str, Any] = field(hash=False)
    tower: Mapping[str, Any] = field(hash=False)
    feature_layer: int
    features: Literal["full", "default"]
    conversation: Conversation
    region: Region
    recipe: Recipe
    checkpoint: str | None = None
    language_model: str | None = None
    vision_tower: str | None = None
    standard: str | None = None
    projector: Literal["mlp2x_gelu"] = "mlp2x_gelu"
    images: Literal["pad"] = "pad"

    @property
    def image_tokens(self) -> int:
        """Positions that an image takes in the decoder."""
        return int(self.tower["image_size"] // self.tower["patch_size"]) ** 2


def presets() -> tuple[Preset, ...]:
    """Every preset, the demo last."""
    return _PRESETS


def named_preset(name: str) -> Preset | None:
    """The preset of this name; None where there is none."""
    return next((preset for preset in _PRESETS if preset.name == name), None)


def find_preset(model: str) -> Preset | None:
    """The preset of this name, or whose weights lie under this hub id; None where there is none."""
    name = model.partition("@")[0]
    return next((preset for preset in _PRESETS if name in (preset.name, preset.checkpoint, preset.standard)), None)


_SIGLIP: dict[str, Any] = {  # siglip-so400m-patch14-384
    "model_type": "siglip_vision_model",
    "num_hidden_layers": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
_CLIP: dict[str, Any] = {  # clip-vit-large-patch14-336
    "model_type": "clip_vision_model",
    "num_hidden_layers": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
_LLAMA_3: dict[str, Any] = {  # Meta-Llama-3-8B-Instruct
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "tie_word_embeddings": False,
    "bos_token_id": 128000,
    "eos_token_id": 128009,
}
_PHI_3: dict[str, Any] = {  # Phi-3-mini-4k-instruct
    "model_type": "phi3",
    "num_hidden_layers": 32,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32064,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "sliding_window": 2047,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 32000,
    "pad_token_id": 32000,
}
_VICUNA_7B: dict[str, Any] = {  # vicuna-7b-v1.5
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_VICUNA_13B = _VICUNA_7B | {  # vicuna-13b-v1.5
    "num_hidden_layers": 40,
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
}
_SMOLLM_2: dict[str, Any] = {  # SmolLM2-135M-Instruct
    "model_type": "llama",
    "num_hidden_layers": 30,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
_EFFICIENTNET: dict[str, Any] = {  # EfficientNet-Lite0
    "model_type": "efficientnet_lite",
    "hidden_size": 1280,
    "image_size": 96,
    "patch_size": 32,
}

_PRESETS = (
    Preset(
        name="bunny-llama3-8b",
        decoder=_LLAMA_3,
        tower=_SIGLIP,
        feature_layer=-2,
        features="full",
        conversation="llama",
        region=place("1,5,9,13,19,23,27,31", 32),  # the published code's; the paper prints those of placement "paper"
        recipe=Recipe(),
        checkpoint="BAAI/Bunny-Llama-3-8B-V",
        language_model="meta-llama/Meta-Llama-3-8B-Instruct",
        vision_tower="google/siglip-so400m-patch14-384",
    ),
    Preset(
        name="bunny-phi3-4b",
        decoder=_PHI_3,
        tower=_SIGLIP,
        feature_layer=-2,
        features="full",
        conversation="phi3",
        region=place("uniform", 32, 8),
        recipe=Recipe(),
        checkpoint="BAAI/Bunny-v1_0-4B",
        language_model="microsoft/Phi-3-mini-4k-instruct",
        vision_tower="google/siglip-so400m-patch14-384",
    ),
    Preset(
        name="llava-1.5-7b",
        decoder=_VICUNA_7B,
        tower=_CLIP,
        feature_layer=-2,
        features="default",
        conversation="vicuna_v1",
        region=place("uniform", 32, 8),
        recipe=Recipe(),
        checkpoint="liuhaotian/llava-v1.5-7b",
        language_model="lmsys/vicuna-7b-v1.5",
        vision_tower="openai/clip-vit-large-patch14-336",
        standard="llava-hf/llava-1.5-7b-hf",
    ),
    Preset(
        name="llava-1.5-13b",
        decoder=_VICUNA_13B,
        tower=_CLIP,
        feature_layer=-2,
        features="default",
        conversation="vicuna_v1",
        region=place("uniform", 40, 9),
        recipe=Recipe(),
        checkpoint="liuhaotian/llava-v1.5-13b",
        language_model="lmsys/vicuna-13b-v1.5",
        vision_tower="openai/clip-vit-large-patch14-336",
        standard="llava-hf/llava-1.5-13b-hf",
    ),
    Preset(
        name="smol",
        decoder=_SMOLLM_2,
        tower=_EFFICIENTNET,
        feature_layer=-1,
        features="full",
        conversation="chat",
        region=place("uniform", 30, 0.25),
        recipe=RECIPES["smol"],
    ),
)
