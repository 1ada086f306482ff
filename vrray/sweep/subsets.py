"""A search over layer subsets for Ray Tune: which k of L decoder layers, which learning rate, which seed.

A point is a set of exactly k distinct layers, not a mask of L bits, so no trial goes to a wrong k. Optuna keeps the
trials (ask and tell); its sampler here asks for the point from which `SubsetModel` expects most. docs/benchmarks.md has
what that gains over Optuna's own samplers and over chance.
"""

from __future__ import annotations

import math
import pickle
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from vrray.sweep.subset_model import Array, SubsetModel, SubsetPoint, SubsetSpace
from vrray.train.execution import RUNG, RUNG_SCORE

SCORE = "score"  # of a finished trial

_FEW = 4  # scored trials below which proposals are drawn at random
_POOL = 200  # random points that compete with the neighbours of the best one
_CLIMBS = 3
_ENUMERATED = 2048  # spaces up to this many points are looked at whole


class SubsetSearch(Searcher):
    """Proposes `{"point": {"placement": "0,4,8", "layers": 3, "learning_rate": r, "seed": s}}` for trials of Tune.

    The starts come first, at the first learning rate and seed; no point is proposed twice. Trials are told by the
    metric "score" of their last result. Those without one count as stopped where they reported "rung_score" and "rung"
    on the way, and else as failed.

    Args:
        starts: placements and their layers, such as `("uniform", (0, 4, 8))`; wherever the search proposes these
            layers, it calls them by that placement ("random" aside, whose layers depend on a seed: these it lists).
            They may have other numbers of layers than `space.counts`, as placement "all" has.
        seed: what is proposed depends on it and on what the trials told, on nothing else.
    """

    def __init__(self, space: SubsetSpace, starts: Sequence[tuple[str, Sequence[int]]] = (), *, seed: int = 0):
        super().__init__(metric=SCORE, mode="max")
        self._names: dict[tuple[int, ...], str] = {}
        for placement, layers in starts:
            self._names.setdefault(tuple(sorted(layers)), placement if placement != "random" else _listed(layers))
        points = [SubsetPoint(layers, space.learning_rates[0], space.seeds[0]) for layers in self._names]
        self._sampler = SubsetSampler(space, points, seed)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(direction="maximize", sampler=self._sampler)
        self._asked: dict[str, optuna.Trial] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        if self._sampler.is_exhausted(self._study.get_trials(deepcopy=False)):
            return Searcher.FINISHED
        trial = self._study.ask()
        point = self._sampler.read(trial)
        self._asked[trial_id] = trial
        placement = self._names.get(point.layers) or _listed(point.layers)
        options = {"layers": len(point.layers), "learning_rate": point.learning_rate, "seed": point.seed}
        return {"point": {"placement": placement, **options}}

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        if trial_id in self._asked:
            self._take_rung(self._asked[trial_id], result)

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        trial = self._asked.pop(trial_id, None)
        if trial is None:
            return  # Tune may say it twice
        result = result or {}
        score = _number(result, SCORE)
        self._take_rung(trial, result)
        if error or "failed" in result or (score is None and not self._rungs(trial)):
            self._study.tell(trial, state=TrialState.FAIL)
        elif score is None:
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, score)

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_bytes(pickle.dumps(self.__dict__))

    def restore(self, checkpoint_path: str) -> None:
        self.__dict__.update(pickle.loads(Path(checkpoint_path).read_bytes()))

    def _take_rung(self, trial: optuna.Trial, result: Mapping[str, Any]) -> None:
        """Every report repeats the latest metrics, so a rung comes many times and counts once."""
        value = _number(result, RUNG_SCORE)
        if value is not None and int(result[RUNG]) not in self._rungs(trial):
            trial.report(value, int(result[RUNG]))

    def _rungs(self, trial: optuna.Trial) -> dict[int, float]:
        return self._study.get_trials(deepcopy=False)[trial.number].intermediate_values


