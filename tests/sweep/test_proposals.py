"""What Tune is given to try: all points, and what is left of them when the budget is spent."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from ray.tune.search import Searcher

from vrray.sweep.proposals import Listed, WithinBudget

POINTS = [{"placement": name} for name in ("a", "b", "c", "d")]
NONE_TRAINED: frozenset[str] = frozenset()


def proposals(search: Searcher) -> list[str]:
    """All that a search proposes, until it says that it is at its end."""
    found = []
    while (proposed := search.suggest(f"trial-{len(found)}")) != Searcher.FINISHED:
        assert proposed is not None
        found.append(proposed["point"]["placement"])
    assert search.suggest("one more") == Searcher.FINISHED
    return found


def within(most: int | None = None, trained: frozenset[str] = NONE_TRAINED, spent: bool = False) -> WithinBudget:
    return WithinBudget(Listed(POINTS), lambda point: point["placement"] in trained, lambda: spent, most)


def test_points_come_in_their_order() -> None:
    assert proposals(Listed(POINTS)) == ["a", "b", "c", "d"]
    assert len(POINTS) == 4  # they are the caller's


@pytest.mark.parametrize(("most", "found"), [(None, "abcd"), (9, "abcd"), (4, "abcd"), (2, "ab"), (0, "")])
def test_as_many_trainings_as_are_allowed(most: int | None, found: str) -> None:
    assert proposals(within(most)) == [*found]


def test_what_is_trained_is_not_counted() -> None:
    assert proposals(within(1, frozenset("ab"))) == ["a", "b", "c"]
    assert proposals(within(0, frozenset("ab"))) == ["a", "b"]
    assert proposals(within(spent=True, trained=frozenset("ab"))) == ["a", "b"]


def test_no_training_begins_when_the_time_is_over() -> None:
    now: list[bool] = [False]
    search = WithinBudget(Listed(POINTS), lambda _: False, lambda: now[0], None)
    assert search.suggest("first") == {"point": {"placement": "a"}}
    now[0] = True
    assert search.suggest("second") == Searcher.FINISHED


class Told(Listed):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(POINTS)
        self.heard: list[Any] = []

    def on_trial_result(self, trial_id: str, result: Any) -> None:
        self.heard.append((trial_id, result))

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        self.heard.append((trial_id, result, error))


def test_a_search_is_told_how_its_trials_go() -> None:
    told = Told()
    search = WithinBudget(told, lambda _: False, lambda: False, None)
    search.on_trial_result("t", {"step": 1})
    search.on_trial_complete("t", {"score": 0.5}, error=False)
    assert told.heard == [("t", {"step": 1}), ("t", {"score": 0.5}, False)]


def test_tune_can_pickle_a_list_half_way() -> None:
    listed = Listed(POINTS)
    listed.suggest("first")
    assert proposals(pickle.loads(pickle.dumps(listed))) == ["b", "c", "d"]
