"""Steps that are skipped because a loss or a gradient is not finite: named, counted, and too many of them refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from vrray.data.schedule import Step
from vrray.errors import TrainingError


class SkipGuard:
    """Watches for skipped steps; DeepSpeed's optimizers leave weights and moments alone in such a step.

    Args:
        limit: how many may follow one another; a short training may not end on them, so it has less room.
        learning_rate: of the region, for the message.
        say: tells the user something; called on all ranks.
    """

    def __init__(self, limit: int, steps: int, learning_rate: float, say: Callable[[str], None]):
        self._limit = min(limit, (steps - 1) // 2)
        self._learning_rate = learning_rate
        self._say = say
        self._in_a_row = 0

    def passed(self) -> None:
        """A step was applied."""
        self._in_a_row = 0

    def skipped(self, number: int, step: Step, losses: Sequence[torch.Tensor]) -> None:
        """A step was skipped on all ranks: say which rows it was.

        Args:
            losses: of this rank's micro-batches.

        Raises:
            TrainingError: too many steps in a row.
        """
        self._in_a_row += 1
        rows, what = _culprits(step, losses)
        self._say(f"step {number} skipped, {what} not finite; rows {rows}")
        if self._in_a_row > self._limit:
            raise TrainingError(
                f"{what} not finite in {self._in_a_row} steps in a row, up to step {number} with rows {rows}; lower "
                f"the learning rate ({self._learning_rate:g}), or look at these rows. Checkpoints before are intact"
            )


def _culprits(step: Step, losses: Sequence[torch.Tensor]) -> tuple[str, str]:
    """Ids of the rows in micro-batches whose loss is not finite, on any rank; of all rows where only gradients are."""
    bad = [row.id for part, loss in zip(step.micro_batches, losses, strict=True) for row in part if not _finite(loss)]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, bad)
    found = sorted({row for part in everyone for row in part})
    if found:
        return ", ".join(found), "the loss is"
    return ", ".join(row.id for row in step.rows), "gradients are"


def _finite(loss: torch.Tensor) -> bool:
    return math.isfinite(float(loss))
