"""Conversation data of every supported format, as blocks that are found in one pass and read on their own."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator

import pyarrow as pa

from vrray.data.formats import files
from vrray.data.formats.blocks import Block, Kind, Raw
from vrray.data.formats.json_text import BOM, index_lines, index_list, read_lines, read_list
from vrray.data.formats.parquet import index_parquet, read_parquet
from vrray.data.formats.saved_dataset import SPLITS, STATE, dataset_files, index_dataset, read_dataset
from vrray.data.formats.tars import index_tar, read_tar
from vrray.data.records import Record, shown
from vrray.errors import DataError

__all__ = ["REJECTED", "Block", "Raw", "index_source", "read_block", "rejection", "source_identity"]

REJECTED = pa.schema(
    [("source", pa.string()), ("row", pa.int64()), ("id", pa.string()), ("image", pa.string()), ("reason", pa.string())]
)
_SUPPORTED = (
    "supported are a JSON list or JSONL of records, Parquet, a folder that datasets.save_to_disk wrote, and "
    "WebDataset tars (one, a folder, or a pattern such as shard-{000..127}.tar)"
)
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
    b"\xfd7zXZ": "xz",
    b"BZh": "bzip2",
}
_HEAD = 64 << 10
_LIST = re.compile(rb"\[\s*(\{|$)")
_READERS: dict[Kind, Callable[[Block], Iterator[Raw]]] = {
    "json": read_list,
    "jsonl": read_lines,
    "parquet": read_parquet,
    "dataset": read_dataset,
    "webdataset": read_tar,
}


def index_source(location: str | os.PathLike[str], rows_per_block: int = 2000) -> list[Block]:
    """Cut a source into blocks of about `rows_per_block` rows, in one pass and bounded memory.

    Blocks have fewer rows where these are large: 16 MiB of text, 128 MiB with embedded images. They have more where a
    record batch of a saved dataset does, or a row group of Parquet has more than 64 times as many, for neither can be
    entered in its middle.

    Args:
        location: a file, a folder of tars, Parquet files or a saved dataset, or a pattern of tars or Parquet files; a
            local path, or a URI that pyarrow.fs takes.

    Raises:
        DataError: it is missing, cannot be read, is of an unknown format, has no rows, or is damaged so that its rows
            cannot be told apart. A row that is damaged by itself is for `read_block`.
    """
    if rows_per_block < 1:
        raise DataError(f"blocks of {rows_per_block} rows; use at least 1")
    kind, locations = _resolve(os.fspath(location))
    blocks: list[Block] = []
    if kind == "json":
        blocks = index_list(locations[0], rows_per_block)
    elif kind == "jsonl":
        blocks = index_lines(locations[0], rows_per_block)
    else:
        index = {"parquet": index_parquet, "dataset": index_dataset, "webdataset": index_tar}[kind]
        for file in locations:
            first = blocks[-1].first + blocks[-1].rows if blocks else 0
            blocks += index(file, rows_per_block, first)
    if not blocks:
        raise DataError(f"{location}: has no rows; {_SUPPORTED}")
    return blocks


def read_block(block: Block) -> Iterator[Raw]:
    """The rows of a block, in their order. A row without an id gets its number, counted from 1, or its sample's key.

    Raises:
        DataError: the file has vanished or changed since it was indexed.
    """
    for raw in _READERS[block.kind](block):
        if isinstance(raw.value, dict) and raw.value.get("id") is None:
            raw.value["id"] = raw.number + 1
        yield raw


def source_identity(location: str | os.PathLike[str]) -> str:
    """16 hex digits of SHA-256 over the content of a source, and over the names of its files where it has several.

    Raises:
        DataError: as `index_source`, as far as finding and reading the files goes.
    """
    return files.identity(_resolve(os.fspath(location))[1])


def rejection(source: str, number: int, value: object, reason: DataError) -> dict[str, str | int | None]:
    """A row of the report of rejected rows, of the schema `REJECTED`; its `row` counts from 1, as messages do.

    Args:
        number: of the row, from 0, as in `Raw`.
        value: what was read, or the record that was made of it.
    """
    if isinstance(value, Record):
        value = {"id": value.id, "image": list(value.images) or None}
    fields = value if isinstance(value, dict) else {}
    image = fields.get("images") if fields.get("image") is None else fields["image"]
    return {
        "source": _printable(source),
        "row": number + 1,
        "id": _brief(fields.get("id")),
        "image": _brief(image[0] if isinstance(image, list) and len(image) == 1 else image),
        "reason": _printable(str(reason)),
    }


def _resolve(location: str) -> tuple[Kind, list[str]]:
    """The kind of a source and its files."""
    if not location or "\0" in location:
        raise DataError(f"{shown(location)} is not the name of a file; {_SUPPORTED}")
    location = files.absolute(location)
    pattern = files.is_pattern(location)
    # In a URI these signs are escaped where they are meant as such; a local name is first taken as it is.
    found = None if pattern and "://" in location else files.kind_of(location)
    if found == "folder":
        return _resolve_folder(location)
    if found is None and pattern:
        return _kind_of_several(location, files.expand(location))
    if found is None:
        raise DataError(f"{location}: no such file; check the path")
    return _sniff(location), [location]


def _resolve_folder(location: str) -> tuple[Kind, list[str]]:
    names = files.names_in(location)
    if STATE in names or SPLITS in names:
        return "dataset", dataset_files(location)
    chosen = [files.child(location, name) for name in names if name.lower().endswith((".tar", ".parquet"))]
    if not chosen:
        raise DataError(f"{location}: a folder without a dataset, tars or Parquet files; {_SUPPORTED}")
    return _kind_of_several(location, chosen)


def _kind_of_several(location: str, locations: list[str]) -> tuple[Kind, list[str]]:
    kinds = {_sniff(file) for file in locations}
    if len(kinds) > 1 or (kinds & {"json", "jsonl"} and len(locations) > 1):
        raise DataError(
            f"{location}: {len(locations)} files of the kind {' and '.join(sorted(kinds))}; name tars alone, Parquet "
            "files alone, or one JSON file"
        )
    return kinds.pop(), locations


def _sniff(location: str) -> Kind:
    """The format of a file, by its first bytes and, where they do not tell, its name."""
    with files.reading(location), files.open_file(location) as file:
        head = file.read(_HEAD)
    name = files.file_name(location).lower()
    text = head.removeprefix(BOM).lstrip(b" \t\r\n")
    packed = next((format for magic, format in _COMPRESSED.items() if head.startswith(magic)), None)
    if head.startswith(b"PAR1"):
        return "parquet"
    if head[257:262] == b"ustar" or name.endswith(".tar"):
        return "webdataset"
    if packed:
        raise DataError(f"{location}: is compressed with {packed}; unpack it")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{location}: not UTF-8 but UTF-16; save the file as UTF-8")
    if not text:
        raise DataError(f"{location}: is empty; {_SUPPORTED}")
    if text.partition(b"\n")[0].strip() == b"{":
        raise DataError(f"{location}: one JSON object over several lines; write a list of records, or one a line")
    lines = name.endswith((".jsonl", ".ndjson"))
    if _LIST.match(text) or (text.startswith(b"[") and not lines):
        return "json"
    if lines or text.startswith(b"{"):
        return "jsonl"
    raise DataError(f"{location}: an unknown format, it begins with {shown(head[:16])}; {_SUPPORTED}")


def _brief(value: object) -> str | None:
    if value is None or (isinstance(value, str) and len(value) <= 200):
        return None if value is None else _printable(value)
    return str(value) if type(value) is int and abs(value) < 10**18 else shown(value)


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
