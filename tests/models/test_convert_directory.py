"""What `convert` writes, and that it writes nothing where something is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from originals import (
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
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlavaForConditionalGeneration

from vrray.cli import main
from vrray.errors import ModelError
from vrray.models import convert as conversion
from vrray.models import weight_files
from vrray.models.convert import convert
from vrray.models.loading import load_model


def load_strictly(folder: Path) -> Any:
    model, info = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def nothing_is_left(target: Path) -> bool:
    return [path.name for path in target.parent.iterdir() if target.name in path.name] == []


@pytest.mark.parametrize("model_type", ["bunny-llama", "bunny-phi3", "llava", "llava_llama"])
@torch.inference_mode()
def test_text_logits_are_those_of_the_language_model(tmp_path: Path, model_type: str) -> None:
    model = load_strictly(convert(write_original(tmp_path, model_type), tmp_path / "out"))
    ids = torch.randint(40, (2, 9))
    expected = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")(ids).logits
    torch.testing.assert_close(model(ids).logits[..., :40], expected)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards(tmp_path: Path, kind: str) -> None:
    source = write_original(tmp_path)
    if kind == "bin":
        torch.save(load_file(source / "model.safetensors"), source / "pytorch_model.bin")
        (source / "model.safetensors").unlink()
    whole, parts = convert(source, tmp_path / "whole"), convert(source, tmp_path / "parts", max_shard_bytes=4000)
    assert [file.name for file in whole.glob("*.safetensors*")] == ["model.safetensors"]
    index = json.loads((parts / "model.safetensors.index.json").read_text())
    files = sorted(parts.glob("*.safetensors"))
    assert [file.name for file in files] == [
        f"model-{n + 1:05d}-of-{len(files):05d}.safetensors" for n in range(len(files))
    ]
    assert len(files) > 3
    for file in files:
        with safe_open(file, "pt") as content:
            assert {index["weight_map"][name] for name in content.keys()} == {file.name}  # noqa: SIM118
            assert content.metadata() == {"format": "pt"}
        tensors = load_file(file)
        assert sum(t.nbytes for t in tensors.values()) <= 4000 or len(tensors) == 1
        assert file.stat().st_mode & 0o777 == 0o644
    one, other = load_strictly(whole).state_dict(), load_model(parts).state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in one.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_precision_is_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    source = write_original(tmp_path)
    change_weights(source, lambda weights: weights.update({n: t.to(dtype) for n, t in weights.items()}))
    out = convert(source, tmp_path / "out")
    assert load_strictly(out).dtype == dtype
    dtypes = {name.split(".")[0]: tensor.dtype for name, tensor in load_file(out / "model.safetensors").items()}
    expected = {"language_model": dtype, "multi_modal_projector": dtype, "vision_tower": torch.float32}
    assert dtypes == expected


@torch.inference_mode()
def test_tied_embeddings(tmp_path: Path) -> None:
    plain, tower = write_language_model(tmp_path / "plain", tie_word_embeddings=True), write_tower(tmp_path / "tower")
    weights = load_file(plain / "model.safetensors")
    tied = weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}
    save_file(tied, plain / "model.safetensors")
    out = convert(plain, tmp_path / "out", vision_tower=tower)
    assert "language_model.lm_head.weight" not in load_file(out / "model.safetensors")
    model, ids = load_strictly(out), torch.randint(40, (1, 7))
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    expected = AutoModelForCausalLM.from_pretrained(plain)(ids).logits
    torch.testing.assert_close(model(ids).logits[..., :40], expected)
    output = model.generate(ids, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert output.max() < 40
    change_weights(plain, lambda w: w["lm_head.weight"].add_(1))
    with pytest.raises(ModelError, match=r"lm_head\.weight differs from the embedding"):
        convert(plain, tmp_path / "other", vision_tower=tower)


@torch.inference_mode()
def test_class_token_that_is_kept(tmp_path: Path) -> None:
    source = write_original(tmp_path, mm_vision_select_feature="cls_patch")
    out = convert(source, tmp_path / "out")
    model = load_strictly(out)
    assert model.config.vision_feature_select_strategy == "full"
    pixels = torch.randn(2, 3, 28, 28)
    assert [len(one) for one in model.get_image_features(pixels).pooler_output] == [5, 5]
    assert model.config.image_seq_length == 5


@torch.inference_mode()
def test_a_tower_saved_without_its_last_layer_gives_the_same_features(tmp_path: Path) -> None:
    source = write_original(tmp_path, "bunny-llama", unfreeze_vision_tower=True)
    apart = load_file(tmp_path / "tower" / "model.safetensors")
    inside = {f"model.vision_tower.vision_tower.{name}": tensor for name, tensor in apart.items()}
    change_weights(source, lambda weights: weights.update(inside))
    whole = load_strictly(convert(source, tmp_path / "whole"))
    unread = [name for name in inside if ".head." in name or ".layers.1." in name]
    change_weights(source, lambda weights: [weights.pop(name) for name in unread if ".vision_tower." in name])
    less = load_strictly(convert(source, tmp_path / "less"))
    pixels = torch.randn(2, 3, 28, 28)
    one, other = (torch.stack(model.get_image_features(pixels).pooler_output) for model in (whole, less))
    torch.testing.assert_close(one, other)
    assert one.shape == (2, 4, HIDDEN)


def test_lora_onto_a_plain_language_model(tmp_path: Path) -> None:
    source = write_original(tmp_path)
    lora = write_lora(tmp_path / "lora", source)
    onto = [convert(lora, tmp_path / f"out{n}", base=base) for n, base in enumerate((source, tmp_path / "plain"))]
    one, other = (load_file(folder / "model.safetensors") for folder in onto)
    assert all(torch.equal(one[name], other[name]) for name in one)
    torch.testing.assert_close(
        one["multi_modal_projector.linear_2.bias"], random_projector(6)["model.mm_projector.2.bias"]
    )


def test_a_fresh_projector_is_announced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_original(tmp_path)
    out = convert(tmp_path / "plain", tmp_path / "out", vision_tower=tmp_path / "tower")
    assert "its projector is freshly initialised" in capsys.readouterr().err
    config = AutoConfig.from_pretrained(out)
    assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-2, "default")
    assert json.loads((out / "preprocessor_config.json").read_text())["do_pad"]
    with torch.inference_mode():
        assert (
            torch.stack(load_strictly(out).get_image_features(torch.randn(1, 3, 28, 28)).pooler_output).isfinite().all()
        )


@pytest.mark.parametrize("ratio", ["square", "pad"])
def test_padding_is_announced_where_it_is_off(tmp_path: Path, capsys: pytest.CaptureFixture[str], ratio: str) -> None:
    out = convert(write_original(tmp_path, image_aspect_ratio=ratio), tmp_path / "out")
    assert json.loads((out / "preprocessor_config.json").read_text())["do_pad"] == (ratio == "pad")
    assert ("its images are not padded" in capsys.readouterr().err) == (ratio == "square")


# --- what is wrong is named, and leaves nothing


def drop(name: str) -> Any:
    return lambda weights: weights.pop(name)


def put(name: str, tensor: torch.Tensor) -> Any:
    return lambda weights: weights.update({name: tensor})


DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop(DOWN), r"model\.layers\.1\.mlp\.down_proj\.weight \[16, 24\] is nowhere \(1 weights are missing\)"),
        (drop("model.embed_tokens.weight"), r"model\.embed_tokens\.weight \[40, 16\] is nowhere"),
        (drop("lm_head.weight"), r"lm_head\.weight \[40, 16\] is nowhere"),
        (drop("model.mm_projector.2.bias"), r"model\.mm_projector\.2\.bias \[16\] is nowhere"),
        (put("model.image_newline", torch.zeros(16)), r"model\.image_newline is no part of the model"),
        (put("model.layers.2.mlp.down_proj.weight", torch.zeros(16, 24)), r"layers\.2\.mlp.* is no part of the model"),
        (put("model.mm_projector.4.bias", torch.zeros(16)), r"mm_projector\.4\.bias is no part of the model"),
        (put("model.layers.1.mlp.down_proj.bias", torch.zeros(16)), r"down_proj\.bias is no part of the model"),
        (put(DOWN, torch.zeros(24, 16)), r"down_proj\.weight has shape \[24, 16\], config\.json needs \[16, 24\]"),
        (put("lm_head.weight", torch.zeros(41, 16)), r"lm_head\.weight has shape \[41, 16\]"),
        (put("model.mm_projector.0.weight", torch.zeros(16, 9)), r"0\.weight has shape \[16, 9\]"),
        (put(DOWN, torch.zeros(16, 24, dtype=torch.float64)), r"down_proj\.weight is torch\.float64"),
        (put("lm_head.weight", torch.full((40, 16), float("nan"))), r"lm_head\.weight holds values .* not finite"),
    ],
)
def test_tensors(tmp_path: Path, change: Any, message: str) -> None:
    source, target = write_original(tmp_path / "given"), tmp_path / "out"
    change_weights(source, change)
    with pytest.raises(ModelError, match=message):
        convert(source, target)
    assert nothing_is_left(target)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 3}, r"model\.layers\.2\..* is nowhere \(9 weights are missing\)"),
        ({"num_hidden_layers": 1}, r"model\.layers\.1\..* is no part of the model"),
        ({"hidden_size": "16"}, r"config\.json is not usable"),
        ({"num_attention_heads": 0}, r"config\.json is not usable"),
        ({"intermediate_size": -8}, r"config\.json is not usable"),
        ({"rope_scaling": {"rope_type": "mystery", "factor": 2.0}}, r"config\.json is not usable"),
    ],
)
def test_configurations(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    source, target = write_original(tmp_path / "given"), tmp_path / "out"
    change_json(source / "config.json", changes)
    with pytest.raises(ModelError, match=message):
        convert(source, target)
    assert nothing_is_left(target)


def test_towers(tmp_path: Path) -> None:
    source, target = write_original(tmp_path / "given"), tmp_path / "out"
    tower = tmp_path / "given" / "tower"
    preprocessing = tower / "preprocessor_config.json"
    change_json(preprocessing, {"crop_size": 42})
    with pytest.raises(ModelError, match=r"makes images of .*42.*, the tower takes 28 pixels"):
        convert(source, target)
    preprocessing.unlink()
    with pytest.raises(ModelError, match=r"preprocessor_config\.json cannot be read"):
        convert(source, target)
    change_weights(tower, lambda weights: weights.pop("vision_model.post_layernorm.bias"))
    with pytest.raises(ModelError, match=r"vision_model\.post_layernorm\.bias \[8\] is nowhere"):
        convert(source, target)
    assert nothing_is_left(target)


def test_an_existing_target_is_left_alone(tmp_path: Path) -> None:
    source, target = write_original(tmp_path / "given"), tmp_path / "out"
    target.mkdir()
    with pytest.raises(ModelError, match="out exists already"):
        convert(source, target)
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize(("module", "step"), [(weight_files, "write_file"), (conversion, "save_processor")])
def test_an_interrupted_conversion_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any, module: Any, step: str
) -> None:
    source, target = write_original(tmp_path / "given"), tmp_path / "out"
    calls = []
    own = getattr(module, step)

    def broken(*arguments: Any, **options: Any) -> None:
        calls.append(sorted(path.name for path in tmp_path.iterdir()))
        if step == "save_processor" or len(calls) == 3:
            raise error
        own(*arguments, **options)

    monkeypatch.setattr(module, step, broken)
    expected = (
        (KeyboardInterrupt, None) if error is KeyboardInterrupt else (ModelError, "out cannot be written: .*No space")
    )
    with pytest.raises(expected[0], match=expected[1]):
        convert(source, target, max_shard_bytes=4000)
    assert any(name.startswith(".out-") for name in calls[-1])
    assert nothing_is_left(target)
    monkeypatch.undo()
    load_strictly(convert(source, target))


# --- the command


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_original(tmp_path)
    lora = write_lora(tmp_path / "lora", source)
    projector = tmp_path / "projector.bin"
    torch.save(random_projector(seed=7), projector)
    tower = write_tower(tmp_path / "other", seed=9)
    options = ["--base", str(source), "--projector", str(projector), "--vision-tower", str(tower)]
    assert main(["convert", str(lora), str(tmp_path / "out"), *options]) == 0
    weights = load_file(tmp_path / "out" / "model.safetensors")
    expected = random_projector(seed=7)["model.mm_projector.0.bias"]
    assert torch.equal(weights["multi_modal_projector.linear_1.bias"], expected)
    name = "vision_model.post_layernorm.weight"
    assert torch.equal(weights[f"vision_tower.{name}"], load_file(tower / "model.safetensors")[name])
    assert main(["convert", str(lora), str(tmp_path / "out"), *options]) == 1
    assert "error: " in capsys.readouterr().err.splitlines()[-1]


def test_console_script() -> None:
    project = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())["project"]
    assert project["scripts"]["vrray"] == "vrray.cli:main"


# --- memory

MEBIBYTE = 1 << 20
MEASURE = """
import re, sys
from pathlib import Path
from vrray.models.convert import convert

