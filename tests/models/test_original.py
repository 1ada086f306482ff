"""Checkpoint files and original models: what is read, what is refused, and by which name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from originals import (
    DEPTH,
    HIDDEN,
    WIDTH,
    Weights,
    change_json,
    change_weights,
    random_projector,
    write_language_model,
    write_lora,
    write_original,
    write_tower,
)
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from vrray.errors import ModelError
from vrray.models.original import checkpoint_tensors, file_tensors
from vrray.models.original_model import Original, find_original

TOWER = "model.vision_tower.vision_tower.vision_model."


def found(source: Path, **others: Path) -> Original:
    return find_original(source, **({"vision_tower": None, "base": None, "projector": None} | others))


def refusal(source: Path, **others: Path) -> str:
    with pytest.raises(ModelError) as error:
        found(source, **others)
    return str(error.value)


# --- files


def some_weights() -> Weights:
    generator = torch.Generator().manual_seed(0)
    return {f"layer.{n}.weight": torch.randn(3, 4, generator=generator) for n in range(6)}


def write_shards(folder: Path, weights: Weights, kind: str, *, index: bool) -> None:
    names, (stem, suffix) = (
        list(weights),
        {"safetensors": ("model", "safetensors"), "bin": ("pytorch_model", "bin")}[kind],
    )
    places = {}
    for number in range(2):
        part = {name: weights[name] for name in names[number::2]}
        file = f"{stem}-0000{number + 1}-of-00002.{suffix}"
        save_file(part, folder / file) if kind == "safetensors" else torch.save(part, folder / file)
        places |= dict.fromkeys(part, file)
    if index:
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": places}))


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("index", [True, False])
def test_shards(tmp_path: Path, kind: str, index: bool) -> None:
    weights = some_weights()
    write_shards(tmp_path, weights, kind, index=index)
    tensors = checkpoint_tensors(tmp_path)
    assert tensors.keys() == weights.keys()
    for name, weight in tensors.items():
        assert (weight.shape, weight.dtype, weight.nbytes) == ((3, 4), torch.float32, 48)
        assert torch.equal(weight.load(), weights[name])


def test_a_tensor_in_another_order_of_memory(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(6.0).reshape(2, 3).t()}, tmp_path / "pytorch_model.bin")
    found = checkpoint_tensors(tmp_path)["a"].load()
    assert found.is_contiguous()  # as safetensors needs it
    assert found.tolist() == [[0, 3], [1, 4], [2, 5]]


def test_old_buffers_are_left_out(tmp_path: Path) -> None:
    buffers = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2),
        "vision_model.embeddings.position_ids": torch.arange(5),
        "position_ids": torch.arange(5),
    }
    torch.save(some_weights() | buffers, tmp_path / "pytorch_model.bin")
    assert checkpoint_tensors(tmp_path).keys() == some_weights().keys()


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_missing_shard(tmp_path: Path, kind: str) -> None:
    write_shards(tmp_path, some_weights(), kind, index=True)
    file = next(tmp_path.glob(f"*00002-of-00002.{kind}"))
    file.unlink()
    with pytest.raises(ModelError, match=file.name):
        checkpoint_tensors(tmp_path)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_an_index_that_disagrees(tmp_path: Path, kind: str) -> None:
    write_shards(tmp_path, some_weights(), kind, index=True)
    index = next(tmp_path.glob("*.index.json"))
    places = json.loads(index.read_text())["weight_map"]
    change_json(index, {"weight_map": places | {"layer.9.weight": places["layer.0.weight"]}})
    with pytest.raises(ModelError, match=r"lists layer\.9\.weight, which .*00001-of-00002.* lacks"):
        checkpoint_tensors(tmp_path)
    change_json(index, {"weight_map": {name: place for name, place in places.items() if name != "layer.3.weight"}})
    with pytest.raises(ModelError, match=r"layer\.3\.weight is not in .*index\.json"):
        checkpoint_tensors(tmp_path)
    index.write_text("{}")
    with pytest.raises(ModelError, match="has no weight_map"):
        checkpoint_tensors(tmp_path)


def test_one_tensor_in_two_files(tmp_path: Path) -> None:
    for number in (1, 2):
        torch.save(some_weights(), tmp_path / f"pytorch_model-0000{number}-of-00002.bin")
    with pytest.raises(ModelError, match="one tensor in two files"):
        checkpoint_tensors(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_truncated_file(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    save_file(some_weights(), file) if name.endswith("safetensors") else torch.save(some_weights(), file)
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(ModelError, match=name):
        checkpoint_tensors(tmp_path)


class Intruder:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {os.environ['INTRUDED']}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool) -> None:
    monkeypatch.setenv("INTRUDED", str(tmp_path / "intruded"))
    file = tmp_path / "mm_projector.bin"
    torch.save({"model.mm_projector.0.weight": Intruder()}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelError, match=r"mm_projector\.bin was not opened"):
        file_tensors(file)
    assert not (tmp_path / "intruded").exists()
    torch.load(file, weights_only=False)
    assert (tmp_path / "intruded").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], "must map names to tensors, found a list"),
        ({"state_dict": {"a": torch.ones(2)}}, "found 'state_dict' with a dict"),
        ({"a": torch.ones(2, dtype=torch.int8)}, r"a is torch\.int8"),
        ({"a": torch.eye(2).to_sparse()}, "found 'a' with a Tensor"),
    ],
)
def test_a_pickle_of_something_else(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=message):
        checkpoint_tensors(tmp_path)


def test_a_quantised_checkpoint(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2, dtype=torch.uint8)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="a is U8"):
        checkpoint_tensors(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_values_that_are_not_finite(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    tensor = torch.zeros(3, 4, dtype=dtype)
    tensor[1, 2] = value
    save_file({"a": tensor, "b": torch.zeros(1)}, tmp_path / "model.safetensors")
    tensors = checkpoint_tensors(tmp_path)
    tensors["b"].load()
    with pytest.raises(ModelError, match=r"model\.safetensors: a holds values that are not finite"):
        tensors["a"].load()


# --- models


@pytest.fixture
def llava(tmp_path: Path) -> Path:
    return write_original(tmp_path / "llava")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bunny-phi"}, "model_type 'bunny-phi' cannot be converted"),
        ({"model_type": "llava_mpt"}, "model_type 'llava_mpt' cannot be converted"),
        ({"model_type": None}, "model_type None cannot be converted"),
        ({"model_type": "llava", "text_config": {}}, "is a LlavaForConditionalGeneration already"),
        ({"use_s2": True}, "use_s2 True"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end True"),
        ({"mm_use_im_patch_token": True}, "mm_use_im_patch_token True"),
        ({"mm_resampler_type": "spatial_pool"}, "mm_resampler_type 'spatial_pool'"),
        ({"mm_projector_type": "linear"}, "mm_projector_type 'linear'"),
        ({"mm_projector_type": "mlp3x_gelu"}, "mm_projector_type 'mlp3x_gelu'"),
        ({"mm_projector_type": None}, "mm_projector_type None"),
        ({"mm_patch_merge_type": "spatial_unpad"}, "mm_patch_merge_type 'spatial_unpad'"),
        ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio 'anyres'"),
        ({"mm_vision_select_feature": "cls"}, "mm_vision_select_feature 'cls'"),
        ({"mm_vision_select_layer": [-2, -5]}, r"mm_vision_select_layer \[-2, -5\]"),
        ({"mm_vision_select_layer": -4}, "mm_vision_select_layer -4, but .* has 2 layers"),
        ({"mm_vision_select_layer": 3}, "mm_vision_select_layer 3, but .* has 2 layers"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"mm_hidden_size": 9}, "is 8 wide, .* needs mm_hidden_size 9"),
        ({"mm_vision_tower": "openai/clip-vit"}, "mm_vision_tower 'openai/clip-vit' .*--vision-tower DIR"),
        ({"mm_vision_tower": None}, "mm_vision_tower None .*--vision-tower DIR"),
        ({"unfreeze_mm_vision_tower": True}, "unfreeze_mm_vision_tower is true, but no weights"),
    ],
)
def test_configurations_that_are_refused(llava: Path, changes: dict[str, Any], message: str) -> None:
    change_json(llava / "config.json", changes)
    with pytest.raises(ModelError, match=message):
        found(llava)


def test_directories_that_are_refused(llava: Path, tmp_path: Path) -> None:
    assert "config.json cannot be read" in refusal(tmp_path / "nowhere")
    assert "--base is for a LoRA or stage-1 directory" in refusal(llava, base=llava)
    (llava / "model.safetensors").unlink()
    assert "has neither model*.safetensors nor pytorch_model*.bin" in refusal(llava)
    (llava / "config.json").write_text("[]")
    assert "must hold a JSON object, found a list" in refusal(llava)


def test_layers_that_are_read(llava: Path, tmp_path: Path) -> None:
    assert (found(llava).feature_layer, found(llava).class_token) == (-2, False)
    change_json(llava / "config.json", {"mm_vision_select_layer": -1, "mm_vision_select_feature": "cls_patch"})
    assert (found(llava).feature_layer, found(llava).class_token) == (-1, True)
    bunny = write_original(tmp_path / "bunny", "bunny-phi3", mm_vision_select_layer=-1)
    assert (found(bunny).feature_layer, found(bunny).class_token) == (-2, False)  # Bunny does not look there


@pytest.mark.parametrize("ratio", ["pad", "square", None])
def test_padding(llava: Path, ratio: str | None) -> None:
    change_json(llava / "config.json", {"image_aspect_ratio": ratio})
    assert found(llava).pad == (ratio == "pad")


def test_the_wrong_tower(llava: Path, tmp_path: Path) -> None:
    siglip = write_tower(tmp_path / "siglip", "siglip")
    assert "model_type 'siglip_vision_model' is no clip tower" in refusal(llava, vision_tower=siglip)
    change_json(siglip / "config.json", {"model_type": "siglip2_vision_model"})
    plain = write_language_model(tmp_path / "plain")
    assert "is no clip or siglip tower" in refusal(plain, vision_tower=siglip)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_tower_out_of_a_whole_model(tmp_path: Path, kind: str) -> None:
    model_type = {"clip": "llava", "siglip": "bunny-llama"}[kind]
    source, whole = write_original(tmp_path, model_type), tmp_path / "whole"
    config_class, model_class = {"clip": (CLIPConfig, CLIPModel), "siglip": (SiglipConfig, SiglipModel)}[kind]
    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9}
    values = json.loads((tmp_path / "tower" / "config.json").read_text())
    model = model_class(config_class(text_config=text, vision_config=values))
    model.save_pretrained(whole)
    weights = load_file(whole / "model.safetensors")
    assert any(name.startswith("text_model.") for name in weights)
    assert "logit_scale" in weights
    original = found(source, vision_tower=whole)
    tower = {name: weight for name, weight in original.weights.items() if name.startswith(TOWER)}
    assert tower.keys() == {name for name in found(source).weights if name.startswith(TOWER)}
    for name, weight in tower.items():
        assert torch.equal(weight.load(), weights[f"vision_model.{name.removeprefix(TOWER)}"])


def test_the_tower_in_the_checkpoint_is_used_only_where_it_was_trained(tmp_path: Path) -> None:
    source = write_original(tmp_path, "bunny-llama", unfreeze_vision_tower=True)
    apart = load_file(tmp_path / "tower" / "model.safetensors")
    inside = {f"model.vision_tower.vision_tower.{name}": tensor + 1 for name, tensor in apart.items()}
    change_weights(source, lambda weights: weights.update(inside))
    name = f"{TOWER}post_layernorm.bias"
    assert torch.equal(found(source).weights[name].load(), inside[name])
    change_json(source / "config.json", {"unfreeze_vision_tower": False})
    assert torch.equal(found(source).weights[name].load(), apart["vision_model.post_layernorm.bias"])


def test_a_tower_saved_by_newer_versions(llava: Path) -> None:
    def strip(weights: Weights) -> None:
        for name in list(weights):
            weights[name.removeprefix("vision_model.")] = weights.pop(name)

    before = found(llava).weights
    change_weights(llava.parent / "tower", strip)
    after = found(llava).weights
    assert after.keys() == before.keys()
    assert "vision_model" not in after[f"{TOWER}post_layernorm.bias"].source


def test_a_tower_saved_without_what_nothing_reads(tmp_path: Path) -> None:
    source = write_original(tmp_path, "bunny-llama", unfreeze_vision_tower=True)
    unread = ("vision_model.head.", f"vision_model.encoder.layers.{DEPTH - 1}.")
    apart = load_file(tmp_path / "tower" / "model.safetensors")
    read = {f"model.vision_tower.vision_tower.{n}": t for n, t in apart.items() if not n.startswith(unread)}
    change_weights(source, lambda weights: weights.update(read))
    original = found(source)
    assert original.feature_layer == -1
    assert (original.vision["num_hidden_layers"], original.vision["vision_use_head"]) == (DEPTH - 1, False)


# --- a model in parts


def write_stage_1(folder: Path, whole: Path, **more: torch.Tensor) -> Path:
    folder.mkdir()
    shutil.copy(whole / "config.json", folder)
    torch.save(random_projector(seed=8) | more, folder / "mm_projector.bin")
    return folder


def test_stage_1_and_lora_need_their_base(llava: Path, tmp_path: Path) -> None:
    stage_1 = write_stage_1(llava.parent / "stage1", llava)
    assert "stage1 is only a part of a model; name the rest with --base DIR" in refusal(stage_1)
    lora = write_lora(llava.parent / "lora", llava)
    assert "--base DIR (it was trained on 'vicuna')" in refusal(lora)
    phi3 = write_language_model(tmp_path / "phi3", "phi3")
    assert "is a phi3" in refusal(lora, base=phi3)
    bunny = write_original(tmp_path / "bunny", "bunny-llama")
    assert "is a bunny-llama" in refusal(lora, base=bunny)
    assert "has neither" in refusal(lora, base=stage_1)
    plain = write_language_model(tmp_path / "other")
    change_json(lora / "config.json", {"model_type": "llama"})
    assert "model_type 'llama' is no Bunny or LLaVA model" in refusal(lora, base=plain)


@pytest.mark.parametrize("kind", ["stage1", "lora"])
def test_the_base_may_be_a_plain_language_model(llava: Path, kind: str) -> None:
    write = {"stage1": write_stage_1, "lora": write_lora}[kind]
    part = write(llava.parent / kind, llava)
    onto_whole, onto_plain = found(part, base=llava), found(part, base=llava.parent / "plain")
    assert onto_whole.weights.keys() == onto_plain.weights.keys() == found(llava).weights.keys()
    for name, weight in onto_whole.weights.items():
        assert torch.equal(weight.load(), onto_plain.weights[name].load())
    assert not torch.equal(
        onto_whole.weights["model.mm_projector.0.weight"].load(),
        random_projector(seed=2)["model.mm_projector.0.weight"],
    )


def test_a_projector_by_its_file(llava: Path, tmp_path: Path) -> None:
    file, own = tmp_path / "other.bin", random_projector(seed=9)
    torch.save({f"base_model.model.{name}": tensor for name, tensor in own.items()}, file)
    parts = [(llava, {}), (write_stage_1(llava.parent / "stage1", llava), {"base": llava})]
    lora = write_lora(llava.parent / "lora", llava)
    parts.append((lora, {"base": llava}))
    for source, others in parts:
        weights = found(source, projector=file, **others).weights
        assert all(torch.equal(weights[name].load(), tensor) for name, tensor in own.items())
    (lora / "non_lora_trainables.bin").unlink()
    assert "lacks non_lora_trainables.bin" in refusal(lora, base=llava)
    found(lora, base=llava, projector=file)


def test_a_projector_is_taken_whole(llava: Path) -> None:
    stage_1 = write_stage_1(llava.parent / "stage1", llava)
    torch.save({"model.mm_projector.0.weight": torch.ones(HIDDEN, WIDTH)}, stage_1 / "mm_projector.bin")
    names = {name for name in found(stage_1, base=llava).weights if ".mm_projector." in name}
    assert names == {"model.mm_projector.0.weight"}


def test_a_projector_with_something_else(llava: Path) -> None:
    more = {"model.embed_tokens.weight": torch.ones(40, HIDDEN)}
    stage_1 = write_stage_1(llava.parent / "stage1", llava, **more)
    assert "mm_projector.bin: model.embed_tokens.weight is no part of a projector" in refusal(stage_1, base=llava)


def test_a_plain_language_model(llava: Path, tmp_path: Path) -> None:
    plain, tower = llava.parent / "plain", llava.parent / "tower"
    assert "--vision-tower DIR" in refusal(plain)
    original = found(plain, vision_tower=tower)
    assert original.fresh_projector
    assert original.pad
    again = found(plain, vision_tower=tower)
    for name in random_projector(seed=0):
        tensor = original.weights[name].load()
        assert torch.equal(tensor, again.weights[name].load())
        assert 0 < tensor.abs().max() <= WIDTH**-0.5
    projector = tmp_path / "projector.bin"
    torch.save(random_projector(seed=2), projector)
    joined = found(plain, vision_tower=tower, projector=projector)
    assert not joined.fresh_projector
    assert joined.weights.keys() == found(llava).weights.keys()
    assert all(torch.equal(weight.load(), joined.weights[name].load()) for name, weight in found(llava).weights.items())
    change_weights(plain, lambda weights: weights.update(random_projector(seed=2)))
    assert "does not belong to a plain language model" in refusal(plain, vision_tower=tower)
