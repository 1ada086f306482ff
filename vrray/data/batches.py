"""Which rows make up which global batch, which rank takes which of them, and what the model is fed.

The order depends on the seed and the epoch only: not on the number of workers, nor on the size of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vrray.data.encode import Row
from vrray.data.features import Features


@dataclass(frozen=True)
class Batch:
    """One micro-batch on one rank.

    Attributes:
        input_ids, attention_mask: `[rows, tokens]`, padded on the right.
        features: `[images, image tokens, width]`, in the order of the image rows; empty when no row has an image.
        positions: flat indices into `[rows * tokens]` whose hidden state predicts a supervised token.
        targets: the tokens to predict there.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    features: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor


def global_batches(rows: int, global_batch: int, steps: int, seed: int) -> Iterator[list[int]]:
    """Yield `steps` lists of `global_batch` row numbers: a fresh permutation every epoch, carried over its end."""
    pending: list[int] = []
    epoch = 0
    for _ in range(steps):
        while len(pending) < global_batch:
            pending += np.random.default_rng([seed, epoch]).permutation(rows).tolist()
            epoch += 1
        yield pending[:global_batch]
        pending = pending[global_batch:]


def rank_share(batch: Sequence[int], lengths: Sequence[int], rank: int, world: int) -> list[int]:
    """The rows of one rank: equally many for each, dealt by length so that ranks carry about the same tokens."""
    by_length = sorted(batch, key=lambda row: (-lengths[row], row))
    share = []
    for start in range(0, len(by_length), world):
        group = by_length[start : start + world]
        reverse = (start // world) % 2 == 1
        share.append((group[::-1] if reverse else group)[rank])
    return share


def collate(rows: Sequence[Row], features: Features, padding_id: int, device: torch.device) -> Batch:
    """Pad rows to their longest and gather their image features."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), longest), padding_id, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    positions: list[int] = []
    targets: list[int] = []
    for index, row in enumerate(rows):
        ids[index, : len(row.ids)] = torch.tensor(row.ids)
        mask[index, : len(row.ids)] = 1
        for place in range(1, len(row.ids)):
            if row.supervised[place]:
                positions.append(index * longest + place - 1)
                targets.append(row.ids[place])
    images = [features[row.image] for row in rows if row.image is not None]
    stacked = torch.stack(images) if images else torch.zeros((0, *features.shape), dtype=torch.float16)
    return Batch(
        ids.to(device),
        mask.to(device),
        stacked.to(device),
        torch.tensor(positions, device=device),
        torch.tensor(targets, device=device),
    )
