"""WebDataset: samples in a tar, found by its headers and read in place; nothing is unpacked or unpickled."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from vrray.data.blobs import embedded_name
from vrray.data.formats.blocks import BLOCK_BYTES, ROW_BYTES, Block, Raw, cut_blocks
from vrray.data.formats.files import file_name, is_local, open_file, reading
from vrray.data.formats.json_text import decode_row
from vrray.data.records import shown
from vrray.errors import DataError

_IMAGES = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm"})
_IMAGE_BYTES = 256 << 20  # of one sample
_NAME_BYTES = 1 << 20
_UNIT = 512
_BUFFER = {True: 4 << 10, False: 4 << 20}  # of a local file, in which seeking is cheap, and of others
_WITHOUT_DATA = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
)


@dataclass(frozen=True)
class _Member:
    """A member of a tar: its header(s) begin at `begin`, its data at `data`; the next member's header at `end`."""

    name: str
    plain: bool
    begin: int
    data: int
    size: int
    end: int

    @property
    def key(self) -> str:
        """What the members of one sample share: the name up to the first dot of its last part."""
        folder, slash, last = self.name.rpartition("/")
        return folder + slash + last.partition(".")[0]

    @property
    def extension(self) -> str:
        return self.name.rpartition("/")[2].partition(".")[2].lower()

    @property
    def is_image(self) -> bool:
        return self.extension.rpartition(".")[2] in _IMAGES


def index_tar(location: str, rows_per_block: int, first: int = 0) -> list[Block]:
    """The blocks of one tar.

    Raises:
        DataError: a header is damaged, or the file is cut off; names the byte.
    """
    with reading(location), _open(location) as (stream, size):
        pieces = (
            (sample[0].begin, sample[-1].end, 1) for sample in _samples(_members(stream, location, 0, size, size))
        )
        return cut_blocks(location, "webdataset", pieces, rows_per_block, first=first, limit=BLOCK_BYTES)


def read_tar(block: Block) -> Iterator[Raw]:
    """The samples of a block: a `.json` and the images of the same key, in their order or the one that it names."""
    name = file_name(block.location)
    with reading(block.location), _open(block.location) as (stream, size):
        samples = _samples(_members(stream, block.location, block.begin, block.end, size))
        for number, sample in enumerate(samples, start=block.first):
            place = f"{name}, sample {shown(sample[0].key)}"
            embedded: dict[str, bytes] = {}
            yield Raw(number, place, _read_sample(stream, sample, place, embedded), embedded)


@contextmanager
def _open(location: str) -> Iterator[tuple[BinaryIO, int]]:
    """A tar to read and seek in, and its bytes."""
    with open_file(location) as file, io.BufferedReader(file, _BUFFER[is_local(location)]) as stream:
        yield stream, file.size()


def _read_sample(stream: BinaryIO, sample: list[_Member], place: str, embedded: dict[str, bytes]) -> object:
    records = [member for member in sample if member.extension == "json"]
    images = [member for member in sample if member.is_image]
    odd = [member for member in records + images if not member.plain]
    if odd:
        return DataError(f"{place}: member {shown(odd[0].name)} is a link or special file; store the file itself")
    if len(records) != 1:
        return DataError(
            f"{place}: has {len(records)} .json members; write one, right beside the images that share its name"
        )
    if records[0].size > ROW_BYTES or sum(image.size for image in images) > _IMAGE_BYTES:
        return DataError(f"{place}: is larger than {ROW_BYTES >> 20} MiB of JSON or {_IMAGE_BYTES >> 20} MiB of images")
    value = decode_row(_read(stream, records[0]), place)
    if not isinstance(value, dict):
        return value
    if images:
        plural = value.pop("images", None)
        named = plural if value.get("image") is None else value["image"]
        ordered = _in_order(images, named)
        if ordered is None:
            return DataError(f"{place}: names the images {shown(named)} and has {len(images)}; write one name for each")
        contents = [_read(stream, image) for image in ordered]
        names = [embedded_name(data) for data in contents]
        embedded.update(zip(names, contents, strict=True))
        value["image"] = names
    if value.get("id") is None:
        value["id"] = sample[0].key
    return value


