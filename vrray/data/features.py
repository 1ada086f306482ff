"""Features of the frozen vision tower: what enters the projector, `[tokens, width]` an image, in float16.

Cached, they are computed once, in parallel by all workers, and shared by every trial: images are cut into chunks, and
a chunk is an artefact keyed by the tower, its preprocessing and the images' contents, an Arrow file that workers map
into memory. Live, they are computed whenever they are asked for.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from transformers import PreTrainedModel

from vrray.data.chunks import FeatureChunk
from vrray.data.images import Images
from vrray.errors import DataError
from vrray.models.family import family_of
from vrray.store import Store

KIND = "features"
_BATCH = 32
_DOWNLOADS = 8  # chunks that a worker fetches from a store at the same time
_THREADS = max(1, min(8, (os.cpu_count() or 1) - 1))  # a core is left to the tower


def compute_chunks(
    chunks: Sequence[FeatureChunk],
    images: Images,
    vision: PreTrainedModel,
    config: Any,
    processor: Any,
    store: Store,
) -> None:
    """Compute and store the given chunks in this process; what is complete already is left alone.

    Threads read and preprocess images ahead of the tower.

    Args:
        vision, config, processor: the frozen tower, the model's configuration, its image processor.

    Raises:
        DataError: an image cannot be read or decoded, or its features exceed float16.
    """
    missing = [chunk for chunk in chunks if not store.has(KIND, chunk.key)]
    names = (name for chunk in missing for name in chunk.images)
    with ThreadPoolExecutor(_THREADS) as pool:
        pixels = _read_ahead(names, images, processor, pool)
        for chunk in missing:
            features = []
            for start in range(0, len(chunk.images), _BATCH):
                batch = list(itertools.islice(pixels, min(_BATCH, len(chunk.images) - start)))
                features.append(_run_tower(vision, config, torch.cat(batch)))
            _put_chunk(store, chunk, torch.cat(features))


def tower_features(vision: PreTrainedModel, config: Any, processor: Any, images: Sequence[Image.Image]) -> torch.Tensor:
    """What enters the projector for some images: `[images, tokens, width]` in float32."""
    return _run_tower(vision, config, torch.cat([_preprocess(image, processor) for image in images]))


def _preprocess(image: Image.Image, processor: Any) -> torch.Tensor:
    """Pixels `[1, 3, side, side]`."""
    pixels: torch.Tensor = processor(images=[image], return_tensors="pt")["pixel_values"]
    return pixels.flatten(0, -4)


def _run_tower(vision: PreTrainedModel, config: Any, pixels: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return family_of(config).features(vision, config, pixels.to(vision.device, vision.dtype)).float()


def _read_ahead(
    names: Iterable[str], images: Images, processor: Any, pool: ThreadPoolExecutor
) -> Iterator[torch.Tensor]:
    """The pixels of images in their order, `[1, 3, side, side]` each; two batches are under way."""
    waiting: deque[Future[torch.Tensor]] = deque()
    for name in names:
        waiting.append(pool.submit(lambda name: _preprocess(images.open(name), processor), name))
        if len(waiting) > 2 * _BATCH:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


class CachedFeatures:
    """Memory-mapped features of chunks, by image name; `close()` ends the mapping."""

    def __init__(self, store: Store, chunks: Sequence[FeatureChunk]):
        self._rows: dict[str, np.ndarray[Any, Any]] = {}
        with ThreadPoolExecutor(_DOWNLOADS) as pool:
            for chunk, data in zip(chunks, pool.map(lambda chunk: _mapped(store, chunk), chunks), strict=True):
                self._rows.update(zip(chunk.images, data, strict=True))

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


class LiveFeatures:
    """Features computed from the images each time, with the frozen tower on this worker's device.

    Args:
        shape: `(tokens, width)` of one image.
        vision, config, processor: the frozen tower, the model's configuration, its image processor.
    """

    def __init__(self, images: Images, shape: tuple[int, int], vision: PreTrainedModel, config: Any, processor: Any):
        self.shape = shape
        self._images, self._vision, self._config, self._processor = images, vision, config, processor
        self._pool = ThreadPoolExecutor(_THREADS)

    def stack(self, images: Sequence[str]) -> torch.Tensor:
        """`[images, tokens, width]`, float16, on the tower's device."""
        pixels = torch.cat(list(_read_ahead(images, self._images, self._processor, self._pool)))
        return _run_tower(self._vision, self._config, pixels).half()

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()


def _mapped(store: Store, chunk: FeatureChunk) -> np.ndarray[Any, Any]:
    """`[images, tokens, width]`."""
    # A mapping outlives its file's name and descriptor, of which a process has fewer than there may be chunks.
    with store.open(KIND, chunk.key) as folder, pa.memory_map(str(folder / "features.arrow")) as source:
        table = pa.ipc.open_file(source).read_all()
    shape = [int(part) for part in table.schema.metadata[b"shape"].decode().split("x")]
    return np.frombuffer(table["feature"].chunk(0).buffers()[1], dtype=np.float16).reshape(-1, *shape)


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
