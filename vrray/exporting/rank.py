"""Ranking the layers of a model by a score, outside a sweep."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from vrray.data.encode import encode_records
from vrray.data.images import Images
from vrray.data.records import read_records
from vrray.data.rows import Row
from vrray.errors import DataError
from vrray.home import vrray_home
from vrray.models.loading import base_identity, conversation, load_model, load_processor, model_shape
from vrray.scores.measure import measure
from vrray.scores.table import LayerScores, least_important_first, measurement_of
from vrray.store import Store
from vrray.train.workspace import Workspace
from vrray.variant import Delta, apply_delta


def rank(
    path: Path,
    by: str,
    calibration: Path,
    samples: int,
    *,
    model: str,
    image_folder: str | None = None,
    delta: Delta | None = None,
) -> tuple[list[int], LayerScores]:
    """Decoder layers in the order in which to remove them, the least important first, and the score that says so.

    The whole model is loaded, onto the GPU where there is one.

    Args:
        path, model: the model's directory, and what the user named it by.
        by: name of a layer score.
        calibration: conversations in LLaVA's format, of which the first `samples` are read.
        image_folder: where its image names start from; by default its own folder.
        delta: a training whose weights are scored.

    Raises:
        DataError: the conversations cannot be used, or the score cannot be had from them.
        ModelError: the model cannot be loaded, or the delta belongs to another one.
    """
    images = Images({"": image_folder or str(calibration.absolute().parent)})
    workspace, rows = _workspace(path, model, images), _rows(path, model, calibration, samples)
    if delta is not None:
        apply_delta(workspace.model, delta, workspace.base)
    try:
        with _alone():
            found = measure(workspace, measurement_of(by), rows)
    finally:
        workspace.features.close()
    if by not in found:
        raise DataError(f"--by {by}: none of the {len(rows)} conversations of {calibration} gives that score")
    scores = LayerScores.of_samples(by, found[by])
    return least_important_first(scores.values, range(len(scores.values))), scores


def _rows(path: Path, model: str, calibration: Path, samples: int) -> Sequence[Row]:
    records = read_records(calibration)[:samples]
    if len(records) < 2:
        raise DataError(f"--calibration {calibration} has {len(records)} conversations; at least 2 are needed")
    template = conversation(model, path)
    return encode_records(records, load_processor(path), model_shape(path).image_tokens, template=template)


def _workspace(path: Path, name: str, images: Images) -> Workspace:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model: Any = load_model(path, _dtype(path)).to(device)
    processor, shape = load_processor(path), model_shape(path)
    template = conversation(name, path)
    store = Store(vrray_home())
    workspace = Workspace(store, model, processor, base_identity(path), device, rank=0, world=1, template=template)
    workspace.use_live(images, (shape.image_tokens, shape.tower_width))
    return workspace


def _dtype(path: Path) -> torch.dtype:
    """The type of the model's weights, as its configuration says."""
    from transformers import AutoConfig

    dtype = AutoConfig.from_pretrained(path, trust_remote_code=False).dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


@contextmanager
def _alone() -> Iterator[None]:
    """A process group of this process, where it is in none."""
    if dist.is_initialized():
        yield
        return
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
