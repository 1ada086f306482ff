"""What a worker sets up once and keeps: the process group, the resident base, the features. A training borrows it."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from vrray.data.chunks import FeatureChunk
from vrray.data.features import Features
from vrray.models.loading import load_model, load_processor
from vrray.store import Store


@dataclass
class Workspace:
    """One rank's share of a worker group."""

    store: Store
    model: Any
    processor: Any
    base: str
    device: torch.device
    rank: int
    world: int
    _features: Features | None = None
    _chunks: tuple[FeatureChunk, ...] = ()

    @classmethod
    def set_up(cls, store_uri: str, model_path: str, base: str, precision: Literal["bf16", "fp32"]) -> Workspace:
        """Load the base onto this worker's device; the process group must be running."""
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        path = Path(model_path)
        model = load_model(path, dtype).to(device)
        return cls(Store(store_uri), model, load_processor(path), base, device, dist.get_rank(), dist.get_world_size())

    def use_features(self, chunks: Sequence[FeatureChunk]) -> None:
        """Map the features of these chunks; what is mapped already stays."""
        if tuple(chunks) != self._chunks:
            if self._features is not None:
                self._features.close()
            self._features, self._chunks = Features(self.store, chunks), tuple(chunks)

    @property
    def features(self) -> Features:
        assert self._features is not None, "use_features comes first"
        return self._features

    @property
    def padding_id(self) -> int:
        return int(self.processor.tokenizer.pad_token_id)

    @property
    def image_tokens(self) -> int:
        return self.features.shape[0]


def forget_peak(device: torch.device) -> None:
    """Let `peak_mib` start anew from what is held now (on a CPU: where the kernel allows it)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_mib(device: torch.device) -> float:
    """The most memory held since `forget_peak`: the device's allocations on a GPU, resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.exists():
        return (
            next(float(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1024
        )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
