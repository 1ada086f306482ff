"""A sweep's files for download: table, report with its figures, figures alone."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr

from dashboard.catalogue import Catalogue
from vrray.errors import VrrayError

FILES = ("Table (Parquet)", "Table (CSV)", "Report and figures (ZIP)")


class Downloads:
    """Copies of the files of finished sweeps in a folder of this process, made once for each version of a table."""

    def __init__(self, catalogue: Catalogue):
        self._catalogue = catalogue
        self._folder = TemporaryDirectory(prefix="vrray-dashboard-")
        self._made: dict[tuple[str, Any], list[str]] = {}

    def buttons(self, sweep: str, stamp: Any) -> list[Any]:
        """The download buttons; they cannot be pressed while there is no table."""
        if stamp is None:
            return [gr.DownloadButton(value=None, interactive=False) for _ in FILES]
        try:
            if (sweep, stamp) not in self._made:
                self._made[sweep, stamp] = self._make(sweep)
        except VrrayError:
            return [gr.DownloadButton(value=None, interactive=False) for _ in FILES]
        return [gr.DownloadButton(value=path, interactive=True) for path in self._made[sweep, stamp]]

    def _make(self, sweep: str) -> list[str]:
        from pyarrow import csv

        folder = Path(self._folder.name) / str(len(self._made))
        folder.mkdir(exist_ok=True)
        read, table = self._catalogue.file, self._catalogue.table(sweep)
        parquet, text, packed = (folder / f"{sweep}{ending}" for ending in (".parquet", ".csv", "-report.zip"))
        parquet.write_bytes(read(sweep, "table.parquet"))
        csv.write_csv(_flat(table), text)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("report.md", read(sweep, "report.md"))
            for name in self._catalogue.store.names(f"sweeps/{sweep}/figures"):
                archive.writestr(f"figures/{name}", read(sweep, f"figures/{name}"))
        packed.write_bytes(buffer.getvalue())
        return [str(path) for path in (parquet, text, packed)]


def _flat(table: Any) -> Any:
    """Lists of layers as text, since CSV has no lists."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for place, field in enumerate(table.schema):
        if pa.types.is_list(field.type):
            words = pc.cast(table[field.name], pa.list_(pa.string()))
            table = table.set_column(place, field.name, pc.binary_join(words, " "))
    return table