def status(field):
    return int(re.search(rf"{field}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

small, large, folder = map(Path, sys.argv[1:4])
convert(small, folder / "small-out")  # what is loaded on first use counts to the interpreter
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
convert(large, folder / "large-out", max_shard_bytes=int(sys.argv[4]))
print(status("VmHWM") - before)
"""


def write_large(folder: Path, layers: int, shards: int) -> Path:
    """A LLaVA of 1 MiB matrices, in .bin shards; 10 MiB a layer."""
    source, hidden = write_original(folder), 512
    change_json(
        source / "config.json",
        {"hidden_size": hidden, "intermediate_size": 1024, "num_hidden_layers": layers, "num_attention_heads": 8}
        | {"num_key_value_heads": 8, "head_dim": 64, "vocab_size": 4096},
    )
    generator = np.random.default_rng(0)

    def matrix(*shape: int) -> torch.Tensor:
        return torch.from_numpy(generator.random(shape, np.float32))

    square = dict.fromkeys(
        ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"], (hidden, hidden)
    )
    shapes = square | {"mlp.gate_proj": (1024, hidden), "mlp.up_proj": (1024, hidden), "mlp.down_proj": (hidden, 1024)}
    norms = dict.fromkeys(["input_layernorm", "post_attention_layernorm"], (hidden,))
    for shard in range(shards):
        weights: Weights = {
            f"model.layers.{layer}.{name}.weight": matrix(*shape)
            for layer in range(shard, layers, shards)
            for name, shape in (shapes | norms).items()
        }
        if shard == 0:
            weights |= {name: matrix(4096, hidden) for name in ("model.embed_tokens.weight", "lm_head.weight")}
            weights |= {"model.norm.weight": matrix(hidden), "model.mm_projector.0.weight": matrix(hidden, WIDTH)}
            weights |= {"model.mm_projector.2.weight": matrix(hidden, hidden)}
            weights |= {f"model.mm_projector.{n}.bias": matrix(hidden) for n in (0, 2)}
        torch.save(weights, source / f"pytorch_model-{shard + 1:05d}-of-{shards:05d}.bin")
    (source / "model.safetensors").unlink()
    return source


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="/proc does not measure memory here")
def test_memory(tmp_path: Path) -> None:
    """A checkpoint of 216 MiB in 4 files is converted in the memory of less than 1.5 output files."""
    small, large = write_original(tmp_path / "small"), write_large(tmp_path / "large", layers=20, shards=4)
    size = sum(file.stat().st_size for file in large.iterdir())
    limit = 48 * MEBIBYTE
    command = [sys.executable, "-c", MEASURE, str(small), str(large), str(tmp_path), str(limit)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    peak = int(done.stdout.splitlines()[-1])
    assert size > 200 * MEBIBYTE
    assert len(list((tmp_path / "large-out").glob("model-*.safetensors"))) >= 5
    assert peak < 1.5 * limit, f"{peak / MEBIBYTE:.1f} MiB"
