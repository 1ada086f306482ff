"""How an answer is scored, and how sure a mean score is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vrray.errors import DataError


def exact_match(prediction: str, answer: str) -> bool:
    """Whether both are the same but for case, surrounding whitespace and a trailing period."""
    return normalize_answer(prediction) == normalize_answer(answer)


def normalize_answer(text: str) -> str:
    """What ``exact_match`` compares."""
    return text.strip().removesuffix(".").rstrip().casefold()


def bootstrap_interval(
    values: Sequence[float], *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron and Tibshirani 1993, chapter 13).

    Raises:
        DataError: there are no values.
    """
    _, low, high = mean_interval([values], level=level, resamples=resamples, seed=seed)
    return low, high


def mean_interval(
    groups: Sequence[Sequence[float]], *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """The mean of the groups' means with its percentile bootstrap interval: (mean, low, high).

    A group is one task's scores. Each is resampled by itself: the tasks are fixed, their examples are the sample.

    Raises:
        DataError: there is no group, or one has no values.
    """
    sizes = [len(group) for group in groups]
    if not sizes or not all(sizes):
        raise DataError(f"cannot average groups of {sizes} scores; give at least one group and one score in each")
    arrays = [np.asarray(group, dtype=np.float64) for group in groups]
    generator = np.random.default_rng(seed)
    means = np.mean([_resampled_means(array, resamples, generator) for array in arrays], axis=0)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(np.mean([array.mean() for array in arrays])), float(low), float(high)


def _resampled_means(
    values: NDArray[np.float64], resamples: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    # One resample at a time: all at once would take resamples x values of memory.
    return np.array([generator.choice(values, size=len(values)).mean() for _ in range(resamples)])
