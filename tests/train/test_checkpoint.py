"""A training that is interrupted goes on from its newest whole checkpoint as if nothing had happened."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from tiny import DEPTH, Ground

from vrray.region import place
from vrray.specs import Recipe
from vrray.store import Store
from vrray.train.checkpoint import KIND
from vrray.train.desk import Paused
from vrray.train.execution import Execution
from vrray.train.loop import Trained, Training, train
from vrray.train.workspace import Workspace

STEPS = 6
FULL = Recipe(
    mode="full",
    learning_rate=3e-3,
    projector_learning_rate=1e-2,
    global_batch=4,
    max_steps=STEPS,
    warmup_ratio=0.2,
    precision="fp32",
)
LORA = FULL.model_copy(update={"mode": "lora", "lora_rank": 4, "lora_alpha": 16, "lora_dropout": 0.3})
PLAIN = Training((), place("1,4", DEPTH), FULL, seed=3, execution=Execution(micro_batch=2, checkpoint_steps=2))
SETTINGS = {
    "zero 3": PLAIN,
    "zero 2": replace(PLAIN, execution=replace(PLAIN.execution, zero=2)),
    "zero 1": replace(PLAIN, execution=replace(PLAIN.execution, zero=1)),
    "zero 0": replace(PLAIN, execution=replace(PLAIN.execution, zero=0)),
    "partitioned": replace(PLAIN, execution=replace(PLAIN.execution, resident=False)),
    "dropout": replace(PLAIN, recipe=LORA),
}


class Interrupted(Exception):
    pass


def until(last: int, end: type[Exception]) -> Any:
    """A report that ends the training on all ranks after a step."""

    def report(metrics: dict[str, Any]) -> None:
        if metrics.get("step") == last:
            raise end

    return report


def interrupt(
    workspace: Workspace, training: Training, key: str, last: int, end: type[Exception] = Interrupted
) -> None:
    with pytest.raises(end):
        train(workspace, training, until(last, end), key)


def go_on(workspace: Workspace, training: Training, key: str) -> tuple[Trained, list[float], list[str]]:
    """The training from where it stands, the steps that it took, and what it said."""
    reports: list[dict[str, Any]] = []
    trained = train(workspace, training, reports.append, key)
    said = [report["say"] for report in reports if "say" in report]
    return trained, [report["step"] for report in reports if "step" in report], said


def steps_kept(store: Store, key: str) -> list[str]:
    return store.names(f"{KIND}/{key}")


def on_two(ground: Ground) -> dict[str, Any]:
    workspace = ground.workspace()
    results: dict[str, Any] = {}
    for name, setting in SETTINGS.items():
        training = replace(setting, rows=ground.rows)
        whole = train(workspace, training, lambda _: None)
        interrupt(workspace, training, name, 5)
        kept = steps_kept(workspace.store, name)
        results[name] = (whole, *go_on(workspace, training, name), kept)
    training = replace(PLAIN, rows=ground.rows)
    interrupt(workspace, training, "torn", 5)
    if workspace.rank == 0:
        workspace.store.delete(f"{KIND}/torn/step-00000004", "rank-1-of-2")
    torch.distributed.barrier()
    results["torn"] = (results["zero 3"][0], *go_on(workspace, training, "torn"), [])
    interrupt(workspace, training, "other world", 4)
    rare = replace(training, execution=replace(training.execution, checkpoint_steps=None))
    interrupt(workspace, rare, "paused", 3, Paused)
    kept = steps_kept(workspace.store, "paused")
    results["paused"] = (results["zero 3"][0], *go_on(workspace, rare, "paused"), kept)
    results["paused at its end"] = (
        results["zero 3"][0],
        train(workspace, rare, until(STEPS, Paused), "late"),
        [],
        [],
        [],
    )
    return results


def on_one(ground: Ground) -> tuple[Trained, list[float], list[str]]:
    """Goes on with one worker where two were."""
    return go_on(ground.workspace(), replace(PLAIN, rows=ground.rows), "other world")


def on_a_full_disk(ground: Ground) -> tuple[Trained, Trained, list[str]]:
    said, workspace, training = heard("vrray.train.checkpoint"), ground.workspace(), replace(PLAIN, rows=ground.rows)
    whole = train(workspace, training, lambda _: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "put", no_space)
        return whole, train(workspace, training, lambda _: None, "full disk"), said


def no_space(*_: object) -> None:
    raise OSError(28, "No space left on device")


def heard(logger: str) -> list[str]:
    """What a logger says from now on."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger(logger).addHandler(handler)
    return said


