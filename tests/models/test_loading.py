"""Finding, identifying, measuring and loading model directories."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import DEPTH, IMAGE_TOKENS

from vrray.errors import ModelError
from vrray.models import loading as loading_module
from vrray.models.loading import (
    base_identity,
    conversation,
    decoder_layers,
    load_model,
    load_processor,
    model_config,
    model_shape,
    resolve_model,
    shape_of,
    tower_identity,
)

WEIGHTS = "model.safetensors"


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to change; its hashes are remembered in a home of its own."""
    monkeypatch.setenv("VRRAY_HOME", str(tmp_path / "home"))
    return shutil.copytree(tiny_model, tmp_path / "model")


def change_byte(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_directory_is_found(tiny_model: Path) -> None:
    assert resolve_model(str(tiny_model)) == tiny_model.resolve()


@pytest.mark.parametrize("model", ["no/such/dir", "smoll", "", ".", "a/b/", "~/nothing/there"])
def test_what_is_no_model_is_refused(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as error:
        resolve_model(model)
    assert str(error.value) == (
        f"model {model!r} is neither a preset (bunny-llama3-8b, bunny-phi3-4b, llava-1.5-7b, llava-1.5-13b, smol), nor "
        "a directory with a config.json, nor a hub id such as organisation/name"
    )


def test_a_directory_without_config_is_not_looked_for_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for find in (resolve_model, model_config):
        with pytest.raises(ModelError, match=r"model 'org/name' is neither .* nor a directory with a config"):
            find("org/name")


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "llava_llama"},
        {"model_type": "bunny-llama"},
        {"model_type": "bunny-phi3"},
        {"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"]},  # as first published
    ],
    ids=str,
)
def test_an_original_checkpoint_is_to_be_converted(copy: Path, changes: dict[str, object]) -> None:
    change_config(copy, **changes)
    for find in (resolve_model, model_config):
        with pytest.raises(
            ModelError, match=r"layout of an original checkpoint; .* `vrray convert SRC OUT` and give OUT$"
        ):
            find(str(copy))


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_an_unreadable_configuration_is_refused(copy: Path, content: str) -> None:
    (copy / "config.json").write_text(content)
    with pytest.raises(ModelError, match=r"config\.json (cannot be read|must hold)"):
        resolve_model(str(copy))


def test_the_conversation_is_the_configurations_else_the_presets_else_the_models_own(copy: Path) -> None:
    assert conversation(str(copy), copy) == "chat"
    assert conversation("llava-1.5-13b", copy) == "vicuna_v1"
    change_config(copy, conversation="phi3")
    assert conversation(str(copy), copy) == conversation("llava-1.5-13b", copy) == "phi3"
    change_config(copy, conversation="llama-2")
    with pytest.raises(ModelError, match=r"config\.json: conversation 'llama-2' is unknown; use one of chat, llama, "):
        conversation(str(copy), copy)


@pytest.mark.parametrize("kind", ["llava_next", "qwen2_vl", None])
def test_other_families_are_refused_by_name(copy: Path, kind: str | None) -> None:
    change_config(copy, model_type=kind)
    with pytest.raises(ModelError, match=f"model_type {kind!r} is not supported"):
        resolve_model(str(copy))


def test_identity_is_that_of_the_contents(copy: Path, tiny_model: Path) -> None:
    identity = base_identity(copy)
    assert identity == base_identity(tiny_model)
    (copy / "README.md").write_text("my model")
    assert base_identity(copy) == identity
    assert len(identity) == 16


@pytest.mark.parametrize("offset", [-1, -5000, 20_000])
def test_identity_changes_with_a_byte_of_the_weights(copy: Path, offset: int) -> None:
    identity = base_identity(copy)
    change_byte(copy / WEIGHTS, offset)
    assert base_identity(copy) != identity


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "chat_template.jinja",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    ],
)
def test_identity_changes_with_what_shapes_the_input(copy: Path, name: str) -> None:
    (copy / name).touch()  # only older directories have a special_tokens_map.json
    identity = base_identity(copy)
    (copy / name).write_text((copy / name).read_text() + " ")
    assert base_identity(copy) != identity


def test_weights_are_hashed_once(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    identity = base_identity(copy)
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("hashed again"))
    assert base_identity(copy) == identity


@pytest.mark.parametrize("identity", [base_identity, tower_identity])
def test_identity_needs_safetensors(copy: Path, identity: Callable[[Path], str]) -> None:
    (copy / WEIGHTS).rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"has no \*\.safetensors; convert"):
        identity(copy)


