"""Images grouped into chunks, and the key of each chunk's features. Light to import."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vrray.errors import DataError
from vrray.store import content_key

CHUNK = 128


@dataclass(frozen=True)
class FeatureChunk:
    """Some images and the key of the artefact with their features."""

    key: str
    images: tuple[str, ...]


def plan_chunks(images: Sequence[str], roots: Mapping[str, Path], tower: str, chunk: int = CHUNK) -> list[FeatureChunk]:
    """Group images into chunks and give each its key.

    Chunks follow the order of the images, so a longer list of images keeps the chunks of the shorter one but the last.
    An image's name is relative to `roots[""]`, or `PREFIX:name` to `roots[PREFIX]`. Names are not in the key: moved or
    renamed images keep their features.

    Args:
        tower: identity of the vision tower and its preprocessing (`vrray.models.loading.tower_identity`).

    Raises:
        DataError: an image is missing.
    """
    names = list(dict.fromkeys(images))
    hashes = {name: _content_hash(locate(roots, name)) for name in names}
    chunks = []
    for start in range(0, len(names), chunk):
        part = tuple(names[start : start + chunk])
        parts = {"tower": tower, "images": [hashes[name] for name in part], "format": 2}
        chunks.append(FeatureChunk(content_key(parts), part))
    return chunks


def locate(roots: Mapping[str, Path], name: str) -> Path:
    """The file of an image name (see `plan_chunks`)."""
    prefix, separator, rest = name.partition(":")
    return roots[prefix] / rest if separator and prefix in roots else roots[""] / name


def _content_hash(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise DataError(f"image {path} cannot be read: {error.strerror}") from error
