"""How a job ends: its exit status, and what it says when it fails or is interrupted."""

from __future__ import annotations

import sys
from collections.abc import Callable

from vrray.errors import VrrayError

_RESUMABLE = "what is finished is in the store, the same command goes on from there"


def exit_status(work: Callable[[], None], interrupted: str = _RESUMABLE) -> int:
    """Do a job's work: 0 when done, 1 after an error that vrray explains, 130 after Ctrl-C.

    Args:
        interrupted: what Ctrl-C leaves behind, for the message.
    """
    try:
        work()
    except VrrayError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted; {interrupted}", file=sys.stderr)
        return 130
    return 0