def change_weight(folder: Path, part: str) -> None:
    """Change one value of one tensor."""
    weights = load_file(folder / WEIGHTS)
    name = next(name for name in weights if part in name)
    weights[name].view(-1)[-1] += 1
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def change_preprocessing(folder: Path, **changes: object) -> None:
    path = folder / "processor_config.json"
    content = json.loads(path.read_text())
    content["image_processor"] |= changes
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: change_weight(folder, "vision_tower."),
        lambda folder: change_preprocessing(folder, image_mean=[0.5, 0.5, 0.5]),
        lambda folder: change_preprocessing(folder, do_center_crop=False),
        lambda folder: change_config(folder, vision_feature_layer=-1),
        lambda folder: change_config(folder, vision_feature_select_strategy="full"),
        lambda folder: change_config(
            folder,
            vision_config=json.loads((folder / "config.json").read_text())["vision_config"] | {"hidden_act": "x"},
        ),
    ],
    ids=["weight", "mean", "crop", "layer", "strategy", "configuration"],
)
def test_the_towers_identity_changes_with_what_shapes_features(copy: Path, change: Callable[[Path], None]) -> None:
    identity = tower_identity(copy)
    assert len(identity) == 16
    change(copy)
    assert tower_identity(copy) != identity


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: change_weight(folder, "layers.3.mlp.up_proj"),
        lambda folder: change_weight(folder, "multi_modal_projector"),
        lambda folder: change_config(folder, image_seq_length=9),
        lambda folder: (folder / "chat_template.jinja").write_text("{{ messages }}"),
    ],
    ids=["decoder", "projector", "configuration", "template"],
)
def test_the_towers_identity_is_the_towers_alone(copy: Path, change: Callable[[Path], None]) -> None:
    towers, bases = tower_identity(copy), base_identity(copy)
    change(copy)
    assert tower_identity(copy) == towers
    assert base_identity(copy) != bases


def test_the_tower_is_hashed_once(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    identity = tower_identity(copy)
    monkeypatch.setattr(loading_module, "safe_open", lambda *_: pytest.fail("hashed again"))
    assert tower_identity(copy) == identity
    assert tower_identity(copy) != base_identity(copy)


def test_the_demo_tower_has_an_identity(smol: Path) -> None:
    assert len(tower_identity(smol)) == 16


def test_shape_by_hand(tiny_model: Path) -> None:
    shape, model = model_shape(tiny_model), load_model(tiny_model)
    hidden, key_values, inner, tower = 32, 16, 64, 16
    linear = 2 * hidden * hidden + 2 * hidden * key_values + 3 * hidden * inner
    assert (shape.depth, shape.hidden, shape.image_tokens, shape.tower_width) == (DEPTH, hidden, IMAGE_TOKENS, tower)
    assert shape.layer == linear + 2 * hidden  # two norms
    assert shape.linear_widths == 2 * (hidden + hidden) + 2 * (hidden + key_values) + 3 * (hidden + inner)
    assert shape.projector == tower * hidden + hidden + hidden * hidden + hidden
    assert shape.tower == sum(parameter.numel() for parameter in model.model.vision_tower.parameters())
    assert shape.total == sum(parameter.numel() for parameter in model.parameters())


def test_shape_of_a_configuration(tiny_model: Path) -> None:
    config = model_config(str(tiny_model))
    assert shape_of(config) == model_shape(tiny_model)
    config.text_config.num_hidden_layers = 2
    smaller = shape_of(config)
    assert smaller.depth == 2
    assert smaller.decoder == model_shape(tiny_model).decoder - (DEPTH - 2) * smaller.layer
    assert smaller.vocabulary == config.text_config.vocab_size


def test_shape_counts_tied_embeddings_once(smol: Path) -> None:
    shape, config = model_shape(smol), json.loads((smol / "config.json").read_text())["text_config"]
    embeddings, final_norm = config["vocab_size"] * config["hidden_size"], config["hidden_size"]
    assert shape.total == shape.tower + shape.projector + shape.depth * shape.layer + embeddings + final_norm
    assert shape.image_tokens == 9


def test_a_loaded_model_is_frozen_and_evaluates(tiny_model: Path) -> None:
    model = load_model(tiny_model)
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in load_model(tiny_model, torch.bfloat16).parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_is_that_of_the_decoder(tiny_model: Path, attention: str) -> None:
    model = load_model(tiny_model, attention=attention)
    usual = load_model(tiny_model).config.vision_config._attn_implementation
    assert model.config.text_config._attn_implementation == attention
    assert model.model.language_model.layers[0].self_attn.config._attn_implementation == attention
    assert model.config.vision_config._attn_implementation == usual


def test_decoder_layers_are_the_text_layers(tiny_model: Path) -> None:
    model = load_model(tiny_model)
    layers = decoder_layers(model)
    assert layers is model.model.language_model.layers
    assert len(layers) == DEPTH != len(model.model.vision_tower.encoder.layers)
    assert layers is model.get_decoder().layers


def test_a_missing_weight_is_an_error(copy: Path) -> None:
    weights = load_file(copy / WEIGHTS)
    name = next(name for name in weights if "layers.3.mlp.up_proj" in name)
    del weights[name]
    save_file(weights, copy / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights, such as .*layers\.3\.mlp\.up_proj\.weight"):
        load_model(copy)


def test_damaged_weights_are_an_error(copy: Path) -> None:
    (copy / WEIGHTS).write_bytes((copy / WEIGHTS).read_bytes()[:50_000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(copy)


def test_absent_weights_are_an_error(copy: Path) -> None:
    (copy / WEIGHTS).unlink()
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(copy)


def test_a_processor_needs_its_template_and_files(copy: Path) -> None:
    assert load_processor(copy).chat_template
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match=r"has no chat template; add a chat_template\.jinja"):
        load_processor(copy)
    (copy / "processor_config.json").unlink()
    with pytest.raises(ModelError, match="has no usable processor"):
        load_processor(copy)
