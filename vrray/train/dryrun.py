"""Finding out before the first step whether the longest micro-batch fits, and which smaller one does."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import nn

from vrray.data.batches import collate
from vrray.data.rows import Row, lengths_of
from vrray.errors import TrainingError
from vrray.train.workspace import Workspace, peak_mib

_MARGIN = 256 << 20  # bytes for what a dry run does not hold: batches put together ahead, buckets, fragmentation


def fitting_micro_batch(
    workspace: Workspace,
    module: nn.Module,
    rows: Sequence[Row],
    micro_batch: int,
    share: int,
    *,
    packing: bool,
    reserve: int,
    say: Callable[[str], None],
    trials: int = 1,
) -> int:
    """The largest micro-batch, from `micro_batch` downwards, whose longest rows go forward and backward on every rank.

    It runs before DeepSpeed starts, so nothing is communicated in it and every rank may fail by itself.

    Args:
        share: rows that a rank takes in a step; a micro-batch divides it.
        packing: rows are packed into one sequence, as they will be.
        reserve: bytes that the optimizer will take and that must stay free.
        say: tells the user something; called on all ranks.
        trials: that share the base, each with a micro-batch of that size.

    Raises:
        TrainingError: not even one row fits; with figures and what to change.
    """
    longest_first = (-lengths_of(rows)).argsort(kind="stable")[:micro_batch]
    by_length = [rows[int(place)] for place in longest_first]
    while True:
        longest = by_length[:micro_batch]
        if _all_ranks(workspace, _runs(workspace, module, longest * trials, packing, reserve)):
            return micro_batch
        tokens = max(len(row.ids) for row in longest)
        if micro_batch == 1:
            raise out_of_memory(workspace, micro_batch, tokens, trials)
        smaller = largest_divisor(share, micro_batch // 2)
        say(
            f"out of memory with a micro-batch of {micro_batch} rows of {tokens} tokens{_each(trials)}; going on with "
            f"{smaller} rows and {share // smaller} micro-batches a step, the global batch stays the same"
        )
        micro_batch = smaller


def out_of_memory(workspace: Workspace, micro_batch: int, tokens: int | None = None, trials: int = 1) -> TrainingError:
    """The error for a training that does not fit, with its figures and what to change."""
    length = "" if tokens is None else f" of {tokens} tokens"
    smaller = f"--pack below {trials}, " if trials > 1 else ""
    smaller += f"a --micro-batch below {micro_batch}, " if micro_batch > 1 else ""
    peak = peak_mib(workspace.device)
    return TrainingError(
        f"out of memory with {micro_batch} row(s){length}{_each(trials)} a worker at once (peak {peak:.0f} MiB); "
        f"use {smaller}--activation-checkpointing all, --frozen partitioned, more --workers, --mode lora, or fewer "
        f"--layers"
    )


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor of a number that is not above `most`."""
    return next(size for size in range(min(most, number), 0, -1) if number % size == 0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device or the CPU has no memory left."""
    text = str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)
    )


def _each(trials: int) -> str:
    return f", for each of {trials} trials" if trials > 1 else ""


def _runs(workspace: Workspace, module: nn.Module, rows: Sequence[Row], packing: bool, reserve: int) -> bool:
    try:
        with torch.random.fork_rng(devices=[workspace.device] if workspace.device.type == "cuda" else []):
            kept_free = torch.empty(reserve + _MARGIN, dtype=torch.uint8, device=workspace.device)
            batch = collate(rows, workspace.features, workspace.padding_id, workspace.device, packing=packing)
            module(batch, 1.0).sum().backward()
            del kept_free
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        _forget_gradients(module)
    return True


def _forget_gradients(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.grad = None
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _all_ranks(workspace: Workspace, fits: bool) -> bool:
    flag = torch.tensor(float(fits), device=workspace.device)
    dist.all_reduce(flag, dist.ReduceOp.MIN)
    return bool(flag)
