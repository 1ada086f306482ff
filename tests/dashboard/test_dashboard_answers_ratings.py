"""Bradley-Terry against a worked example, symmetric cases, and what must not happen."""

from __future__ import annotations

import numpy as np
import pytest

from dashboard.ratings import elo, rate, strengths

# Points of row against column, and the strengths that the worked example of Wikipedia's article "Bradley-Terry model"
# ends with (geometric mean 1).
GAMES = np.array([[0, 2, 0, 1], [3, 0, 5, 0], [0, 3, 0, 1], [4, 0, 3, 0]], dtype=float)
WORKED = [0.640, 1.043, 0.660, 2.270]


def test_strengths_are_those_of_the_worked_example() -> None:
    assert strengths(GAMES, prior=0).round(3).tolist() == WORKED


def test_two_variants_have_the_odds_of_their_games() -> None:
    ratio = np.divide(*strengths(np.array([[0.0, 30], [10, 0]]), prior=0))
    assert ratio == pytest.approx(3)
    first, second = elo(strengths(np.array([[0.0, 10], [1, 0]]), prior=0))
    assert first - second == pytest.approx(400)
    assert first + second == pytest.approx(2000)


def test_equal_results_are_equal_ratings() -> None:
    circle = [[("a", "b", 1.0)], [("b", "c", 1.0)], [("c", "a", 1.0)]] * 5
    ratings = rate(circle)
    assert [rating.rating for rating in ratings] == pytest.approx([1000] * 3)
    assert [rating.win_rate for rating in ratings] == pytest.approx([0.5] * 3)
    assert [rating.games for rating in ratings] == [10] * 3
    assert all(rating.low < 1000 < rating.high for rating in ratings)


def test_swapping_the_names_mirrors_the_ratings() -> None:
    votes = [[("a", "b", 1.0)]] * 7 + [[("a", "b", 0.0)]] * 2 + [[("a", "b", 0.5)]]
    best, worst = rate(votes)
    mirrored_best, mirrored_worst = rate([[("b", "a", won) for _, _, won in pairs] for pairs in votes])
    assert (best.variant, worst.variant) == ("a", "b")
    assert best.win_rate == pytest.approx(0.75) and worst.win_rate == pytest.approx(0.25)
    assert (mirrored_best.variant, mirrored_best.rating) == ("b", pytest.approx(best.rating))
    assert best.rating - 1000 == pytest.approx(1000 - worst.rating)
    assert mirrored_worst.rating == pytest.approx(worst.rating)


def test_who_never_loses_has_a_finite_rating_that_grows_with_the_wins() -> None:
    few, many = (rate([[("a", "b", 1.0)]] * count)[0].rating for count in (2, 40))
    assert 1000 < few < many < 3000


def test_intervals_narrow_with_votes_and_hold_the_rating() -> None:
    few = rate([[("a", "b", 1.0)]] * 6 + [[("a", "b", 0.0)]] * 4)[0]
    many = rate(([[("a", "b", 1.0)]] * 6 + [[("a", "b", 0.0)]] * 4) * 25)[0]
    assert few.low <= few.rating <= few.high and many.low <= many.rating <= many.high
    assert many.high - many.low < (few.high - few.low) / 3
    assert many.win_low < 0.6 < many.win_high < few.win_high


def test_an_interval_covers_the_true_rating_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(3)
    truth = 400 * np.log10(0.65 / 0.35)
    covered = 0
    for _ in range(60):
        votes = [[("a", "b", float(won))] for won in generator.random(200) < 0.65]
        ratings = {rating.variant: rating for rating in rate(votes, samples=100)}
        covered += 2 * (ratings["a"].low - 1000) <= truth <= 2 * (ratings["a"].high - 1000)
    assert 50 <= covered <= 60


def test_groups_that_never_met_are_told_apart() -> None:
    ratings = rate([[("a", "b", 1.0)], [("b", "c", 1.0)], [("x", "y", 1.0)]])
    groups = {rating.variant: rating.group for rating in ratings}
    assert groups["a"] == groups["b"] == groups["c"] != groups["x"] == groups["y"]


def test_no_votes_have_no_ratings() -> None:
    assert rate([]) == []
