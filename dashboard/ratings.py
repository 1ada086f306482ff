"""Win rates and Bradley-Terry ratings of pairwise comparisons, with bootstrap intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Matrix = np.ndarray[Any, Any]
Pair = tuple[str, str, float]  # variant, variant, points of the first: 1, 0.5 or 0
_SCALE, _MEAN = 400 / np.log(10), 1000.0  # of Elo: 400 points are odds of ten to one
_PRIOR = 0.5
_STEPS, _TOLERANCE = 100, 1e-10


@dataclass(frozen=True)
class Rating:
    """A variant in comparisons.

    Attributes:
        games: comparisons with another variant.
        win_rate: points a comparison; `win_low`, `win_high`: 95 % bootstrap interval.
        rating: on the scale of Elo, mean 1000; `low`, `high`: 95 % bootstrap interval.
        group: variants of different groups were never compared, not even through others.
    """

    variant: str
    games: int
    win_rate: float
    win_low: float
    win_high: float
    rating: float
    low: float
    high: float
    group: int


def rate(votes: Sequence[Sequence[Pair]], *, samples: int = 300, seed: int = 0) -> list[Rating]:
    """Ratings of everything that was compared, best first.

    Args:
        votes: the comparisons of each vote; the bootstrap draws votes, since those within one hang together.
    """
    names = sorted({name for pairs in votes for a, b, _ in pairs for name in (a, b)})
    if not names:
        return []
    kinds = Counter(tuple(pairs) for pairs in votes)
    each, shares = np.stack([_points(pairs, names) for pairs in kinds]), np.array(list(kinds.values())) / len(votes)
    points = np.tensordot(shares * len(votes), each, 1)
    counts = np.random.default_rng(seed).multinomial(len(votes), shares, size=samples)
    drawn = [np.tensordot(count, each, 1) for count in counts]
    rates, ratings = _win_rates(points), elo(strengths(points))
    win_low, win_high = np.nanquantile([_win_rates(sample) for sample in drawn], (0.025, 0.975), axis=0)
    low, high = np.quantile([elo(strengths(sample)) for sample in drawn], (0.025, 0.975), axis=0)
    games, groups = (points + points.T).sum(1).round().astype(int), _groups(points)
    columns = (games, rates, win_low, win_high, ratings, low, high, groups)
    found = [Rating(name, *values) for name, *values in zip(names, *(list(column) for column in columns), strict=True)]
    return sorted(found, key=lambda rating: (-rating.rating, rating.variant))


def strengths(points: Matrix, prior: float = _PRIOR) -> Matrix:
    """Bradley-Terry strengths, their geometric mean 1, of `points[i, j]` that i has against j.

    The maximum of the likelihood (Bradley and Terry 1952) by Newton's steps in the logarithms, in which it is concave.
    A tie is half a point for both.

    Args:
        prior: points that everyone is given in a drawn game against an imagined opponent of strength 1. Without, a
            variant that never loses has no finite strength.
    """
    games, wins = points + points.T, points.sum(1)
    found = np.zeros(len(points))
    for _ in range(_STEPS):
        odds = 1 / (1 + np.exp(found[None, :] - found[:, None]))
        drawn = 1 / (1 + np.exp(-found))
        slope = wins - (games * odds).sum(1) + prior * (1 - 2 * drawn)
        bends = games * odds * (1 - odds)
        curvature = np.diag(bends.sum(1) + 2 * prior * drawn * (1 - drawn)) - bends
        step = np.clip(np.linalg.lstsq(curvature, slope, rcond=None)[0], -1, 1)
        found += step
        if np.abs(step).max() < _TOLERANCE:
            break
    return np.exp(found - found.mean())


def elo(strength: Matrix) -> Matrix:
    """Strengths on the scale of Elo, where 400 points are odds of ten to one."""
    return _MEAN + _SCALE * np.log(strength)


def _points(pairs: Sequence[Pair], names: Sequence[str]) -> Matrix:
    points = np.zeros((len(names), len(names)))
    for a, b, won in pairs:
        i, j = names.index(a), names.index(b)
        points[i, j] += won
        points[j, i] += 1 - won
    return points


def _win_rates(points: Matrix) -> Matrix:
    """NaN where nothing was compared."""
    games = (points + points.T).sum(1)
    return np.where(games > 0, points.sum(1) / np.maximum(games, 1), np.nan)


def _groups(points: Matrix) -> list[int]:
    """For each variant the number of its connected component."""
    met = (points + points.T) > 0
    groups = list(range(len(points)))
    for i, j in zip(*np.nonzero(met), strict=True):
        old, new = groups[int(j)], groups[int(i)]
        groups = [new if group == old else group for group in groups]
    return [sorted(set(groups)).index(group) for group in groups]
