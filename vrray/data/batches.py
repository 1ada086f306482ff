"""Which rows make up which global batch, which rank takes which of them, and what the model is fed.

The order follows from the rows' lengths, the seed, the epoch and the number of steps: not from the number of workers,
nor from the size of a micro-batch, and a resumed training meets the same batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from vrray.data.rows import Row

_WINDOW = 32  # global batches whose rows are sorted by length together


class FeatureSource(Protocol):
    """Where image features come from: the cache, or the tower itself."""

    @property
    def shape(self) -> tuple[int, int]:
        """`(tokens, width)` of one image."""
        ...

    def stack(self, images: Sequence[str]) -> torch.Tensor:
        """`[images, tokens, width]`, float16."""
        ...


@dataclass(frozen=True)
class Batch:
    """One micro-batch on one rank.

    Attributes:
        input_ids, attention_mask: `[rows, tokens]`, padded on the right; packed: `[1, tokens of all rows]`, no mask.
        position_ids: packed only: `[1, tokens]`, from 0 in each row, which is how attention tells the rows apart.
        features: `[images, image tokens, width]`, in the order of the rows; empty when no row has an image.
        images: how many of these each row has.
        positions: flat indices into `[rows * tokens]` whose hidden state predicts a supervised token.
        targets: the tokens to predict there.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    position_ids: torch.Tensor | None
    features: torch.Tensor
    images: tuple[int, ...]
    positions: torch.Tensor
    targets: torch.Tensor


def global_batches(
    lengths: Sequence[int], global_batch: int, steps: int, seed: int, *, group_by_length: bool = True
) -> Iterator[list[int]]:
    """Yield `steps` lists of `global_batch` row numbers: a fresh permutation every epoch, carried over its end.

    Grouped, the rows of some dozen batches are sorted by length and dealt anew, so that a batch holds rows of about
    one length; these batches then come in random order.

    Raises:
        ValueError: there are no rows.
    """
    if not lengths:
        raise ValueError("no rows to make batches of")
    stream = _permutations(len(lengths), seed)
    start = 0
    while start < steps:
        left = len(lengths) - start * global_batch % len(lengths)
        # Within one epoch, for sorting would put the copies of a row side by side; a batch over its end stays alone.
        count = min(_WINDOW, steps - start, max(1, left // global_batch))
        rows = [next(stream) for _ in range(count * global_batch)]
        order = range(count)
        if group_by_length:
            rows.sort(key=lambda row: lengths[row])  # stable: rows of one length stay in random order
            order = np.random.default_rng([seed, start, 1]).permutation(count).tolist()
        for place in order:
            yield rows[place * global_batch : (place + 1) * global_batch]
        start += count


def rank_share(batch: Sequence[int], lengths: Sequence[int], rank: int, world: int) -> list[int]:
    """The rows of one rank: equally many for each, dealt by length so that ranks carry about the same tokens."""
    by_length = sorted(batch, key=lambda row: (-lengths[row], row))
    share = []
    for start in range(0, len(by_length), world):
        group = by_length[start : start + world]
        reverse = (start // world) % 2 == 1
        share.append((group[::-1] if reverse else group)[rank])
    return share


def collate(
    rows: Sequence[Row], features: FeatureSource, padding_id: int, device: torch.device, *, packing: bool = False
) -> Batch:
    """Pad rows to their longest, or pack them into one sequence, and gather their image features."""
    longest = max(len(row.ids) for row in rows)
    starts = np.cumsum([0, *(len(row.ids) if packing else longest for row in rows)]).tolist()
    ids = torch.full((starts[-1],), padding_id, dtype=torch.long)
    mask = torch.zeros(starts[-1], dtype=torch.long)
    places = torch.zeros(starts[-1], dtype=torch.long)
    positions: list[int] = []
    targets: list[int] = []
    for row, start in zip(rows, starts, strict=False):
        end = start + len(row.ids)
        ids[start:end] = torch.tensor(row.ids)
        mask[start:end] = 1
        places[start:end] = torch.arange(len(row.ids))
        for place in range(1, len(row.ids)):
            if row.supervised[place]:
                positions.append(start + place - 1)
                targets.append(row.ids[place])
    shape = (1, -1) if packing else (len(rows), longest)
    images = [image for row in rows for image in row.images]
    stacked = features.stack(images) if images else torch.zeros((0, *features.shape), dtype=torch.float16)
    return Batch(
        ids.view(shape).to(device),
        None if packing else mask.view(shape).to(device),
        places.view(shape).to(device) if packing else None,
        stacked.to(device),
        tuple(len(row.images) for row in rows),
        torch.tensor(positions, device=device),
        torch.tensor(targets, device=device),
    )


def _permutations(rows: int, seed: int) -> Iterator[int]:
    epoch = 0
    while True:
        yield from np.random.default_rng([seed, epoch]).permutation(rows).tolist()
        epoch += 1
