"""Where vrray keeps what it builds for itself: the demo model, the demo data, remembered hashes."""

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def vrray_home() -> Path:
    """`$VRRAY_HOME`, or `vrray` below the user's cache directory."""
    explicit = os.environ.get("VRRAY_HOME")
    if explicit:
        return Path(explicit).expanduser().resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vrray"


def remembered(path: Path, compute: Callable[[Path], str]) -> str:
    """`compute(path)` of a file, remembered by path, size and modification time, and by the function's name.

    Where it cannot be written down, it is computed each time.
    """
    status = path.stat()
    known = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}|{compute.__name__}"
    memo = vrray_home() / "hashes" / hashlib.sha256(known.encode("utf-8", "surrogateescape")).hexdigest()[:24]
    if memo.is_file():
        return memo.read_text()
    value = compute(path)
    with suppress(OSError):
        memo.parent.mkdir(parents=True, exist_ok=True)
        scratch = memo.with_suffix(f".{os.getpid()}")
        scratch.write_text(value)
        os.replace(scratch, memo)
    return value
