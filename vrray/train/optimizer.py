"""AdamW as trainings use it: a rate for the region and one for the projector, on a cosine schedule with warm-up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from transformers import get_cosine_schedule_with_warmup

from vrray.specs import Recipe

Kind = TypeVar("Kind", bound=torch.optim.AdamW)


def adamw(kind: type[Kind], region: Sequence[torch.Tensor], projector: Sequence[torch.Tensor], recipe: Recipe) -> Kind:
    """An optimizer of that kind, whose first group is the region where it has parameters."""
    groups: list[dict[str, Any]] = [
        {"params": [*region]},
        {"params": [*projector], "lr": recipe.projector_learning_rate},
    ]
    return kind(
        [group for group in groups if group["params"]],
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        fused=True,
    )


def cosine_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> Any:
    return get_cosine_schedule_with_warmup(optimizer, round(recipe.warmup_ratio * steps), steps)


class ClippedAdamW(torch.optim.AdamW):
    """AdamW that clips and skips what is not finite by itself, as DeepSpeed's optimizers do.

    DeepSpeed uses a plain optimizer as it is under ZeRO stage 0 in float32; it reads `overflow` and the norm.
    """

    clip: float
    overflow: bool = False
    _global_grad_norm: float = 0.0

    def step(self, closure: Any = None) -> Any:
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        self._global_grad_norm = float(nn.utils.clip_grad_norm_(parameters, self.clip))
        self.overflow = not math.isfinite(self._global_grad_norm)
        return None if self.overflow else super().step(closure)


class TrialOptimizer:
    """The optimizer and the schedule of one trial, whole on every rank; float32 masters where it trains in bf16.

    `optimizer` and `lr_scheduler` are named as in DeepSpeed's engine, so that checkpoints take either.
    """

    def __init__(
        self, region: Sequence[nn.Parameter], projector: Sequence[nn.Parameter], recipe: Recipe, steps: int
    ) -> None:
        self._parameters: list[torch.Tensor] = [*region, *projector]
        self.masters: list[torch.Tensor] = [
            p if p.dtype == torch.float32 else nn.Parameter(p.detach().float()) for p in self._parameters
        ]
        count = len(region)
        self.optimizer = adamw(ClippedAdamW, self.masters[:count], self.masters[count:], recipe)
        self.optimizer.clip = recipe.gradient_clip
        self.lr_scheduler = cosine_schedule(self.optimizer, recipe, steps)

    @property
    def rates(self) -> list[float]:
        return [float(rate) for rate in self.lr_scheduler.get_last_lr()]

    def collect(self) -> None:
        """Take the gradients of the parameters, summed over the ranks; zeros where the rows reached none."""
        whole = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        flat = torch.cat([gradient.flatten().float() for gradient in whole])
        dist.all_reduce(flat)
        parts = flat.split([parameter.numel() for parameter in self._parameters])
        for parameter, master, part in zip(self._parameters, self.masters, parts, strict=True):
            parameter.grad = None
            master.grad = part.view_as(master)

    def step(self) -> tuple[float, bool]:
        """Update with the gradients that were collected: their norm before clipping, and whether it was finite."""
        self.optimizer.step()
        applied = not self.optimizer.overflow
        if applied:
            self.lr_scheduler.step()
            with torch.no_grad():
                torch._foreach_copy_(self._parameters, self.masters)
        self.optimizer.zero_grad()
        return self.optimizer._global_grad_norm, applied
