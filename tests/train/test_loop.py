"""Real DeepSpeed ZeRO-3 on one and two processes: the same numbers however the work is spread, and a base left alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from ranks import run_ranks
from tiny import DEPTH, Ground

from vrray.data.batches import collate, global_batches, rank_share
from vrray.data.encode import Row
from vrray.errors import TrainingError
from vrray.region import Region, place
from vrray.specs import Recipe
from vrray.train.loop import SupervisedLoss, Trained, Training, train
from vrray.train.workspace import Workspace
from vrray.variant import Delta, applied

STEPS = 5
REGION = place("1,4", DEPTH)
FULL = Recipe(
    mode="full",
    learning_rate=3e-3,
    projector_learning_rate=1e-2,
    global_batch=8,
    max_steps=STEPS,
    warmup_ratio=0.2,
    precision="fp32",
)
LORA = FULL.model_copy(update={"mode": "lora", "lora_rank": 4, "lora_alpha": 16, "lora_dropout": 0.0})
PLAIN = Training((), REGION, FULL, seed=3, micro_batch=4, resident=True)


@dataclass(frozen=True)
class Run:
    """A training as one rank saw it."""

    trained: Trained
    reported: tuple[float, ...]
    base_untouched: bool
    loss_before: float
    loss_after: float


def uneven_rows(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """Two of three rows are text: with batches of 2, a rank's row often has no image, and sometimes no rank's has."""
    return tuple(row for number, row in enumerate(rows) if row.image is None or number % 2)


def run(workspace: Workspace, rows: tuple[Row, ...], training: Training) -> Run:
    before = {name: tensor.clone() for name, tensor in workspace.model.state_dict().items()}
    modules = [(name, type(module), module.training) for name, module in workspace.model.named_modules()]
    reported: list[float] = []
    training = replace(training, rows=training.rows or rows)
    loss_before = whole_loss(workspace, rows)
    trained = train(workspace, training, lambda metrics: reported.append(metrics["step"]), report_every=2)
    untouched = base_is(workspace.model, before) and modules == [
        (name, type(module), module.training) for name, module in workspace.model.named_modules()
    ]
    recipe = training.recipe
    adapted = recipe.mode == "lora" and len(training.region) > 0
    rank, alpha = (recipe.lora_rank, recipe.lora_alpha) if adapted else (0, 0)
    delta = Delta(trained.tensors, training.region, workspace.base, "lora" if adapted else "full", rank, alpha)
    with applied(workspace.model, delta, workspace.base):
        loss_after = whole_loss(workspace, rows)
    return Run(trained, tuple(reported), untouched, loss_before, loss_after)


def base_is(model: Any, before: dict[str, torch.Tensor]) -> bool:
    after = model.state_dict()
    frozen = not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())
    return frozen and list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)


@torch.no_grad()
def whole_loss(workspace: Workspace, rows: tuple[Row, ...]) -> float:
    """Mean loss over all rows, without DeepSpeed."""
    batch = collate(rows, workspace.features, workspace.padding_id, workspace.device)
    return float(SupervisedLoss(workspace.model)(batch, 1 / len(batch.targets)))


def on_one(ground: Ground) -> dict[str, Run]:
    workspace, rows = ground.workspace(), ground.rows
    uneven = replace(PLAIN, rows=uneven_rows(rows), recipe=FULL.model_copy(update={"global_batch": 2}))
    return {
        "plain": run(workspace, rows, replace(PLAIN, micro_batch=8)),
        "uneven": run(workspace, rows, uneven),
    }


def on_two(ground: Ground) -> dict[str, Any]:
    workspace, rows = ground.workspace(), ground.rows
    uneven = replace(PLAIN, rows=uneven_rows(rows), recipe=FULL.model_copy(update={"global_batch": 2}))
    trainings = {
        "plain": PLAIN,
        "again": PLAIN,
        "accumulated": replace(PLAIN, micro_batch=2),
        "partitioned": replace(PLAIN, resident=False),
        "recomputed": replace(PLAIN, activation_checkpointing=True),
        "other seed": replace(PLAIN, seed=4),
        "uneven": uneven,
        "lora": replace(PLAIN, recipe=LORA),
        "lora partitioned": replace(PLAIN, recipe=LORA, resident=False),
        "projector": replace(PLAIN, region=Region.none(DEPTH)),
        "lora without region": replace(PLAIN, region=Region.none(DEPTH), recipe=LORA),
    }
    runs: dict[str, Any] = {}
    import time

    for name, training in trainings.items():
        t = time.time()
        runs[name] = run(workspace, rows, training)
        if workspace.rank == 0:
            print(
                name,
                time.time() - t,
                runs[name].trained.losses,
                runs[name].loss_before,
                runs[name].loss_after,
                runs[name].base_untouched,
                flush=True,
            )
    before = {name: tensor.clone() for name, tensor in workspace.model.state_dict().items()}
    reckless = FULL.model_copy(update={"learning_rate": 1e30, "projector_learning_rate": 1e30, "warmup_ratio": 0.0})
    with pytest.raises(TrainingError) as failure:
        train(workspace, replace(PLAIN, rows=rows, recipe=reckless), lambda _: None)
    runs["failure"] = (str(failure.value), base_is(workspace.model, before))
    runs["after failure"] = run(workspace, rows, PLAIN)
    return runs


if __name__ == "__main__":
    import tempfile, time, sys
    from pathlib import Path
    from tiny import build_tiny, prepare_ground

    p = Path(tempfile.mkdtemp())
    g = prepare_ground(p, build_tiny(p / "m"))
    t = time.time()
    a = run_ranks(on_one, 1, g)
    print(time.time() - t, {k: (v.trained.losses, v.base_untouched) for k, v in a[0].items()})
    t = time.time()
    a = run_ranks(on_two, 2, g)
    print(time.time() - t, a[0]["failure"], a[0]["after failure"].trained.losses)
