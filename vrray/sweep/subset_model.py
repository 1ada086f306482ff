"""The space of layer subsets as numbers, and a Gaussian process over it that says which subset promises most.

In the features of a point, every layer, learning rate and seed has a column: 1 where it is chosen, else 0.
"""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vrray.errors import RegionError

Array = NDArray[np.float64]

_RESIZED = 16  # random neighbours of each other size
_WIDTHS = (0.0, 1.0)  # over how many layers the effect of a layer spreads
_NOISES = (0.1, 0.3, 1.0)  # variance of the noise, as a share of the signal's
_RATE_DISTANCE, _SEED_DISTANCE = 1.0, 0.1  # squared, where two random subsets of one size are 1 apart
_LENGTH = 2.0  # squared distance at which the correlation has fallen to 1/e


@dataclass(frozen=True)
class SubsetPoint:
    """A point of the space: ascending layers, a learning rate (None: the recipe's) and a seed."""

    layers: tuple[int, ...]
    learning_rate: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class SubsetSpace:
    """Every set of `counts` layers out of `depth`, with every learning rate and seed; what is listed twice counts once.

    Raises:
        RegionError: a count does not fit the depth.
    """

    depth: int
    counts: tuple[int, ...]
    learning_rates: tuple[float | None, ...] = (None,)
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        for name in ("counts", "learning_rates", "seeds"):
            object.__setattr__(self, name, tuple(dict.fromkeys(getattr(self, name))))
        for count in self.counts:
            if not 1 <= count <= self.depth:
                raise RegionError(f"cannot choose {count} of {self.depth} layers; use counts from 1 to {self.depth}")

    @property
    def size(self) -> int:
        """Number of points."""
        subsets = sum(math.comb(self.depth, count) for count in self.counts)
        return subsets * len(self.learning_rates) * len(self.seeds)

    @property
    def columns(self) -> int:
        return self.depth + len(self.learning_rates) + len(self.seeds)

    def row(self, point: SubsetPoint) -> Array:
        """The features of a point, [columns]."""
        row = np.zeros(self.columns)
        row[list(point.layers)] = 1
        row[self.depth + self.learning_rates.index(point.learning_rate)] = 1
        row[self.depth + len(self.learning_rates) + self.seeds.index(point.seed)] = 1
        return row

    def point(self, row: Array) -> SubsetPoint:
        """The point that has these features."""
        layers, rate, seed = np.split(row, [self.depth, self.depth + len(self.learning_rates)])
        chosen = tuple(int(layer) for layer in np.flatnonzero(layers))
        return SubsetPoint(chosen, self.learning_rates[int(rate.argmax())], self.seeds[int(seed.argmax())])

    def points(self) -> Array:
        """All points, [size, columns]."""
        subsets = (layers for count in self.counts for layers in itertools.combinations(range(self.depth), count))
        chosen = itertools.product(subsets, self.learning_rates, self.seeds)
        return np.stack([self.row(SubsetPoint(*parts)) for parts in chosen])

    def drawn(self, number: int, random: np.random.Generator) -> Array:
        """Random points, [number, columns]: a count, a subset of that size, a rate and a seed, each evenly."""
        ranks = random.random((number, self.depth)).argsort(axis=1).argsort(axis=1)
        layers = ranks < random.choice(self.counts, number)[:, None]
        rates = np.eye(len(self.learning_rates))[random.integers(len(self.learning_rates), size=number)]
        return np.hstack([layers, rates, np.eye(len(self.seeds))[random.integers(len(self.seeds), size=number)]])

    def neighbours(self, row: Array, random: np.random.Generator) -> Array:
        """Points one step away, [points, columns]: a layer exchanged, another rate or seed, some of other sizes.

        The row itself may have another number of layers than those of the space.
        """
        inside, outside = np.flatnonzero(row[: self.depth] == 1), np.flatnonzero(row[: self.depth] == 0)
        found = []
        if len(inside) in self.counts:
            swapped = np.tile(row, (len(inside) * len(outside), 1))
            swapped[np.arange(len(swapped)), np.repeat(inside, len(outside))] = 0
            swapped[np.arange(len(swapped)), np.tile(outside, len(inside))] = 1
            found = [swapped, *self._with_other_options(row)]
        for count in self.counts:
            resized = np.tile(row, (_RESIZED if count != len(inside) else 0, 1))
            changing, more = (outside, 1.0) if count > len(inside) else (inside, 0.0)
            for new in resized:
                new[random.choice(changing, abs(count - len(inside)), replace=False)] = more
            found.append(resized)
        return np.vstack(found)

    def _with_other_options(self, row: Array) -> list[Array]:
        rates, seeds = (np.tile(row, (len(options), 1)) for options in (self.learning_rates, self.seeds))
        begin, end = self.depth, self.depth + len(self.learning_rates)
        rates[:, begin:end] = np.eye(len(rates))
        seeds[:, end:] = np.eye(len(seeds))
        return [rates, seeds]