def _in_order(images: list[_Member], named: object) -> list[_Member] | None:
    """The images in the order in which the record names them, else in the tar's; None where their numbers differ."""
    if named is None:
        return images
    names = named if isinstance(named, list) else [named]
    if len(names) != len(images):
        return None
    members = {member.name.rpartition("/")[2]: member for member in images}
    bases = [name.rpartition("/")[2] for name in names if isinstance(name, str)]
    return [members[base] for base in bases] if sorted(bases) == sorted(members) else images


def _samples(members: Iterator[_Member]) -> Iterator[list[_Member]]:
    """Consecutive members of one key; members without an extension, hidden ones and folders are no part of any."""
    sample: list[_Member] = []
    for member in members:
        if not member.extension or member.name.rpartition("/")[2].startswith(".") or member.name.endswith("/"):
            continue
        if sample and member.key != sample[0].key:
            yield sample
            sample = []
        sample.append(member)
    if sample:
        yield sample


def _read(stream: BinaryIO, member: _Member) -> bytes:
    stream.seek(member.data)
    return stream.read(member.size)


def _members(stream: BinaryIO, location: str, begin: int, end: int, size_of_file: int) -> Iterator[_Member]:
    """The members between two bytes of a file, with the long names and sizes of GNU and POSIX headers."""
    name = size = None
    position = start = begin
    closed = False
    while position < end:
        stream.seek(position)
        header = _read_header(stream.read(_UNIT), location, position)
        data = position + _UNIT
        if header is None:  # an empty unit: the end, or padding before a tar that was appended
            position, start, closed = data, data, True
            continue
        closed = False
        has_data = header.type not in _WITHOUT_DATA
        length = (header.size if size is None else size) if has_data else 0
        position = data + -(-length // _UNIT) * _UNIT
        if length < 0 or data + length > size_of_file:
            raise DataError(
                f"{location}, byte {data - _UNIT}: member {shown(header.name)} has {length} bytes, which the file does "
                "not hold; it is damaged or cut off: copy or write it again"
            )
        if header.type in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
            if length > _NAME_BYTES:
                raise DataError(f"{location}, byte {data - _UNIT}: a header of {length} bytes; write the file again")
            found_name, found_size = _read_extension(stream.read(length), header.type)
            name, size = found_name or name, found_size if found_size is not None else size
            continue
        if header.type in (tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE):
            continue
        is_folder = header.type == tarfile.DIRTYPE
        full_name = (header.name if name is None else name) + ("/" if is_folder else "")
        yield _Member(full_name, header.isreg() and not header.issparse(), start, data, length, position)
        name = size = None
        start = position
    if end == size_of_file and not closed:
        raise DataError(f"{location}: ends without the empty blocks that close a tar; copy or write it again")


def _read_header(unit: bytes, location: str, position: int) -> tarfile.TarInfo | None:
    if unit == bytes(_UNIT):
        return None
    try:
        return tarfile.TarInfo.frombuf(unit, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError) as error:
        raise DataError(
            f"{location}, byte {position}: not the header of a tar's member ({error}); what follows cannot be found: "
            "copy or write the file again"
        ) from error


def _read_extension(data: bytes, kind: bytes) -> tuple[str | None, int | None]:
    """The name and the size of the next member, as far as its extension header says them."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return data.partition(b"\0")[0].decode("utf-8", "surrogateescape"), None
    name = size = None
    while data:
        length, _, _ = data.partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(data):
            break
        keyword, _, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
        if keyword == b"path":
            name = value.decode("utf-8", "surrogateescape")
        elif keyword == b"size" and value.isdigit():
            size = int(value)
        data = data[int(length) :]
    return name, size
