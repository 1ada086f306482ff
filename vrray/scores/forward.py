"""Reading rows with a model: what the scores share. Padding is on the right.

Shapes: B rows, T tokens of the longest row, H hidden size, S supervised tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from vrray.data.batches import Batch, collate
from vrray.data.rows import Row
from vrray.models.family import family_of, project_features, vocabulary_logits
from vrray.scores.states import Tokens
from vrray.train.workspace import Workspace


def row_batches(rows: Sequence[Row], size: int) -> list[list[int]]:
    """Numbers of rows, in batches of rows of about one length. They depend on the rows only."""
    order = sorted(range(len(rows)), key=lambda number: (len(rows[number].ids), number))
    return [order[start : start + size] for start in range(0, len(order), size)]


def own_batches(workspace: Workspace, rows: Sequence[Row], size: int) -> Iterator[tuple[list[int], Batch]]:
    """This rank's share of the batches: the numbers of their rows, and what the model is fed."""
    for numbers in row_batches(rows, size)[workspace.rank :: workspace.world]:
        chosen = [rows[number] for number in numbers]
        yield numbers, collate(chosen, workspace.features, workspace.padding_id, workspace.device)


def decode(model: Any, batch: Batch) -> torch.Tensor:
    """Hidden states `[B, T, H]` behind the final norm."""
    family = family_of(model.config)
    images = None
    if len(batch.features):
        images = family.encoded(project_features(model, batch.features))
    hidden: torch.Tensor = model.model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        mm_encoder_outputs=images,
        use_cache=False,
        **family.token_inputs(model.config, batch.input_ids),
    ).last_hidden_state
    return hidden


def row_losses(model: Any, batch: Batch, hidden_BTH: torch.Tensor) -> torch.Tensor:
    """`[B]`, float64: each row's mean cross-entropy over its supervised tokens."""
    rows, tokens = batch.input_ids.shape
    hidden_SH = hidden_BTH.flatten(0, 1)[batch.positions]
    logits_SV = vocabulary_logits(model, hidden_SH)
    losses_S = nn.functional.cross_entropy(logits_SV, batch.targets, reduction="none").double()
    owner_S = batch.positions // tokens
    sums = torch.zeros(rows, dtype=torch.float64, device=losses_S.device).index_add_(0, owner_S, losses_S)
    return sums / torch.bincount(owner_S, minlength=rows)


def tokens_of(workspace: Workspace, batch: Batch) -> Tokens:
    """What the tokens of a batch are."""
    assert batch.attention_mask is not None, "rows are packed in training only"
    present, ids = batch.attention_mask.bool(), batch.input_ids
    image = (ids == workspace.model.config.image_token_id) & present
    special = torch.isin(ids, torch.tensor(workspace.processor.tokenizer.all_special_ids, device=ids.device))
    return Tokens(present, present & ~image & ~special, image)
