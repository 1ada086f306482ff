"""The memory estimate: its parts by hand, and what makes it larger or smaller."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from vrray.models.loading import ModelShape
from vrray.region import Region, place
from vrray.specs import Recipe
from vrray.train import engine, memory
from vrray.train.memory import (
    MemoryChoice,
    MemoryEstimate,
    choose_memory,
    delta_bytes,
    estimate_memory,
    estimate_pack,
    logits_bytes,
    trained_parameters,
)

GIB = 2**30
ONE = {"workers": 2, "micro_batch": 4, "tokens": 700, "zero": 3, "recomputed": 0}
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
    vocabulary=32_064,
)
REGION = place("uniform", 32, 8)
FULL, LORA = Recipe(mode="full"), Recipe(mode="lora", lora_rank=128)


def estimate(recipe: Recipe = FULL, region: Region = REGION, **changes: Any) -> MemoryEstimate:
    return estimate_memory(SHAPE, region, recipe, **(ONE | {"resident": True} | changes))


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
    assert min(found.frozen, found.trained, found.optimizer, found.activations, found.overhead) > 0
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
        (estimate(recomputed=32), estimate(recomputed=31)),
        (estimate(recomputed=2), estimate()),
        (estimate(zero=3), estimate(zero=0)),
        (estimate(), estimate(FULL.model_copy(update={"precision": "fp32"}))),
    ],
)
def test_what_takes_more(smaller: MemoryEstimate, larger: MemoryEstimate) -> None:
    assert smaller.total < larger.total


def test_partitioned_weights_are_shared_by_the_workers_but_for_the_tower_and_what_is_gathered() -> None:
    gathered = 10**9  # of DeepSpeed's default, the decoder being larger
    shared = estimate().frozen // 2 - SHAPE.tower
    assert estimate(workers=8, resident=False).frozen == 2 * (shared // 8 + SHAPE.tower + gathered)
    assert estimate(workers=8).frozen == estimate().frozen
    small = replace(SHAPE, total=SHAPE.tower + SHAPE.projector + 10**8)
    found = estimate_memory(small, Region.none(32), FULL, **ONE, resident=False)
    assert found.frozen == 2 * (10**8 // 2 + SHAPE.tower + 10**8)


def test_partitioning_spares_nothing_while_the_base_is_whole() -> None:
    """Loading, the dry run and restoring need the whole base: what does not fit so does not fit partitioned either."""
    for recipe in (FULL, LORA):
        for workers in (2, 8, 64):
            found = estimate(recipe, workers=workers, resident=False, recomputed=32, gpu=True)
            assert found.total >= found.whole > 2 * SHAPE.total
            assert not found.fits(2 * SHAPE.total)


@pytest.mark.parametrize("gpu", [False, True])
def test_updated_weights_are_gathered_with_the_old_ones_still_there(gpu: bool) -> None:
    everything, count = place("all", 32), 32 * SHAPE.layer + SHAPE.projector
    found = estimate(region=everything, workers=64, micro_batch=1, tokens=10, gpu=gpu)
    parts = found.frozen + found.trained + found.optimizer + found.overhead
    assert found.total == found.whole == parts + 2 * count - 4 * count // 64  # the float32 gradient is gone by then
    long = estimate(region=everything, workers=64, micro_batch=8, tokens=2048, gpu=gpu)
    assert long.total == parts + long.activations > long.whole  # activations are gone by then
    assert all(estimate(zero=zero).whole == 0 for zero in (0, 1, 2))


def test_only_stage_0_keeps_a_whole_optimizer_on_each_worker() -> None:
    whole = estimate(zero=0).optimizer
    assert whole == 16 * trained_parameters(SHAPE, REGION, FULL)
    assert [estimate(zero=zero).optimizer for zero in (1, 2, 3)] == [whole // 2] * 3
    assert estimate(zero=0, workers=8).optimizer == whole


def test_a_plain_optimizer_has_no_master_weights() -> None:
    full = FULL.model_copy(update={"precision": "fp32"})
    assert estimate(full, zero=0).optimizer == 8 * trained_parameters(SHAPE, REGION, FULL)
    assert estimate(full, zero=1).optimizer == 8 * trained_parameters(SHAPE, REGION, FULL)  # 16, by 2 workers


@pytest.mark.parametrize(
    ("zero", "resident", "of_weights", "of_gradients"),
    [
        (0, True, 1, 1),
        (1, True, 1, 1 + 1 / 8),
        (2, True, 1, 1 / 8),
        (3, True, 1 + 1 / 8, 1 / 8),
        (3, False, 1 / 8, 1 / 8),
    ],
)
def test_what_each_stage_shards(zero: int, resident: bool, of_weights: float, of_gradients: float) -> None:
    """Against DeepSpeed's optimizers, as measured with 2 and 4 workers; buckets are of 200M values."""
    count, bucket = trained_parameters(SHAPE, REGION, FULL), 0 if zero == 0 else 200_000_000
    expected = (of_weights + of_gradients) * count + bucket
    on_gpu, on_cpu = (estimate(zero=zero, resident=resident, workers=8, gpu=gpu).trained for gpu in (True, False))
    overlapped = bucket if zero in (1, 2) else 0
    assert on_gpu == pytest.approx(2 * (expected + overlapped), rel=1e-6)
    assert on_cpu == pytest.approx(2 * (expected + 2 * count), rel=1e-6)  # two copies on the host are the worker's own


