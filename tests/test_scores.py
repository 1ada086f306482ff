"""Layer scores: angular distances as the definition gives them, whatever the batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import DEPTH

from vrray.models.loading import decoder_layers, load_model
from vrray.scores import AngularDistance, LayerScores, angular_distance, least_important_first

PROMPTS = [[5, 6, 7, 8], [9, 4], [20, 30, 40, 50, 60, 70], [11, 12, 13], [99], [7, 7, 7]]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return load_model(tiny_model)


def observe(model: Any, prompts: Sequence[Sequence[int]], batch: int) -> LayerScores:
    with AngularDistance(model) as distance, torch.inference_mode():
        for start in range(0, len(prompts), batch):
            part = prompts[start : start + batch]
            longest = max(map(len, part))
            ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in part])
            mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in part])
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            model(input_ids=ids, attention_mask=mask, position_ids=positions)
    return distance.scores()


def by_hand(model: Any, prompt: Sequence[int]) -> list[float]:
    """The definition, prompt by prompt; what leaves the last layer is taken before the final norm."""
    raw: list[torch.Tensor] = []
    handle = decoder_layers(model)[-1].register_forward_hook(lambda _, __, output: raw.append(output))
    with torch.inference_mode():
        output = model(input_ids=torch.tensor([list(prompt)]), output_hidden_states=True)
    handle.remove()
    entering = [hidden[0, -1].double() for hidden in output.hidden_states]
    states = [*entering[:-1], raw[0][0, -1].double()]
    assert len(states) == DEPTH + 1
    return [math.acos(float(a @ b / (a.norm() * b.norm()))) / math.pi for a, b in pairwise(states)]


def test_scores_are_the_definition(model: Any) -> None:
    scores = observe(model, PROMPTS, batch=1)
    each = torch.tensor([by_hand(model, prompt) for prompt in PROMPTS])
    assert (scores.name, scores.samples) == ("angular", len(PROMPTS))
    assert scores.values == pytest.approx(each.mean(0).tolist(), abs=1e-5)
    assert scores.standard_errors == pytest.approx((each.std(0) / len(PROMPTS) ** 0.5).tolist(), abs=1e-5)


@pytest.mark.parametrize("batch", [2, 4, 6])
def test_scores_do_not_depend_on_the_batch(model: Any, batch: int) -> None:
    alone, together = observe(model, PROMPTS, 1), observe(model, PROMPTS, batch)
    assert together.values == pytest.approx(alone.values, abs=1e-5)
    assert together.standard_errors == pytest.approx(alone.standard_errors, abs=1e-5)
    assert together.samples == alone.samples


def test_hooks_are_gone_afterwards(model: Any) -> None:
    def hooks() -> list[int]:
        return [len(layer._forward_hooks) for layer in decoder_layers(model)]

    before = hooks()
    with AngularDistance(model):
        assert hooks() == [count + 1 for count in before]
    assert hooks() == before


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [([1, 0], [5, 0], 0), ([1, 0], [0, 2], 0.5), ([1, 1], [-3, -3], 1), ([1, 0], [1, 1], 0.25)],
)
def test_angles(a: list[float], b: list[float], distance: float) -> None:
    found = angular_distance(torch.tensor([a]).float(), torch.tensor([b]).float())
    assert found.tolist() == pytest.approx([distance], abs=1e-3)


def test_the_least_important_come_first() -> None:
    scores = LayerScores("s", (0.3, 0.1, 0.2, 0.1, 0.0), (0.0,) * 5, 4)
    assert least_important_first(scores, range(5)) == [4, 3, 1, 2, 0]
    assert least_important_first(scores, (0, 1, 2)) == [1, 2, 0]


def test_scores_survive_json() -> None:
    scores = LayerScores("s", (0.3, 0.1), (0.01, 0.02), 4)
    assert LayerScores.from_json(scores.to_json()) == scores
