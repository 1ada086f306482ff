"""The loss: cross-entropy of supervised tokens, the same padded or packed, with and without images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Ground

from vrray.data.batches import Batch, collate
from vrray.data.rows import Row
from vrray.models.loading import load_model
from vrray.train.loss import SupervisedLoss
from vrray.train.workspace import Workspace

# Rows 0 to 11 of the ground have an image, rows 12 to 23 have none; their lengths differ.
KINDS = {"mixed": (13, 0, 17, 14, 5, 2), "images": (1, 4, 2), "texts": (12, 13, 14, 23), "one": (3,)}


@pytest.fixture(scope="module")
def workspace(ground: Ground) -> Workspace:
    return ground.workspace_alone()


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request: pytest.FixtureRequest, tiny_model: Path) -> Any:
    return load_model(tiny_model, attention=request.param)


def batch_of(workspace: Workspace, rows: list[Row], packing: bool) -> Batch:
    return collate(rows, workspace.features, workspace.padding_id, workspace.device, packing=packing)


def loss_and_gradient(model: Any, batch: Batch) -> tuple[float, torch.Tensor]:
    """The loss, and the gradient of the projector (of the head where no row has an image)."""
    watched = model.model.multi_modal_projector.linear_1.weight if len(batch.features) else model.lm_head.weight
    watched.requires_grad_(True)
    try:
        loss = SupervisedLoss(model)(batch, 1.0)
        (gradient,) = torch.autograd.grad(loss, watched)
    finally:
        watched.requires_grad_(False)
    return float(loss.detach()), gradient


@pytest.mark.parametrize("kind", KINDS)
def test_packed_rows_have_the_loss_of_padded_rows(ground: Ground, workspace: Workspace, model: Any, kind: str) -> None:
    rows = [ground.rows[index] for index in KINDS[kind]]
    padded, packed = (batch_of(workspace, rows, packing) for packing in (False, True))
    assert packed.input_ids.numel() == sum(len(row.ids) for row in rows) <= padded.input_ids.numel()
    expected, expected_gradient = loss_and_gradient(model, padded)
    found, gradient = loss_and_gradient(model, packed)
    assert found == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-4)
    if len(rows) > 1:  # rows that see those before them have another loss
        unmarked = replace(packed, position_ids=None)
        assert abs(loss_and_gradient(model, unmarked)[0] - expected) > 1e-3 * expected


def test_the_loss_is_that_of_each_row_alone(ground: Ground, workspace: Workspace, model: Any) -> None:
    rows = [ground.rows[index] for index in KINDS["mixed"]]
    single = [loss_and_gradient(model, batch_of(workspace, [row], False))[0] for row in rows]
    for packing in (False, True):
        assert loss_and_gradient(model, batch_of(workspace, rows, packing))[0] == pytest.approx(sum(single), rel=1e-5)


def test_the_loss_by_hand(ground: Ground, workspace: Workspace, model: Any) -> None:
    row = ground.rows[13]
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
        found = SupervisedLoss(model)(batch_of(workspace, [row], False), 0.5)
    asked = [place for place in range(1, len(row.ids)) if row.supervised[place]]
    expected = -0.5 * sum(float(logits[place - 1, row.ids[place]]) for place in asked)
    assert float(found) == pytest.approx(expected, rel=1e-5)
