"""A store whose variants can answer, made without a training; the demo LVLM or a tiny one is their base."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from PIL import Image

from vrray.errors import StoreError
from vrray.models.loading import base_identity, load_model
from vrray.region import Region, place
from vrray.store import Store
from vrray.variant import DELTA, Delta, _expected_names

SWEEP = "places"
QUESTIONS = ["Which colour has the circle?", "Which shape is blue?"]


def answering_store(folder: Path, model: Path, name: str) -> Store:
    """A sweep with the untuned base, top layers tuned (whole and pruned) and all layers tuned."""
    store, base, whole = Store(folder), base_identity(model), load_model(model)
    depth = whole.config.text_config.num_hidden_layers
    rows = []
    for region in (place("top", depth, 2), place("all", depth, 1), Region.none(depth)):
        key = f"{len(region):020x}"
        store.put(
            DELTA, key, _delta(whole, region, base).save, {"train_seconds": 1.0, "step_seconds": 0.1, "peak_mib": 1.0}
        )
        variant = region.name if len(region) else "untuned"
        rows.append(_row(region, variant, key, [], whole.num_parameters()))
        if region.placement == "top":
            rows.append(_row(region, f"{variant}-prune1", key, [depth // 2], whole.num_parameters() * 29 // 30))
    rows.append({**_row(Region.none(depth), "broken", "f" * 20, [], 1), "status": "failed: not run"})
    store.write_table(f"sweeps/{SWEEP}/table.parquet", pa.Table.from_pylist(rows))
    context = {"model": name, "command": f"jobs/sweep.py --name {SWEEP}", "data": "demo"}
    store.write_text(f"sweeps/{SWEEP}/sweep.json", json.dumps({"context": context, "base": base}))
    return store


def _delta(whole: Any, region: Region, base: str) -> Delta:
    """What a training of the region would hold: a little noise on its layers, as adapters where all are tuned."""
    adapters = region.placement == "all"
    empty = Delta({}, region, base, "lora" if adapters else "full", 2, 2)
    generator = torch.Generator().manual_seed(len(region))
    tensors = {}
    for name in sorted(_expected_names(whole, empty)):
        weight = whole.get_parameter(name).detach()
        noise = 0.1 * torch.randn(weight.shape, generator=generator) if len(region) and not adapters else 0.0
        if adapters and ".layers." in name:
            module = name.removesuffix(".weight")
            tensors[f"{module}.lora_A"] = torch.randn((2, weight.shape[1]), generator=generator)
            tensors[f"{module}.lora_B"] = 0.002 * torch.randn((weight.shape[0], 2), generator=generator)
        else:
            tensors[name] = (weight * (1 + noise)).clone()
    return replace(empty, tensors=tensors)


def _row(region: Region, variant: str, key: str, removed: list[int], parameters: int) -> dict[str, Any]:
    return {
        "variant": variant,
        "placement": region.placement,
        "tuned_layers": list(region.layers),
        "removed_layers": removed,
        "depth": region.depth,
        "status": "complete",
        "score_visual": 0.5,
        "score_textual": None,
        "retention_visual": 0.9,
        "parameters": parameters,
        "key": key,
    }


class SmallCatalogue:
    """What pages need of a catalogue, over `answering_store`: sample questions about drawn images."""

    def __init__(self, store: Store, image: Image.Image):
        self._store, self._image = store, image

    def sweeps(self) -> list[str]:
        return self._store.names("sweeps")

    def table(self, sweep: str) -> pa.Table:
        return self._store.read_table(f"sweeps/{sweep}/table.parquet")

    def context(self, sweep: str) -> dict[str, str]:
        return dict(json.loads(self._store.read_bytes(f"sweeps/{sweep}/sweep.json"))["context"])

    def examples(self, sweep: str, variant: str) -> pa.Table:
        if sweep not in self.sweeps():
            raise StoreError(f"there is no sweep {sweep}")
        rows = [
            {"question": question, "reference": "red", "prediction": "blue", "image": f"{number}.png", "task": "drawn"}
            for number, question in enumerate(QUESTIONS)
        ]
        return pa.Table.from_pylist(rows)

    def image(self, sweep: str, name: str) -> Image.Image | None:
        return self._image
