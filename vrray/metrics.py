"""How an answer is scored, and how sure a mean score is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vrray.errors import DataError

_DRAWN_AT_ONCE = 1 << 20  # examples, which bounds memory


def exact_match(prediction: str, answer: str) -> bool:
    """Whether both are the same but for case, surrounding whitespace and a trailing period."""
    return normalize_answer(prediction) == normalize_answer(answer)


def normalize_answer(text: str) -> str:
    """What ``exact_match`` compares."""
    return text.strip().removesuffix(".").rstrip().casefold()


def mean_interval(groups: Sequence[Sequence[float]], *, level: float = 0.95) -> tuple[float, float, float]:
    """The mean of the groups' means with its percentile bootstrap interval: (mean, low, high).

    Source: Efron and Tibshirani 1993, chapter 13.

    Raises:
        DataError: there is no group, or one has no values.
    """
    low, high = interval(resampled_means(groups), level=level)
    return float(np.mean([np.mean(group) for group in groups])), low, high


def interval(values: NDArray[np.float64], *, level: float = 0.95) -> tuple[float, float]:
    """What lies between the outer `(1 - level) / 2` of resampled values."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def resampled_means(groups: Sequence[Sequence[float]], *, resamples: int = 2000, seed: int = 0) -> NDArray[np.float64]:
    """Bootstrapped means of the groups' means `[resamples]`.

    A group is one task's scores. Each is resampled by itself: the tasks are fixed, their examples are the sample.
    Groups of the same sizes are resampled alike, so the arrays of two variants that answered the same examples are
    paired: the quantiles of their difference are the paired bootstrap interval.

    Raises:
        DataError: there is no group, or one has no values.
    """
    sizes = [len(group) for group in groups]
    if not sizes or not all(sizes):
        raise DataError(f"cannot average groups of {sizes} scores; give at least one group and one score in each")
    generator = np.random.default_rng(seed)
    means = [_resampled(np.asarray(group, dtype=np.float64), resamples, generator) for group in groups]
    averaged: NDArray[np.float64] = np.mean(means, axis=0)
    return averaged


def _resampled(values: NDArray[np.float64], resamples: int, generator: np.random.Generator) -> NDArray[np.float64]:
    means = np.empty(resamples)
    block = max(1, _DRAWN_AT_ONCE // len(values))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        means[start : start + rows] = values[generator.integers(len(values), size=(rows, len(values)))].mean(axis=1)
    return means
