"""The sweeps of a store, as pages need them."""

from __future__ import annotations

import json

import pyarrow as pa
from PIL import Image

from vrray.data.demo import build_demo
from vrray.data.images import Images
from vrray.errors import StoreError, VrrayError
from vrray.home import vrray_home
from vrray.store import Store


class Catalogue:
    def __init__(self, store: Store):
        self._store = store

    def sweeps(self) -> list[str]:
        return [name for name in self._store.names("sweeps") if "table.parquet" in self._store.names(f"sweeps/{name}")]

    def table(self, sweep: str) -> pa.Table:
        return self._store.read_table(f"sweeps/{sweep}/table.parquet")

    def context(self, sweep: str) -> dict[str, str]:
        try:
            return dict(json.loads(self._store.read_bytes(f"sweeps/{sweep}/sweep.json"))["context"])
        except ValueError as error:
            raise StoreError(f"sweep {sweep}: sweep.json is damaged: {error}") from error

    def examples(self, sweep: str, variant: str) -> pa.Table:
        demo = build_demo(vrray_home())
        rows = [
            {"question": e.question, "reference": e.answer, "prediction": "", "image": e.image, "task": task}
            for task in ("easy-vqa", "emoji-groups")
            for e in demo.examples(task, "select", 4)
        ]
        return pa.Table.from_pylist(rows)

    def image(self, sweep: str, name: str) -> Image.Image | None:
        try:
            return Images({"": build_demo(vrray_home()).image_root}).open(name)
        except VrrayError:
            return None