@pytest.fixture(scope="module")
def place(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """The ground with a store for the checkpoints."""
    return ground.copied(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def both(place: Ground) -> list[dict[str, Any]]:
    return run_ranks(on_two, 2, place)


@pytest.mark.parametrize("name", SETTINGS)
def test_an_interrupted_training_ends_as_an_undisturbed_one(both: list[dict[str, Any]], name: str) -> None:
    for results in both:
        whole, resumed, steps, said, kept = results[name]
        assert steps == [5, 6]
        assert said == ["goes on from the checkpoint after step 4 of 6"]
        assert kept == ["step-00000002", "step-00000004"]
        assert resumed.losses == whole.losses
        assert resumed.tensors.keys() == whole.tensors.keys()
        assert all(torch.equal(resumed.tensors[key], tensor) for key, tensor in whole.tensors.items())


def test_totals_count_the_steps_before_the_interruption(both: list[dict[str, Any]]) -> None:
    whole, resumed, *_ = both[0]["zero 3"]
    assert resumed.metrics["step"] == STEPS
    assert resumed.metrics["padded_share"] == whole.metrics["padded_share"]
    samples = STEPS * FULL.global_batch
    assert resumed.metrics["samples_per_second"] == pytest.approx(samples / resumed.metrics["train_seconds"])


def test_a_paused_training_keeps_the_step_that_it_was_at(both: list[dict[str, Any]]) -> None:
    for results in both:
        whole, resumed, steps, said, kept = results["paused"]
        assert (kept, steps) == (["step-00000003"], [4, 5, 6])
        assert "goes on from the checkpoint after step 3 of 6" in said
        assert resumed.losses == whole.losses
        assert all(torch.equal(tensor, whole.tensors[name]) for name, tensor in resumed.tensors.items())


def test_a_training_that_has_done_its_last_step_is_not_paused(both: list[dict[str, Any]]) -> None:
    for results in both:
        whole, ended, *_ = results["paused at its end"]
        assert ended.losses == whole.losses


def test_a_torn_checkpoint_is_not_seen(both: list[dict[str, Any]]) -> None:
    for results in both:
        whole, resumed, steps, *_ = results["torn"]
        assert steps == [3, 4, 5, 6]  # step 4 lacks a rank, so it went on from step 2
        assert resumed.losses == whole.losses


def test_another_number_of_workers_goes_on_from_the_weights(both: list[dict[str, Any]], place: Ground) -> None:
    whole = both[0]["zero 3"][0]
    ((trained, steps, said),) = run_ranks(on_one, 1, place)
    assert steps == [3, 4, 5, 6] or steps == [5, 6]
    done = STEPS - len(steps)
    assert trained.losses[: done + 1] == pytest.approx(whole.losses[: done + 1], rel=1e-4)
    assert trained.losses[done + 1 :] != whole.losses[done + 1 :]  # the optimizer's moments are gone
    assert trained.losses[-1] < trained.losses[0]
    assert said[0].endswith("; the workers or their layout changed, so the optimizer starts afresh")


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_training(own_ground: Ground) -> None:
    ((whole, trained, said),) = run_ranks(on_a_full_disk, 1, own_ground)
    assert trained.losses == whole.losses
    assert said == ["a checkpoint could not be written, the training goes on: [Errno 28] No space left on device"] * 2


def test_checkpoints_hold_no_pickle(both: list[dict[str, Any]], place: Ground) -> None:
    files = [path for path in Path(place.store, KIND).rglob("*") if path.is_file()]
    assert files and {path.suffix for path in files} == {".safetensors", ".json"}
