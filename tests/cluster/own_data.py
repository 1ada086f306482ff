"""Data of one's own that cluster tests train on: Parquet with embedded images."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
from tiny import draw_photos


def write_own_data(path: Path) -> None:
    """80 conversations: about the colour of a photo, and without an image."""
    with TemporaryDirectory() as folder:
        photos = {name: Path(folder, name).read_bytes() for name in draw_photos(Path(folder), 40)}
    said = [("<image>\nWhich colour?", name[:-4].split("-")[1]) for name in photos]
    said += [(f"What is {n}?", "a small circle and a big square") for n in range(40)]
    images = [{"bytes": data, "path": name} for name, data in photos.items()]
    turns = [[{"from": "human", "value": asked}, {"from": "gpt", "value": answer}] for asked, answer in said]
    pq.write_table(pa.table({"image": images + [None] * 40, "conversations": turns}), path)
