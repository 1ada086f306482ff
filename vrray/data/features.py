"""Features of the frozen vision tower: what enters the projector, `[tokens, width]` an image, in float16.

Cached, they are computed once, in parallel by all workers, and shared by every trial: images are cut into chunks, and
a chunk is an artefact keyed by the tower, its preprocessing and the images' contents, an Arrow file that workers map
into memory. Live, they are computed whenever they are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from transformers import PreTrainedModel

from vrray.data.chunks import FeatureChunk, locate
from vrray.errors import DataError
from vrray.store import Store

KIND = "features"
_BATCH = 32


def compute_chunks(
    chunks: Sequence[FeatureChunk],
    roots: Mapping[str, Path],
    vision: PreTrainedModel,
    config: Any,
    processor: Any,
    store: Store,
) -> None:
    """Compute and store the given chunks in this process; what is complete already is left alone.

    Args:
        vision, config, processor: the frozen tower, the model's configuration, its image processor.
    """
    for chunk in chunks:
        if store.has(KIND, chunk.key):
            continue
        paths = [locate(roots, name) for name in chunk.images]
        features = [
            tower_features(vision, config, processor, [open_image(path) for path in paths[start : start + _BATCH]])
            for start in range(0, len(paths), _BATCH)
        ]
        _put_chunk(store, chunk, torch.cat(features))


def tower_features(vision: PreTrainedModel, config: Any, processor: Any, images: Sequence[Image.Image]) -> torch.Tensor:
    """What enters the projector for some images: `[images, tokens, width]` in float32."""
    pixels = processor(images=list(images), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        hidden = vision(pixels.to(vision.device, vision.dtype), output_hidden_states=True).hidden_states
    chosen = config.vision_feature_layer
    layers = [chosen] if isinstance(chosen, int) else chosen
    cut = 1 if config.vision_feature_select_strategy == "default" else 0
    return torch.cat([hidden[layer][:, cut:] for layer in layers], dim=-1).float()


def open_image(path: Path) -> Image.Image:
    """An image as RGB.

    Raises:
        DataError: it is missing or cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, Image.DecompressionBombError) as error:
        raise DataError(f"image {path} cannot be read: {error}") from error


class CachedFeatures:
    """Memory-mapped features of chunks, by image name; `close()` ends the mapping."""

    def __init__(self, store: Store, chunks: Sequence[FeatureChunk]):
        self._resources = ExitStack()
        self._rows: dict[str, np.ndarray[Any, Any]] = {}
        for chunk in chunks:
            folder = self._resources.enter_context(store.open(KIND, chunk.key))
            source = self._resources.enter_context(pa.memory_map(str(folder / "features.arrow")))
            table = pa.ipc.open_file(source).read_all()
            shape = [int(part) for part in table.schema.metadata[b"shape"].decode().split("x")]
            data = np.frombuffer(table["feature"].chunk(0).buffers()[1], dtype=np.float16)
            self._rows.update(zip(chunk.images, data.reshape(-1, *shape), strict=True))

    def stack(self, images: Sequence[str]) -> torch.Tensor:
        """`[images, tokens, width]`, float16, on the CPU."""
        return torch.from_numpy(np.stack([self._rows[image] for image in images]))

    @property
    def shape(self) -> tuple[int, int]:
        """`(tokens, width)` of one image."""
        tokens, width = next(iter(self._rows.values())).shape
        return int(tokens), int(width)

    def close(self) -> None:
        self._rows.clear()
        self._resources.close()


class LiveFeatures:
    """Features computed from the images each time, with the frozen tower on this worker's device.

    Args:
        roots: where images lie (see `vrray.data.chunks.plan_chunks`).
        shape: `(tokens, width)` of one image.
        vision, config, processor: the frozen tower, the model's configuration, its image processor.
    """

    def __init__(
        self, roots: Mapping[str, Path], shape: tuple[int, int], vision: PreTrainedModel, config: Any, processor: Any
    ):
        self.shape = shape
        self._roots, self._vision, self._config, self._processor = roots, vision, config, processor

    def stack(self, images: Sequence[str]) -> torch.Tensor:
        """`[images, tokens, width]`, float16, on the tower's device."""
        opened = [open_image(locate(self._roots, name)) for name in images]
        return tower_features(self._vision, self._config, self._processor, opened).half()

    def close(self) -> None:
        """Nothing is held."""


def _put_chunk(store: Store, chunk: FeatureChunk, features: torch.Tensor) -> None:
    half = features.to("cpu", torch.float16)
    if not bool(torch.isfinite(half).all()):
        raise DataError(f"features of {chunk.images[0]} .. {chunk.images[-1]} exceed float16; the tower is not usable")
    _, tokens, width = half.shape
    schema = pa.schema([("feature", pa.binary(tokens * width * 2))], metadata={"shape": f"{tokens}x{width}"})
    blob = half.contiguous().numpy()
    table = pa.table([[row.tobytes() for row in blob]], schema=schema)

    def write(folder: Path) -> None:
        with pa.ipc.new_file(str(folder / "features.arrow"), schema) as writer:
            writer.write_table(table.combine_chunks())

    store.put(KIND, chunk.key, write, {"images": len(chunk.images), "shape": [tokens, width]})
