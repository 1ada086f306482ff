"""Images by name: where they are, reading and decoding them. Light to import.

A name is relative to the image folder, or `PREFIX:name` to another one, or `sha256:...` of an image that came embedded
in a data file.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from PIL import Image
from pyarrow import fs as pafs

from vrray.data.blobs import PREFIX as EMBEDDED
from vrray.data.blobs import Blobs, embedded_name, write_blobs
from vrray.data.decode import check_image, open_image
from vrray.data.fingerprints import fingerprint
from vrray.data.records import parse_image_path
from vrray.errors import DataError

__all__ = [
    "Images",
    "Opened",
    "check_image",
    "content_hashes",
    "embedded_name",
    "examine",
    "image_hash",
    "open_at_once",
    "open_image",
    "write_blobs",
]

MAX_BYTES = 1 << 30
_THREADS = 16
_PART = 64  # images that a thread takes at a time


class Images:
    """Images below some folders and in some files of embedded images; picklable, and safe to share between threads.

    Args:
        roots: the image folder under "", others under their prefix; each a local folder or a URI (s3://, gs://, or
            whatever else pyarrow.fs takes).
        blobs: local files of embedded images (`write_blobs`); they are mapped into memory.
    """

    def __init__(
        self, roots: Mapping[str, str | os.PathLike[str]], blobs: Sequence[str | os.PathLike[str]] = ()
    ) -> None:
        self.roots = {prefix: _absolute(os.fspath(root)) for prefix, root in roots.items()}
        self.blobs = tuple(_absolute(os.fspath(path)) for path in blobs)
        self._opened: dict[str, tuple[pafs.FileSystem, str]] = {}
        self._mapped: Blobs | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Images], tuple[dict[str, str], tuple[str, ...]]]:
        return Images, (self.roots, self.blobs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Images) and (self.roots, self.blobs) == (other.roots, other.blobs)

    __hash__ = None  # type: ignore[assignment]

    def read(self, name: str) -> bytes:
        """The bytes of an image's file.

        Raises:
            DataError: it is missing, cannot be read, has more than `MAX_BYTES`, or lies outside its folder.
        """
        if name.startswith(EMBEDDED):
            return self._read_embedded(name)
        prefix, separator, rest = name.partition(":")
        if not (separator and prefix and prefix in self.roots):
            prefix, rest = "", name
        if prefix not in self.roots:
            raise DataError(f"image {name!r} cannot be read: no folder is given for the images")
        root = self.roots[prefix]
        parse_image_path(rest, f"image {name!r}")
        try:
            filesystem, folder = self._open_root(root)
            if filesystem.type_name == "local":
                return _read_local(folder, rest)
            return _read_remote(filesystem, folder, rest)
        except (OSError, ValueError, NotImplementedError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"image {name!r} cannot be read: {reason} (looked for below {root})") from error

    def open(self, name: str) -> Image.Image:
        """The image in RGB, upright.

        Raises:
            DataError: it cannot be read (see `read`) or decoded (see `open_image`).
        """
        return open_image(self.read(name), name)

    def _open_root(self, root: str) -> tuple[pafs.FileSystem, str]:
        with self._lock:
            if root not in self._opened:
                self._opened[root] = pafs.FileSystem.from_uri(root)
            return self._opened[root]

    def mapped(self) -> Images:
        """The same, with its embedded images mapped already, so that their files need not stay."""
        self._map()
        return self

    def _map(self) -> Blobs:
        with self._lock:
            if self._mapped is None:
                self._mapped = Blobs(self.blobs)
            return self._mapped

    def _read_embedded(self, name: str) -> bytes:
        data = self._map().get(name)
        if data is None:
            where = ", ".join(self.blobs) or "none is given"
            raise DataError(f"image {name!r} cannot be read: it is not in the files of embedded images ({where})")
        return data


class Opened(NamedTuple):
    """What is kept of an image that was opened: the hash of its file, and how it looks (`fingerprint`)."""

    hash: str
    fingerprint: bytes


def examine(data: bytes, name: str) -> Opened:
    """
    Raises:
        DataError: the image cannot be used (see `open_image`).
    """
    return Opened(image_hash(data), fingerprint(check_image(data, name)))


def content_hashes(images: Images, names: Iterable[str]) -> dict[str, str]:
    """The content hash of every image (`image_hash`); the images are read by several threads.

    Raises:
        DataError: some cannot be read; says how many and names the first.
    """
    distinct = list(dict.fromkeys(names))
    parts = [distinct[start : start + _PART] for start in range(0, len(distinct), _PART)]
    with ThreadPoolExecutor(_THREADS) as pool:
        found = [pair for pairs in pool.map(lambda part: _hash_part(images, part), parts) for pair in pairs]
    errors = [error for _, error in found if error]
    if errors:
        more = f"; and {len(errors) - 5} more" if len(errors) > 5 else ""
        raise DataError(f"{len(errors)} of {len(distinct)} images are missing: {'; '.join(errors[:5])}{more}")
    return dict(zip(distinct, (known for known, _ in found), strict=True))


def image_hash(data: bytes) -> str:
    """What an image's features are kept under: 16 hex digits of the SHA-256 of its file."""
    return hashlib.sha256(data).hexdigest()[:16]


def _hash_part(images: Images, names: Sequence[str]) -> list[tuple[str, str]]:
    """The content hash of every image, or what is wrong with it."""
    pairs = []
    for name in names:
        if name.startswith(EMBEDDED):
            pairs.append((name.removeprefix(EMBEDDED)[:16], ""))
            continue
        try:
            pairs.append((image_hash(images.read(name)), ""))
        except DataError as error:
            pairs.append(("", str(error)))
    return pairs


def _absolute(root: str) -> str:
    return root if "://" in root else str(Path(root).expanduser().resolve())


def _read_local(folder: str, name: str) -> bytes:
    path = _inside(folder, name)
    with open(path, "rb", opener=open_at_once) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a file")
        _check_bytes(status.st_size)
        return file.read()


def open_at_once(path: str, flags: int) -> int:
    """An opener for `open`: a file that is no plain one is opened too, so that it can be looked at."""
    return os.open(path, flags | os.O_NONBLOCK)  # else a named pipe waits for its writer


def _inside(folder: str, name: str) -> str:
    path = folder
    for part in PurePosixPath(name).parts:
        path = os.path.join(path, part)
        if os.path.islink(path):
            folder, path = os.path.realpath(folder), os.path.realpath(os.path.join(folder, name))
            if os.path.commonpath((folder, path)) != folder:
                raise ValueError(f"a link leads out of the folder, to {path}; copy it there")
            break
    return path


def _read_remote(filesystem: pafs.FileSystem, folder: str, name: str) -> bytes:
    with filesystem.open_input_file(f"{folder.rstrip('/')}/{PurePosixPath(name)}") as file:
        _check_bytes(file.size())
        return bytes(file.read())


def _check_bytes(count: int) -> None:
    if count > MAX_BYTES:
        raise ValueError(f"it has {count:,} bytes, at most {MAX_BYTES:,} are taken")
