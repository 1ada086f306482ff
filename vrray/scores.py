"""Layer scores: a number per decoder layer that says how much it matters."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from vrray.models.loading import decoder_layers


@dataclass(frozen=True)
class LayerScores:
    """A score per decoder layer with its standard error over the calibration samples."""

    name: str
    values: tuple[float, ...]
    standard_errors: tuple[float, ...]
    samples: int

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "values": list(self.values),
            "standard_errors": list(self.standard_errors),
            "samples": self.samples,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> LayerScores:
        return cls(data["name"], tuple(data["values"]), tuple(data["standard_errors"]), data["samples"])


class AngularDistance:
    """Angular distance of each decoder layer, `arccos(cos(h_l, h_l+1)) / pi` at the last token (PAPER, Layer scores).

    Use as a context manager around forward passes over left-padded inputs, so that the last position is the last
    token of every row; then `scores()`. Only two sums per layer are kept. Under torch.distributed every rank sees
    its own rows, and `scores()` adds up over all of them.
    """

    def __init__(self, model: nn.Module):
        self._layers = decoder_layers(model)
        self._sums = torch.zeros(len(self._layers), 2, dtype=torch.float64)
        self._samples = 0
        self._handles: list[Any] = []

    def __enter__(self) -> AngularDistance:
        for index, layer in enumerate(self._layers):
            self._handles.append(layer.register_forward_hook(self._observe(index), with_kwargs=True))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def scores(self) -> LayerScores:
        totals = torch.cat([self._sums.flatten(), torch.tensor([self._samples], dtype=torch.float64)])
        if dist.is_initialized():
            totals = _all_reduce(totals)
        n = int(totals[-1].item())
        sums = totals[:-1].reshape(-1, 2)
        means = sums[:, 0] / n
        variances = (sums[:, 1] / n - means**2).clamp(min=0)
        errors = (variances / max(1, n - 1)).sqrt()
        return LayerScores("angular", tuple(means.tolist()), tuple(errors.tolist()), n)

    def _observe(self, index: int) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            entering = args[0] if args else kwargs["hidden_states"]
            leaving = output[0] if isinstance(output, tuple) else output
            distance = angular_distance(entering[:, -1], leaving[:, -1]).double().cpu()
            self._sums[index, 0] += distance.sum()
            self._sums[index, 1] += (distance**2).sum()
            if index == 0:
                self._samples += len(distance)

        return hook


def angular_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`arccos(cosine of a and b) / pi` over the last dimension, in float32."""
    cosine = nn.functional.cosine_similarity(a.float(), b.float(), dim=-1).clamp(-1, 1)
    return torch.arccos(cosine) / math.pi


def least_important_first(scores: LayerScores, candidates: Iterable[int]) -> list[int]:
    """Candidate layers in the order in which to remove them; equal scores go deepest first."""
    return sorted(candidates, key=lambda layer: (scores.values[layer], -layer))


def _all_reduce(totals: torch.Tensor) -> torch.Tensor:
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    moved = totals.to(device)
    dist.all_reduce(moved)
    return moved.cpu()
