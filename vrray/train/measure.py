"""What a training measures of itself: losses, speed, memory, padding, waiting, the share of the device's peak."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import nn

from vrray.models.loading import decoder_layers
from vrray.train.trainable import Trainable
from vrray.train.workspace import peak_mib

_RECENT = 10
# Dense bf16 tensor-core peaks from the vendor's data sheets, FLOP/s; the first name that a device's name holds counts.
_PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
}


@dataclass
class Totals:
    """Sums over the steps done, over all ranks; seconds are wall time. They travel with a checkpoint.

    Attributes:
        rows, tokens, supervised: what was trained on; tokens without padding.
        slots: positions that the decoder computed, padding included.
        waited: seconds in which rank 0 waited for data.
        skipped: steps skipped because a loss or gradient was not finite.
    """

    seconds: float = 0.0
    rows: int = 0
    tokens: int = 0
    supervised: int = 0
    slots: int = 0
    waited: float = 0.0
    skipped: int = 0


@dataclass
class Meter:
    """Takes in each step, says the metrics of the last one and of all."""

    device: torch.device
    world: int
    steps: int
    flops_per_token: float
    losses: list[float] = field(default_factory=list)
    totals: Totals = field(default_factory=Totals)
    _seconds: list[float] = field(default_factory=list)  # of the steps of this run, without those before a resume

    def take(self, loss: float, step: Totals) -> None:
        """Add one step."""
        self.losses.append(loss)
        self._seconds.append(step.seconds)
        for part in fields(Totals):
            setattr(self.totals, part.name, getattr(self.totals, part.name) + getattr(step, part.name))

    def of_step(self, step: Totals, rates: Sequence[float], gradient_norm: float) -> dict[str, float]:
        """Metrics of the step just taken; `loss_mean` is over the last ten, `peak_mib` since the training began."""
        return {
            "step": float(len(self.losses)),
            "steps": float(self.steps),
            "loss": self.losses[-1],
            "loss_mean": self._recent_loss(),
            "learning_rate": rates[0],
            "projector_learning_rate": rates[-1],
            "gradient_norm": gradient_norm,
            "step_seconds": self._median_seconds(),
            **self._rates(step),
            "skipped": float(self.totals.skipped),
            "peak_mib": peak_mib(self.device),
        }

    def of_training(self) -> dict[str, float]:
        """Metrics of the whole training: rates are means, `step_seconds` the median of the steps after the first."""
        done = self.totals
        return {
            "step": float(len(self.losses)),
            "steps": float(self.steps),
            "loss": self._recent_loss(),
            "step_seconds": self._median_seconds(),
            "train_seconds": done.seconds,
            **self._rates(done),
            "skipped": float(done.skipped),
            "peak_mib": peak_mib(self.device),
            "flops_per_second": self.flops_per_token * done.tokens / done.seconds,
        }

    def state(self) -> dict[str, Any]:
        """For a checkpoint; losses of skipped steps are None, since JSON has no nan."""
        return {"losses": [json_number(loss) for loss in self.losses], "totals": asdict(self.totals)}

    def resume(self, state: dict[str, Any]) -> None:
        self.losses = [math.nan if loss is None else loss for loss in state["losses"]]
        self.totals = Totals(**state["totals"])

    def _rates(self, sums: Totals) -> dict[str, float]:
        """What both a step and a whole training are measured by."""
        peak = self._peak_share(sums.tokens / sums.seconds)
        return {
            "samples_per_second": sums.rows / sums.seconds,
            "tokens_per_second": sums.tokens / sums.seconds,
            "supervised_tokens_per_second": sums.supervised / sums.seconds,
            "waiting_share": sums.waited / sums.seconds,
            "padded_share": 1 - sums.tokens / sums.slots,
            **({} if peak is None else {"model_flop_utilisation": peak}),
        }

    def _recent_loss(self) -> float:
        finite = [loss for loss in self.losses[-_RECENT:] if math.isfinite(loss)]
        return sum(finite) / len(finite) if finite else math.nan

    def _median_seconds(self) -> float:
        return statistics.median(self._seconds[1:] or self._seconds) if self._seconds else 0.0

    def _peak_share(self, tokens_per_second: float) -> float | None:
        peak = device_peak(self.device)
        return None if peak is None else self.flops_per_token * tokens_per_second / (peak * self.world)


def json_number(value: float) -> float | None:
    """The value, or None where JSON has no number for it."""
    return value if math.isfinite(value) else None


def device_peak(device: torch.device) -> float | None:
    """The device's dense bf16 peak in FLOP/s, where it is known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in _PEAKS.items() if part in name), None)


def flops_per_token(model: nn.Module, trainable: Trainable) -> float:
    """Model FLOPs a token: forward and backward through the decoder layers, and the gradients of what trains.

    Attention scores and the head, which sees supervised positions only, are left out: a lower bound.
    """
    layers = sum(parameter.numel() for layer in decoder_layers(model) for parameter in layer.parameters())
    return 4.0 * layers + 2.0 * sum(model.get_parameter(name).numel() for name in trainable.names)
