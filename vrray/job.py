"""How a job ends: its exit status, and what it says when it fails or is interrupted."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType

from vrray.errors import VrrayError

_RESUMABLE = "what is finished is in the store, the same command goes on from there"


def exit_status(work: Callable[[], None], interrupted: str = _RESUMABLE) -> int:
    """Do a job's work: 0 when done, 1 after an error that vrray explains, 130 after Ctrl-C, 143 after SIGTERM.

    SIGTERM ends the work as Ctrl-C does. It is what `ray job stop`, Slurm and Kubernetes send first.

    Args:
        interrupted: what an interruption leaves behind, for the message.
    """
    received = [signal.SIGINT]

    def terminate(number: int, _: FrameType | None) -> None:
        received.append(signal.Signals(number))
        raise KeyboardInterrupt  # nothing else passes through a blocked `ray.get` as what it is

    if not sys.stderr.isatty():  # a log; libraries that draw bars read these when they are imported
        os.environ.setdefault("TQDM_DISABLE", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        work()
    except VrrayError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # a full disk, a storage that does not answer; else a defect, so with its stack
        traceback.print_exc()
        print(f"error: {error}; {interrupted}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted; {interrupted}", file=sys.stderr)
        return 128 + received[-1]
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0
