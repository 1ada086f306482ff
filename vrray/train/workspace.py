"""What a worker sets up once and keeps: the process group, the resident base, the features. A training borrows it."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from vrray.claims import Claims
from vrray.data.chunks import FeatureChunk
from vrray.data.features import CachedFeatures, LiveFeatures
from vrray.data.images import Images
from vrray.models.family import vision_tower
from vrray.models.kernels import choose_attention, fuse_kernels
from vrray.models.loading import load_model, load_processor
from vrray.store import Store
from vrray.train.desk import Setup


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
    template: str = "chat"
    run: str = "a run"
    _features: CachedFeatures | LiveFeatures | None = None
    _source: object = None

    def __post_init__(self) -> None:
        self.claims = Claims(self.store, self.run)

    @classmethod
    def set_up(cls, setup: Setup) -> Workspace:
        """Load the base onto this worker's device; the process group must be running."""
        gpu = torch.cuda.is_available()
        device = torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")
        path, dtype = Path(setup.model_path), torch.bfloat16 if setup.precision == "bf16" else torch.float32
        attention = choose_attention(setup.attention, gpu=gpu, precision=setup.precision)
        model = load_model(path, dtype, attention).to(device)
        if setup.liger:
            fuse_kernels(model, gpu=gpu)
        store, processor = Store(setup.store_uri), load_processor(path)
        group = (device, dist.get_rank(), dist.get_world_size())
        return cls(store, model, processor, setup.base, *group, setup.template, setup.run)

    def use_cached(self, chunks: Sequence[FeatureChunk]) -> None:
        """Map the features of these chunks; what is mapped already stays."""
        if tuple(chunks) != self._source:
            self._take(CachedFeatures(self.store, chunks), tuple(chunks))

    def use_live(self, images: Images, shape: tuple[int, int]) -> None:
        """Compute features from the images when they are asked for."""
        tower, config = vision_tower(self.model), self.model.config
        self._take(LiveFeatures(images, shape, tower, config, self.processor.image_processor), images)

    def _take(self, features: CachedFeatures | LiveFeatures, source: object) -> None:
        if self._features is not None:
            self._features.close()
        self._features, self._source = features, source

    @property
    def features(self) -> CachedFeatures | LiveFeatures:
        assert self._features is not None, "use_cached or use_live comes first"
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