def test_the_bucket_is_the_engines() -> None:
    assert memory._LARGEST_BUCKET == engine._LARGEST_BUCKET
    few = estimate(LORA, zero=2, workers=1).trained
    assert few == 2 * 5 * trained_parameters(SHAPE, REGION, LORA)  # fewer than the bucket has room for


def test_adapters_alone_have_gradients_and_an_optimizer() -> None:
    adapters = trained_parameters(SHAPE, REGION, LORA)
    found = estimate(LORA, zero=0, workers=8, gpu=True)
    assert found.frozen == 2 * (SHAPE.total - SHAPE.projector)
    assert (found.trained, found.optimizer) == (2 * 2 * adapters, 16 * adapters)


def test_trials_in_a_pack_share_the_base_alone() -> None:
    def pack(*regions: Region, gpu: bool = True) -> MemoryEstimate:
        return estimate_pack(SHAPE, regions, LORA, micro_batch=4, tokens=700, recomputed=0, gpu=gpu)

    one, large = pack(REGION), pack(place("all", 32))
    assert one == estimate(LORA, zero=0, workers=1, gpu=True)
    both = pack(REGION, place("all", 32))
    assert (both.frozen, both.overhead) == (one.frozen, one.overhead)
    for part in ("trained", "optimizer", "activations"):
        assert getattr(both, part) == getattr(one, part) + getattr(large, part) > 0
    assert pack(*[REGION] * 8).total < 8 * one.total
    assert pack(REGION, gpu=False).total > one.total  # copies on the host are the worker's own


def test_sizes_beside_the_estimate() -> None:
    assert delta_bytes(SHAPE, REGION, LORA) == 2 * trained_parameters(SHAPE, REGION, LORA)
    assert delta_bytes(SHAPE, REGION, FULL.model_copy(update={"precision": "fp32"})) == 4 * (
        8 * SHAPE.layer + SHAPE.projector
    )
    # The scores, their log-softmax and its gradient: as measured, in bf16 and in float32.
    assert logits_bytes(SHAPE, 1000) == 1000 * 32_064 * 3 * 4


