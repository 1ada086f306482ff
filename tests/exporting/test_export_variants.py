"""Variants of a sweep and of a training: full parameters, LoRA merged and beside, other precisions, several files."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import contract
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny import DEPTH

import vrray
from vrray.errors import SpecError, StoreError
from vrray.models.family import LLAVA
from vrray.models.loading import base_identity, load_model
from vrray.pruning import remove_layers
from vrray.region import Region, place
from vrray.specs import Recipe
from vrray.store import Store
from vrray.train.trainable import choose_trainable, delta_name
from vrray.variant import DELTA, Delta, load_variant

REGION = place("1,4", DEPTH)
REMOVED = (0, 2)
RANK, ALPHA = 3, 12
SCORES = {"name": "angular", "values": [0.25] * DEPTH, "standard_errors": [0.01] * DEPTH, "samples": 48}
ROW = {
    "placement": "explicit",
    "tuned_layers": list(REGION.layers),
    "depth": DEPTH,
    "split": "select",
    "status": "complete",
    "seed": 7,
    "learning_rate": 3e-4,
    "score_visual": 0.75,
    "score_visual_low": 0.625,
    "score_visual_high": 0.875,
    "test_score_visual": 0.5,
    "test_score_visual_low": 0.375,
    "test_score_visual_high": 0.625,
    "retention_visual": 0.9375,
    "floor_visual": 0.2,
    "blind_visual": 0.21,
    "ranking": "bi-iterative",
    "healed": True,
}


def random_delta(model: Any, base: str, mode: str, region: Region = REGION) -> Delta:
    """What a training of this region could have given."""
    recipe = Recipe(mode=mode, lora_rank=RANK, lora_alpha=ALPHA, lora_dropout=0.0)
    generator = torch.Generator().manual_seed(3)
    with choose_trainable(model, region, recipe) as trainable:
        shapes = {delta_name(name): model.get_parameter(name).shape for name in trainable.names}
    tensors = {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}
    rank = (RANK, ALPHA) if mode == "lora" else (0, 0)
    return Delta(tensors, region, base, mode, *rank)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Ground:
    folder: Path
    model: Path
    base: str
    store: Store

    def variant(self, key: str, removed: tuple[int, ...] = REMOVED) -> Any:
        return load_variant(self.store, key, removed, self.model, self.base)


@pytest.fixture(scope="module")
def ground(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """A store with deltas and a sweep."""
    folder = tmp_path_factory.mktemp("variants")
    store, base, model = Store(folder / "runs"), base_identity(tiny_model), load_model(tiny_model)
    for mode in ("full", "lora"):
        store.put(DELTA, mode, random_delta(model, base, mode).save)
    store.put(DELTA, "all", random_delta(model, base, "full", place("all", DEPTH)).save)
    store.put(DELTA, "foreign", replace(random_delta(model, base, "full"), base="other").save)
    rows = [
        {"variant": "layers-1-4-prune2", "key": "full", "removed_layers": list(REMOVED), **ROW},
        {"variant": "lora-prune2", "key": "lora", "removed_layers": list(REMOVED), **ROW},
        {"variant": "all-prune2", "key": "all", "removed_layers": [1, 4], **ROW},
        {"variant": "broken", "key": "gone", "removed_layers": [], **ROW, "status": "failed: not run"},
    ]
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    store.write_bytes("sweeps/where/table.parquet", buffer.getvalue().to_pybytes())
    context = {
        "model": str(tiny_model),
        "tasks": "easy-vqa; 40 examples of each task and split",
        "recipe": json.dumps(Recipe(mode="full").model_dump()),
        "command": "jobs/sweep.py --name where",
        "versions": "ray 1, torch 2",
    }
    about = {"context": context, "base": base, "scores": {"full": SCORES}}
    store.write_text("sweeps/where/sweep.json", json.dumps(about))
    return Ground(folder, tiny_model, base, store)


@pytest.fixture(scope="module")
def exports(ground: Ground) -> dict[str, Path]:
    store = ground.store.uri
    wanted: dict[str, dict[str, Any]] = {
        "full": {"sweep": "where", "variant": "layers-1-4-prune2"},
        "all": {"sweep": "where", "variant": "all-prune2"},
        "beside": {"sweep": "where", "variant": "lora-prune2"},
        "merged": {"sweep": "where", "variant": "lora-prune2", "merge_lora": True},
        "key": {"model": str(ground.model), "delta": "full", "remove": "2,0"},
        "unpruned": {"model": str(ground.model), "delta": "lora", "merge_lora": True},
        "half": {"sweep": "where", "variant": "lora-prune2", "merge_lora": True, "dtype": "bf16"},
        "parts": {"sweep": "where", "variant": "layers-1-4-prune2", "shard_gb": 40e-6},
    }
    return {name: vrray.export(storage=store, out=ground.folder / name, **options) for name, options in wanted.items()}


@pytest.fixture(scope="module")
def found(ground: Ground, exports: dict[str, Path]) -> dict[str, dict[str, Any]]:
    seen = contract.look([*exports.values()], ground.folder / "found")
    return {name: seen[out] for name, out in exports.items()}


@pytest.mark.parametrize(
    ("name", "key", "removed"),
    [
        ("full", "full", REMOVED),
        ("key", "full", REMOVED),
        ("parts", "full", REMOVED),
        ("merged", "lora", REMOVED),
        ("unpruned", "lora", ()),
        ("all", "all", (1, 4)),
    ],
)
def test_a_variant_is_the_one_in_memory(
    ground: Ground, found: dict[str, dict[str, Any]], name: str, key: str, removed: tuple[int, ...]
) -> None:
    seen, model = found[name], ground.variant(key, removed)
    assert seen["problems"] == {}
    assert torch.equal(seen["logits"], contract.logits(model))
    assert seen["cached"] == seen["uncached"] == contract.answer(model, cached=True)
    assert seen["places"] == list(range(DEPTH - len(removed)))


def test_an_adapter_beside_the_pruned_base(ground: Ground, found: dict[str, dict[str, Any]], exports: Any) -> None:
    seen, expected = found["beside"], contract.logits(ground.variant("lora"))
    torch.testing.assert_close(seen["adapted"], expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(seen["logits"], expected, atol=1e-2)
    base = load_model(ground.model)
    delta = Delta.load(next((ground.folder / "runs" / "delta" / "lora").glob("*/delta.json")).parent)
    for name, tensor in delta.tensors.items():
        if name.startswith(LLAVA.projector):
            base.get_parameter(name).data.copy_(tensor)
    remove_layers(base, REMOVED, REGION)
    assert torch.equal(seen["logits"], contract.logits(base))  # the projector is tuned, the decoder is not
    tensors = load_file(exports["beside"] / "adapter" / "adapter_model.safetensors")
    places = {".".join(name.split(".")[:6]) for name in tensors}
    assert places == {f"base_model.model.{LLAVA.layers}.{place}" for place in (0, 2)}
    config = json.loads((exports["beside"] / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], len(config["target_modules"])) == (RANK, ALPHA, 14)


def test_transformers_loads_the_adapter_by_itself(ground: Ground, exports: dict[str, Path]) -> None:
    model = load_model(exports["beside"])
    model.load_adapter(str(exports["beside"] / "adapter"))
    torch.testing.assert_close(contract.logits(model), contract.logits(ground.variant("lora")), rtol=1e-4, atol=1e-4)


def test_another_precision(ground: Ground, found: dict[str, dict[str, Any]], exports: dict[str, Path]) -> None:
    assert {t.dtype for t in load_file(exports["half"] / "model.safetensors").values()} == {torch.bfloat16}
    assert found["half"]["dtype"] == torch.bfloat16
    size = (exports["half"] / "model.safetensors").stat().st_size
    assert size < 0.55 * (exports["merged"] / "model.safetensors").stat().st_size
    merged = load_model(exports["half"], torch.bfloat16)
    assert torch.equal(contract.logits(merged), found["half"]["logits"])


def test_weights_are_merged_in_the_precision_that_is_written(ground: Ground, exports: dict[str, Path]) -> None:
    from vrray.variant import load_variants

    (model,) = load_variants(ground.store, [("lora", REMOVED)], ground.model, ground.base, dtype=torch.bfloat16)
    assert torch.equal(contract.logits(model), contract.logits(load_model(exports["half"], torch.bfloat16)))


def test_files_have_the_size_that_was_asked(exports: dict[str, Path]) -> None:
    files = sorted(exports["parts"].glob("*.safetensors"))
    assert len(files) > 3
    assert all(file.stat().st_size < 60_000 for file in files)


def card(folder: Path) -> tuple[dict[str, Any], str]:
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def test_the_card_of_a_variant(exports: dict[str, Path], ground: Ground) -> None:
    front, text = card(exports["full"])
    assert front == {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["vrray", "pruned"],
    }
    for words in (
        "4 of its 6 decoder layers",
        "layers-1-4: layers 1, 4",
        "| removed layers | 0, 2 |",
        "| chosen by | bi-iterative |",
        "| healed | by a short training",
        "| visual | select | 0.750 | 0.625 to 0.875 |",
        "| visual | test | 0.500 | 0.375 to 0.625 |",
        "Visual retention: 93.8 %",
        "`angular` over 48 samples",
        "| 2 | 0.25 | 0.01 | removed |",
        '"learning_rate": 0.0003',
        '"seed": 7',
        "jobs/sweep.py --name where",
        f"vrray export --out {exports['full']} --storage {ground.store.uri} --sweep where --variant layers-1-4-prune2",
        "licence applies to them too (not known here",
        'AutoModelForImageTextToText.from_pretrained("full")',
    ):
        assert words in text, words
    assert "peft" not in text
    assert "textual" not in text


def test_the_card_of_an_adapter_says_how_to_load_it(exports: dict[str, Path]) -> None:
    text = card(exports["beside"])[1]
    assert 'PeftModel.from_pretrained(model, "beside/adapter")' in text
    assert "| trained | LoRA, rank 3, alpha 12 |" in text


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sweep": "absent", "variant": "x"}, SpecError, r"--sweep absent: .* \(it has where\)"),
        (
            {"sweep": "where", "variant": "absent"},
            SpecError,
            "the sweep has layers-1-4-prune2, lora-prune2, all-prune2",
        ),
        ({"sweep": "where", "variant": "broken"}, SpecError, "--variant broken: no finished variant"),
        ({"model": "MODEL", "delta": "absent"}, StoreError, "no complete artefact delta/absent"),
        ({"model": "MODEL", "delta": "foreign"}, vrray.VrrayError, "the delta belongs to base other, this base is"),
        ({"model": "MODEL", "delta": "full", "remove": [1]}, vrray.VrrayError, r"--remove 1: layers \[1, 4\] are prot"),
        ({"sweep": "where", "variant": "lora-prune2", "gguf": "GGUF"}, SpecError, "--gguf needs --merge-lora"),
    ],
)
def test_what_is_not_there_is_said(
    ground: Ground, tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    places = {"MODEL": str(ground.model), "GGUF": tmp_path / "x.gguf"}
    given = {name: places.get(value, value) if isinstance(value, str) else value for name, value in options.items()}
    with pytest.raises(error, match=message):
        vrray.export(storage=ground.store.uri, out=tmp_path / "out", **given)
    assert list(tmp_path.iterdir()) == []
