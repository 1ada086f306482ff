"""Who writes a file, so that another process of the same machine can tell whether the writer still runs."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def this_process() -> dict[str, Any]:
    """Host and process number, to read; machine and start, to compare (None where the system does not tell)."""
    pid = os.getpid()
    started = _started(pid)
    return {"host": platform.node(), "pid": pid, "machine": _machine(), "started": started}


def has_ended(process: Mapping[str, Any]) -> bool:
    """Whether what `this_process` said of itself is known to have ended; never so of another machine's process."""
    here = _machine()
    if here is None or process.get("machine") != here or process.get("started") is None:
        return False
    return _started(process["pid"]) != process["started"]


def _machine() -> str | None:
    """This start of this machine, and within it whose process numbers these are: containers have their own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _started(pid: int) -> int | None:
    """When a process was started, in clock ticks since the machine was; None where it does not run."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # after the name, which may hold anything; see proc(5)
    return None if fields[0] in "ZX" else int(fields[19])