def test_a_recomputed_layer_keeps_its_input_only() -> None:
    value = 4 * 700 * 4096 * 2  # bytes of one hidden state of a micro-batch in bf16
    kept = [estimate(recomputed=count).activations // value for count in (0, 1, 2, 8, 9, 32)]
    tuned, frozen = 8 * 26, 24 * 18
    # Tuned layers come first. One layer at a time holds again what it would have kept.
    assert kept == [
        tuned + frozen,
        tuned + frozen + 1,
        tuned + frozen + 2 - 26,
        26 + frozen + 8,
        26 + frozen + 9 - 18,
        26 + 32,
    ]
    assert estimate(LORA).activations // value == 8 * 36 + frozen
    assert estimate(region=Region.none(32), recomputed=32).activations // value == 18 + 32


def gib(frozen: float, activations: float) -> MemoryEstimate:
    return MemoryEstimate(int(frozen * GIB), 0, 0, int(activations * GIB), 0)


def simple(zero: int, resident: bool, recomputed: int) -> MemoryEstimate:
    """12 GiB frozen, 8 GiB of activations in 8 layers; partitioned over 4 workers, a quarter of the weights stays."""
    return gib(12 if resident else 3, 8 - recomputed)


def chosen(available: float, zero: Any = "auto", frozen: Any = "auto", checkpointing: Any = "auto") -> MemoryChoice:
    return choose_memory(zero, frozen, checkpointing, 8, int(available * GIB), simple)


@pytest.mark.parametrize(
    ("available", "resident", "recomputed", "reason"),
    [
        (40, True, 0, "20.0 GiB fit into the 40.0 GiB of a worker"),
        (22.3, True, 0, "20.0 GiB fit into the 22.3 GiB of a worker"),  # nine tenths may be filled
        (22.2, True, 1, "19.0 GiB fit into the 22.2 GiB of a worker"),
        (16, True, 6, "14.0 GiB fit into the 16.0 GiB of a worker"),
        (13.4, True, 8, "12.0 GiB fit into the 13.4 GiB of a worker"),
        (13, False, 0, "resident would take at least 12.0 GiB; 11.0 GiB fit into the 13.0 GiB of a worker"),
        (6, False, 6, "resident would take at least 12.0 GiB; 5.0 GiB fit into the 6.0 GiB of a worker"),
        (
            3,
            False,
            8,
            "resident would take at least 12.0 GiB; 3.0 GiB are asked for and exceed the 3.0 GiB of a worker",
        ),
    ],
)
def test_recomputing_comes_before_partitioning(available: float, resident: bool, recomputed: int, reason: str) -> None:
    found = chosen(available)
    assert (found.zero, found.resident, found.recomputed, found.reason) == (3, resident, recomputed, reason)
    assert found.memory == simple(3, resident, recomputed)


@pytest.mark.parametrize(
    ("settings", "zero", "resident", "recomputed"),
    [
        ({"frozen": "resident"}, 3, True, 8),
        ({"frozen": "partitioned"}, 3, False, 5),
        ({"checkpointing": "off"}, 3, False, 0),
        ({"checkpointing": "all"}, 3, False, 8),
        ({"zero": 0}, 0, True, 8),
        ({"zero": 2}, 2, True, 8),  # lower stages cannot partition
        ({"zero": 3}, 3, False, 5),
        ({"zero": 1, "frozen": "resident", "checkpointing": "off"}, 1, True, 0),
        ({"frozen": "partitioned", "checkpointing": "all"}, 3, False, 8),
    ],
)
def test_settings_that_are_forced(settings: dict[str, Any], zero: int, resident: bool, recomputed: int) -> None:
    found = chosen(7, **settings)
    assert (found.zero, found.resident, found.recomputed) == (zero, resident, recomputed)
    assert found.memory == simple(zero, resident, recomputed)
    assert found.reason.startswith("as asked; ") == ("frozen" in settings)


def test_a_forced_setting_is_kept_where_memory_abounds() -> None:
    found = chosen(1000, frozen="partitioned", checkpointing="all")
    assert (found.resident, found.recomputed) == (False, 8)
    assert found.reason == "as asked; 3.0 GiB fit into the 1000.0 GiB of a worker"


def test_the_choice_for_a_real_model() -> None:
    def of_seven_billion(zero: int, resident: bool, recomputed: int) -> MemoryEstimate:
        return estimate(LORA, zero=zero, resident=resident, recomputed=recomputed, workers=8)

    roomy, tight = (choose_memory("auto", "auto", "auto", 32, room * GIB, of_seven_billion) for room in (80, 24))
    assert (roomy.resident, roomy.recomputed) == (True, 0)
    assert tight.resident and 0 < tight.recomputed < 32
    assert tight.memory.total <= 0.9 * 24 * GIB < of_seven_billion(3, True, tight.recomputed - 1).total
