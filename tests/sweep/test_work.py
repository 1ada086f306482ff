"""What a worker group does for a trial, step after step, and what the store then says about it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import run_ranks
from tiny import DEPTH, Ground

from vrray.claims import Claims
from vrray.data.batches import collate
from vrray.data.tasks import Example, Task, TaskExamples
from vrray.errors import PruningError
from vrray.models.loading import load_model
from vrray.plans import Plan, Pruning, Ranking
from vrray.pruning import pruned
from vrray.region import Region, place
from vrray.scores.table import LayerScores
from vrray.specs import Recipe
from vrray.store import Store
from vrray.sweep.jobs import ScoresJob, TrialJob
from vrray.sweep.trial import (
    DELTA,
    EVALUATION,
    SAMPLES,
    SCORES,
    Evaluating,
    Lacking,
    Measuring,
    Remembering,
    Site,
    Trial,
    evaluation_key,
    healing,
    is_complete,
    next_work,
    plans_of,
    read_scores,
    scores_key,
)
from vrray.sweep.work import agreed
from vrray.train.desk import Deferred
from vrray.train.execution import Execution
from vrray.train.loss import SupervisedLoss
from vrray.variant import Delta, applied, load_delta

REGION = place("1,4", DEPTH)
RECIPE = Recipe(
    mode="full", learning_rate=3e-3, projector_learning_rate=1e-2, global_batch=4, max_steps=2, precision="fp32"
)
LORA = RECIPE.model_copy(update={"mode": "lora", "lora_rank": 4, "lora_alpha": 16, "lora_dropout": 0.0})
CANDIDATES = (0, 2, 3, 5)
ANGULAR = Pruning((Ranking("angular"),), CANDIDATES, (0, 1, 3))


def site_of(ground: Ground) -> Site:
    seen = tuple(Example(f"v{n}", "Which colour?", "red", image) for n, image in enumerate(ground.photos[:4]))
    said = tuple(Example(f"w{n}", f"It is {n} and", "a", options=("a", "b c")) for n in range(3))
    select = (
        TaskExamples(Task("colours", "visual", "exact", ""), "select", seen, 0.25),
        TaskExamples(Task("words", "textual", "choice", ""), "select", said, 0.5),
    )
    execution = Execution(micro_batch=4)
    return Site(ground.base, ground.chunks, ground.images, (), (4, 16), select, "rows", 6, execution)


def run_all(ground: Ground, jobs: list[Any]) -> list[list[dict[str, Any]]]:
    workspace, reports = ground.workspace(), []
    before = {name: tensor.clone() for name, tensor in workspace.model.state_dict().items()}
    for job in jobs:
        reports.append([])
        job.run(workspace, reports[-1].append)
    assert all(torch.equal(tensor, before[name]) for name, tensor in workspace.model.state_dict().items())
    return reports


def evaluated(reports: list[dict[str, Any]]) -> list[int]:
    return [report["evaluated"] for report in reports if "evaluated" in report]


def test_a_trial_is_trained_once_and_pruned_often(own_ground: Ground) -> None:
    site, store = site_of(own_ground), Store(own_ground.store)
    both = replace(ANGULAR, rankings=(Ranking("angular"), Ranking("bi", iterative=True), Ranking("deepest")))
    trial = Trial("whole", REGION, RECIPE, 0, "rows", None, both)
    assert next_work(store, site, trial) is trial
    first, second = run_ranks(run_all, 1, own_ground, [TrialJob(site, trial), TrialJob(site, trial)])[0]
    assert is_complete(store, site, trial)
    assert second == []
    plans = plans_of(store, site, trial)
    assert [(plan.ranking, len(plan.removed)) for plan in plans] == [(None, 0)] + [
        (name, count) for name in ("angular", "bi-iterative", "deepest") for count in (1, 3)
    ]
    assert sorted(set(evaluated(first))) == [0, 1, 3]
    for ranking in ("angular", "bi-iterative", "deepest"):
        one, three = (set(plan.removed) for plan in plans if plan.ranking == ranking)
        assert one < three <= set(CANDIDATES)
    assert plans[-1].removed == (2, 3, 5)
    scores = read_scores(store, site, Measuring("whole", "states"))["angular"]
    assert plans[1].removed == (min(CANDIDATES, key=lambda layer: scores.values[layer]),)
    # Iterative: what goes second and third follows from scores of the model without what went before.
    gone = plans[3].removed
    again = read_scores(store, site, Measuring("whole", "states", gone))["bi"]
    left = [layer for layer in range(DEPTH) if layer not in gone]
    lowest = min(set(CANDIDATES) - set(gone), key=lambda layer: again.values[left.index(layer)])
    assert lowest in plans[4].removed
    one_shot = store.describe(EVALUATION, evaluation_key("whole", (), site.select, False))
    assert (
        store.describe(EVALUATION, evaluation_key("whole", plans[-1].removed, site.select, False))["parameters"]
        < (one_shot["parameters"])
    )


def defers(ground: Ground, job: TrialJob) -> str:
    workspace = ground.workspace()
    with pytest.raises(Deferred) as raised:
        job.run(workspace, lambda _: None)
    return str(raised.value)


def test_a_trial_that_another_run_is_at_is_deferred_on_all_ranks(own_ground: Ground) -> None:
    site, store = site_of(own_ground), Store(own_ground.store)
    trial = Trial("whole", REGION, RECIPE, 0, "rows", None, ANGULAR)
    other = Claims(store, "sweep 'other'")
    assert other.take("whole") is None
    with other.kept("whole"):
        found = run_ranks(defers, 2, own_ground, TrialJob(site, trial))
    assert all(text.startswith("waits for sweep 'other' (process ") for text in found)
    assert not store.has(DELTA, "whole")
    run_ranks(run_all, 1, own_ground, [TrialJob(site, trial)])
    assert is_complete(store, site, trial)
    assert store.names("claim") == []


@pytest.mark.parametrize("recipe", [RECIPE, LORA], ids=["full", "lora"])
def test_healing_trains_the_region_of_what_is_left(own_ground: Ground, recipe: Recipe) -> None:
    site, store = site_of(own_ground), Store(own_ground.store)
    trial = Trial("whole", REGION, recipe, 0, "rows", None, replace(ANGULAR, counts=(0, 2), heal_steps=3))
    run_ranks(run_all, 1, own_ground, [TrialJob(site, trial)])
    assert is_complete(store, site, trial)
    plain, healed = plans_of(store, site, trial)[1:]
    assert (plain.removed, plain.healed, healed.healed) == (healed.removed, False, True)
    of = healing(site, trial, healed.removed)
    about = store.describe(DELTA, of.key)
    assert len(about["losses"]) == 3
    assert store.has(EVALUATION, evaluation_key(of.key, healed.removed, site.select, False))
    before, after = load_delta(store, trial.key), load_delta(store, of.key)
    assert after.region == REGION
    # Loaded on the whole base, it gives the loss that the healing began to lower.
    workspace = own_ground.workspace_alone()
    losses = [heal_loss(workspace, own_ground, delta, healed.removed) for delta in (before, after)]
    assert losses[1] < losses[0]
    assert about["losses"][0] == pytest.approx(losses[0], rel=0.2)
    with applied(workspace.model, after, own_ground.base):
        moved = {
            name
            for name, tensor in load_model(Path(own_ground.model)).state_dict().items()
            if not torch.equal(tensor, workspace.model.state_dict()[name])
        }
    assert {name.split("layers.")[1][0] for name in moved if "language_model.layers" in name} == {"1", "4"}


def heal_loss(workspace: Any, ground: Ground, delta: Delta, removed: tuple[int, ...]) -> float:
    batch = collate(ground.rows, workspace.features, workspace.padding_id, workspace.device)
    gone = pruned(workspace.model, removed, Region.none(DEPTH))
    with applied(workspace.model, delta, ground.base), gone, torch.inference_mode():
        return float(SupervisedLoss(workspace.model)(batch, 1.0)) / len(batch.targets)


def test_a_removed_layer_of_the_region_stays_as_it_was(own_ground: Ground) -> None:
    site, store = site_of(own_ground), Store(own_ground.store)
    pruning = Pruning((Ranking("deepest"),), (4, 5), (0, 2), heal_steps=2)
    trial = Trial("whole", REGION, LORA, 0, "rows", None, pruning)
    run_ranks(run_all, 1, own_ground, [TrialJob(site, trial)])
    healed = plans_of(store, site, trial)[-1]
    assert healed == Plan("deepest", (4, 5), healed=True)
    before, after = load_delta(store, trial.key), load_delta(store, healing(site, trial, (4, 5)).key)
    workspace = own_ground.workspace_alone()
    with applied(workspace.model, before, own_ground.base):
        tuned = {name: tensor.clone() for name, tensor in workspace.model.state_dict().items()}
    with applied(workspace.model, after, own_ground.base):
        now = workspace.model.state_dict()
        assert all(torch.allclose(now[name], tuned[name]) for name in now if ".layers.4." in name)
        assert not all(torch.equal(now[name], tuned[name]) for name in now if ".layers.1." in name)


def test_healing_without_a_tuned_layer_left_trains_the_projector(own_ground: Ground) -> None:
    site, store = site_of(own_ground), Store(own_ground.store)
    pruning = Pruning((Ranking("deepest"),), (4,), (0, 1), heal_steps=1)
    trial = Trial("whole", place("4", DEPTH), RECIPE, 0, "rows", None, pruning)
    run_ranks(run_all, 1, own_ground, [TrialJob(site, trial)])
    before, after = load_delta(store, "whole"), load_delta(store, healing(site, trial, (4,)).key)
    same = {name for name in before.tensors if torch.equal(before.tensors[name], after.tensors[name])}
    assert same == {name for name in before.tensors if ".layers.4." in name}
    assert set(after.tensors) == set(before.tensors)


def ask_apart(ground: Ground) -> list[Any]:
    """Ranks of which only the first finds something, or meets an error."""
    workspace, met = ground.workspace(), []
    met.append(agreed(workspace, lambda: workspace.rank == 0))
    try:
        agreed(workspace, lambda: refuse(workspace.rank))
    except PruningError as error:
        met.append(str(error))
    return met


def refuse(rank: int) -> None:
    if rank == 0:
        raise PruningError("not these")


def test_ranks_do_what_the_first_one_finds(ground: Ground) -> None:
    assert run_ranks(ask_apart, 2, ground) == [[True, "not these"]] * 2


def test_scores_of_a_delta_and_of_the_base(own_ground: Ground) -> None:
    site, store = site_of(own_ground), Store(own_ground.store)
    site = replace(site, calibration=4)  # photos only: the textual loss is that of the textual task
    trial = Trial("whole", REGION, RECIPE, 0, "rows", None)
    tuned = tuple(Measuring("whole", name) for name in ("states", "gradient", "ablation", "change"))
    base = (Measuring(None, "states"),)
    run_ranks(both, 1, own_ground, site, trial, (*tuned, *base))
    change = read_scores(store, site, tuned[3])["change"]
    assert [layer for layer, value in enumerate(change.values) if value > 0] == list(REGION)
    assert (change.samples, set(change.standard_errors)) == (0, {0.0})
    ablation = read_scores(store, site, tuned[2])
    assert {name: scores.samples for name, scores in ablation.items()} == {"ablation-visual": 4, "ablation-textual": 3}
    assert read_scores(store, site, base[0])["bi"].values != read_scores(store, site, tuned[0])["bi"].values
    with store.open(SCORES, scores_key(site, tuned[1])) as folder, np.load(folder / SAMPLES) as samples:
        assert LayerScores.of_samples("gradient", samples["gradient"]) == read_scores(store, site, tuned[1])["gradient"]


def both(ground: Ground, site: Site, trial: Trial, works: tuple[Measuring, ...]) -> None:
    run_all(ground, [TrialJob(site, trial), ScoresJob("scores", site, works)])


# From here on nothing is trained: the store is filled by hand.


@pytest.fixture
def site(ground: Ground) -> Site:
    return site_of(ground)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def put_scores(store: Store, site: Site, work: Measuring, **values: tuple[float, ...]) -> None:
    scores = {n.replace("_", "-"): LayerScores(n, v, (0.0,) * len(v), 4).to_json() for n, v in values.items()}
    store.put(SCORES, scores_key(site, work), lambda folder: None, {"scores": scores})


def put_evaluation(store: Store, site: Site, removed: tuple[int, ...], score: float, *, blind: bool = False) -> None:
    key = evaluation_key("t", removed, site.select, blind)
    store.put(EVALUATION, key, lambda folder: None, {"score_visual": score, "score_textual": None})


def trial_of(pruning: Pruning) -> Trial:
    return Trial("t", REGION, RECIPE, 0, "rows", None, pruning)


def test_what_is_next_follows_from_the_store(store: Store, site: Site) -> None:
    trial = trial_of(ANGULAR)
    assert next_work(store, site, trial) is trial
    store.put(DELTA, "t", lambda folder: None)
    assert next_work(store, site, trial) == Measuring("t", "states")
    put_scores(store, site, Measuring("t", "states"), angular=(0.1, 0.0, 0.5, 0.2, 0.0, 0.3))
    for removed in [(), (0,), (0, 3, 5)]:
        assert next_work(store, site, trial) == Evaluating("t", removed)
        put_evaluation(store, site, removed, 0.5)
    assert next_work(store, site, trial) == Evaluating("t", (), blind=True)
    put_evaluation(store, site, (), 0.1, blind=True)
    assert is_complete(store, site, trial)


def test_what_was_found_is_not_looked_up_again(store: Store, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    lookups: Counter[tuple[str, str, str]] = Counter()

    def counted(method: Any) -> Any:
        def call(self: Store, kind: str, key: str) -> Any:
            lookups[method.__name__, kind, key] += 1
            return method(self, kind, key)

        return call

    store.put(DELTA, "t", lambda folder: None)
    put_scores(store, site, Measuring("t", "states"), angular=(0.1, 0.0, 0.5, 0.2, 0.0, 0.3))
    for method in (Store.has, Store.describe):
        monkeypatch.setattr(Store, method.__name__, counted(method))
    known, trial = Remembering(store), trial_of(ANGULAR)
    for removed in [(), (0,), (0, 3, 5)]:
        assert next_work(known, site, trial) == Evaluating("t", removed)
        put_evaluation(store, site, removed, 0.5)
    assert next_work(known, site, trial) == Evaluating("t", (), blind=True)
    assert all(times <= 3 for times in lookups.values())  # lacking, by who puts it, and found
    assert lookups["has", DELTA, "t"] == lookups["describe", SCORES, scores_key(site, Measuring("t", "states"))] == 1


def test_without_tasks_a_trial_is_a_training(store: Store, site: Site) -> None:
    site, trial = replace(site, select=()), trial_of(ANGULAR)
    store.put(DELTA, "t", lambda folder: None)
    assert is_complete(store, site, trial)


@pytest.mark.parametrize(("share", "probed", "most"), [(0.9, [2, 3], 2), (0.7, [2, 3, 4], 3), (0.99, [1, 2], 0)])
def test_a_share_of_the_score_is_found_by_halving(
    store: Store, site: Site, share: float, probed: list[int], most: int
) -> None:
    order, scores = (0, 3, 5, 2), {0: 0.8, 1: 0.78, 2: 0.74, 3: 0.6, 4: 0.2}
    trial = trial_of(Pruning((Ranking("angular"),), CANDIDATES, (0,), (share,)))
    store.put(DELTA, "t", lambda folder: None)
    put_scores(store, site, Measuring("t", "states"), angular=(0.1, 0.0, 0.5, 0.2, 0.0, 0.3))
    while isinstance(work := next_work(store, site, trial), Evaluating):
        put_evaluation(store, site, work.removed, scores[len(work.removed)], blind=work.blind)
    assert work is None
    counts = [len(plan.removed) for plan in plans_of(store, site, trial)]
    assert counts == [0, *probed]
    assert all(plan.removed == tuple(sorted(order[: len(plan.removed)])) for plan in plans_of(store, site, trial))
    assert max([0, *(n for n in probed if scores[n] >= share * 0.8)]) == most


def test_a_score_that_the_data_does_not_give_is_refused(store: Store, site: Site) -> None:
    trial = trial_of(Pruning((Ranking("attention"),), CANDIDATES, (0, 1)))
    store.put(DELTA, "t", lambda folder: None)
    put_scores(store, site, Measuring("t", "states"), angular=(0.0,) * DEPTH)
    with pytest.raises(PruningError, match="ranking attention: score attention needs calibration rows with images"):
        next_work(store, site, trial)


def test_what_is_lacking_is_said(store: Store, site: Site) -> None:
    with pytest.raises(Lacking) as lacking:
        plans_of(store, site, trial_of(ANGULAR))
    assert lacking.value.work == Measuring("t", "states")


@pytest.mark.parametrize(
    "other",
    [
        Measuring("u", "states"),
        Measuring(None, "states"),
        Measuring("t", "gradient"),
        Measuring("t", "states", (1,)),
    ],
)
def test_keys_of_scores_differ(site: Site, other: Measuring) -> None:
    assert scores_key(site, other) != scores_key(site, Measuring("t", "states"))
    assert scores_key(replace(site, calibration=5), other) != scores_key(site, other)
    assert scores_key(replace(site, calibration_key="more"), other) != scores_key(site, other)


def test_changed_weights_do_not_depend_on_rows(site: Site) -> None:
    change = Measuring("t", "change")
    assert scores_key(replace(site, calibration=5, calibration_key="more"), change) == scores_key(site, change)
