"""What Ray Tune tries: the points of a grid one after the other, or a search's, as long as the run's budget lasts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray.tune.search import Searcher

Point = dict[str, Any]


class Listed(Searcher):
    """Proposes given points in their order."""

    def __init__(self, points: Sequence[Point]):
        super().__init__()
        self._points = list(points)

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        return {"point": self._points.pop(0)} if self._points else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        pass


class WithinBudget(Searcher):
    """Lets a search propose until the budget is spent; from then on, its next proposal that costs a training ends it.

    Args:
        is_trained: whether a point costs no training.
        spent: whether the run's time is over.
        most: trainings at most; None for any number.
    """

    def __init__(
        self, search: Searcher, is_trained: Callable[[Point], bool], spent: Callable[[], bool], most: int | None
    ):
        super().__init__(search.metric, search.mode)
        self._search, self._is_trained, self._spent = search, is_trained, spent
        self._left = most

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        proposed = self._search.suggest(trial_id)
        if not isinstance(proposed, dict) or self._is_trained(proposed["point"]):
            return proposed
        if self._left == 0 or self._spent():
            return Searcher.FINISHED
        if self._left is not None:
            self._left -= 1
        return proposed

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        self._search.on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        self._search.on_trial_complete(trial_id, result, error)

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Keep nothing: a sweep goes on from its store, never from Tune's state."""
