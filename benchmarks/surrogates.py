"""Objectives over layer subsets that cost nothing: what tuning k of L layers may be worth, for different reasons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Worth = Callable[[Array], float]  # of ascending layer indices

_BANDS = 5
_RANDOM_SUBSETS = 400
_CLIMBS = 4


@dataclass(frozen=True)
class Objective:
    """A score of subsets: 0 for the mean random one, 1 for the best that hill climbing found.

    Attributes:
        deviation: standard deviation of the scores of random subsets.
        importance: of each layer, [depth].
    """

    depth: int
    count: int
    score: Callable[[tuple[int, ...]], float]
    deviation: float
    importance: Array


def diminishing(depth: int, count: int, seed: int) -> Objective:
    """importances add up, neighbours share part of theirs"""
    random = np.random.default_rng([seed, depth, count])
    importance = _importance(random, depth)
    shared = 0.25 * np.exp(-_offsets(depth) / 1.5) * np.minimum.outer(importance, importance)
    np.fill_diagonal(shared, 0)
    return _scaled(lambda s: importance[s].sum() - shared[np.ix_(s, s)].sum(), importance, count, random)


def covering(depth: int, count: int, seed: int) -> Objective:
    """every layer counts by its importance and how near a chosen one is"""
    random = np.random.default_rng([seed, depth, count])
    importance = _importance(random, depth)
    near = np.exp(-_offsets(depth) / (depth / count / 2))
    return _scaled(lambda s: importance @ near[s].max(axis=0), importance, count, random)


def banded(depth: int, count: int, seed: int) -> Objective:
    """importances add up, each fifth of the depth without a layer costs"""
    random = np.random.default_rng([seed, depth, count])
    importance = _importance(random, depth)

    def worth(s: Array) -> float:
        return importance[s].sum() - count / 8 * (_BANDS - len(np.unique(s * _BANDS // depth)))

    return _scaled(worth, importance, count, random)


def interacting(depth: int, count: int, seed: int) -> Objective:
    """importances add up, and every pair of layers helps or hinders at random"""
    random = np.random.default_rng([seed, depth, count])
    importance = _importance(random, depth)
    pairs = np.triu(random.normal(size=(depth, depth)), 1) / 4
    return _scaled(lambda s: importance[s].sum() + pairs[np.ix_(s, s)].sum(), importance, count, random)


def rough(depth: int, count: int, seed: int) -> Objective:
    """importances add up and differ from layer to layer without any order"""
    random = np.random.default_rng([seed, depth, count])
    importance = random.random(depth)
    return _scaled(lambda s: importance[s].sum(), importance, count, random)


OBJECTIVES: dict[str, Callable[[int, int, int], Objective]] = {
    "diminishing": diminishing,
    "covering": covering,
    "banded": banded,
    "interacting": interacting,
    "rough": rough,
}


def _importance(random: np.random.Generator, depth: int) -> Array:
    """One to three smooth bumps over the depth, and something of each layer's own."""
    layers, bumps = np.arange(depth), np.zeros(depth)
    for _ in range(random.integers(1, 4)):
        width = random.uniform(1.5, depth / 6)
        bumps += random.uniform(0.5, 1.5) * np.exp(-0.5 * ((layers - random.uniform(0, depth)) / width) ** 2)
    return bumps / bumps.max() + 0.35 * random.random(depth)


def _offsets(depth: int) -> Array:
    return np.abs(np.subtract.outer(np.arange(depth), np.arange(depth))).astype(float)


def _scaled(worth: Worth, importance: Array, count: int, random: np.random.Generator) -> Objective:
    depth = len(importance)
    drawn = [worth(np.sort(random.permutation(depth)[:count])) for _ in range(_RANDOM_SUBSETS)]
    best = max(_climbed(worth, np.sort(random.permutation(depth)[:count]), depth) for _ in range(_CLIMBS))
    mean, span = float(np.mean(drawn)), best - float(np.mean(drawn))

    def score(layers: tuple[int, ...]) -> float:
        return (worth(np.array(layers)) - mean) / span

    return Objective(depth, count, score, float(np.std(drawn)) / span, importance)


def _climbed(worth: Worth, layers: Array, depth: int) -> float:
    """The worth of the subset from which no exchange of one layer leads higher."""
    best = worth(layers)
    while True:
        others = np.setdiff1d(np.arange(depth), layers)
        swaps = [np.sort(np.append(np.delete(layers, out), new)) for out in range(len(layers)) for new in others]
        values = [worth(swap) for swap in swaps]
        if not swaps or max(values) <= best:
            return best
        best, layers = max(values), swaps[int(np.argmax(values))]
