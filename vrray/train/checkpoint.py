"""Checkpoints of a training in the store: each rank's shard of what trains, uploaded while the training goes on.

A checkpoint is one artefact a rank, `checkpoint/<training>/step-<n>/rank-<r>-of-<w>`; it is whole once every rank's is
committed, so a torn one is never seen. A shard holds the float32 weights that the rank updates, their AdamW moments
and the rank's random state; rank 0 adds the trained weights by name, which serve any number of workers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from vrray.store import Store
from vrray.train.engine import inner_optimizer, master_weights

KIND = "checkpoint"
_KEPT = 2
_MOMENTS = ("exp_avg", "exp_avg_sq")
_SHARD, _WEIGHTS = "shard.safetensors", "weights.safetensors"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Saved:
    """A checkpoint as one rank reads it.

    Attributes:
        step: optimizer steps done.
        weights: trained weights by parameter name.
        shard: this rank's optimizer and random state; None where it was saved by another layout of workers.
        about: what the loop saved with it (JSON).
    """

    step: int
    weights: dict[str, torch.Tensor]
    shard: dict[str, torch.Tensor] | None
    about: dict[str, Any]


class Checkpoints:
    """The checkpoints of one training.

    Args:
        world: how many ranks hold a shard: the first ones. One is enough where each holds the whole optimizer.
        layout: how the optimizer is sharded; a shard only fits the layout that it was saved with.
    """

    def __init__(self, store: Store, key: str, rank: int, world: int, layout: Mapping[str, Any]):
        self._store, self._key, self._rank, self._world = store, key, rank, world
        self._layout = {"world": world, **layout}
        self._uploads = ThreadPoolExecutor(1, thread_name_prefix="vrray-checkpoint")
        self._pending: Future[None] | None = None

    def newest(self) -> Saved | None:
        """The newest whole checkpoint, the same on every rank; later and torn ones are removed."""
        found: list[Any] = [None]
        if self._rank == 0:
            steps = self._whole()
            found = [max(steps.items()) if steps else None]
            for step in self._steps():
                if step not in steps:
                    self._remove(step)
        dist.broadcast_object_list(found, 0)
        if found[0] is None:
            return None
        step, world = found[0]
        with self._store.open(self._kind(step), _name(0, world)) as folder:
            weights = load_file(folder / _WEIGHTS)
        about = self._store.describe(self._kind(step), _name(0, world))
        shard = None
        if about["layout"] == self._layout:
            with self._store.open(self._kind(step), _name(self._rank % world, world)) as folder:
                shard = load_file(folder / _SHARD)
        return Saved(step, weights, shard, about)

    def save(self, step: int, engine: Any, weights: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> None:
        """Copy this rank's state and upload the copy in the background; waits for the upload before it."""
        self.wait()
        shard = _shard(engine)
        named = {name: tensor.clone().contiguous() for name, tensor in weights.items()} if self._rank == 0 else None
        info = {**about, "layout": self._layout}
        self._pending = self._uploads.submit(self._upload, step, shard, named, info)

    def wait(self) -> None:
        """Wait for the last upload. One that failed is said and left: the training goes on to the next checkpoint."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except Exception as error:  # whatever a file system may raise
            log.warning("a checkpoint could not be written, the training goes on: %s", error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()
        self._uploads.shutdown()

    def _upload(
        self, step: int, shard: dict[str, torch.Tensor], named: dict[str, torch.Tensor] | None, info: dict[str, Any]
    ) -> None:
        def write(folder: Path) -> None:
            save_file(shard, folder / _SHARD)
            if named is not None:
                save_file(named, folder / _WEIGHTS)

        self._store.put(self._kind(step), _name(self._rank, self._world), write, info)
        if self._rank == 0:
            for old in sorted(self._whole())[:-_KEPT]:
                self._remove(old)

    def _steps(self) -> list[int]:
        return [int(name.removeprefix("step-")) for name in self._store.names(f"{KIND}/{self._key}")]

    def _whole(self) -> dict[int, int]:
        """Steps whose every rank is committed, with the number of ranks."""
        whole = {}
        for step in self._steps():
            names = set(self._store.keys(self._kind(step)))
            worlds = {int(name.rpartition("-")[2]) for name in names}
            for world in worlds:
                if names >= {_name(rank, world) for rank in range(world)}:
                    whole[step] = world
        return whole

    def _remove(self, step: int) -> None:
        self._store.delete(f"{KIND}/{self._key}", f"step-{step:08d}")

    def _kind(self, step: int) -> str:
        return f"{KIND}/{self._key}/step-{step:08d}"


def restore(engine: Any, shard: Mapping[str, torch.Tensor]) -> None:
    """Set a fresh engine's optimizer and the random state to what `Checkpoints.save` found."""
    state = inner_optimizer(engine).state
    for index, master in enumerate(master_weights(engine)):
        master.data.copy_(shard[f"{index}.weight"])
        moments = {name: shard[f"{index}.{name}"].to(master.device).view_as(master) for name in _MOMENTS}
        state[master] = {"step": shard[f"{index}.step"].to(master.device), **moments}
    torch.set_rng_state(shard["random"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state(shard["random.cuda"])


def _shard(engine: Any) -> dict[str, torch.Tensor]:
    """A copy of what `restore` needs, on the CPU."""
    state = inner_optimizer(engine).state
    tensors = {}
    for index, master in enumerate(master_weights(engine)):
        moments = state[master]
        tensors[f"{index}.weight"] = master.detach()
        tensors[f"{index}.step"] = torch.as_tensor(moments["step"], dtype=torch.float32)
        tensors |= {f"{index}.{name}": moments[name] for name in _MOMENTS}
    tensors["random"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    return {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def _name(rank: int, world: int) -> str:
    return f"rank-{rank}-of-{world}"