class SubsetSampler(BaseSampler):
    """Optuna's sampler of a `SubsetSpace`: the starts first, then the most promising point that was not tried.

    What it proposes depends on `seed` and the trials of the study alone.

    Args:
        starts: points to try first; they may have other numbers of layers than the space.
    """

    def __init__(self, space: SubsetSpace, starts: Sequence[SubsetPoint] = (), seed: int = 0):
        self._space, self._starts, self._seed = space, tuple(starts), seed
        self._parameters: dict[str, BaseDistribution] = {
            "layers": CategoricalDistribution(sorted({*space.counts, *(len(start.layers) for start in starts)})),
            "learning_rate": CategoricalDistribution(space.learning_rates),
            "seed": CategoricalDistribution(space.seeds),
            **{_position(number): IntDistribution(0, space.depth - 1) for number in range(space.depth)},
        }

    def read(self, trial: optuna.Trial) -> SubsetPoint:
        """The point that was proposed for a trial."""
        count, rate, seed = (
            trial.suggest_categorical(name, self._parameters[name].choices)
            for name in ("layers", "learning_rate", "seed")
        )
        layers = tuple(trial.suggest_int(_position(number), 0, self._space.depth - 1) for number in range(count))
        return SubsetPoint(layers, rate, seed)

    def is_exhausted(self, trials: Sequence[FrozenTrial]) -> bool:
        """Whether every start and every point of the space was tried."""
        tried = {_point(trial) for trial in trials}
        inside = sum(len(point.layers) in self._space.counts for point in tried)
        return inside >= self._space.size and tried.issuperset(self._starts)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._parameters

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        trials = [other for other in study.get_trials(deepcopy=False) if other.number != trial.number]
        tried = {_point(other) for other in trials}
        untried = [start for start in self._starts if start not in tried]
        random = np.random.default_rng([self._seed % 2**32, trial.number])
        point = untried[0] if untried else self._promising(trials, tried, random)
        options = {"layers": len(point.layers), "learning_rate": point.learning_rate, "seed": point.seed}
        return options | {_position(number): layer for number, layer in enumerate(point.layers)}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        raise NotImplementedError(f"{param_name!r} is no parameter of a search over layer subsets")

    def _promising(
        self, trials: Sequence[FrozenTrial], tried: set[SubsetPoint], random: np.random.Generator
    ) -> SubsetPoint:
        space = self._space
        taken = {space.row(point).tobytes() for point in tried}
        enumerated = space.size <= _ENUMERATED
        pool = _untried(space.points(), taken) if enumerated else np.empty((0, space.columns))
        while not len(pool):
            pool = _untried(space.drawn(_POOL, random), taken)
        rows, scores, running = told(space, trials)
        if len(scores) < _FEW:
            return space.point(random.choice(pool))
        model = SubsetModel(space, rows, scores, running)
        if enumerated:
            return space.point(pool[model.improvement(pool).argmax()])
        best, most = model.best, -math.inf
        for _ in range(_CLIMBS):
            pool = np.vstack([pool, _untried(space.neighbours(best, random), taken)])
            promise = model.improvement(pool)
            if promise.max() <= most:
                break
            best, most = pool[promise.argmax()], float(promise.max())
            pool = best[None]
        return space.point(best)


def told(space: SubsetSpace, trials: Sequence[FrozenTrial]) -> tuple[Array, Array, Array]:
    """The features of scored points, their scores, and the features of points without one: what `SubsetModel` takes.

    A stopped trial scores what it would have, had it gained after its last rung as finished trials did in the median;
    until one has, it counts as running. Failed trials tell nothing.
    """
    finished = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    scored: list[tuple[Array, float]] = []
    running: list[Array] = []
    for trial in trials:
        if trial.state == TrialState.FAIL:
            continue
        score = _estimated(trial, finished) if trial.state == TrialState.PRUNED else trial.value
        row = space.row(_point(trial))
        if score is None:
            running.append(row)
        else:
            scored.append((row, score))
    rows = np.reshape([row for row, _ in scored], (-1, space.columns))
    return rows, np.array([score for _, score in scored]), np.reshape(running, (-1, space.columns))


def _estimated(trial: FrozenTrial, finished: Sequence[FrozenTrial]) -> float | None:
    rung = trial.last_step
    if rung is None:
        return None
    reached = [other for other in finished if rung in other.intermediate_values]
    gains = [other.value - other.intermediate_values[rung] for other in reached if other.value is not None]
    return trial.intermediate_values[rung] + statistics.median(gains) if gains else None


def _listed(layers: Sequence[int]) -> str:
    return ",".join(map(str, sorted(layers)))


def _position(number: int) -> str:
    return f"layer {number}"


def _point(trial: FrozenTrial) -> SubsetPoint:
    params = trial.params
    layers = tuple(params[_position(number)] for number in range(params["layers"]))
    return SubsetPoint(layers, params["learning_rate"], params["seed"])


def _untried(rows: Array, taken: set[bytes]) -> Array:
    return rows[[row.tobytes() not in taken for row in rows]]


def _number(result: Mapping[str, Any], name: str) -> float | None:
    """A metric, where it is there and finite."""
    value = result.get(name)
    return float(value) if value is not None and math.isfinite(value) else None