class SubsetModel:
    """What trials tell about all points: a Gaussian process, fitted by its marginal likelihood.

    Args:
        rows: the scored points, [scored, columns].
        scores: higher is better, [scored].
        running: points without a score yet, [running, columns]; what they will tell is not worth asking for twice.
    """

    def __init__(self, space: SubsetSpace, rows: Array, scores: Array, running: Array):
        fits = [_fit(_embedding(space, width), noise, rows, scores) for width in _WIDTHS for noise in _NOISES]
        self._fit = max(fits, key=lambda fit: fit.likelihood)
        self._scored = len(rows)
        self._known = np.vstack([rows, running]) @ self._fit.embedding
        self._precision = np.linalg.inv(
            _correlation(self._known, self._known) + self._fit.noise * np.eye(len(self._known))
        )
        within = np.isin(rows[:, : space.depth].sum(axis=1), space.counts)
        comparable = rows[within] if within.any() else rows
        means = self._at(comparable)[0]
        self.best: Array = comparable[means.argmax()]
        self._best_mean = float(means.max())

    def improvement(self, rows: Array) -> Array:
        """By how much points [points, columns] are expected to beat `best`, the scored point of the highest mean."""
        mean, deviation = self._at(rows)
        z = (mean - self._best_mean) / deviation
        below = np.array([math.erf(value / math.sqrt(2)) for value in z]) / 2 + 0.5
        return deviation * (z * below + np.exp(-z * z / 2) / math.sqrt(2 * math.pi))

    def _at(self, rows: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the score without its noise, [points] each."""
        shared = _correlation(rows @ self._fit.embedding, self._known)
        mean = self._fit.mean + shared[:, : self._scored] @ self._fit.weights
        rest = 1 - ((shared @ self._precision) * shared).sum(axis=1)
        return mean, np.sqrt(self._fit.variance * np.maximum(rest, 1e-9))


@dataclass(frozen=True)
class _Fit:
    likelihood: float
    embedding: Array
    noise: float
    mean: float
    variance: float
    weights: Array


def _fit(embedding: Array, noise: float, rows: Array, scores: Array) -> _Fit:
    """Mean and variance in closed form for one embedding and noise; log-likelihood up to a constant."""
    embedded = rows @ embedding
    correlation = _correlation(embedded, embedded) + noise * np.eye(len(rows))
    solved = np.linalg.solve(correlation, np.stack([scores, np.ones(len(rows))], axis=1))
    mean = float(solved[:, 0].sum() / solved[:, 1].sum())
    weights = solved[:, 0] - mean * solved[:, 1]
    variance = max(float((scores - mean) @ weights) / len(rows), 1e-12)  # all scores may be equal
    likelihood = -0.5 * (len(rows) * math.log(variance) + float(np.linalg.slogdet(correlation)[1]))
    return _Fit(likelihood, embedding, noise, mean, variance, weights)


def _embedding(space: SubsetSpace, width: float) -> Array:
    """[columns, columns]: features times this, of random subsets of a size, have a squared distance of 1 on average."""
    depth, end = space.depth, space.depth + len(space.learning_rates)
    offsets = np.subtract.outer(np.arange(depth), np.arange(depth))
    alike = np.exp(-0.5 * (offsets / width) ** 2) if width else np.eye(depth)
    share = min(statistics.median(space.counts), depth - 1) / depth
    apart = 2 * share * (1 - share) * (np.trace(alike) - alike.sum() / depth) * depth / max(1, depth - 1)
    scales = np.full(space.columns, math.sqrt(_SEED_DISTANCE / 2))
    scales[:end] = math.sqrt(_RATE_DISTANCE / 2)
    embedding = np.diag(scales)
    embedding[:depth, :depth] = np.linalg.cholesky(alike + 1e-6 * np.eye(depth)) / math.sqrt(apart or 1.0)
    return embedding


def _correlation(some: Array, others: Array) -> Array:
    squares = (some**2).sum(axis=1)[:, None] + (others**2).sum(axis=1) - 2 * some @ others.T
    return np.exp(-np.maximum(squares, 0) / _LENGTH)
