"""The image processor of a converted model: the tower's own preprocessing, with or without padding to a square."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import CLIPImageProcessorPil, LlavaImageProcessorPil, SiglipImageProcessorPil

from vrray.errors import ModelError

_TOWERS = {"clip": CLIPImageProcessorPil, "siglip": SiglipImageProcessorPil}
_KEPT = (
    "do_resize",
    "size",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
)


def image_processor(tower_preprocessor_config: Mapping[str, Any], *, pad: bool) -> LlavaImageProcessorPil:
    """Preprocessing of LLaVA and Bunny: RGB images of any size to `[images, 3, side, side]` in float32.

    Args:
        tower_preprocessor_config: the `preprocessor_config.json` of the CLIP or SigLIP tower, old forms included.
        pad: first pad to a square, the image centred, with the tower's mean colour, `int(255 * mean)`
            (`image_aspect_ratio: pad`); else the tower's preprocessing as it is.

    Raises:
        ModelError: it is not of a CLIP or SigLIP tower, or does not give all images one square size.
    """
    config = dict(tower_preprocessor_config)
    name = config.get("image_processor_type") or config.get("feature_extractor_type")
    tower = next((kind for key, kind in _TOWERS.items() if str(name).lower().startswith(key)), None)
    if tower is None:
        raise ModelError(
            f"preprocessor_config.json: image processor {name!r} is not supported; a CLIP or SigLIP one is"
        )
    try:
        own = tower.from_dict(config).to_dict()
    except (TypeError, ValueError) as error:
        raise ModelError(f"preprocessor_config.json of the tower is not usable: {error}") from error
    kept = {key: own[key] for key in _KEPT if own.get(key) is not None}
    kept.setdefault("do_center_crop", False)
    kept["crop_size"] = _square(kept, name)  # LlavaProcessor counts an image's tokens by it, cropped or not
    return LlavaImageProcessorPil(**kept, do_pad=pad, do_convert_rgb=True)


def _square(kept: Mapping[str, Any], name: object) -> dict[str, int]:
    """The side that every image ends with."""
    output = dict(kept["crop_size"] if kept["do_center_crop"] else kept["size"] if kept["do_resize"] else {})
    if set(output) != {"height", "width"} or output["height"] != output["width"]:
        steps = {key: kept.get(key) for key in ("do_resize", "size", "do_center_crop", "crop_size")}
        raise ModelError(f"preprocessor_config.json: {name} with {steps} does not give images of one square size")
    return output
