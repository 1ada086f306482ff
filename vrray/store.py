"""The artefact store: finished work under the key of what determines it (DESIGN, decisions 3 and 12).

An artefact is a folder of files. Its files are written under a fresh attempt name, and a commit marker that names
the attempt and the size and hash of every file is written last. Without a marker there is no artefact, so a crash at
any moment leaves nothing that could be taken for a whole one, and two writers of one key end with one of the two.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from vrray.errors import StoreError
from vrray.patience import patient

MARKER = "COMMITTED.json"
_CHUNK = 8 << 20
_READS = 50  # of a file that changes while it is read
_OBJECT_STORES = ("s3", "gcs")
_SHOWN_OPTIONS = ("endpoint_override", "region", "scheme")  # of a URI's query; others may be keys
_OTHER_HASH = "another SHA-256"


def content_key(parts: Mapping[str, Any]) -> str:
    """The key of an artefact: 20 hex digits of SHA-256 over the canonical JSON of what determines it."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


class File(NamedTuple):
    """A file below a store's root: its name from there, its size, and when it was changed (s since the epoch)."""

    name: str
    bytes: int
    changed: float


@dataclass(frozen=True)
class Damage:
    """A file of an artefact that is not what was committed, how it differs, and the attempt that the marker names."""

    file: str
    found: str
    attempt: str = ""


def shown_uri(uri: str) -> str:
    """A URI without user, password and other keys."""
    if "://" not in uri:
        return uri
    parts = urlsplit(uri)
    query = urlencode([(name, value) for name, value in parse_qsl(parts.query) if name in _SHOWN_OPTIONS], safe=":/")
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, ""))


