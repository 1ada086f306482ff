"""Images that came embedded in a data file: kept in Arrow files, named by content, mapped into memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from vrray.errors import DataError

PREFIX = "sha256:"
_SCHEMA = pa.schema([("name", pa.string()), ("data", pa.binary())])
_BATCH_BYTES = 64 << 20


def embedded_name(data: bytes) -> str:
    """The name of an embedded image: `sha256:` and 32 hex digits."""
    return PREFIX + hashlib.sha256(data).hexdigest()[:32]


def write_blobs(path: Path, items: Iterable[tuple[str, bytes]]) -> None:
    """Write a file of embedded images: (name, the image file's bytes), each name once however often it comes."""
    written: set[str] = set()
    names: list[str] = []
    contents: list[bytes] = []
    held = 0
    with pa.ipc.new_file(str(path), _SCHEMA) as writer:

        def flush() -> None:
            if names:
                writer.write_batch(pa.record_batch([names, contents], schema=_SCHEMA))
            names.clear()
            contents.clear()

        for name, data in items:
            if name in written:
                continue
            if held + len(data) > _BATCH_BYTES:
                flush()
                held = 0
            written.add(name)
            names.append(name)
            contents.append(data)
            held += len(data)
        flush()


def read_blobs(path: Path) -> Iterator[tuple[str, bytes]]:
    """The images of one file, in its order."""
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            for place in range(batch.num_rows):
                yield batch["name"][place].as_py(), batch["data"][place].as_py()


class Blobs:
    """The images of such files, found by name.

    Raises:
        DataError: a file is missing or not one of embedded images.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self._table = pa.concat_tables([_map(path) for path in paths] or [_SCHEMA.empty_table()])
        names = np.array(self._table["name"].to_pylist(), dtype=np.bytes_)
        self._order = np.argsort(names, kind="stable")
        self._names = names[self._order]

    def get(self, name: str) -> bytes | None:
        """The bytes of an image's file; None where there is no such image."""
        wanted = name.encode(errors="replace")
        place = int(np.searchsorted(self._names, np.bytes_(wanted)))
        if place == len(self._names) or self._names[place] != wanted:
            return None
        data: bytes = self._table["data"][int(self._order[place])].as_py()
        return data


def _map(path: str) -> pa.Table:
    try:
        with pa.memory_map(path) as source:
            table = pa.ipc.open_file(source).read_all()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a file of embedded images: {error}") from error
    if table.schema != _SCHEMA:
        raise DataError(f"{path} is not a file of embedded images: its columns are {', '.join(table.schema.names)}")
    return table
