"""Real DeepSpeed ZeRO-3 on one and two processes: equal numbers however work is spread, and a base left alone."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from ranks import run_ranks
from tiny import DEPTH, Ground

from vrray.data.batches import collate, global_batches, rank_share
from vrray.data.rows import Row
from vrray.data.schedule import Schedule, Step
from vrray.errors import TrainingError
from vrray.region import Region, place
from vrray.specs import Recipe
from vrray.train.execution import RUNG, RUNG_SCORE, Execution
from vrray.train.loop import Trained, Training, train
from vrray.train.loss import SupervisedLoss
from vrray.train.workspace import Workspace
from vrray.variant import Delta, applied

STEPS = 4
REGION = place("1,4", DEPTH)
FULL = Recipe(
    mode="full",
    learning_rate=3e-3,
    projector_learning_rate=1e-2,
    global_batch=8,
    max_steps=STEPS,
    warmup_ratio=0.2,
    precision="fp32",
)
LORA = FULL.model_copy(update={"mode": "lora", "lora_rank": 4, "lora_alpha": 16, "lora_dropout": 0.0})
PLAIN = Training((), REGION, FULL, seed=3, execution=Execution(micro_batch=4))


def how(training: Training, **changes: Any) -> Training:
    """The same training, carried out differently."""
    return replace(training, execution=replace(training.execution, **changes))


@dataclass(frozen=True)
class Run:
    """A training as one rank saw it."""

    trained: Trained
    reported: tuple[float, ...]
    rungs: dict[int, float]
    base_untouched: bool
    loss_before: float
    loss_after: float


def uneven_rows(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """Two of three rows are text: in batches of 2, often one rank has no image, and sometimes neither has."""
    return tuple(row for number, row in enumerate(rows) if not row.images or number % 2)


def run(workspace: Workspace, rows: tuple[Row, ...], training: Training) -> Run:
    before = {name: tensor.clone() for name, tensor in workspace.model.state_dict().items()}
    modules = states(workspace.model)
    reports: list[dict[str, Any]] = []
    training = replace(training, rows=training.rows or rows)
    loss_before = whole_loss(workspace, rows)
    trained = train(workspace, training, reports.append)
    reported = [report.get("step", 0.0) for report in reports if RUNG not in report]
    rungs = {report[RUNG]: report[RUNG_SCORE] for report in reports if RUNG in report}
    untouched = base_is(workspace.model, before) and states(workspace.model) == modules
    recipe = training.recipe
    adapted = recipe.mode == "lora" and len(training.region) > 0
    rank, alpha = (recipe.lora_rank, recipe.lora_alpha) if adapted else (0, 0)
    delta = Delta(trained.tensors, training.region, workspace.base, "lora" if adapted else "full", rank, alpha)
    with applied(workspace.model, delta, workspace.base):
        loss_after = whole_loss(workspace, rows)
    return Run(trained, tuple(reported), rungs, untouched, loss_before, loss_after)


def states(model: Any) -> list[tuple[Any, ...]]:
    """What a training could leave switched on."""
    return [
        (name, type(module), module.training, getattr(module, "gradient_checkpointing", False))
        for name, module in model.named_modules()
    ] + [(name, buffer.dtype, float(buffer.double().sum())) for name, buffer in model.named_buffers()]


def base_is(model: Any, before: dict[str, torch.Tensor]) -> bool:
    after = model.state_dict()
    frozen = not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())
    return frozen and list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)


@torch.no_grad()
def whole_loss(workspace: Workspace, rows: tuple[Row, ...]) -> float:
    """Mean loss over all rows, without DeepSpeed."""
    batch = collate(rows, workspace.features, workspace.padding_id, workspace.device)
    return float(SupervisedLoss(workspace.model)(batch, 1 / len(batch.targets)))


def uneven_training(rows: tuple[Row, ...]) -> Training:
    return replace(PLAIN, rows=uneven_rows(rows), recipe=FULL.model_copy(update={"global_batch": 2}))


def on_one(ground: Ground) -> dict[str, Run]:
    workspace, rows = ground.workspace(), ground.rows
    return {
        "plain": run(workspace, rows, how(PLAIN, micro_batch=8)),
        "asked": run(workspace, rows, replace(how(PLAIN, rungs=(1, STEPS)), asked=rows)),
        "uneven": run(workspace, rows, uneven_training(rows)),
    }


def on_two(ground: Ground) -> dict[str, Any]:
    workspace, rows = ground.workspace(), ground.rows
    uneven, lora = uneven_training(rows), replace(PLAIN, recipe=LORA)
    trainings = {
        "plain": PLAIN,
        "again": PLAIN,
        "accumulated": how(PLAIN, micro_batch=2),
        "partitioned": how(PLAIN, resident=False),
        "zero 0": how(PLAIN, zero=0),
        "zero 1": how(PLAIN, zero=1),
        "zero 2": how(PLAIN, zero=2),
        "packed": how(PLAIN, packing=True),
        "packed, accumulated": how(PLAIN, packing=True, micro_batch=2),
        "recomputed": how(PLAIN, recomputed=DEPTH),
        "half recomputed": how(PLAIN, recomputed=DEPTH // 2),
        "recomputed, partitioned": how(PLAIN, recomputed=DEPTH, resident=False),
        "other seed": replace(PLAIN, seed=4),
        "uneven": uneven,
        "uneven partitioned": how(uneven, resident=False),
        "uneven packed": how(uneven, packing=True),
        "uneven zero 2": how(uneven, zero=2),
        "lora": lora,
        "lora partitioned": how(lora, resident=False),
        "lora zero 2": how(lora, zero=2),
        "lora accumulated": how(lora, micro_batch=2),
        "lora packed": how(lora, packing=True),
        "projector": replace(PLAIN, region=Region.none(DEPTH)),
        "asked": replace(how(PLAIN, rungs=(1, STEPS)), asked=rows),
        "asked, partitioned": replace(how(PLAIN, rungs=(1, STEPS), resident=False), asked=rows),
        "asked, lora": replace(how(lora, rungs=(STEPS,)), asked=rows[:7]),
        "lora without region": replace(PLAIN, region=Region.none(DEPTH), recipe=LORA),
    }
    runs: dict[str, Any] = {name: run(workspace, rows, training) for name, training in trainings.items()}
    before = {name: tensor.clone() for name, tensor in workspace.model.state_dict().items()}
    reckless = FULL.model_copy(update={"learning_rate": 1e30, "projector_learning_rate": 1e30, "warmup_ratio": 0.0})
    with pytest.raises(TrainingError) as failure:
        train(workspace, replace(PLAIN, rows=rows, recipe=reckless), lambda _: None)
    runs["failure"] = (str(failure.value), base_is(workspace.model, before))
    runs["after failure"] = run(workspace, rows, PLAIN)
    workspace.use_live(ground.images, workspace.features.shape)
    live = {"live": PLAIN, "live uneven": uneven, "live uneven partitioned": how(uneven, resident=False)}
    return runs | {name: run(workspace, rows, training) for name, training in live.items()}


def in_bf16(ground: Ground) -> dict[str, Run]:
    workspace, rows = ground.workspace("bf16"), ground.rows
    plain = replace(PLAIN, recipe=FULL.model_copy(update={"precision": "bf16"}))
    trainings = {
        **{f"zero {stage}": how(plain, zero=stage) for stage in (0, 1, 2, 3)},
        "partitioned": how(plain, resident=False),
        "accumulated": how(plain, micro_batch=2),
    }
    return {name: run(workspace, rows, training) for name, training in trainings.items()}


@pytest.fixture(scope="module")
def one(ground: Ground) -> dict[str, Run]:
    return run_ranks(on_one, 1, ground)[0]


@pytest.fixture(scope="module")
def both(ground: Ground) -> list[dict[str, Any]]:
    return run_ranks(on_two, 2, ground)


@pytest.fixture(scope="module")
def two(both: list[dict[str, Any]]) -> dict[str, Any]:
    return both[0]


@pytest.fixture(scope="module")
def bf16(ground: Ground) -> dict[str, Run]:
    return run_ranks(in_bf16, 2, ground)[0]


def plain_steps(ground: Ground) -> list[Step]:
    return list(Schedule(ground.rows, FULL.global_batch, STEPS, PLAIN.seed, True, 0, 2, 4).steps())


def losses(run: Run) -> Any:
    assert len(run.trained.losses) == STEPS
    return pytest.approx(run.trained.losses, rel=1e-4)


def trained_names(region: Region, mode: str) -> set[str]:
    linear = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    linear += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    whole = [f"{name}.weight" for name in [*linear, "input_layernorm", "post_attention_layernorm"]]
    adapters = [f"{name}.{factor}" for name in linear for factor in ("lora_A", "lora_B")]
    projector = {f"model.multi_modal_projector.linear_{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")}
    names = whole if mode == "full" else adapters
    return projector | {f"model.language_model.layers.{layer}.{name}" for layer in region for name in names}


def test_two_workers_equal_one(one: dict[str, Run], two: dict[str, Run]) -> None:
    assert two["plain"].trained.losses == losses(one["plain"])
    for name, tensor in one["plain"].trained.tensors.items():
        torch.testing.assert_close(two["plain"].trained.tensors[name], tensor, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(
    "name",
    [
        "accumulated",
        "partitioned",
        "zero 0",
        "zero 1",
        "zero 2",
        "packed",
        "packed, accumulated",
        "recomputed",
        "half recomputed",
        "recomputed, partitioned",
        "live",
    ],
)
def test_how_a_batch_is_worked_through_does_not_matter(two: dict[str, Run], name: str) -> None:
    rel = 1e-3 if name == "live" else 1e-4  # the same features, of other micro-batches through the tower
    assert two[name].trained.losses == pytest.approx(two["plain"].trained.losses, rel=rel)
    assert two[name].loss_after == pytest.approx(two["plain"].loss_after, rel=1e-3)


@pytest.mark.parametrize("name", ["lora partitioned", "lora zero 2", "lora accumulated", "lora packed"])
def test_how_adapters_are_trained_does_not_matter(two: dict[str, Run], name: str) -> None:
    assert two[name].trained.losses == losses(two["lora"])


@pytest.mark.parametrize("name", ["zero 0", "zero 1", "zero 2", "partitioned", "accumulated"])
def test_settings_agree_to_rounding_in_bf16(bf16: dict[str, Run], name: str) -> None:
    assert bf16[name].trained.losses == pytest.approx(bf16["zero 3"].trained.losses, rel=2e-2)
    assert bf16[name].loss_after == pytest.approx(bf16["zero 3"].loss_after, rel=2e-2)


def test_rotary_frequencies_stay_in_float32(bf16: dict[str, Run]) -> None:
    assert all(run.base_untouched for run in bf16.values())


def test_a_second_training_starts_from_the_same_base(two: dict[str, Run]) -> None:
    first, again = two["plain"].trained, two["again"].trained
    assert again.losses == first.losses
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in first.tensors.items())
    assert two["other seed"].trained.losses != losses(two["plain"])


def test_the_base_is_bit_identical_after_every_training(both: list[dict[str, Any]], one: dict[str, Run]) -> None:
    for runs in (*both, one):
        touched = [name for name, run in runs.items() if isinstance(run, Run) and not run.base_untouched]
        assert touched == []


def test_all_ranks_get_the_same_result(both: list[dict[str, Any]]) -> None:
    for name in ("plain", "partitioned", "lora", "uneven"):
        first, second = (runs[name].trained for runs in both)
        assert first.losses == second.losses
        assert first.tensors.keys() == second.tensors.keys()
        assert all(torch.equal(second.tensors[key], tensor) for key, tensor in first.tensors.items())


@pytest.mark.parametrize(
    ("name", "region", "mode"),
    [
        ("plain", REGION, "full"),
        ("partitioned", REGION, "full"),
        ("lora", REGION, "lora"),
        ("lora partitioned", REGION, "lora"),
        ("projector", Region.none(DEPTH), "full"),
        ("lora without region", Region.none(DEPTH), "full"),
    ],
)
def test_exactly_what_trains_is_returned_and_learns(two: dict[str, Run], name: str, region: Region, mode: str) -> None:
    run = two[name]
    assert run.trained.tensors.keys() == trained_names(region, mode)
    # The delta is applied to the base and scored without DeepSpeed, so names, shapes and values must all be right.
    assert run.loss_after < run.loss_before - 0.01


def test_the_first_loss_is_that_of_the_base(two: dict[str, Run]) -> None:
    assert two["lora"].trained.losses[0] == losses(two["plain"]).expected[0]
    assert two["lora"].trained.tensors["model.language_model.layers.1.mlp.up_proj.lora_B"].any()


def test_ranks_without_images_train_along(ground: Ground, one: dict[str, Run], two: dict[str, Run]) -> None:
    rows = uneven_rows(ground.rows)
    lengths = [len(row.ids) for row in rows]
    assert any(len({not row.images for row in step.rows}) == 2 for step in plain_steps(ground))
    kinds = set()
    for batch in global_batches(lengths, 2, STEPS, PLAIN.seed):
        (first,), (second,) = (rank_share(batch, lengths, rank, 2) for rank in range(2))
        kinds.add((bool(rows[first].images), bool(rows[second].images)))
    assert kinds & {(True, False), (False, True)}  # one rank has an image, the other none
    assert (False, False) in kinds
    for name in ("uneven", "uneven partitioned", "uneven packed", "uneven zero 2"):
        assert two[name].trained.losses == losses(one["uneven"])
    for name in ("live uneven", "live uneven partitioned"):
        assert two[name].trained.losses == pytest.approx(one["uneven"].trained.losses, rel=1e-3)
    assert two["uneven"].loss_after < two["uneven"].loss_before


def test_a_diverging_training_is_an_error_and_leaves_the_base(both: list[dict[str, Any]]) -> None:
    for runs in both:
        message, base_untouched = runs["failure"]
        assert re.match(
            r"(the loss is|gradients are) not finite in \d steps in a row, .* learning rate \(1e\+30\)", message
        )
        assert base_untouched
        assert runs["after failure"].trained.losses == runs["plain"].trained.losses


def test_what_is_reported(two: dict[str, Run]) -> None:
    run = two["plain"]
    assert run.reported == (1.0, 2.0, 3.0, 4.0)
    metrics = run.trained.metrics
    assert (metrics["step"], metrics["steps"]) == (STEPS, STEPS)
    assert metrics["loss"] == pytest.approx(sum(run.trained.losses) / STEPS)
    assert all(value > 0 for name, value in metrics.items() if name not in ("skipped", "padded_share"))
    assert 0 <= metrics["padded_share"] < 0.5
    assert two["packed"].trained.metrics["padded_share"] == 0


def test_answers_are_scored_on_the_way(one: dict[str, Run], two: dict[str, Any], ground: Ground) -> None:
    """What is asked does not change the training, and does not depend on how it is carried out."""
    # Sums are rounded otherwise where memory happens to be aligned otherwise.
    assert one["asked"].trained.losses == pytest.approx(one["plain"].trained.losses, rel=1e-6)
    for name in ("asked", "asked, partitioned"):
        assert two[name].trained.losses == losses(one["plain"])
        assert two[name].rungs == pytest.approx(one["asked"].rungs, rel=1e-4)
    first, last = one["asked"].rungs[1], one["asked"].rungs[STEPS]
    assert last == pytest.approx(math.exp(-one["asked"].loss_after), rel=1e-4)
    assert 0 < first < last < 1
    assert 0 < two["asked, lora"].rungs[STEPS] < 1
    assert two["asked, lora"].trained.losses == pytest.approx(two["lora"].trained.losses, rel=1e-6)
    assert two["plain"].rungs == {}
