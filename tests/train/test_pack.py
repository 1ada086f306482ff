"""Trials that train in one pack: each has the losses and the weights that it has alone, to rounding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from ranks import run_ranks
from test_checkpoint import Interrupted, until
from test_loop import base_is, states
from tiny import DEPTH, Ground, build_family, prepare_ground

from vrray.data.rows import Row
from vrray.errors import TrainingError
from vrray.region import place
from vrray.specs import Recipe
from vrray.train.checkpoint import KIND
from vrray.train.desk import Cancelled, Paused
from vrray.train.execution import RUNG, RUNG_SCORE, Execution
from vrray.train.loop import Trained, Training, train
from vrray.train.pack import train_pack
from vrray.train.workspace import Workspace

LORA = Recipe(
    mode="lora",
    learning_rate=3e-3,
    projector_learning_rate=1e-2,
    global_batch=8,
    max_steps=5,
    warmup_ratio=0.2,
    gradient_clip=0.5,
    weight_decay=0.1,
    lora_rank=4,
    lora_alpha=16,
    lora_dropout=0.0,
    precision="fp32",
)
PLAIN = Training((), place("1,4", DEPTH), LORA, seed=3, execution=Execution(micro_batch=4))


def trial(layers: str, seed: int = 3, **recipe: Any) -> Training:
    return replace(PLAIN, region=place(layers, DEPTH), seed=seed, recipe=LORA.model_copy(update=recipe))


# Regions that overlap and such that do not, other seeds, rates, lengths and clips.
TRIALS = (
    PLAIN,
    trial("0,1,2,3,4,5", seed=4, learning_rate=1e-3),
    trial("5", max_steps=3, gradient_clip=100.0),
    trial("1,2", seed=9, weight_decay=0.0),
)


@dataclass(frozen=True)
class Pack:
    """What a rank saw of a pack: by training, its result, the steps and scores that it reported, and the base."""

    outcomes: list[Any]
    steps: list[list[float]]
    rungs: list[dict[int, float]]
    base_untouched: bool


def run_pack(
    workspace: Workspace, rows: Sequence[Row], trainings: Sequence[Training], stop: dict[int, int] | None = None
) -> Pack:
    """Train in one pack.

    Args:
        stop: by training, the step after which nobody wants it any more.
    """
    before = {name: tensor.clone() for name, tensor in workspace.model.state_dict().items()}
    modules = states(workspace.model)
    heard: list[list[dict[str, Any]]] = [[] for _ in trainings]

    def reporter(number: int) -> Any:
        def report(metrics: dict[str, Any]) -> None:
            heard[number].append(metrics)
            if metrics.get("step") == (stop or {}).get(number, -1):
                raise Cancelled

        return report

    given = [replace(training, rows=rows) for training in trainings]
    reports = [reporter(number) for number in range(len(given))]
    outcomes = train_pack(workspace, given, reports, [None] * len(given))
    untouched = base_is(workspace.model, before) and states(workspace.model) == modules
    steps = [[metrics["step"] for metrics in reports if "loss" in metrics] for reports in heard]
    rungs = [{m[RUNG]: m[RUNG_SCORE] for m in reports if RUNG in m} for reports in heard]
    return Pack(outcomes, steps, rungs, untouched)


def alone(workspace: Workspace, rows: Sequence[Row], training: Training) -> tuple[Trained, dict[int, float]]:
    reports: list[dict[str, Any]] = []
    trained = train(workspace, replace(training, rows=rows), reports.append)
    return trained, {report[RUNG]: report[RUNG_SCORE] for report in reports if RUNG in report}


def asked(training: Training, rows: Sequence[Row], *rungs: int) -> Training:
    return replace(training, asked=rows, execution=replace(training.execution, rungs=rungs))


def on_all(ground: Ground) -> dict[str, Any]:
    workspace, rows = ground.workspace(), ground.rows
    uneven = tuple(row for number, row in enumerate(rows) if not row.images or number % 6 == 1)
    few = [replace(training, execution=Execution(micro_batch=1)) for training in TRIALS[:2]]
    recomputed = [replace(t, execution=replace(t.execution, recomputed=DEPTH)) for t in TRIALS]
    reckless = trial("2,3", learning_rate=1e30, projector_learning_rate=1e30, warmup_ratio=0.0)
    return {
        "alone": [alone(workspace, rows, asked(training, rows[:7], 2, 3))[:2] for training in TRIALS],
        "packed": run_pack(workspace, rows, [asked(training, rows[:7], 2, 3) for training in TRIALS]),
        "recomputed": run_pack(workspace, rows, recomputed),
        "stopped": run_pack(workspace, rows, TRIALS, stop={1: 2, 3: 4}),
        "reckless": run_pack(workspace, rows, [TRIALS[0], reckless, TRIALS[3]]),
        "dropout": run_pack(workspace, rows, [trial("1,4", lora_dropout=0.5), trial("5", lora_dropout=0.5)]),
        "alone uneven": [alone(workspace, uneven, training) for training in few],
        "uneven": run_pack(workspace, uneven, few),
    }


@pytest.fixture(scope="module")
def one(ground: Ground) -> dict[str, Any]:
    return run_ranks(on_all, 1, ground)[0]


@pytest.fixture(scope="module")
def two(ground: Ground) -> list[dict[str, Any]]:
    return run_ranks(on_all, 2, ground)


def same(packed: Trained, single: Trained) -> None:
    assert packed.losses == pytest.approx(single.losses, rel=1e-4)
    assert packed.tensors.keys() == single.tensors.keys()
    for name, tensor in single.tensors.items():
        torch.testing.assert_close(packed.tensors[name], tensor, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("kind", ["packed", "recomputed"])
@pytest.mark.parametrize("number", range(len(TRIALS)))
def test_a_packed_trial_is_the_same_as_alone(one: Any, two: Any, world: int, kind: str, number: int) -> None:
    runs = one if world == 1 else two[0]
    single, _ = runs["alone"][number]
    same(runs[kind].outcomes[number], single)
    assert runs[kind].outcomes[number].metrics["steps"] == TRIALS[number].recipe.max_steps
    assert runs[kind].steps[number] == [1.0, 2.0, 3.0, 4.0, 5.0][: TRIALS[number].recipe.max_steps]


def test_the_trials_differ(one: Any) -> None:
    losses = [tuple(outcome.losses) for outcome in one["packed"].outcomes]
    assert len(set(losses)) == len(TRIALS)


def test_all_ranks_get_the_same_result(two: Any) -> None:
    for first, second in zip(*(runs["packed"].outcomes for runs in two), strict=True):
        assert first.losses == second.losses
        assert all(torch.equal(second.tensors[name], tensor) for name, tensor in first.tensors.items())


@pytest.mark.parametrize("world", [1, 2])
def test_answers_are_scored_on_the_way(one: Any, two: Any, world: int) -> None:
    runs = one if world == 1 else two[0]
    for (_, single), packed in zip(runs["alone"], runs["packed"].rungs, strict=True):
        assert packed == pytest.approx(single, rel=1e-4)
        assert packed.keys() == {2, 3}


def test_the_base_is_bit_identical_afterwards(one: Any, two: Any) -> None:
    for runs in (one, *two):
        assert [name for name, run in runs.items() if isinstance(run, Pack) and not run.base_untouched] == []


@pytest.mark.parametrize("world", [1, 2])
def test_a_stopped_trial_leaves_and_the_others_do_not_notice(one: Any, two: Any, world: int) -> None:
    runs = one if world == 1 else two[0]
    outcomes, steps = runs["stopped"].outcomes, runs["stopped"].steps
    assert (outcomes[1], outcomes[3]) == (None, None)
    assert (len(steps[1]), len(steps[3])) == (2, 4)
    for number in (0, 2):
        same(outcomes[number], runs["alone"][number][0])


@pytest.mark.parametrize("world", [1, 2])
def test_a_diverging_trial_fails_alone(one: Any, two: Any, world: int) -> None:
    runs = one if world == 1 else two[0]
    first, failed, last = runs["reckless"].outcomes
    assert isinstance(failed, TrainingError)
    assert "not finite" in str(failed) and "learning rate (1e+30)" in str(failed)
    same(first, runs["alone"][0][0])
    same(last, runs["alone"][3][0])


@pytest.mark.parametrize("world", [1, 2])
def test_micro_batches_of_text_alone(one: Any, two: Any, world: int) -> None:
    runs = one if world == 1 else two[0]
    for packed, (single, _) in zip(runs["uneven"].outcomes, runs["alone uneven"], strict=True):
        same(packed, single)


def test_dropout_is_of_the_adapters_alone(one: Any) -> None:
    """An adapter begins as nothing, so the first loss is the base's; then it depends on what was dropped."""
    plain, dropped = (one[name].outcomes[0].losses for name in ("packed", "dropout"))
    assert dropped[0] == pytest.approx(plain[0], rel=1e-5)
    assert dropped[-1] != pytest.approx(plain[-1], rel=1e-3)


