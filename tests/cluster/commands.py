"""The sweep that the cluster tests share, as options and as a command."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
OPTIONS: dict[str, Any] = {
    "placements": ["uniform", "top"],
    "layers": [2],
    "prune": [0, 1],
    "tasks": ["easy-vqa", "capitals"],
    "examples": 8,
    "calibration": 4,
    "max_steps": 2,
    "projector_steps": 2,
    "global_batch": 4,
    "name": "shared",
}


def flags(options: dict[str, Any]) -> list[str]:
    """Options as the flags of a job."""
    arguments = []
    for name, value in options.items():
        values = value if isinstance(value, list) else [value]
        arguments += [f"--{name.replace('_', '-')}", *map(str, values)]
    return arguments


def sweep_command(storage: Path, **changes: Any) -> list[str]:
    return [sys.executable, "jobs/sweep.py", *flags({**OPTIONS, "storage": str(storage), **changes})]


def wait_until_up(ask: Callable[[], object], server: subprocess.Popen[bytes]) -> None:
    """Ask a server until it answers without an `OSError`."""
    deadline = time.monotonic() + 60
    while True:
        try:
            ask()
            return
        except OSError:
            assert server.poll() is None and time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
