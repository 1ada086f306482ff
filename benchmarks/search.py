"""Searches over layer subsets with one budget of trials on surrogate objectives: by model, by chance, by Optuna's TPE.

python -m benchmarks.search [--seeds 20] [--trials 32] [--shapes 30:8] [--noise 0.7] [--peers]

Nothing is trained. An objective gives every subset of k of L layers a true score; a trial sees it with noise, and a
search is judged by the true score of the trial that looked best, as a sweep would choose it: 0 is the mean random
subset, 1 the best one that hill climbing finds. A seed draws objective, noise and search. Noise is in standard
deviations of the scores of random subsets. Prints Markdown: medians over the seeds with quartiles, and how often a
search chose better than random subsets after the same starts (a tie counts half).
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import optuna
from ray.tune.schedulers import ASHAScheduler

from benchmarks.surrogates import OBJECTIVES, Objective
from vrray.region import place
from vrray.sweep.subset_model import SubsetSpace
from vrray.sweep.subsets import SCORE, SubsetSearch
from vrray.train.execution import RUNG, RUNG_SCORE

Layers = tuple[int, ...]
PLACEMENTS = ("uniform", "bottom", "lower-middle", "upper-middle", "top", "hybrid")
STEPS, RUNGS = 40, (10, 20)
BASELINE = "random, after the starts"


@dataclass(frozen=True)
class Chosen:
    """The true scores of the subsets chosen after half the trials and after all, and the share of steps trained."""

    half: float
    all: float
    share: float


class Search(Protocol):
    def ask(self) -> Layers: ...

    def tell(self, rungs: Sequence[float], score: float) -> float:
        """Take in the scores of the trial asked for last; the share of its steps that it trained, 1 if to the end."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--trials", type=int, default=32, help="half of them are reported too")
    parser.add_argument("--shapes", nargs="+", default=["30:8"], help="decoder layers and layers chosen, such as 32:8")
    parser.add_argument("--noise", type=float, default=0.7)
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--peers", action="store_true", help="Optuna's TPE, and searches without starts, too")
    options = parser.parse_args()
    names = [name for name in SEARCHES if options.peers or name not in PEERS]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for shape in options.shapes:
            depth, count = map(int, shape.split(":"))
            for kind in options.objectives:
                compare = partial(_compare, kind, depth, count, options.trials, options.noise, names)
                print(f"\n### {count} of {depth} layers: {OBJECTIVES[kind].__doc__}\n")
                _table(list(pool.map(compare, range(options.seeds))), options.trials)


def _table(runs: Sequence[dict[str, Chosen]], trials: int) -> None:
    print(f"| search | {trials // 2} trials | {trials} trials | beats random | share of steps |")
    print("| --- | --- | --- | --- | --- |")
    for name in runs[0]:
        half, end = (_spread([getattr(run[name], field) for run in runs]) for field in ("half", "all"))
        margins = [run[name].all - run[BASELINE].all for run in runs]
        wins = sum((margin > 0) + (margin == 0) / 2 for margin in margins)
        share = statistics.mean(run[name].share for run in runs)
        won = "" if name == BASELINE else f"{wins:g} of {len(runs)}"
        print(f"| {name} | {half} | {end} | {won} | {share:.2f} |", flush=True)


