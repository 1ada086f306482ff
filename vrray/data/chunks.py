"""Images grouped into chunks, and the key of each chunk's features. Light to import."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vrray.store import content_key

CHUNK = 128


@dataclass(frozen=True)
class FeatureChunk:
    """Some images and the key of the artefact with their features."""

    key: str
    images: tuple[str, ...]


def plan_chunks(names: Sequence[str], hashes: Mapping[str, str], tower: str, chunk: int = CHUNK) -> list[FeatureChunk]:
    """Group images into chunks and give each its key.

    Chunks follow the order of the images, so a longer list of images keeps the chunks of the shorter one but the last.
    Names are not in the key: moved or renamed images keep their features.

    Args:
        hashes: the content hash of every image (`vrray.data.images.content_hashes`).
        tower: identity of the vision tower and its preprocessing (`vrray.models.loading.tower_identity`).
    """
    distinct = list(dict.fromkeys(names))
    chunks = []
    for start in range(0, len(distinct), chunk):
        part = tuple(distinct[start : start + chunk])
        parts = {"tower": tower, "images": [hashes[name] for name in part], "format": 3}
        chunks.append(FeatureChunk(content_key(parts), part))
    return chunks
