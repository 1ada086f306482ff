"""Gradient importance and ablation loss: the plain way of computing each gives the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import DEPTH, Ground, build_family, prepare_ground

from vrray.data.batches import collate
from vrray.data.rows import Row
from vrray.models.loading import decoder_layers
from vrray.pruning import pruned
from vrray.region import Region
from vrray.scores.ablation import ablation_losses
from vrray.scores.forward import decode, row_losses
from vrray.scores.gradient import gradient_watch
from vrray.scores.measure import measure
from vrray.train.loss import SupervisedLoss
from vrray.train.workspace import Workspace


def batch_of(workspace: Workspace, rows: list[Row]) -> Any:
    return collate(rows, workspace.features, workspace.padding_id, workspace.device)


@pytest.fixture(params=["llama", "gemma3"], scope="module")
def place(request: pytest.FixtureRequest, ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """Also a decoder whose layers differ in their masks."""
    if request.param == "llama":
        return ground
    folder = tmp_path_factory.mktemp(request.param)
    return prepare_ground(folder, build_family(folder / "model", request.param), photos=3, texts=3)


def test_losses_of_rows_add_up_to_the_training_loss(place: Ground) -> None:
    workspace, rows = place.workspace_alone(), [*place.rows[:2], *place.rows[-3:]]
    batch = batch_of(workspace, rows)
    with torch.inference_mode():
        each = row_losses(workspace.model, batch, decode(workspace.model, batch))
        total = SupervisedLoss(workspace.model)(batch, 1.0)
    counts = torch.tensor([row.supervised_tokens for row in rows])
    assert float((each * counts).sum()) == pytest.approx(float(total), rel=1e-5)


def test_gradient_importance_is_the_sum_over_weights(place: Ground) -> None:
    workspace, row = place.workspace_alone(), place.rows[0]
    model, batch = workspace.model, batch_of(workspace, [row])
    layers = decoder_layers(model)
    for layer in layers:
        layer.requires_grad_(True)
    (SupervisedLoss(model)(batch, 1.0) / row.supervised_tokens).backward()
    expected = [sum(float((p * p.grad).abs().sum()) for p in layer.parameters()) for layer in layers]
    model.zero_grad(set_to_none=True)
    model.requires_grad_(False)
    with gradient_watch(model) as importance:
        found, again = importance(batch), importance(batch)
    with gradient_watch(model, recompute=True) as importance:
        recomputed = importance(batch)
    assert found.tolist() == pytest.approx(expected, rel=1e-4)
    assert recomputed.tolist() == pytest.approx(expected, rel=1e-4)
    assert not any(module.training or getattr(module, "gradient_checkpointing", False) for module in model.modules())
    assert torch.equal(found, again)
    assert min(expected) > 0
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


def test_ablation_is_the_loss_without_the_layer(place: Ground) -> None:
    workspace, rows = place.workspace_alone(), list(place.rows[:6])
    model, batch = workspace.model, batch_of(workspace, rows)
    whole, rises = ablation_losses(model, batch)
    assert rises.shape == (len(rows), DEPTH)
    with torch.inference_mode():
        assert whole.tolist() == pytest.approx(row_losses(model, batch, decode(model, batch)).tolist())
        for layer in range(DEPTH):
            with pruned(model, (layer,), Region.none(DEPTH)):
                without = row_losses(model, batch, decode(model, batch))
            assert (whole + rises[:, layer]).tolist() == pytest.approx(without.tolist(), rel=1e-4), layer
    assert rises.abs().min() > 0


def test_layers_run_as_often_as_shared_prefixes_ask_for(ground: Ground) -> None:
    workspace = ground.workspace_alone()
    batch, runs = batch_of(workspace, list(ground.rows[:2])), [0] * DEPTH

    def count(layer: int) -> Any:
        def hook(*_: Any) -> None:
            runs[layer] += 1

        return hook

    handles = [layer.register_forward_hook(count(index)) for index, layer in enumerate(decoder_layers(workspace.model))]
    ablation_losses(workspace.model, batch)
    for handle in handles:
        handle.remove()
    assert runs == [1 + (index < DEPTH - 1) + index for index in range(DEPTH)]


def test_visual_and_textual_losses_are_apart(ground: Ground, one_rank: None) -> None:
    workspace = ground.workspace_alone()
    rows = [*ground.rows[:3], *ground.rows[-2:]]
    both = measure(workspace, "ablation", rows)
    assert {name: values.shape for name, values in both.items()} == {
        "ablation-visual": (3, DEPTH),
        "ablation-textual": (2, DEPTH),
    }
    assert measure(workspace, "ablation", rows[:3]).keys() == {"ablation-visual"}
    assert both["ablation-visual"] == pytest.approx(
        measure(workspace, "ablation", rows[:3])["ablation-visual"], rel=1e-4
    )


def test_nothing_of_the_model_changes(ground: Ground, one_rank: None, tmp_path: Path) -> None:
    workspace = ground.workspace_alone()
    before = {name: tensor.clone() for name, tensor in workspace.model.state_dict().items()}
    first = measure(workspace, "gradient", ground.rows[:2])["gradient"]
    measure(workspace, "ablation", ground.rows[:2])
    assert np.array_equal(measure(workspace, "gradient", ground.rows[:2])["gradient"], first)
    assert all(torch.equal(tensor, before[name]) for name, tensor in workspace.model.state_dict().items())