def _spread(values: Sequence[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def _compare(
    kind: str, depth: int, count: int, trials: int, noise: float, names: Sequence[str], seed: int
) -> dict[str, Chosen]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    objective = OBJECTIVES[kind](depth, count, seed)
    return {name: _run(SEARCHES[name](objective, seed), objective, trials, noise, seed) for name in names}


def _run(search: Search, objective: Objective, trials: int, noise: float, seed: int) -> Chosen:
    draw = np.random.default_rng([seed, 1])
    best, chosen, trained = -np.inf, [0.0], 0.0
    for _ in range(trials):
        true = objective.score(search.ask())
        end, *early = noise * objective.deviation * draw.normal(size=1 + len(RUNGS))
        rungs = [_at_rung(true, end, slip, rung) for rung, slip in zip(RUNGS, early, strict=True)]
        share = search.tell(rungs, true + end)
        finished_better = share == 1 and true + end > best
        chosen.append(true if finished_better else chosen[-1])
        best = true + end if finished_better else best
        trained += share
    return Chosen(chosen[trials // 2], chosen[-1], trained / trials)


def _at_rung(true: float, end: float, slip: float, rung: int) -> float:
    """A score on the way: lower, with smaller differences between subsets, and only in part with the final noise."""
    done = rung / STEPS
    return true * (0.5 + done / 2) - (1 - done) + 0.6 * end + 0.8 * slip


class Chance:
    """Random subsets without repetition, after the starts."""

    def __init__(self, objective: Objective, seed: int, *, starts: bool):
        self._depth, self._count, self._random = objective.depth, objective.count, random.Random(seed)
        self._starts = [layers for _, layers in _placements(objective)] if starts else []
        self._asked: set[Layers] = set()

    def ask(self) -> Layers:
        layers = self._starts.pop(0) if self._starts else self._drawn()
        while layers in self._asked:
            layers = self._drawn()
        self._asked.add(layers)
        return layers

    def tell(self, rungs: Sequence[float], score: float) -> float:
        return 1.0

    def _drawn(self) -> Layers:
        return tuple(sorted(self._random.sample(range(self._depth), self._count)))


class Tpe:
    """Optuna's multivariate TPE after the starts: over k positions that are sorted, or L priorities of which k win."""

    def __init__(self, objective: Objective, seed: int, *, priorities: bool):
        self._depth, self._count, self._priorities = objective.depth, objective.count, priorities
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=8)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        for layers in dict.fromkeys(layers for _, layers in _placements(objective)):
            self._study.enqueue_trial(self._encoded(layers))

    def ask(self) -> Layers:
        self._trial = self._study.ask()
        if self._priorities:
            values = [self._trial.suggest_float(f"{layer}", 0, 1) for layer in range(self._depth)]
            return tuple(sorted(sorted(range(self._depth), key=lambda layer: -values[layer])[: self._count]))
        places = sorted(
            self._trial.suggest_int(f"{number}", 0, self._depth - self._count) for number in range(self._count)
        )
        return tuple(position + number for number, position in enumerate(places))

    def tell(self, rungs: Sequence[float], score: float) -> float:
        self._study.tell(self._trial, score)
        return 1.0

    def _encoded(self, layers: Layers) -> dict[str, float]:
        if self._priorities:
            return {f"{layer}": 0.75 if layer in layers else 0.25 for layer in range(self._depth)}
        return {f"{number}": layer - number for number, layer in enumerate(layers)}


class Subsets:
    """vrray's search, by the calls that Ray Tune makes; with `asha`, weak trials stop at a rung.

    `score`: one start more, the layers that an imprecise layer score ranks highest.
    """

    def __init__(
        self, objective: Objective, seed: int, *, starts: bool = True, score: bool = False, asha: bool = False
    ):
        placements = _placements(objective) if starts else []
        if score:
            estimate = objective.importance + np.random.default_rng(seed).normal(size=objective.depth) * 0.3
            highest = np.argsort(-estimate)[: objective.count]
            placements = [("by:score", tuple(sorted(int(layer) for layer in highest))), *placements]
        self._starts = dict(placements)
        self._search = SubsetSearch(SubsetSpace(objective.depth, (objective.count,)), placements, seed=seed)
        self._scheduler = ASHAScheduler(
            time_attr=RUNG, metric=RUNG_SCORE, mode="max", max_t=STEPS + 1, grace_period=RUNGS[0], reduction_factor=2
        )
        self._asha, self._trial = asha, SimpleNamespace(trial_id="0")

    def ask(self) -> Layers:
        self._trial = SimpleNamespace(trial_id=str(int(self._trial.trial_id) + 1))
        config: Any = self._search.suggest(self._trial.trial_id)
        self._scheduler.on_trial_add(None, self._trial)
        placement = config["point"]["placement"]
        return self._starts.get(placement) or tuple(map(int, placement.split(",")))

    def tell(self, rungs: Sequence[float], score: float) -> float:
        result: dict[str, float] = {}
        for rung, value in zip(RUNGS, rungs, strict=True) if self._asha else ():
            result = {RUNG: rung, RUNG_SCORE: value}
            self._search.on_trial_result(self._trial.trial_id, result)
            if self._scheduler.on_trial_result(None, self._trial, result) == ASHAScheduler.STOP:
                self._search.on_trial_complete(self._trial.trial_id, result)
                return rung / STEPS
        self._search.on_trial_complete(self._trial.trial_id, {**result, SCORE: score})
        return 1.0


def _placements(objective: Objective) -> list[tuple[str, Layers]]:
    return [(name, place(name, objective.depth, objective.count).layers) for name in PLACEMENTS]


SEARCHES: dict[str, Callable[[Objective, int], Search]] = {
    "random": partial(Chance, starts=False),
    BASELINE: partial(Chance, starts=True),
    "TPE over sorted positions": partial(Tpe, priorities=False),
    "TPE over priorities": partial(Tpe, priorities=True),
    "subsets without starts": partial(Subsets, starts=False),
    "subsets": Subsets,
    "subsets, a layer score among the starts": partial(Subsets, score=True),
    "subsets, weak trials stopped by ASHA": partial(Subsets, asha=True),
}
PEERS = {"TPE over sorted positions", "TPE over priorities", "subsets without starts"}


if __name__ == "__main__":
    main()