def in_bf16(ground: Ground) -> tuple[list[Trained], list[Any]]:
    workspace, rows = ground.workspace("bf16"), ground.rows
    trials = [replace(t, recipe=t.recipe.model_copy(update={"precision": "bf16"})) for t in TRIALS]
    return [alone(workspace, rows, training)[0] for training in trials], run_pack(workspace, rows, trials).outcomes


def test_in_bf16(ground: Ground) -> None:
    singles, packed = run_ranks(in_bf16, 1, ground)[0]
    for single, together in zip(singles, packed, strict=True):
        assert together.losses == pytest.approx(single.losses, rel=2e-2)
        assert all(tensor.dtype == torch.bfloat16 for tensor in together.tensors.values())


def alone_and_packed(ground: Ground) -> list[tuple[Trained, Trained]]:
    workspace, rows = ground.workspace(), ground.rows
    singles = [alone(workspace, rows, training)[0] for training in TRIALS]
    return list(zip(singles, run_pack(workspace, rows, TRIALS).outcomes, strict=True))


@pytest.mark.parametrize("family", ["internvl", "gemma3", "idefics3"])
def test_other_families(family: str, tmp_path: Any) -> None:
    ground = prepare_ground(tmp_path, build_family(tmp_path / "model", family))
    for single, together in run_ranks(alone_and_packed, 1, ground)[0]:
        same(together, single)


