"""Datasets that `datasets.save_to_disk` wrote: Arrow streams, read as they are and without running any code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from vrray.data.formats.blocks import BLOCK_BYTES, Block, Raw, cut_blocks, unreadable
from vrray.data.formats.files import child, file_name, names_in, open_file, parent, reading
from vrray.data.formats.tables import ERRORS, pick_columns, to_raws
from vrray.errors import DataError

STATE = "state.json"
SPLITS = "dataset_dict.json"
_SPLIT = "train"
_END = b"\xff\xff\xff\xff\0\0\0\0"


def dataset_files(location: str) -> list[str]:
    """The Arrow files of a dataset's folder, or of the split `train` of a folder of several.

    Raises:
        DataError: there is no such split, or the folder is not a complete dataset.
    """
    if SPLITS in names_in(location):
        splits = _read_json(child(location, SPLITS)).get("splits")
        if not isinstance(splits, list) or _SPLIT not in splits:
            found = ", ".join(map(str, splits)) if isinstance(splits, list) else "none"
            raise DataError(f"{location}: has no split {_SPLIT!r} but {found[:200]}; give the folder of one of them")
        location = child(location, _SPLIT)
    state = _read_json(child(location, STATE))
    entries = state.get("_data_files")
    if not isinstance(entries, list):
        entries = []
    names = [str(entry.get("filename")) for entry in entries if isinstance(entry, dict)]
    if not names or not set(names_in(location)).issuperset(names):
        raise DataError(
            f"{child(location, STATE)}: does not list the Arrow files of its folder; save the dataset again"
        )
    if state.get("_indices_data_files"):
        raise DataError(f"{location}: its rows are a selection; save what `flatten_indices()` returns")
    return [child(location, name) for name in names]


def index_dataset(location: str, rows_per_block: int, first: int = 0) -> list[Block]:
    """The blocks of one Arrow file, each of whole record batches.

    Raises:
        DataError: it is damaged or cut off, or has no column of conversations.
    """
    with reading(location), open_file(location, mapped=True) as file:
        schema = _read_schema(file, location)
        pick_columns(location, schema.names)
        pieces = _pieces(file, schema, location)
        return cut_blocks(location, "dataset", pieces, rows_per_block, first=first, limit=BLOCK_BYTES)


def read_dataset(block: Block) -> Iterator[Raw]:
    """The rows of a block; damage to a record batch makes all its rows unreadable."""
    name = file_name(parent(block.location))

    def place_of(number: int) -> str:
        return f"{name}, row {number + 1}"

    number = block.first
    with reading(block.location), open_file(block.location, mapped=True) as file:
        schema = _read_schema(file, block.location)
        columns = pick_columns(block.location, schema.names)
        file.seek(block.begin)
        while file.tell() < block.end:
            batch = pa.ipc.read_record_batch(pa.ipc.read_message(file), schema).select(columns)
            try:
                batch.validate(full=True)
            except ERRORS as error:
                for lost in range(number, number + batch.num_rows):
                    yield Raw(lost, place_of(lost), unreadable(place_of(lost), error), {})
            else:
                yield from to_raws(batch, number, place_of)
            number += batch.num_rows


def _read_json(location: str) -> dict[str, Any]:
    with reading(location), open_file(location) as file:
        try:
            value = json.loads(file.read())
        except RecursionError:
            value = None
    if not isinstance(value, dict):
        raise DataError(f"{location}: is not a JSON object; save the dataset again")
    return value


def _read_schema(file: Any, location: str) -> pa.Schema:
    schema = pa.ipc.read_schema(pa.ipc.read_message(file))
    encoded = [field.name for field in schema if pa.types.is_dictionary(field.type)]
    if encoded:
        raise DataError(f"{location}: column {encoded[0]!r} is dictionary-encoded; cast it to its values' type")
    return schema


def _pieces(file: Any, schema: pa.Schema, location: str) -> Iterator[tuple[int, int, int]]:
    while file.read_at(len(_END), begin := file.tell()) != _END:
        try:
            rows = pa.ipc.read_record_batch(pa.ipc.read_message(file), schema).num_rows
        except EOFError:
            raise DataError(f"{location}: ends without the mark of its end; copy or save it again") from None
        if rows:
            yield begin, file.tell(), rows
