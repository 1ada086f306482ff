"""What a worker keeps: features that are mapped stay mapped, and others take their place."""

from __future__ import annotations

import torch
from tiny import IMAGE_TOKENS, TOWER_WIDTH, Ground

from vrray.data.features import CachedFeatures, LiveFeatures


def test_features_that_are_mapped_already_stay(ground: Ground) -> None:
    workspace = ground.workspace_alone()
    first = workspace.features
    workspace.use_cached(list(ground.chunks))
    assert workspace.features is first
    workspace.use_cached(ground.chunks[:1])
    assert workspace.features is not first
    assert len(workspace.features.stack(ground.chunks[0].images)) == len(ground.chunks[0].images)


def test_features_may_be_cached_or_live(ground: Ground) -> None:
    workspace, asked = ground.workspace_alone(), ground.photos[3:5]
    cached = workspace.features.stack(asked)
    workspace.use_live(ground.images, (IMAGE_TOKENS, TOWER_WIDTH))
    assert isinstance(workspace.features, LiveFeatures)
    assert workspace.image_tokens == IMAGE_TOKENS
    torch.testing.assert_close(workspace.features.stack(asked), cached, rtol=1e-3, atol=1e-3)
    workspace.use_cached(ground.chunks)
    assert isinstance(workspace.features, CachedFeatures)
    assert torch.equal(workspace.features.stack(asked), cached)


def test_a_workspace_is_set_up_as_told(ground: Ground, one_rank: None) -> None:
    workspace = ground.workspace()
    assert (workspace.rank, workspace.world, workspace.base) == (0, 1, ground.base)
    assert {parameter.dtype for parameter in workspace.model.parameters()} == {torch.float32}
    assert workspace.model.config.text_config._attn_implementation == "sdpa"
