"""What a worker sets up once and keeps: the process group, the resident base, the features. A training borrows it."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from vrray.data.features import FeatureChunk, Features
from vrray.models.loading import load_model, load_processor
from vrray.store import Store


@dataclass
class Workspace:
    """One rank's share of a worker group."""

    model: Any
    processor: Any
    features: Features
    base: str
    device: torch.device
    rank: int
    world: int

    @classmethod
    def set_up(
        cls,
        model_path: Path,
        base: str,
        precision: Literal["bf16", "fp32"],
        store: Store,
        chunks: Sequence[FeatureChunk],
    ) -> Workspace:
        """Load the base onto this worker's device; the process group must be running."""
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        model = load_model(model_path, dtype).to(device)
        features = Features(store, chunks)
        return cls(model, load_processor(model_path), features, base, device, dist.get_rank(), dist.get_world_size())

    @property
    def padding_id(self) -> int:
        return int(self.processor.tokenizer.pad_token_id)

    @property
    def image_tokens(self) -> int:
        return self.features.shape[0]


def peak_mib(device: torch.device) -> float:
    """The most memory that this process has held: the device's allocations on a GPU, resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
