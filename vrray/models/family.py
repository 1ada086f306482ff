"""The families of models: where each keeps its decoder, projector and vision tower, and how an image enters it.

All of them fit one mechanism: the frozen tower gives an image features of a fixed shape, the projector turns each of
them into the embedding of one decoder position, and the decoder does the rest. What a family does to features without
weights (shuffling or averaging neighbouring patches) happens before the projector, so that less is cached.

Shapes: I images, P patches of the tower, N positions of an image in the decoder, W width of a feature, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vrray.errors import ModelError


@dataclass(frozen=True)
class ImageText:
    """How a processor writes an image into a prompt.

    Attributes:
        placeholder: what the chat template puts for an image.
        written: what that becomes in the text, with `token` once.
        token: stands for a position of the image, and is repeated for each.
    """

    placeholder: str
    written: str
    token: str

    def write(self, text: str, marks: Sequence[tuple[int, int]] = ()) -> tuple[str, list[tuple[int, int]]]:
        """The text of a chat template with its images written, and where marked stretches of characters are then."""
        longer = len(self.written) - len(self.placeholder)

        def moved(place: int) -> int:
            return place + longer * text.count(self.placeholder, 0, place)

        return text.replace(self.placeholder, self.written), [(moved(begin), moved(end)) for begin, end in marks]


def _plain_text(processor: Any) -> ImageText:
    return ImageText(processor.image_token, processor.image_token, processor.image_token)


def _project(projector: nn.Module, features_INW: torch.Tensor) -> torch.Tensor:
    image_INH: torch.Tensor = projector(features_INW)
    return image_INH


@dataclass(frozen=True)
class Family:
    """One family of models.

    Attributes:
        layers, projector, tower: paths of the decoder layers, the projector and the vision tower.
        feature_shape: `(N, W)` of an image, from a configuration.
        features: `[I, N, W]` from the tower, a configuration and pixels `[I, 3, side, side]`.
        feature_settings: what in a configuration the features follow from, besides `vision_config`.
        project: `[I, N, H]` from the projector and features `[I, N, W]`.
        listed: `forward` takes one tensor an image instead of all images in one.
        two_way_images: the positions of an image attend to each other in both directions.
        processor: the class of its processors.
        one_view: settings of the image processor by which an image is not cut into tiles.
        text: how its processor writes an image.
    """

    layers: str
    projector: str
    tower: str
    feature_shape: Callable[[Any], tuple[int, int]]
    features: Callable[[Any, Any, torch.Tensor], torch.Tensor]
    feature_settings: tuple[str, ...]
    processor: str
    project: Callable[[nn.Module, torch.Tensor], torch.Tensor] = _project
    listed: bool = False
    two_way_images: bool = False
    one_view: Mapping[str, bool] = field(default_factory=dict)
    text: Callable[[Any], ImageText] = _plain_text

    @property
    def decoder(self) -> str:
        """Path of the decoder that holds the layers."""
        return self.layers.rpartition(".")[0]

    def encoded(self, image_INH: torch.Tensor) -> dict[str, BaseModelOutputWithPooling]:
        """What `forward` and `generate` take as `mm_encoder_outputs`, instead of pixels."""
        return {"image": BaseModelOutputWithPooling(pooler_output=list(image_INH) if self.listed else image_INH)}

    def token_inputs(self, config: Any, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """What `forward` and `generate` take besides token ids `[rows, tokens]`, of the same shape."""
        return {"token_type_ids": (input_ids == config.image_token_id).long()} if self.two_way_images else {}


def family_of(config: Any) -> Family:
    """The family of a model that was resolved, by its configuration."""
    return FAMILIES[config.model_type]


def check_supported(config: Mapping[str, Any], model: str) -> None:
    """Refuse a model whose family does not fit the mechanism.

    Args:
        config: what its `config.json` holds.
        model: what the user named it by.

    Raises:
        ModelError: it does not fit, for a known reason or because it is unknown.
    """
    kind = config.get("model_type")
    tower = (config.get("vision_config") or {}).get("model_type")
    reason = _REFUSED.get(str(kind)) or (_OWN_SIZE if tower == "pixtral" else None)
    if reason:
        raise ModelError(f"{model}: model_type {kind!r} is not supported: {reason}; use one of {', '.join(FAMILIES)}")
    if kind not in FAMILIES:
        raise ModelError(f"{model}: model_type {kind!r} is not supported; use one of {', '.join(FAMILIES)}")


def vision_tower(model: nn.Module) -> Any:
    """The frozen vision tower of a model."""
    return model.get_submodule(family_of(model.config).tower)


def project_features(model: nn.Module, features_INW: torch.Tensor) -> torch.Tensor:
    """Embeddings `[I, N, H]` of features in any precision, with the model's projector and in its precision."""
    family = family_of(model.config)
    return project_with(family, model.get_submodule(family.projector), features_INW)