class Store:
    """Artefacts and plain files below one URI (a local path, or whatever pyarrow.fs takes, such as s3:// or gs://).

    Attributes:
        asked: keys by kind of the artefacts that were asked for through this object: what a run records as its own.

    Raises:
        StoreError: the URI cannot be used, or an artefact is missing or damaged.
    """

    def __init__(self, uri: str | os.PathLike[str]):
        text = os.fspath(uri)
        if "://" not in text:
            text = str(Path(text).expanduser().resolve())
        try:
            self._fs, self._root = pafs.FileSystem.from_uri(text)
        except (ValueError, OSError) as error:
            reason = str(error).replace(text, shown_uri(text))
            raise StoreError(
                f"storage {shown_uri(text)!r} cannot be used ({reason}); give a local path or a URI"
            ) from error
        self.uri = text
        self.asked: dict[str, set[str]] = {}

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return Store, (self.uri,)

    @property
    def is_local(self) -> bool:
        return self._fs.type_name == "local"

    # Artefacts

    def has(self, kind: str, key: str) -> bool:
        """Whether the artefact is complete."""
        self.ask(kind, key)
        return self._is_file(self._path(kind, key, MARKER))

    def ask(self, kind: str, key: str) -> None:
        """Take it down as asked for."""
        self.asked.setdefault(kind, set()).add(key)

    def describe(self, kind: str, key: str) -> dict[str, Any]:
        """The `info` that the artefact was committed with."""
        return dict(self._marker(kind, key)["info"])

    def put(
        self,
        kind: str,
        key: str,
        write: Callable[[Path], Mapping[str, Any] | None],
        info: Mapping[str, Any] | None = None,
    ) -> None:
        """Let `write` fill a local folder, upload its files, then commit. A complete artefact is left as it is.

        Files directly in the folder are taken; sub-folders are an error. What `write` returns is added to `info`.
        """
        if self.has(kind, key):
            return
        with tempfile.TemporaryDirectory(prefix="vrray-") as scratch:
            found = write(Path(scratch))
            self._upload(kind, key, Path(scratch), {**(info or {}), **(found or {})})

    def _upload(self, kind: str, key: str, folder: Path, info: dict[str, Any]) -> None:
        attempt = uuid.uuid4().hex[:12]
        files = {}
        for path in sorted(folder.iterdir()):
            if not path.is_file():
                raise StoreError(f"artefact {kind}/{key}: {path.name} is not a plain file")
            try:
                self._copy_in(path, self._path(kind, key, attempt, path.name))
            except OSError:
                with suppress(OSError):  # best effort: without a marker it is nothing, but it takes room
                    self._fs.delete_dir(self._path(kind, key, attempt))
                raise
            files[path.name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        marker = {"attempt": attempt, "files": files, "info": info}
        self.write_text(f"{kind}/{key}/{MARKER}", json.dumps(marker, indent=1, sort_keys=True))

    def delete(self, kind: str, key: str) -> None:
        """Remove an artefact with all that lies in its folder; nothing happens when there is none.

        Markers go first, so that a crash in between leaves nothing that could be taken for a whole artefact.
        """
        folder = self._path(kind, key)
        self.asked.get(kind, set()).discard(key)
        for entry in self._info(pafs.FileSelector(folder, recursive=True, allow_not_found=True)):
            if entry.base_name == MARKER:
                self._remove(self._fs.delete_file, entry.path)
        self._remove(self._fs.delete_dir, folder)

    def keys(self, kind: str) -> list[str]:
        """The keys of the complete artefacts directly below a kind, sorted.

        Of a key with slashes, all but the last part is given with the kind, such as `keys("checkpoint/abc/step-5")`.
        """
        names = self.names(kind)
        markers = self._info([self._path(kind, name, MARKER) for name in names])
        return [name for name, marker in zip(names, markers, strict=True) if marker.type == pafs.FileType.File]

    @contextmanager
    def open(self, kind: str, key: str, only: Collection[str] | None = None) -> Iterator[Path]:
        """A local folder with the artefact's files, to read: in place when local, else a verified download.

        An artefact that is found damaged loses its marker, so that the next run rebuilds it.

        Args:
            only: names of the files that are wanted, which alone are downloaded; None for all.

        Raises:
            StoreError: there is no complete artefact, or a file is not what was committed (checked by size, and by hash
                when downloaded).
        """
        marker = self._marker(kind, key)
        source = self._path(kind, key, marker["attempt"])
        if (damage := self._wrong_size(kind, key, marker)) is not None:
            raise self._damaged(kind, key, damage)
        if self.is_local:
            yield Path(source)
            return
        scratch = Path(tempfile.mkdtemp(prefix="vrray-"))
        try:
            for name, expected in marker["files"].items():
                if only is not None and name not in only:
                    continue
                self._copy_out(f"{source}/{name}", scratch / name)
                if file_sha256(scratch / name) != expected["sha256"]:
                    raise self._damaged(kind, key, Damage(name, _OTHER_HASH, marker["attempt"]))
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def damage(self, kind: str, key: str) -> Damage | None:
        """What is wrong with an artefact, by the size and the hash of every file; None where it is whole or not there.

        The artefact stays as it is; see `retract`.
        """
        try:
            marker = json.loads(self.read_bytes(f"{kind}/{key}/{MARKER}"))
        except StoreError:
            return None
        except ValueError as error:
            return Damage(MARKER, str(error))
        damage = self._wrong_size(kind, key, marker) or self._wrong_hash(kind, key, marker)
        # Another run may have removed or rebuilt it meanwhile.
        return damage if damage is not None and self.attempt(kind, key) == damage.attempt else None

    def retract(self, kind: str, key: str, attempt: str) -> None:
        """Remove the marker of a damaged artefact, so that the next run rebuilds it.

        A marker that does not name `attempt` stays: somebody has rebuilt the artefact meanwhile.
        """
        if self.attempt(kind, key) == attempt:
            self._remove(self._fs.delete_file, self._path(kind, key, MARKER))

    def attempt(self, kind: str, key: str) -> str | None:
        """The attempt that was committed: its folder's name; empty where the marker is damaged, None without one."""
        try:
            return str(json.loads(self.read_bytes(f"{kind}/{key}/{MARKER}"))["attempt"])
        except StoreError:
            return None
        except ValueError:
            return ""

    def files_at(self, kind: str, key: str) -> str:
        """The path or URI of the folder of a complete artefact's files, for readers on any node.

        Raises:
            StoreError: there is no complete artefact.
        """
        return self.location(kind, key, str(self._marker(kind, key)["attempt"]))

    def location(self, *names: str) -> str:
        """The path or URI of something below the store's root; what follows a `?` in the root's URI is kept."""
        root, separator, query = self.uri.partition("?")
        return "/".join([root.rstrip("/"), *names]) + separator + query

    def shown(self, *names: str) -> str:
        """The location of something below the store's root, for people: without keys."""
        return shown_uri(self.location(*names))

    # Plain files, such as a sweep's table and report

    @patient
    def write_bytes(self, name: str, data: bytes) -> None:
        """Write one file so that a reader sees the old content or the new one, never a part."""
        path = self._path(name)
        self._make_folder_of(path)
        target = f"{path}.{uuid.uuid4().hex[:8]}.tmp" if self.is_local else path
        try:
            with self._fs.open_output_stream(target) as stream:
                stream.write(data)
            if target != path:
                os.replace(target, path)
        except OSError:
            if target != path:
                Path(target).unlink(missing_ok=True)  # on a full disk, part of a file is in the way
            raise

    def write_text(self, name: str, text: str) -> None:
        self.write_bytes(name, text.encode())

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write one Parquet file, as `write_bytes` does."""
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        self.write_bytes(name, buffer.getvalue())

    def read_table(self, name: str) -> pa.Table:
        """All rows of one Parquet file.

        Raises:
            StoreError: there is no such file.
        """
        return read_parquet(pa.BufferReader(self.read_bytes(name)))

    @patient
    def read_bytes(self, name: str) -> bytes:
        """
        Raises:
            StoreError: there is no such file.
        """
        path = self._path(name)
        try:
            for _ in range(_READS):
                with self._fs.open_input_file(path) as stream:
                    version, data = stream.metadata(), bytes(stream.read())
                if self.is_local:
                    return data
                # pyarrow asks S3 for the size first, and then takes that many bytes of whatever is there by then.
                with self._fs.open_input_file(path) as stream:
                    if stream.metadata() == version:
                        return data
        except FileNotFoundError:
            raise StoreError(f"{self.shown()}: there is no {name}") from None
        raise StoreError(f"{self.shown(name)} is written anew faster than it can be read")

    def stamp(self, name: str) -> tuple[int, int] | None:
        """Time of the last change (ns since the epoch) and size of one file; None when there is no such file."""
        info = self._info(self._path(name))
        return (info.mtime_ns or 0, info.size) if info.type == pafs.FileType.File else None

    def names(self, folder: str) -> list[str]:
        """The names directly below a folder, sorted; empty when there is no such folder."""
        path = self._path(folder)
        # A folder of GCS is listed by itself only where an object stands for it, which is never so here.
        selector = pafs.FileSelector(path, allow_not_found=True, recursive=self._fs.type_name == "gcs")
        return sorted({entry.path.removeprefix(f"{path}/").partition("/")[0] for entry in self._info(selector)})

    def remove(self, name: str) -> None:
        """Remove one file; nothing happens when there is none."""
        self._remove(self._fs.delete_file, self._path(name))

    def files(self, folder: str = "") -> Iterator[File]:
        """All files below a folder, or below the root, at any depth."""
        root = self._root.rstrip("/")
        selector = pafs.FileSelector(f"{root}/{folder}" if folder else root, recursive=True, allow_not_found=True)
        for entry in self._info(selector):
            if entry.type == pafs.FileType.File:
                yield File(entry.path.removeprefix(f"{root}/"), entry.size, (entry.mtime_ns or 0) / 1e9)

    def _path(self, *parts: str) -> str:
        for part in parts:
            if {"", ".", ".."} & set(part.split("/")):
                raise StoreError(f"{'/'.join(parts)!r} is not a name inside the store")
        return "/".join([self._root.rstrip("/"), *parts])

    @patient
    def _info(self, wanted: Any) -> Any:
        """What `get_file_info` of the file system says of a path, several, or a selector."""
        return self._fs.get_file_info(wanted)

    def _is_file(self, path: str) -> bool:
        return bool(self._info(path).type == pafs.FileType.File)

    def _marker(self, kind: str, key: str) -> dict[str, Any]:
        self.ask(kind, key)
        try:
            marker: dict[str, Any] = json.loads(self.read_bytes(f"{kind}/{key}/{MARKER}"))
        except StoreError:
            raise StoreError(f"{self.shown()}: no complete artefact {kind}/{key}") from None
        except ValueError as error:
            raise self._damaged(kind, key, Damage(MARKER, str(error))) from error
        return marker

    def _wrong_size(self, kind: str, key: str, marker: Mapping[str, Any]) -> Damage | None:
        files, attempt = marker["files"], marker["attempt"]
        infos = self._info([self._path(kind, key, attempt, name) for name in files])
        for (name, expected), info in zip(files.items(), infos, strict=True):
            if info.type != pafs.FileType.File:
                return Damage(name, "missing", attempt)
            if info.size != expected["bytes"]:
                return Damage(name, f"{info.size} bytes instead of {expected['bytes']}", attempt)
        return None

    def _wrong_hash(self, kind: str, key: str, marker: Mapping[str, Any]) -> Damage | None:
        attempt = marker["attempt"]
        for name, expected in marker["files"].items():
            try:
                with self._fs.open_input_stream(self._path(kind, key, attempt, name)) as stream:
                    found = _sha256(stream)
            except FileNotFoundError:
                return Damage(name, "missing", attempt)
            if found != expected["sha256"]:
                return Damage(name, _OTHER_HASH, attempt)
        return None

    def _damaged(self, kind: str, key: str, damage: Damage) -> StoreError:
        """The error for a damaged artefact, which no longer counts as complete from here on."""
        remedy = "it is rebuilt on the next run"
        try:
            self.retract(kind, key, damage.attempt)
        except OSError as error:
            remedy = f"its {MARKER} cannot be removed ({error}): delete the folder to have it rebuilt"
        found = f"{damage.file} is not what was committed ({damage.found})"
        return StoreError(f"{self.shown(kind, key)}: {found}; {remedy}")

    @patient
    def _remove(self, remove: Callable[[str], None], path: str) -> None:
        try:
            remove(path)
        except OSError:
            # File systems raise different errors for what is not there, so look instead of telling them apart.
            if self._fs.get_file_info(path).type != pafs.FileType.NotFound:
                raise

    def _make_folder_of(self, path: str) -> None:
        # Object stores have no folders; pyarrow would write an empty object for each of the path, the bucket's too.
        if self._fs.type_name not in _OBJECT_STORES:
            self._fs.create_dir(path.rsplit("/", 1)[0], recursive=True)

    @patient
    def _copy_in(self, source: Path, target: str) -> None:
        self._make_folder_of(target)
        if self.is_local:
            shutil.copyfile(source, target)
            return
        with source.open("rb") as read, self._fs.open_output_stream(target) as write:
            while chunk := read.read(_CHUNK):
                write.write(chunk)

    @patient
    def _copy_out(self, source: str, target: Path) -> None:
        with self._fs.open_input_stream(source) as read, target.open("wb") as write:
            while chunk := read.read(_CHUNK):
                write.write(chunk)


def read_parquet(source: Path | pa.BufferReader) -> pa.Table:
    """All rows of a small Parquet file."""
    # In this thread alone: a pool's threads let go of Python's bytes some time after the call, and abort a process
    # that is ending by then.
    return pq.ParquetFile(source).read(use_threads=False)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content: 64 hex digits."""
    with path.open("rb") as stream:
        return _sha256(stream)


def _sha256(stream: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := stream.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()
