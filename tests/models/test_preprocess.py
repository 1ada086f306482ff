"""The image processor of converted models gives the original implementation's pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import AutoImageProcessor, CLIPImageProcessorPil, LlavaImageProcessorPil, SiglipImageProcessorPil

from vrray.errors import ModelError
from vrray.models.preprocess import image_processor

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference" / "models"
SIGLIP = {
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "SiglipImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "size": {"height": 42, "width": 42},
}
OLD_CLIP = {"feature_extractor_type": "CLIPFeatureExtractor", "crop_size": 42, "size": 42, "resample": 3}


def photos() -> list[Image.Image]:
    generator = np.random.default_rng(3)
    return [Image.fromarray(generator.integers(0, 256, (h, w, 3), np.uint8)) for w, h in ((61, 40), (33, 57), (50, 50))]


def pixels(processor: Any, images: list[Image.Image]) -> np.ndarray[Any, Any]:
    return np.asarray(processor(images=images, return_tensors="np")["pixel_values"])


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the reference fixtures are not there")
@pytest.mark.parametrize("model", ["llava15", "bunny_llama3", "bunny_phi3"])
def test_padded_pixels_equal_the_reference(model: str) -> None:
    (config,) = (REFERENCE / model).glob("*_tower/preprocessor_config.json")
    images = [Image.open(REFERENCE / model / f"image_{number}.png") for number in range(3)]
    found = pixels(image_processor(json.loads(config.read_text()), pad=True), images)
    expected = np.load(REFERENCE / model / "inputs.npz")["pixel_values"]
    assert found.shape == expected.shape == (3, 3, 42, 42)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("config", "own"), [(SIGLIP, SiglipImageProcessorPil), (OLD_CLIP, CLIPImageProcessorPil)])
def test_without_padding_it_is_the_towers_own(config: dict[str, Any], own: Any) -> None:
    plain, padded = (pixels(image_processor(config, pad=pad), photos()) for pad in (False, True))
    np.testing.assert_array_equal(plain, pixels(own.from_dict(config), photos()))
    assert np.abs(plain[:2] - padded[:2]).max() > 0.1
    np.testing.assert_array_equal(plain[2], padded[2])  # a square needs no padding


@pytest.mark.parametrize("config", [SIGLIP, OLD_CLIP])
def test_it_reloads_as_it_was(config: dict[str, Any], tmp_path: Path) -> None:
    processor = image_processor(config, pad=True)
    processor.save_pretrained(tmp_path)
    reloaded = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    assert isinstance(reloaded, LlavaImageProcessorPil)
    assert dict(reloaded.crop_size) == {"height": 42, "width": 42}
    np.testing.assert_array_equal(pixels(reloaded, photos()), pixels(processor, photos()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_processor_type": "ConvNextImageProcessor"}, "'ConvNextImageProcessor' is not supported"),
        ({"image_processor_type": None}, "None is not supported"),
        ({"size": {"shortest_edge": 42}}, "does not give images of one square size"),
        ({"size": {"height": 42, "width": 28}}, "does not give images of one square size"),
        ({"do_resize": False}, "does not give images of one square size"),
        ({"size": "large"}, "is not usable"),
    ],
)
def test_other_preprocessing_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        image_processor(SIGLIP | changes, pad=True)
