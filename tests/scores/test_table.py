"""Scores as numbers: standard errors, orders, rank correlations."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vrray.scores.table import (
    MEASUREMENTS,
    SCORES,
    LayerScores,
    correlations,
    least_important_first,
    measurement_of,
    rank_correlation,
    rank_stability,
)


def test_every_score_has_one_measurement() -> None:
    assert sorted(SCORES) == sorted(name for names in MEASUREMENTS.values() for name in names)
    assert measurement_of("multimodal-bi") == "states"


def test_means_and_standard_errors() -> None:
    scores = LayerScores.of_samples("bi", np.array([[1.0, 5.0], [3.0, 5.0], [8.0, 5.0]]))
    assert (scores.name, scores.samples, scores.values) == ("bi", 3, (4.0, 5.0))
    assert scores.standard_errors == pytest.approx((math.sqrt(13 / 3), 0.0))
    alone = LayerScores.of_samples("bi", np.array([[1.0, 5.0]]))
    assert all(map(math.isnan, alone.standard_errors))


def test_scores_survive_json() -> None:
    scores = LayerScores("angular", (0.3, 0.1), (0.01, 0.02), 4)
    assert LayerScores.from_json(scores.to_json()) == scores


def test_the_least_important_come_first() -> None:
    values = (0.3, 0.1, 0.2, 0.1, 0.0)
    assert least_important_first(values, range(5)) == [4, 3, 1, 2, 0]
    assert least_important_first(values, (0, 1, 2)) == [1, 2, 0]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 1000], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        ([1, 2, 3, 4, 5], [2, 1, 4, 3, 5], 0.8),
        ([1, 2, 2, 3], [1, 2, 3, 4], 0.9486832980505138),
    ],
)
def test_rank_correlations(a: list[float], b: list[float], expected: float) -> None:
    assert rank_correlation(a, b) == pytest.approx(expected)


def test_a_constant_has_no_rank_correlation() -> None:
    assert math.isnan(rank_correlation([1, 1, 1], [1, 2, 3]))


def test_stability_is_one_without_noise_and_about_none_with_nothing_else() -> None:
    generator = np.random.default_rng(0)
    signal = np.tile(np.arange(12.0), (20, 1))
    assert rank_stability(signal + generator.normal(0, 0.1, signal.shape)) > 0.99
    assert abs(rank_stability(generator.normal(0, 1, signal.shape))) < 0.5
    assert math.isnan(rank_stability(signal[:1]))


def test_all_pairs_are_correlated() -> None:
    scores = {
        name: LayerScores(name, values, (0.0,) * 3, 1) for name, values in {"a": (1, 2, 3), "b": (3, 2, 1)}.items()
    }
    assert correlations(scores) == pytest.approx({("a", "a"): 1, ("a", "b"): -1, ("b", "a"): -1, ("b", "b"): 1})
