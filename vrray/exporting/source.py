"""What is exported: the base, what was trained, the layers that go, and what is known about the result."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vrray.errors import PruningError, SpecError
from vrray.exporting.spec import ExportSpec
from vrray.models.loading import model_shape, resolve_model
from vrray.plans import removable
from vrray.region import Region, fraction_of, place
from vrray.store import Store
from vrray.variant import Delta, load_delta


@dataclass(frozen=True)
class Source:
    """What is exported, and what its card can say.

    Attributes:
        model, path: what the user named the base by, and its directory.
        region: the layers that stay in any case.
        removed: decoder layers, numbered as in the base, ascending.
        scores: the layer score that chose them, as `LayerScores.to_json` gives it.
        row: of the sweep's table.
        context: of the sweep, such as its recipe and its command.
    """

    model: str
    path: Path
    region: Region
    removed: tuple[int, ...]
    delta: Delta | None = None
    scores: dict[str, Any] | None = None
    row: dict[str, Any] = field(default_factory=dict)
    context: dict[str, str] = field(default_factory=dict)

    @property
    def kept(self) -> list[int]:
        """The decoder layers that stay, ascending."""
        return [layer for layer in range(self.region.depth) if layer not in self.removed]


def find_source(spec: ExportSpec) -> Source:
    """Read what an export is of, and choose the layers that go.

    Raises:
        SpecError: there is no such sweep or finished variant.
        StoreError: there is no such delta.
        ModelError: the base cannot be found or is not supported.
        PruningError, RegionError: layers are not there, or protected, or too many.
    """
    return _of_sweep(spec) if spec.sweep is not None else _of_model(spec)


def _of_sweep(spec: ExportSpec) -> Source:
    store, folder = Store(spec.storage), f"sweeps/{spec.sweep}"
    if "table.parquet" not in store.names(folder):
        known = ", ".join(store.names("sweeps")) or "none"
        raise SpecError(
            f"--sweep {spec.sweep}: there is no finished sweep of that name in {store.shown()} (it has {known})"
        )
    table = store.read_table(f"{folder}/table.parquet")
    about = json.loads(store.read_bytes(f"{folder}/sweep.json"))
    rows = {row["variant"]: row for row in table.to_pylist()}
    row = rows.get(spec.variant)
    if row is None or row["status"] != "complete":
        finished = ", ".join(name for name, each in rows.items() if each["status"] == "complete")
        raise SpecError(f"--variant {spec.variant}: no finished variant of that name; the sweep has {finished}")
    delta, context = load_delta(store, row["key"]), about["context"]
    return Source(
        model=context["model"],
        path=resolve_model(context["model"]),
        region=delta.region,
        removed=tuple(row["removed_layers"]),
        delta=delta,
        scores=about.get("scores", {}).get(row["key"]),
        row=row,
        context=context,
    )


def _of_model(spec: ExportSpec) -> Source:
    assert spec.model is not None
    delta = None if spec.delta is None else load_delta(Store(spec.storage), spec.delta)
    path = resolve_model(spec.model)
    region = Region.none(model_shape(path).depth) if delta is None else delta.region
    if spec.protect is not None:
        region = place(",".join(map(str, sorted(spec.protect))), region.depth)
    scores = None
    removed = sorted(spec.remove or ())
    _check_removed(removed, region)
    if spec.prune is not None:
        count = _count(spec.prune, region)
        order, scores = _rank(spec, path, delta)
        removed = sorted([layer for layer in order if layer in removable(region)][:count])
    return Source(spec.model, path, region, tuple(removed), delta, scores)


def _rank(spec: ExportSpec, path: Path, delta: Delta | None) -> tuple[list[int], dict[str, Any]]:
    from vrray.exporting.rank import rank

    assert spec.model is not None and spec.calibration is not None
    order, scores = rank(
        path,
        spec.by,
        spec.calibration,
        spec.samples,
        model=spec.model,
        image_folder=spec.image_folder,
        delta=delta,
    )
    return order, scores.to_json()


def _count(amount: int | float, region: Region) -> int:
    count = fraction_of(region.depth, amount) if isinstance(amount, float) else amount
    most = min(len(removable(region)), region.depth - 1)
    if not 1 <= count <= most:
        raise PruningError(f"--prune {amount} is {count} of {region.depth} layers; from 1 to {most} of them may go")
    return count


def _check_removed(layers: list[int], region: Region) -> None:
    if beyond := [layer for layer in layers if not 0 <= layer < region.depth]:
        raise PruningError(
            f"--remove {beyond[0]}: a decoder of {region.depth} layers has layers 0 to {region.depth - 1}"
        )
    if twice := [layer for layer in layers if layers.count(layer) > 1]:
        raise PruningError(f"--remove names layer {twice[0]} twice; name each once")
    if kept := [layer for layer in layers if layer not in removable(region)]:
        raise PruningError(f"--remove {kept[0]}: layers {list(region.layers)} are protected; leave it out of --remove")
    if len(layers) == region.depth:
        raise PruningError(f"--remove names all {region.depth} layers; at least one must stay")
