"""`vrray export`: its options, what it refuses, and that it leaves nothing half written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import DEPTH, build_tiny, draw_photos, text_config, tiny_records

import vrray
from vrray.cli import main
from vrray.data.records import write_records
from vrray.errors import DataError, ModelError, PruningError, RegionError, SpecError
from vrray.exporting import run
from vrray.exporting.rank import rank
from vrray.exporting.spec import BY, ExportSpec
from vrray.models import weight_files
from vrray.models.loading import load_model
from vrray.pruning import remove_layers
from vrray.region import Region
from vrray.scores.table import least_important_first


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations, some about photos beside them."""
    folder = tmp_path_factory.mktemp("calibration")
    write_records(folder / "rows.jsonl", tiny_records(draw_photos(folder, 4), texts=4))
    return folder / "rows.jsonl"


def kept_layers(source: Path, out: Path) -> list[int]:
    """The layers of the source that an export has, found by their weights."""
    name = "language_model.model.layers.{}.mlp.up_proj.weight"
    whole, less = (load_file(folder / "model.safetensors") for folder in (source, out))
    depth = json.loads((out / "config.json").read_text())["text_config"]["num_hidden_layers"]
    return [
        next(layer for layer in range(DEPTH) if torch.equal(whole[name.format(layer)], less[name.format(place)]))
        for place in range(depth)
    ]


