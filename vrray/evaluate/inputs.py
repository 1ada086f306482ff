"""What the model is given: rows of tokens as one tensor, and the images in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vrray.models.family import family_of, project_features
from vrray.train.workspace import Workspace


def image_inputs(workspace: Workspace, ids: torch.Tensor, images: Sequence[str]) -> dict[str, Any]:
    """What `forward` takes instead of pixels, for images in the order of their rows `[rows, tokens]`."""
    if not images:
        return {}
    family = family_of(workspace.model.config)
    encoded = family.encoded(project_features(workspace.model, workspace.features.stack(images)))
    return {"mm_encoder_outputs": encoded, **family.token_inputs(workspace.model.config, ids)}


def left_pad(rows: Sequence[Sequence[int]], workspace: Workspace) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids `[rows, longest]` and their attention mask, padded on the left."""
    ids, mask = right_pad([row[::-1] for row in rows], workspace)
    return ids.flip(1), mask.flip(1)


def right_pad(rows: Sequence[Sequence[int]], workspace: Workspace) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids `[rows, longest]` and their attention mask, padded on the right."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), workspace.padding_id, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(list(row))
        mask[index, : len(row)] = 1
    return ids.to(workspace.device), mask.to(workspace.device)