def interrupted(ground: Ground) -> Any:
    """A pack that is killed, then goes on: together, and each trial alone."""
    workspace, rows = ground.workspace(), ground.rows
    trials = [replace(t, rows=rows, execution=replace(t.execution, checkpoint_steps=2)) for t in (TRIALS[0], TRIALS[1])]
    singles = [train(workspace, training, lambda _: None) for training in trials]
    with pytest.raises(Interrupted):
        train_pack(workspace, trials, [until(5, Interrupted), lambda _: None], ["a", "b"])
    kept = [workspace.store.names(f"{KIND}/{key}") for key in "ab"]
    reports: list[list[dict[str, Any]]] = [[], []]
    resumed = train_pack(workspace, trials, [reports[0].append, reports[1].append], ["a", "b"])
    return singles, resumed, reports, kept


@pytest.mark.parametrize("world", [1, 2])
def test_a_pack_goes_on_from_its_checkpoints(own_ground: Ground, world: int) -> None:
    for singles, resumed, reports, kept in run_ranks(interrupted, world, own_ground):
        assert kept == [["step-00000002", "step-00000004"]] * 2
        for single, outcome, said in zip(singles, resumed, reports, strict=True):
            same(outcome, single)
            assert said[0]["say"] == "goes on from the checkpoint after step 4 of 5"
            assert [report["step"] for report in said[1:]] == [5.0]


def paused(ground: Ground) -> Any:
    """A pack of which one trial is paused; then that one goes on alone."""
    workspace, rows = ground.workspace(), ground.rows
    trials = [replace(training, rows=rows) for training in (TRIALS[0], TRIALS[1])]
    singles = [train(workspace, training, lambda _: None) for training in trials]
    first, second = train_pack(workspace, trials, [until(3, Paused), lambda _: None], ["a", "b"])
    kept = workspace.store.names(f"{KIND}/a")
    (after, _) = train_pack(workspace, trials, [lambda _: None] * 2, ["a", None])
    return singles, first, second, kept, after


def test_a_paused_trial_keeps_a_checkpoint_and_the_others_go_on(own_ground: Ground) -> None:
    for singles, first, second, kept, after in run_ranks(paused, 2, own_ground):
        assert first is None and kept == ["step-00000003"]
        same(second, singles[1])
        same(after, singles[0])


def paused_at_a_rung(ground: Ground) -> Any:
    workspace = ground.workspace()
    trials = [replace(asked(training, ground.rows[:4], 2), rows=ground.rows) for training in TRIALS[:2]]
    singles = [train(workspace, training, lambda _: None) for training in trials]

    def report(metrics: dict[str, Any]) -> None:
        if RUNG in metrics:
            raise Paused

    first, second = train_pack(workspace, trials, [report, lambda _: None], ["a", "b"])
    kept = [workspace.store.names(f"{KIND}/{key}") for key in "ab"]
    (after, _) = train_pack(workspace, trials, [lambda _: None] * 2, ["a", None])
    return singles, first, second, kept, after


def test_a_trial_that_is_paused_at_a_rung_keeps_a_checkpoint(own_ground: Ground) -> None:
    for singles, first, second, kept, after in run_ranks(paused_at_a_rung, 2, own_ground):
        assert first is None and kept == [["step-00000002"], []]
        same(second, singles[1])
        same(after, singles[0])


def test_what_can_share_a_base(one_rank: None, ground: Ground) -> None:
    assert LORA.packs_with(LORA.model_copy(update={"learning_rate": 1.0, "max_steps": 9}))
    for name, value in {"mode": "full", "lora_rank": 8, "global_batch": 4, "lora_dropout": 0.5}.items():
        other = LORA.model_copy(update={name: value})
        assert not LORA.packs_with(other) and not other.packs_with(LORA)
    trials = [replace(PLAIN, rows=ground.rows), replace(trial("2", lora_rank=8), rows=ground.rows)]
    with pytest.raises(TrainingError, match="must be LoRA with the same global_batch, lora_rank"):
        train_pack(ground.workspace(), trials, [lambda _: None] * 2, [None] * 2)
