"""What a worker group does for LoRA trials that share it: the store then holds what it holds after each alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from ranks import run_ranks
from test_work import LORA, RECIPE, site_of
from tiny import DEPTH, Ground

from vrray.region import Region, place
from vrray.store import Store
from vrray.sweep.jobs import FeaturesJob, TrialJob
from vrray.sweep.trial import DELTA, Site, Trial, is_complete
from vrray.sweep.work import run_trial, train_trials
from vrray.train.checkpoint import KIND as CHECKPOINT
from vrray.train.desk import BEGINS, Cancelled, Packable
from vrray.variant import load_delta


def trial(key: str, layers: str, seed: int = 0, **recipe: Any) -> Trial:
    return Trial(key, place(layers, DEPTH), LORA.model_copy(update=recipe), seed, "rows", "start")


TRIALS = (trial("a", "1,4"), trial("b", "0,5", seed=1), trial("c", "2", learning_rate=1e-4))
RECKLESS = trial("r", "3", learning_rate=1e30, projector_learning_rate=1e30, warmup_ratio=0.0)
START = Trial("start", Region.none(DEPTH), RECIPE, 0, "rows", None)


def site_for(ground: Ground) -> Site:
    site = site_of(ground)
    return replace(site, select=(), execution=replace(site.execution, pack=3))


def stop(metrics: dict[str, Any]) -> None:
    if "step" in metrics:
        raise Cancelled


def run(ground: Ground) -> dict[str, Any]:
    workspace, site = ground.workspace(), site_for(ground)
    run_trial(workspace, TrialJob(site, START), lambda _: None)
    alone = [replace(each, key=f"alone-{each.key}") for each in TRIALS]
    for each in alone:
        run_trial(workspace, TrialJob(site, each), lambda _: None)
    jobs = [TrialJob(site, each) for each in (*TRIALS, RECKLESS, replace(TRIALS[0], key="stopped"))]
    heard: list[dict[str, Any]] = []
    failures = train_trials(workspace, jobs, [*([lambda _: None] * 4), stop])
    again = train_trials(workspace, [jobs[0], jobs[1], jobs[3]], [heard.append] * 3)
    return {"failures": failures, "again": (again, heard)}


@pytest.mark.parametrize("world", [1, 2])
def test_packed_trials_leave_in_the_store_what_they_leave_alone(own_ground: Ground, world: int) -> None:
    for found in run_ranks(run, world, own_ground):
        assert found["failures"].keys() == {"r"}
        assert found["failures"]["r"].startswith("TrainingError: ") and "not finite" in found["failures"]["r"]
        assert found["again"] == ({}, [{BEGINS: "r"}])  # one is lacking, which goes on alone
    store, site = Store(own_ground.store), site_for(own_ground)
    assert sorted(store.keys(DELTA)) == ["a", "alone-a", "alone-b", "alone-c", "b", "c", "start"]
    assert store.names(CHECKPOINT) == []
    for each in TRIALS:
        assert is_complete(store, site, each)
        packed, single = (load_delta(store, key) for key in (each.key, f"alone-{each.key}"))
        assert (packed.region, packed.mode, packed.lora_rank) == (single.region, single.mode, single.lora_rank)
        for name, tensor in single.tensors.items():
            torch.testing.assert_close(packed.tensors[name], tensor, rtol=1e-3, atol=2e-4)
        about, other = (store.describe(DELTA, key) for key in (each.key, f"alone-{each.key}"))
        assert about["losses"] == pytest.approx(other["losses"], rel=1e-4)
        assert (about.pop("pack"), about["world"], about["zero"]) == (5, world, 0)
        assert about.keys() == other.keys()


def test_which_trials_pack(ground: Ground) -> None:
    site = site_for(ground)
    first = TrialJob(site, TRIALS[0])
    assert isinstance(first, Packable) and first.room == 3
    assert all(first.packs_with(TrialJob(site, each)) for each in (*TRIALS, RECKLESS))
    others = [
        replace(TRIALS[0], start="other"),
        replace(TRIALS[0], rows="other"),
        replace(TRIALS[0], recipe=RECIPE),
        replace(TRIALS[0], region=Region.none(DEPTH)),
        trial("rank", "1", lora_rank=8),
    ]
    assert not any(first.packs_with(TrialJob(site, each)) for each in others)
    assert not first.packs_with(TrialJob(site.for_one(), TRIALS[1]))
    assert [TrialJob(site, each).room for each in (START, replace(TRIALS[0], recipe=RECIPE))] == [1, 1]
    assert TrialJob(site.for_one(), TRIALS[0]).room == 1
    assert not isinstance(FeaturesJob("f", (), ground.images, (), None), Packable)  # type: ignore[arg-type]
