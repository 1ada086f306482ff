"""Steps whose loss is not finite: skipped and named, weights and moments left alone, too many of them refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from ranks import run_ranks
from tiny import DEPTH, Ground

from vrray.data.batches import Batch
from vrray.errors import TrainingError
from vrray.region import place
from vrray.specs import Recipe
from vrray.train import loop
from vrray.train.execution import Execution
from vrray.train.loop import Training, train

STEPS = 8
RECIPE = Recipe(
    mode="full", learning_rate=3e-3, projector_learning_rate=1e-2, global_batch=4, max_steps=STEPS, precision="fp32"
)
TRAINING = Training((), place("1,4", DEPTH), RECIPE, seed=3, execution=Execution(micro_batch=1, max_skipped=2))


@contextmanager
def poisoned(rows: set[str]) -> Iterator[None]:
    """Features of some rows' images are not finite, as a broken image or an overflow gives them."""
    collate = loop.collate

    def spoil(chosen: Any, *arguments: Any, **options: Any) -> Batch:
        batch = collate(chosen, *arguments, **options)
        if any(row.id in rows for row in chosen):
            batch = replace(batch, features=torch.full_like(batch.features, torch.nan))
        return batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "collate", spoil)
        yield


def on_two(ground: Ground) -> dict[str, Any]:
    workspace = ground.workspace()
    results: dict[str, Any] = {}
    for name, execution in {
        "zero 3": TRAINING.execution,
        "zero 2": replace(TRAINING.execution, zero=2),
        "zero 0": replace(TRAINING.execution, zero=0),
        "partitioned": replace(TRAINING.execution, resident=False),
    }.items():
        reports: list[dict[str, Any]] = []
        with poisoned({"0-red.png"}):
            trained = train(workspace, replace(TRAINING, rows=ground.rows, execution=execution), reports.append)
        results[name] = (trained, [report["say"] for report in reports if "say" in report])
    with poisoned({row.id for row in ground.rows if row.images}), pytest.raises(TrainingError) as refused:
        rows = [row for row in ground.rows if row.images]
        train(workspace, replace(TRAINING, rows=rows), lambda _: None)
    return results | {"refused": str(refused.value)}


@pytest.fixture(scope="module")
def two(ground: Ground) -> dict[str, Any]:
    return run_ranks(on_two, 2, ground)[0]


@pytest.mark.parametrize("name", ["zero 3", "zero 2", "zero 0", "partitioned"])
def test_a_bad_row_costs_its_step_only(two: dict[str, Any], name: str) -> None:
    trained, said = two[name]
    finite = [loss == loss for loss in trained.losses]
    skipped = finite.count(False)
    assert 1 <= skipped < STEPS / 2
    assert trained.metrics["skipped"] == skipped
    assert [line.partition(" skipped")[0] for line in said] == [
        f"step {number}" for number, good in enumerate(finite, start=1) if not good
    ]
    assert all(line.endswith("skipped, the loss is not finite; rows 0-red.png") for line in said)
    assert all(tensor.isfinite().all() for tensor in trained.tensors.values())
    assert trained.losses[-1] == pytest.approx(two["zero 3"][0].losses[-1], rel=1e-4)


def test_too_many_in_a_row_end_the_training(two: dict[str, Any]) -> None:
    assert two["refused"].startswith("the loss is not finite in 3 steps in a row, up to step 3 with rows ")
    assert two["refused"].endswith(
        "lower the learning rate (0.003), or look at these rows. Checkpoints before are intact"
    )