def project_with(family: Family, projector: nn.Module, features_INW: torch.Tensor) -> torch.Tensor:
    """The same with a projector that need not be the model's own."""
    weight = next(projector.parameters())
    return family.project(projector, features_INW.to(weight.device, weight.dtype))


def vocabulary_logits(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Logits in float32 over the tokens that the base knew.

    Rows that a conversion appended (`original_vocab_size` says how many there were before) stay out of every softmax.
    """
    logits: torch.Tensor = model.lm_head(hidden)
    return logits[..., : getattr(model.config.text_config, "original_vocab_size", None)].float()


def prepare_processor(processor: Any) -> Any:
    """The processor, set to give one view of an image."""
    family = _family_of_processor(processor)
    for name, value in (family.one_view if family else {}).items():
        setattr(processor.image_processor, name, value)
    return processor


def image_text(processor: Any) -> ImageText:
    """How a processor writes an image into a prompt."""
    family = _family_of_processor(processor)
    return (family.text if family else _plain_text)(processor)


def _family_of_processor(processor: Any) -> Family | None:
    name = type(processor).__name__
    return next((family for family in FAMILIES.values() if family.processor == name), None)


def _llava_shape(config: Any) -> tuple[int, int]:
    layers = config.vision_feature_layer
    width = config.vision_config.hidden_size * (1 if isinstance(layers, int) else len(layers))
    return config.image_seq_length, width


def _llava_features(vision: Any, config: Any, pixels: torch.Tensor) -> torch.Tensor:
    hidden = vision(pixels, output_hidden_states=True).hidden_states
    chosen = config.vision_feature_layer
    layers = [chosen] if isinstance(chosen, int) else chosen
    cut = 1 if config.vision_feature_select_strategy == "default" else 0
    return torch.cat([hidden[layer][:, cut:] for layer in layers], dim=-1)


def _internvl_shape(config: Any) -> tuple[int, int]:
    vision = config.vision_config
    patches = (vision.image_size[0] // vision.patch_size[0]) * (vision.image_size[1] // vision.patch_size[1])
    together = round(1 / config.downsample_ratio) ** 2
    return patches // together, vision.hidden_size * together


def _internvl_features(vision: Any, config: Any, pixels: torch.Tensor) -> torch.Tensor:
    layer = config.vision_feature_layer
    output = vision(pixels, output_hidden_states=True)
    hidden = output.last_hidden_state if layer == -1 else output.hidden_states[layer]
    patches_IPW = hidden[:, 1:] if config.vision_feature_select_strategy == "default" else hidden
    return _blocks(patches_IPW, round(1 / config.downsample_ratio))


def _internvl_text(processor: Any) -> ImageText:
    token = processor.image_token
    return ImageText(token, f"{processor.start_image_token}{token}{processor.end_image_token}", token)


def _idefics_shape(config: Any) -> tuple[int, int]:
    vision, together = config.vision_config, config.scale_factor**2
    return (vision.image_size // vision.patch_size) ** 2 // together, vision.hidden_size * together


def _idefics_features(vision: Any, config: Any, pixels: torch.Tensor) -> torch.Tensor:
    return _blocks(vision(pixels).last_hidden_state, config.scale_factor)


def _idefics_project(connector: nn.Module, features_INW: torch.Tensor) -> torch.Tensor:
    image_INH: torch.Tensor = connector.modality_projection(features_INW)  # type: ignore[operator]
    return image_INH


def _idefics_text(processor: Any) -> ImageText:
    token, border = processor.image_token, getattr(processor, "fake_image_token", "<fake_token_around_image>")
    start = getattr(processor, "global_image_token", getattr(processor, "global_image_tag", "<global-img>"))
    return ImageText(token, f"{border}{start}{token}{border}", token)


def _gemma_shape(config: Any) -> tuple[int, int]:
    return config.mm_tokens_per_image, config.vision_config.hidden_size


def _gemma_features(vision: Any, config: Any, pixels: torch.Tensor) -> torch.Tensor:
    grid_IWss = _square(vision(pixels).last_hidden_state).permute(0, 3, 1, 2)
    averaged_IWnn = nn.functional.avg_pool2d(grid_IWss, grid_IWss.shape[-1] // _gemma_side(config))
    return averaged_IWnn.flatten(2).transpose(1, 2)


def _gemma_project(projector: nn.Module, features_INW: torch.Tensor) -> torch.Tensor:
    """The projector averages squares of patches first: each feature is repeated over the square that it came from."""
    side, times = int(features_INW.shape[1] ** 0.5), int(projector.kernel_size)  # type: ignore[arg-type]
    grid_InnW = features_INW.unflatten(1, (side, side))
    patches_IPW = grid_InnW.repeat_interleave(times, 1).repeat_interleave(times, 2).flatten(1, 2)
    return _project(projector, patches_IPW)


def _gemma_side(config: Any) -> int:
    return int(config.mm_tokens_per_image**0.5)


def _gemma_text(processor: Any) -> ImageText:
    token, tokenizer = processor.tokenizer.image_token, processor.tokenizer
    return ImageText(tokenizer.boi_token, f"\n\n{tokenizer.boi_token}{token}{tokenizer.eoi_token}\n\n", token)


def _square(patches_IPW: torch.Tensor) -> torch.Tensor:
    side = int(patches_IPW.shape[1] ** 0.5)
    return patches_IPW.unflatten(1, (side, side))


def _blocks(patches_IPW: torch.Tensor, size: int) -> torch.Tensor:
    """The patches of each square of `size` by `size` side by side: `[I, P / size**2, W * size**2]`."""
    grid = _square(patches_IPW)
    side = grid.shape[1] // size
    squares = grid.unflatten(2, (side, size)).unflatten(1, (side, size)).transpose(2, 3)
    return squares.flatten(3).flatten(1, 2)


_LAYERS, _PROJECTOR, _TOWER = "model.language_model.layers", "model.multi_modal_projector", "model.vision_tower"

LLAVA = Family(
    _LAYERS,
    _PROJECTOR,
    _TOWER,
    feature_shape=_llava_shape,
    features=_llava_features,
    feature_settings=("vision_feature_layer", "vision_feature_select_strategy"),
    processor="LlavaProcessor",
    listed=True,
)
_IDEFICS = Family(
    "model.text_model.layers",
    "model.connector",
    "model.vision_model",
    feature_shape=_idefics_shape,
    features=_idefics_features,
    feature_settings=("scale_factor",),
    processor="Idefics3Processor",
    project=_idefics_project,
    listed=True,
    one_view={"do_image_splitting": False},
    text=_idefics_text,
)
FAMILIES: dict[str, Family] = {
    "llava": LLAVA,
    "internvl": Family(
        _LAYERS,
        _PROJECTOR,
        _TOWER,
        feature_shape=_internvl_shape,
        features=_internvl_features,
        feature_settings=("vision_feature_layer", "vision_feature_select_strategy", "downsample_ratio"),
        processor="InternVLProcessor",
        one_view={"crop_to_patches": False},
        text=_internvl_text,
    ),
    "gemma3": Family(
        _LAYERS,
        _PROJECTOR,
        _TOWER,
        feature_shape=_gemma_shape,
        features=_gemma_features,
        feature_settings=("mm_tokens_per_image",),
        processor="Gemma3Processor",
        project=_gemma_project,
        two_way_images=True,
        one_view={"do_pan_and_scan": False},
        text=_gemma_text,
    ),
    "idefics3": _IDEFICS,
    "smolvlm": replace(_IDEFICS, processor="SmolVLMProcessor"),
}
_OWN_SIZE = "its tower reads an image in its own size, so images take different numbers of positions"
_TILES = "it cuts an image into tiles by its size, so images take different numbers of positions"
_GRID = (
    "an image takes as many positions as its size asks for, and these are numbered in two dimensions, "
    "which features alone do not tell"
)
_REFUSED = {
    "qwen2_vl": _GRID,
    "qwen2_5_vl": _GRID,
    "qwen3_vl": (
        "images enter its first decoder layers, too, past the projector (DeepStack), and pruning would move them; "
        f"besides, {_GRID}"
    ),
    "llava_next": _TILES,
    "llava_onevision": _TILES,
    "mistral3": _OWN_SIZE,
    "paligemma": (
        "it reads the whole prompt in both directions and only the answer causally, and it has no chat template, "
        "while rows here are conversations that are read causally"
    ),
}
_REFUSED["qwen3_vl_moe"] = _REFUSED["qwen3_vl"]
