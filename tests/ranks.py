"""Running a function on every rank of a real process group, without Ray."""

from __future__ import annotations

import faulthandler
import gc
import multiprocessing
import os
import pickle
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist


def run_ranks(function: Callable[..., Any], world: int, *arguments: Any, seconds: float = 420) -> list[Any]:
    """Call `function(*arguments)` on `world` one-thread processes of a gloo group; the results in the order of ranks.

    The function must be at the top of a module. An error on a rank, or a rank that is not done in time, fails the
    test with that rank's stack; no process outlives the call.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        folder, port, deadline = Path(name), _free_port(), time.time() + seconds
        processes = [
            context.Process(target=_rank, args=(function, arguments, rank, world, port, folder, deadline), daemon=True)
            for rank in range(world)
        ]
        try:
            for process in processes:
                process.start()
            # At the deadline a rank writes its stack and exits, where it can.
            while any(process.is_alive() for process in processes) and time.time() < deadline + 10:
                if any(process.exitcode for process in processes):
                    break
                time.sleep(0.05)
            failed = [rank for rank, process in enumerate(processes) if process.exitcode != 0]
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
                process.join()
        if failed:
            logs = sorted(folder.glob("*.log"), key=lambda path: path.stat().st_mtime_ns)
            told = "\n".join(f"--- {path.stem}\n{path.read_text()}" for path in logs if path.stat().st_size)
            pytest.fail(f"{function.__name__}: ranks {failed} of {world} did not finish\n{told}", pytrace=False)
        return [pickle.loads((folder / f"rank {rank}.result").read_bytes()) for rank in range(world)]


def _rank(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    rank: int,
    world: int,
    port: int,
    folder: Path,
    deadline: float,
) -> None:
    here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in here.items()})
    torch.set_num_threads(1)
    with (folder / f"rank {rank}.log").open("w") as log:
        faulthandler.dump_traceback_later(max(1.0, deadline - time.time()), exit=True, file=log)
        gc.freeze()  # what was imported need not be looked through each time that a training cleans up
        try:
            dist.init_process_group("gloo", timeout=timedelta(hours=1))
            result = function(*arguments)
            (folder / f"rank {rank}.result").write_bytes(pickle.dumps(result))
            dist.destroy_process_group()
        except BaseException:
            traceback.print_exc(file=log)
            log.flush()
            os._exit(1)
        faulthandler.cancel_dump_traceback_later()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
