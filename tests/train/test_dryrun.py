"""Finding a micro-batch that fits, with a real limit on memory."""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from tiny import DEPTH, Ground

from vrray.data.rows import Row
from vrray.errors import TrainingError
from vrray.region import place
from vrray.specs import Recipe
from vrray.train import dryrun
from vrray.train.dryrun import fitting_micro_batch, is_out_of_memory, largest_divisor
from vrray.train.execution import Execution
from vrray.train.loop import Training, train
from vrray.train.loss import SupervisedLoss
from vrray.train.pack import train_pack

M_MMAP_THRESHOLD = -3  # malloc.h
RECIPE = Recipe(
    mode="full", learning_rate=3e-3, projector_learning_rate=1e-2, global_batch=256, max_steps=1, precision="fp32"
)
TRAINING = Training((), place("1,4", DEPTH), RECIPE, seed=3, execution=Execution(micro_batch=256))


def long_rows(ground: Ground) -> list[Row]:
    """Rows whose supervised tokens fill the positions: their logits take most of the memory."""
    ids = tuple(5 + number % 200 for number in range(250))
    return [Row(f"long-{number}", ids, (False, *[True] * 249), ()) for number in range(256)]


@contextmanager
def little_memory() -> Iterator[None]:
    """Leave too little address space for a whole micro-batch. Libraries must have taken what they need before."""
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + (450 << 20), resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def limited(ground: Ground) -> Any:
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 16)  # what is freed goes back, so that the limit is exact
    workspace, rows = ground.workspace(), long_rows(ground)
    reports: list[dict[str, Any]] = []
    training = replace(TRAINING, rows=rows)
    small = train(workspace, replace(training, execution=Execution(micro_batch=8)), lambda _: None)
    with little_memory():
        trained = train(workspace, training, reports.append)
    return small, trained, reports


def packed(ground: Ground) -> Any:
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 16)
    workspace, rows = ground.workspace(), long_rows(ground)
    reports: list[dict[str, Any]] = []
    recipe = RECIPE.model_copy(update={"mode": "lora", "lora_rank": 4, "lora_dropout": 0.0})
    trials = [replace(TRAINING, rows=rows, recipe=recipe, seed=seed) for seed in (3, 4)]
    quiet, no_keys = [lambda _: None] * 2, [None] * 2
    small = train_pack(workspace, [replace(t, execution=Execution(micro_batch=8)) for t in trials], quiet, no_keys)
    with little_memory():
        trained = train_pack(workspace, trials, [reports.append, lambda _: None], no_keys)
    return small, trained, reports


def test_a_micro_batch_that_does_not_fit_is_halved_at_equal_global_batch(ground: Ground) -> None:
    ((small, trained, reports),) = run_ranks(limited, 1, ground)
    assert 8 <= trained.metrics["micro_batch"] < 256
    assert trained.losses == pytest.approx(small.losses, rel=1e-4)
    assert reports[0]["say"] == (
        "out of memory with a micro-batch of 256 rows of 250 tokens; going on with 128 rows and 2 micro-batches a "
        "step, the global batch stays the same"
    )


def test_a_micro_batch_of_each_trial_in_a_pack_is_halved(ground: Ground) -> None:
    ((small, trained, reports),) = run_ranks(packed, 1, ground)
    for one, other in zip(small, trained, strict=True):
        assert 8 <= other.metrics["micro_batch"] <= 128
        assert other.losses == pytest.approx(one.losses, rel=1e-4)
    assert reports[0]["say"] == (
        "out of memory with a micro-batch of 256 rows of 250 tokens, for each of 2 trials; going on with 128 rows and "
        "2 micro-batches a step, the global batch stays the same"
    )


def test_one_row_that_does_not_fit_is_an_error_with_figures(ground: Ground, one_rank: None) -> None:
    workspace = ground.workspace_alone()
    module, row = SupervisedLoss(workspace.model), [long_rows(ground)[0]]
    with pytest.raises(TrainingError) as refused:
        fitting_micro_batch(workspace, module, row, 4, 8, packing=False, reserve=1 << 60, say=str)
    assert str(refused.value).startswith("out of memory with 1 row(s) of 250 tokens a worker at once (peak ")
    assert "--pack" not in str(refused.value)
    with pytest.raises(TrainingError, match=r"of 250 tokens, for each of 3 trials a worker .*; use --pack below 3, "):
        fitting_micro_batch(workspace, module, row, 1, 8, packing=False, reserve=1 << 60, say=str, trials=3)
    assert "--activation-checkpointing all" in str(refused.value) and "--mode lora" in str(refused.value)


def test_another_error_is_not_taken_for_memory(ground: Ground, one_rank: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(dryrun, "collate", broken)
    workspace = ground.workspace_alone()
    with pytest.raises(RuntimeError, match="shapes do not match"):
        fitting_micro_batch(
            workspace, SupervisedLoss(workspace.model), ground.rows, 4, 8, packing=False, reserve=0, say=str
        )


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 4096 bytes"), True),
        (MemoryError(), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, memory: bool) -> None:
    assert is_out_of_memory(error) == memory


@pytest.mark.parametrize(("number", "most", "found"), [(12, 12, 12), (12, 11, 6), (12, 5, 4), (7, 6, 1), (8, 100, 8)])
def test_largest_divisor(number: int, most: int, found: int) -> None:
    assert largest_divisor(number, most) == found
