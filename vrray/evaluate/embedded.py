"""The images that come inside a benchmark's files, written once into the store, where all workers find them."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from vrray.data.formats.files import identity
from vrray.data.images import MAX_BYTES, check_image
from vrray.errors import DataError
from vrray.evaluate.benchmarks.pictures import HOLDERS, Picture, pictures_in
from vrray.evaluate.benchmarks.question import Benchmark
from vrray.store import Store, content_key

KIND, ROWS = "task-images", "rows.json"


@dataclass(frozen=True)
class Embedded:
    """Images of a benchmark's questions.

    Attributes:
        root: the folder that the names start from, a path or a URI.
        names: of each question's image; None where it has none.
        problems: why an image cannot be used, by its name.
    """

    root: str
    names: tuple[str | None, ...]
    problems: dict[str, str]


def embedded_images(store: Store, benchmark: Benchmark, annotations: Path) -> Embedded | None:
    """The images inside a benchmark's files, of each question in the order of `benchmark.read`; None where none are.

    Raises:
        DataError: a file cannot be read.
    """
    files = [file for file in benchmark.holders(annotations) if file.suffix in HOLDERS]
    if not files:
        return None
    key = content_key({"format": 1, "files": [identity([str(file)]) for file in files]})
    store.put(KIND, key, lambda folder: _write(folder, files))
    with store.open(KIND, key, only=[ROWS]) as folder:
        known: dict[str, Any] = json.loads((folder / ROWS).read_text())
    if not any(known["names"]):
        return None
    return Embedded(store.files_at(KIND, key), tuple(known["names"]), known["problems"])


def _write(folder: Path, files: Sequence[Path]) -> None:
    """A file for each distinct image that can be used, named by the first row that has it."""
    names: list[str | None] = []
    problems: dict[str, str] = {}
    by_content: dict[str, str] = {}
    for file in files:
        by_key: dict[str, str | None] = {}
        for picture in pictures_in(file):
            name = None
            if picture.data is not None:
                name = _write_one(folder, picture, len(names) + 1, by_content, problems)
            elif picture.same_as:
                if picture.same_as not in by_key:
                    raise DataError(
                        f"{picture.place}: its image is that of row {picture.same_as!r}, which is not above it"
                    )
                name = by_key[picture.same_as]
            by_key[picture.key] = name
            names.append(name)
    (folder / ROWS).write_text(json.dumps({"names": names, "problems": problems}))


def _write_one(folder: Path, picture: Picture, row: int, by_content: dict[str, str], problems: dict[str, str]) -> str:
    """The name of an image, which is written where it is a new one and can be used."""
    assert picture.data is not None
    content = hashlib.sha256(picture.data).hexdigest()
    if content in by_content:
        return by_content[content]
    name = f"{row:06d}"
    try:
        if len(picture.data) > MAX_BYTES:
            raise DataError(f"the image has {len(picture.data):,} bytes, at most {MAX_BYTES:,} are taken")
        check_image(picture.data, name)
    except DataError as error:
        problems[name] = f"{picture.place}: {error}"
    else:
        name += f".{str(Image.open(io.BytesIO(picture.data)).format).lower()}"
        (folder / name).write_bytes(picture.data)
    by_content[content] = name
    return name