def test_the_command(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "out"
    arguments = ["export", "--model", str(tiny_model), "--out", str(out), "--remove", "3,5"]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{out} written\n"
    assert "vrray: 0.0 of 0.0 GB written" in captured.err
    assert kept_layers(tiny_model, out) == [0, 1, 2, 4]
    assert main(arguments) == 1
    assert capsys.readouterr().err == f"error: --out {out} exists already; name another one or remove it\n"
    assert f"vrray export --out {out} --model {tiny_model} --remove 3,5" in (out / "README.md").read_text()


@pytest.mark.parametrize("by", BY)
def test_layers_go_by_a_score(tiny_model: Path, calibration: Path, tmp_path: Path, by: str) -> None:
    options = {"model": str(tiny_model), "by": by, "calibration": calibration, "samples": 8}
    out = vrray.export(out=tmp_path / "out", prune=2, protect=[0, 3], **options)
    order, scores = rank(tiny_model, by, calibration, 8, model=str(tiny_model))
    assert order == least_important_first(scores.values, range(DEPTH))
    gone = [layer for layer in order if layer not in (0, 3)][:2]
    assert kept_layers(tiny_model, out) == [layer for layer in range(DEPTH) if layer not in gone]
    assert f"`{by}` over {scores.samples} samples" in (out / "README.md").read_text()


def test_a_fraction_of_the_layers(tiny_model: Path, calibration: Path, tmp_path: Path) -> None:
    out = vrray.export(model=str(tiny_model), out=tmp_path / "out", prune="0.5", calibration=calibration)
    assert len(kept_layers(tiny_model, out)) == 3


def test_images_may_lie_elsewhere(tiny_model: Path, calibration: Path, tmp_path: Path) -> None:
    moved = tmp_path / "rows.jsonl"
    shutil.copy(calibration, moved)
    beside, elsewhere = ({"image_folder": folder} for folder in (None, str(calibration.parent)))
    with pytest.raises(DataError, match=r"0-red\.png.* cannot be read"):
        rank(tiny_model, "bi", moved, 8, model="m", **beside)
    assert rank(tiny_model, "bi", moved, 8, model="m", **elsewhere)[0]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, SpecError, "give either --sweep NAME with --variant NAME, or --model NAME"),
        ({"model": "m", "sweep": "s", "variant": "v"}, SpecError, "give either --sweep"),
        ({"sweep": "s"}, SpecError, "--sweep and --variant go together"),
        ({"model": "m", "variant": "v", "remove": "1"}, SpecError, "--sweep and --variant go together"),
        ({"sweep": "s", "variant": "v", "remove": "1"}, SpecError, "--remove goes with --model"),
        ({"sweep": "s", "variant": "v", "protect": "1"}, SpecError, "--protect goes with --model"),
        ({"model": "m"}, SpecError, "nothing to do: give --remove, --prune"),
        ({"model": "m", "remove": "1", "prune": 2, "calibration": "c"}, SpecError, "--remove says which layers go"),
        ({"model": "m", "prune": 2}, SpecError, "--prune and --calibration go together"),
        ({"model": "m", "remove": "1", "calibration": "c"}, SpecError, "--prune and --calibration go together"),
        ({"model": "m", "prune": 2, "calibration": "c", "by": "luck"}, SpecError, "--by luck is unknown here; use one"),
        ({"model": "m", "remove": "1,x"}, SpecError, "option remove: .* integer"),
        ({"model": "m", "remove": "1", "dtype": "int4"}, SpecError, "option dtype"),
        ({"model": "m", "remove": "1", "removed": 2}, SpecError, "unknown option 'removed'; did you mean 'remove'"),
        ({"model": "absent", "remove": "1"}, ModelError, "model 'absent' is neither a preset"),
        ({"model": "TINY", "remove": "1,6"}, PruningError, "--remove 6: a decoder of 6 layers has layers 0 to 5"),
        ({"model": "TINY", "remove": "-1"}, PruningError, "--remove -1: a decoder"),
        ({"model": "TINY", "remove": "1,1"}, PruningError, "--remove names layer 1 twice"),
        ({"model": "TINY", "remove": "0,1,2,3,4,5"}, PruningError, "--remove names all 6 layers; at least one"),
        ({"model": "TINY", "remove": "1", "protect": "1,2"}, PruningError, r"--remove 1: layers \[1, 2\] are protect"),
        ({"model": "TINY", "remove": "1", "protect": "9"}, RegionError, "layer 9 is out of range"),
        ({"model": "TINY", "prune": 5, "protect": "1,2", "calibration": "c"}, PruningError, "--prune 5 is 5 of 6 .* 4"),
        ({"model": "TINY", "prune": 0.01, "calibration": "c"}, PruningError, r"--prune 0.01 is 0 of 6 layers; from 1"),
        ({"model": "TINY", "prune": 2, "calibration": "absent.json"}, DataError, r"absent\.json"),
    ],
)
def test_what_does_not_fit_is_refused(
    tiny_model: Path, tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    options = {name: str(tiny_model) if value == "TINY" else value for name, value in options.items()}
    with pytest.raises(error, match=message):
        vrray.export(out=tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_directory_is_left_alone(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match=r"--out .*out exists already"):
        vrray.export(model=str(tiny_model), remove="1", out=tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(ModelError, match=r"--gguf .*out exists already"):
        vrray.export(model=str(tiny_model), remove="1", out=tmp_path / "other", gguf=tmp_path / "out")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize(("module", "step"), [(weight_files, "_write_tensor"), (run, "model_card")])
def test_an_interrupted_export_leaves_nothing(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Any,
    module: Any,
    step: str,
) -> None:
    seen = []
    own = getattr(module, step)

    def broken(*arguments: Any) -> Any:
        seen.append([path.name for path in tmp_path.iterdir()])
        if len(seen) == 40 or step == "model_card":
            raise error
        return own(*arguments)

    monkeypatch.setattr(module, step, broken)
    options = ["--model", str(tiny_model), "--remove", "1", "--out", str(tmp_path / "out")]
    assert main(["export", *options]) == (130 if error is KeyboardInterrupt else 1)
    assert [name for name in seen[-1] if name.startswith(".out-")]
    assert list(tmp_path.iterdir()) == []
    said = (
        "interrupted; nothing was kept" if error is KeyboardInterrupt else "out cannot be written: [Errno 28] No space"
    )
    assert said in capsys.readouterr().err


def damage(source: Path, folder: Path, name: str, tensor: torch.Tensor | None) -> Path:
    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    weights.pop(name, None)
    save_file(weights | ({} if tensor is None else {name: tensor}), folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("language_model.model.layers.2.mlp.up_proj.weight", None, r"lacks 1 weights, such as .*layers\.2\.mlp\.up"),
        ("multi_modal_projector.linear_1.bias", None, r"lacks 1 weights, such as .*linear_1\.bias"),
        ("language_model.lm_head.weight", None, r"lacks 1 weights, such as lm_head\.weight"),
        ("language_model.model.layers.6.mlp.up_proj.weight", torch.zeros(1), "layers.6.* is no part of the model"),
        ("language_model.model.norm.weight", torch.ones(3), r"has shape \[3\], the model needs \[32\]"),
        ("language_model.model.norm.weight", torch.full((32,), torch.nan), "not finite"),
    ],
)
def test_damaged_weights(
    tiny_model: Path, tmp_path: Path, name: str, tensor: torch.Tensor | None, message: str
) -> None:
    source = damage(tiny_model, tmp_path / "source", name, tensor)
    with pytest.raises(ModelError, match=message):
        vrray.export(model=str(source), remove="1", out=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_values_that_a_precision_cannot_hold(tiny_model: Path, tmp_path: Path) -> None:
    name = "language_model.model.norm.weight"
    source = damage(tiny_model, tmp_path / "source", name, torch.full((32,), 1e6))
    with pytest.raises(ModelError, match=r"norm\.weight has values beyond 65504; use --dtype bf16"):
        vrray.export(model=str(source), remove="1", dtype="fp16", out=tmp_path / "out")


def test_weights_in_several_files_and_under_their_new_names(tiny_model: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny_model, source)
    (source / "model.safetensors").unlink()
    model = load_model(tiny_model)
    names = sorted(model.state_dict())
    places = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(names)}
    for file in set(places.values()):
        part = {name: model.state_dict()[name].clone() for name in names if places[name] == file}
        save_file(part, source / file, {"format": "pt"})
    (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    out = vrray.export(model=str(source), remove="1,5", out=tmp_path / "out")
    remove_layers(model, (1, 5), Region.none(DEPTH))
    ids = torch.tensor([[1, 40, 50, 60]])
    with torch.inference_mode():
        assert torch.equal(load_model(out)(input_ids=ids).logits, model(input_ids=ids).logits)


def test_only_what_belongs_to_the_model_comes_along(tiny_model: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny_model, source)
    (source / "additional_chat_templates").mkdir()
    for name in ("LICENSE", "tokenizer.model", "additional_chat_templates/tools.jinja", "optimizer.pt", "train.py"):
        (source / name).write_text(name)
    (source / "README.md").write_text("---\nlicense: llama3\nlicense_link: LICENSE\n---\n# Base\n")
    out = vrray.export(model=str(source), remove="1", out=tmp_path / "out")
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert files >= {"LICENSE", "tokenizer.model", "additional_chat_templates/tools.jinja", "tokenizer.json"}
    assert not files & {"optimizer.pt", "train.py"}
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlicense: llama3\nlicense_link: LICENSE\nlibrary_name: transformers\n")
    assert "# Base" not in card


def test_the_command_line_says_what_was_asked() -> None:
    options = {"model": "org/a b", "out": "o", "remove": "3,5", "protect": [0], "merge_lora": True, "dtype": "bf16"}
    words = "vrray export --out o --model 'org/a b' --remove 3,5 --protect 0 --merge-lora --dtype bf16"
    assert ExportSpec.parse(options).command() == words


# --- memory

MEBIBYTE = 1 << 20
MEASURE = """
import re, sys
from pathlib import Path
import vrray

def status(field):
    return int(re.search(rf"{field}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

small, large, folder = sys.argv[1:]
vrray.export(model=small, remove="1", out=f"{folder}/small-out")  # what is loaded on first use counts
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
vrray.export(model=large, remove="1", out=f"{folder}/large-out")
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="/proc does not measure memory here")
def test_memory(tiny_model: Path, tmp_path: Path) -> None:
    """A model of more than 200 MiB in one file is exported in the memory of a few of its tensors."""
    wide = {"hidden_size": 1024, "intermediate_size": 2048, "num_attention_heads": 8, "num_key_value_heads": 8}
    large = build_tiny(tmp_path / "large", text=text_config(**wide))
    command = [sys.executable, "-c", MEASURE, str(tiny_model), str(large), str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    with safe_open(large / "model.safetensors", "pt") as content:
        largest = max(content.get_tensor(name).nbytes for name in content.keys())  # noqa: SIM118
    peak = int(done.stdout.splitlines()[-1])
    assert (large / "model.safetensors").stat().st_size > 200 * MEBIBYTE
    assert peak < 4 * largest + 8 * MEBIBYTE, f"{peak / MEBIBYTE:.1f} MiB, the largest has {largest / MEBIBYTE:.1f}"
