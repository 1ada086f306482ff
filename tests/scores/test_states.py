"""Scores of one forward pass: the definitions, row by row, whatever the batch, the padding and the attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import run_ranks
from tiny import DEPTH, IMAGE_TOKENS, Ground, build_family, build_tiny, prepare_ground, text_config
from transformers import Phi3Config, Qwen2Config, SmolLM3Config

from vrray.data.rows import Row
from vrray.models.loading import decoder_layers, load_model
from vrray.scores.measure import Samples, measure
from vrray.scores.states import StateScores, angular_distance
from vrray.train.workspace import Workspace

KINDS = {
    "llama": None,
    "phi3": lambda: text_config(Phi3Config),
    "qwen2": lambda: text_config(Qwen2Config),
    "smollm3": lambda: text_config(SmolLM3Config),
    "internvl": None,
    "gemma3": None,
    "idefics3": None,
    "smolvlm": None,
}


@pytest.fixture(params=list(KINDS), scope="module")
def workspace(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Ground]:
    """Also decoders with fused projections, normed queries, sliding windows or images read in both directions."""
    folder = tmp_path_factory.mktemp(request.param)
    text = KINDS[request.param]
    if request.param == "llama" or text is not None:
        model = build_tiny(folder / "model", text=text() if text else None)
    else:
        model = build_family(folder / "model", request.param)
    ground = prepare_ground(folder, model, photos=4, texts=3)
    return ground.workspace_alone(), ground


def by_hand(workspace: Workspace, row: Row) -> dict[str, np.ndarray[Any, Any]]:
    """The definitions for one prompt, from what transformers itself returns with eager attention."""
    model = workspace.model
    features = workspace.features.stack(row.images) if row.images else None
    config, raw = model.config, []
    before = config.text_config._attn_implementation
    from vrray.models.family import family_of, project_features

    family = family_of(config)
    ids = torch.tensor([row.prompt])
    images = None if features is None else family.encoded(project_features(model, features))
    model.set_attn_implementation({"text_config": "eager"})
    handle = decoder_layers(model)[-1].register_forward_hook(
        lambda _, __, out: raw.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.inference_mode():
        output = model.model(
            input_ids=ids,
            mm_encoder_outputs=images,
            output_hidden_states=True,
            output_attentions=True,
            use_cache=False,
            **family.token_inputs(config, ids),
        )
    handle.remove()
    model.set_attn_implementation({"text_config": before})
    image = ids[0] == config.image_token_id
    special = torch.isin(ids[0], torch.tensor(workspace.processor.tokenizer.all_special_ids))
    text = ~image & ~special
    states = [state[0].double() for state in output.hidden_states]
    cosines = [torch.cosine_similarity(a, b, dim=-1) for a, b in pairwise(states)]
    ends = [state[-1] for state in [*states[:-1], raw[0][0].double()]]
    angles = [math.acos(float(torch.cosine_similarity(a, b, dim=0).clamp(-1, 1))) / math.pi for a, b in pairwise(ends)]
    found = {"angular": angles, "bi": [float(1 - c[text | image].mean()) for c in cosines]}
    if image.any():
        found["multimodal-bi"] = [float(1 - (c[text].mean() + c[image].mean()) / 2) for c in cosines]
        found["attention"] = [float(w[0][:, text][:, :, image].sum(-1).mean()) for w in output.attentions]
    return {name: np.array(values) for name, values in found.items()}


def samples_of(workspace: Workspace, rows: Sequence[Row]) -> Samples:
    return measure(workspace, "states", rows)


def test_the_definitions(workspace: tuple[Workspace, Ground], one_rank: None) -> None:
    space, ground = workspace
    samples = samples_of(space, ground.rows)
    assert {name: len(values) for name, values in samples.items()} == {
        "angular": 7,
        "bi": 7,
        "multimodal-bi": 4,
        "attention": 4,
    }
    for number, row in enumerate(ground.rows):
        for name, values in by_hand(space, row).items():
            assert samples[name][number] == pytest.approx(values, abs=2e-5), (row.id, name)


@pytest.mark.parametrize("size", [1, 3])
def test_batches_do_not_matter(workspace: tuple[Workspace, Ground], size: int, one_rank: None) -> None:
    space, ground = workspace
    together = samples_of(space, ground.rows)
    for name, values in measure(space, "states", ground.rows, batch=size).items():
        assert values == pytest.approx(together[name], abs=2e-5)


def test_rows_in_parts_give_the_same_shares(
    workspace: tuple[Workspace, Ground], one_rank: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    space, ground = workspace
    expected = samples_of(space, ground.rows)["attention"]
    monkeypatch.setattr("vrray.scores.states._MOST", 1)
    assert samples_of(space, ground.rows)["attention"] == pytest.approx(expected, abs=1e-6)


def test_eager_attention_is_watched_too(ground: Ground, one_rank: None) -> None:
    space = ground.workspace_alone()
    expected = samples_of(space, ground.rows)["attention"]
    space.model.set_attn_implementation({"text_config": "eager"})
    assert samples_of(space, ground.rows)["attention"] == pytest.approx(expected, abs=1e-5)


def test_nothing_is_watched_afterwards(tiny_model: Path) -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    model = load_model(tiny_model)
    hooks = [len(layer._forward_hooks) for layer in decoder_layers(model)]
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
    with pytest.raises(RuntimeError, match="interrupted"), StateScores(model):
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is not sdpa
        assert [len(layer._forward_hooks) for layer in decoder_layers(model)] == [count + 1 for count in hooks]
        raise RuntimeError("interrupted")
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa
    assert [len(layer._forward_hooks) for layer in decoder_layers(model)] == hooks


def in_group(ground: Ground) -> dict[str, Samples]:
    workspace = ground.workspace()
    return {name: measure(workspace, name, ground.rows[:9]) for name in ("states", "gradient", "ablation")}


def test_the_number_of_ranks_does_not_matter(ground: Ground, one_rank: None) -> None:
    workspace = ground.workspace_alone()
    alone = {name: measure(workspace, name, ground.rows[:9]) for name in ("states", "gradient", "ablation")}
    for found in run_ranks(in_group, 2, ground):
        for name, samples in found.items():
            assert samples.keys() == alone[name].keys()
            for score, values in samples.items():
                assert values == pytest.approx(alone[name][score], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [([1, 0], [5, 0], 0), ([1, 0], [0, 2], 0.5), ([1, 1], [-3, -3], 1), ([1, 0], [1, 1], 0.25)],
)
def test_angles(a: list[float], b: list[float], distance: float) -> None:
    found = angular_distance(torch.tensor([a]).float(), torch.tensor([b]).float())
    assert found.tolist() == pytest.approx([distance], abs=1e-3)


def test_an_image_is_more_than_one_position(workspace: tuple[Workspace, Ground]) -> None:
    space, ground = workspace
    assert ground.rows[0].prompt.count(space.model.config.image_token_id) == IMAGE_TOKENS
    assert len(decoder_layers(space.model)) == DEPTH
