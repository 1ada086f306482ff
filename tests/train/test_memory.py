"""The memory estimate: its parts by hand, and what makes it larger or smaller."""

from __future__ import annotations

from typing import Any

import pytest

from vrray.models.loading import ModelShape
from vrray.region import Region, place
from vrray.specs import Recipe
from vrray.train.memory import MemoryEstimate, choose_residency, estimate_memory, trained_parameters

GIB = 2**30
# LLaVA-1.5-7B: Vicuna-7B, CLIP ViT-L/14 at 336 pixels.
SHAPE = ModelShape(
    depth=32,
    hidden=4096,
    layer=202_383_360,
    linear_widths=4 * 8192 + 3 * 15_104,
    projector=20_979_712,
    tower=303_507_456,
    total=7_063_427_072,
    image_tokens=576,
    tower_width=1024,
)
REGION = place("uniform", 32, 8)
FULL, LORA = Recipe(mode="full"), Recipe(mode="lora", lora_rank=128)


def estimate(recipe: Recipe = FULL, region: Region = REGION, **changes: Any) -> MemoryEstimate:
    options = {"workers": 2, "micro_batch": 4, "tokens": 700, "resident": True, "activation_checkpointing": False}
    return estimate_memory(SHAPE, region, recipe, **(options | changes))


def test_trained_parameters_by_hand() -> None:
    assert trained_parameters(SHAPE, REGION, FULL) == 8 * SHAPE.layer + SHAPE.projector
    adapters = 128 * (4 * (4096 + 4096) + 3 * (4096 + 11_008))
    assert trained_parameters(SHAPE, REGION, LORA) == 8 * adapters + SHAPE.projector
    assert trained_parameters(SHAPE, Region.none(32), FULL) == SHAPE.projector


def test_parts_by_hand() -> None:
    found, trained = estimate(), 8 * SHAPE.layer + SHAPE.projector
    assert found.frozen == 2 * (SHAPE.total - trained)
    assert found.optimizer == 16 * trained // 2
    assert found.total == found.frozen + found.trained + found.optimizer + found.activations + found.overhead
    assert all(part > 0 for part in vars(found).values())
    assert estimate(FULL.model_copy(update={"precision": "fp32"})).frozen == 2 * found.frozen


@pytest.mark.parametrize(
    ("smaller", "larger"),
    [
        (estimate(LORA), estimate(FULL)),
        (estimate(resident=False), estimate(resident=True)),
        (estimate(LORA, resident=False), estimate(LORA, resident=True)),
        (estimate(region=place("uniform", 32, 4)), estimate(region=REGION)),
        (estimate(region=Region.none(32)), estimate(region=place("0", 32))),
        (estimate(workers=4), estimate(workers=2)),
        (estimate(micro_batch=1), estimate(micro_batch=4)),
        (estimate(tokens=100), estimate(tokens=700)),
        (estimate(activation_checkpointing=True), estimate()),
        (estimate(), estimate(FULL.model_copy(update={"precision": "fp32"}))),
    ],
)
def test_what_takes_more(smaller: MemoryEstimate, larger: MemoryEstimate) -> None:
    assert smaller.total < larger.total


def test_partitioned_weights_are_shared_by_the_workers() -> None:
    assert estimate(workers=8, resident=False).frozen == estimate().frozen // 8
    assert estimate(workers=8).frozen == estimate().frozen


@pytest.mark.parametrize(("room", "resident"), [(2.0, True), (1.12, True), (1.1, False), (0.5, False)])
def test_frozen_weights_stay_where_they_fit(room: float, resident: bool) -> None:
    need = estimate()
    found, reason = choose_residency("auto", need, int(room * need.total))
    assert found == resident
    assert f"{need.total / GIB:.1f} GiB" in reason
    assert f"{room * need.total / GIB:.1f} GiB" in reason


def test_residency_as_asked() -> None:
    assert choose_residency("resident", estimate(), 0) == (True, "as asked")
    assert choose_residency("partitioned", estimate(), 10**15) == (False, "as asked")
