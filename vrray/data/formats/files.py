"""The files of a location: a local path or a URI that pyarrow.fs takes, a folder, or a pattern of names."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pyarrow as pa
from pyarrow import fs as pafs

from vrray.data.formats.blocks import one_line
from vrray.errors import DataError
from vrray.home import remembered
from vrray.store import file_sha256

MAX_FILES = 100_000
_LARGE = 16 << 20  # bytes of a local file whose hash is remembered
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,18})\.\.(\d{1,18})")


def absolute(location: str) -> str:
    """A location that means the same in every process, without a slash at its end."""
    if "://" not in location:
        return os.path.abspath(os.path.expanduser(location))
    path, query = _split(location)
    return path.rstrip("/") + query


def file_name(location: str) -> str:
    """The last part of a location, for messages; long ones are cut in their middle."""
    name = _base_name(location).encode("utf-8", "backslashreplace").decode()
    return name if len(name) <= 60 else f"{name[:28]}...{name[-29:]}"


def child(location: str, name: str) -> str:
    """The location of something in a folder."""
    folder, query = _split(location)
    return f"{folder.rstrip('/')}/{quote(name) if '://' in location else name}{query}"


def parent(location: str) -> str:
    """The folder of a location."""
    path, query = _split(location)
    return path.rstrip("/").rpartition("/")[0] + query


def kind_of(location: str) -> str | None:
    """`file`, `folder`, or None where there is nothing."""
    with reading(location):
        filesystem, path = _filesystem(location)
        found = filesystem.get_file_info(path).type
    return {pafs.FileType.File: "file", pafs.FileType.Directory: "folder"}.get(found)


def names_in(location: str) -> list[str]:
    """The names of the files directly in a folder, sorted, without hidden ones."""
    with reading(location):
        filesystem, path = _filesystem(location)
        entries = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    names = (entry.base_name for entry in entries if entry.type == pafs.FileType.File)
    return sorted(name for name in names if not name.startswith("."))


def expand(pattern: str) -> list[str]:
    """The files that a pattern means, sorted within each alternative: braces such as `{0..9}` or `{a,b}`, and globs.

    Raises:
        DataError: it names a missing file, no file, or more than `MAX_FILES`.
    """
    found: list[str] = []
    for location in _alternatives(pattern):
        path, query = _split(location)
        folder, _, name = path.rpartition("/")
        if _has_glob(folder):
            raise DataError(f"{pattern}: folders cannot hold * or [; use them in the last part of the path only")
        if _has_glob(name):
            matching = fnmatch.filter(names_in(folder + query), _base_name(location))
            found += [child(folder + query, match) for match in matching]
        elif kind_of(location) == "file":
            found.append(location)
        else:
            raise DataError(f"{location}: no such file, though {pattern} names it; check the pattern")
        if len(found) > MAX_FILES:
            raise DataError(f"{pattern}: more than {MAX_FILES} files; write fewer and larger ones")
    if not found:
        raise DataError(f"{pattern}: no file matches; check the pattern")
    return list(dict.fromkeys(found))


def is_pattern(location: str) -> bool:
    """Whether a location holds what `expand` expands."""
    path, _ = _split(location)
    return _has_glob(path) or bool(_BRACES.search(path))


@contextmanager
def reading(location: str) -> Iterator[None]:
    """Turn what a file system or a decoder of Arrow raises into a DataError that names the location."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{location}: no such file; check the path") from error
    except (OSError, EOFError, ValueError, MemoryError, pa.ArrowException) as error:
        detail = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
        raise DataError(f"{location}: cannot be read ({detail})") from error


def open_file(location: str, *, mapped: bool = False) -> Any:
    """A pyarrow file to read and seek in; `mapped` maps a local one into memory. Use it inside `reading`."""
    filesystem, path = _filesystem(location)
    if mapped and filesystem.type_name == "local":
        return pa.memory_map(path)
    return filesystem.open_input_file(path)


def is_local(location: str) -> bool:
    return "://" not in location or location.startswith("file://")


def identity(locations: Sequence[str]) -> str:
    """16 hex digits of SHA-256 over the content of a file, or over the names and contents of several.

    Those of large local files are remembered by path, size and modification time.
    """
    with ThreadPoolExecutor(min(len(locations), os.cpu_count() or 1)) as pool:
        digests = list(pool.map(_digest, locations))
    if len(locations) == 1:
        return digests[0][:16]
    whole = hashlib.sha256()
    for location, digest in zip(locations, digests, strict=True):
        whole.update(f"{_base_name(location)}\0{digest}\n".encode("utf-8", "surrogateescape"))
    return whole.hexdigest()[:16]


def _digest(location: str) -> str:
    with reading(location):
        filesystem, path = _filesystem(location)
        if filesystem.type_name == "local" and os.path.getsize(path) >= _LARGE:
            return remembered(Path(path), file_sha256)
        with filesystem.open_input_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def _split(location: str) -> tuple[str, str]:
    """A location without the query of its URI, and that query with its `?`."""
    path, separator, query = location.partition("?") if "://" in location else (location, "", "")
    return path, separator + query


def _base_name(location: str) -> str:
    path, _ = _split(location)
    name = path.rstrip("/").rpartition("/")[2]
    return unquote(name) if "://" in location else name


def _filesystem(location: str) -> tuple[pafs.FileSystem, str]:
    if "://" in location:
        return pafs.FileSystem.from_uri(location)
    return pafs.LocalFileSystem(), location


def _has_glob(text: str) -> bool:
    return any(sign in text for sign in "*[")


def _alternatives(pattern: str) -> list[str]:
    """A pattern with its braces expanded; braces without a comma or a range stay."""
    whole, start = [""], 0
    for braces in _BRACES.finditer(pattern):
        options = _options(braces[1], pattern)
        if len(whole) * len(options) > MAX_FILES:
            raise DataError(f"{pattern}: more than {MAX_FILES} files; write fewer and larger ones")
        literal = pattern[start : braces.start()]
        whole = [f"{head}{literal}{option}" for head in whole for option in options]
        start = braces.end()
    return [head + pattern[start:] for head in whole]


def _options(body: str, pattern: str) -> list[str]:
    span = _RANGE.fullmatch(body)
    if span is None:
        return body.split(",") if "," in body else [f"{{{body}}}"]
    low, high = int(span[1]), int(span[2])
    if not 0 <= high - low < MAX_FILES:
        raise DataError(f"{pattern}: {{{body}}} is not a range of 1 to {MAX_FILES} numbers")
    return [str(number).zfill(len(span[1])) for number in range(low, high + 1)]
