"""How variants compare: retention, paired differences, ties, from stored evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vrray.data.tasks import Example, Task, TaskExamples
from vrray.evaluate.records import Answered, summarise, write_records
from vrray.store import Store
from vrray.sweep.compare import add_comparisons
from vrray.sweep.trial import EVALUATION, evaluation_key

SEEN = Task("colours", "visual", "exact", "")
READ = Task("capitals", "textual", "choice", "")
N = 200


def task_of(task: Task) -> TaskExamples:
    return TaskExamples(task, "select", tuple(Example(f"{n}", "Which?", "red") for n in range(N)), 0.0)


TASKS = (task_of(SEEN), task_of(READ))


def row_of(store: Store, variant: str, right: set[int], **cells: Any) -> dict[str, Any]:
    """A variant that is right on some examples of the visual task and on half of the textual one."""
    row = {"variant": variant, "key": variant, "placement": variant, "removed_layers": [], "seed": 0, "parameters": 10}
    row |= {"status": "complete"} | cells
    scores = {SEEN: [float(n in right) for n in range(N)], READ: [float(n % 2) for n in range(N)]}
    records = [
        Answered(task.name, "select", f"{n}", "Which?", None, "red", "", score, False)
        for task, values in scores.items()
        for n, score in enumerate(values)
    ]
    key = evaluation_key(row["key"], row["removed_layers"], TASKS, False)
    store.put(EVALUATION, key, lambda folder: write_records(folder, records))
    return row | {name: value for name, value in summarise(records, TASKS).items() if name.startswith("score_")}


@pytest.fixture
def rows(tmp_path: Path) -> list[dict[str, Any]]:
    store = Store(tmp_path)
    most = set(range(160))
    found = [
        row_of(store, "all", most),
        row_of(store, "near", most - {3, 77} | {190}),
        row_of(store, "far", set(range(120))),
        row_of(store, "pruned", most - {5}, removed_layers=[3, 4]),
        row_of(store, "other-seed", most, seed=1),
        {"variant": "lost", "key": "lost", "placement": "lost", "status": "failed: lost", "removed_layers": []},
    ]
    add_comparisons(store, TASKS, found)
    return found


def test_differences_are_paired(rows: list[dict[str, Any]]) -> None:
    every, near, far, pruned, other, lost = rows
    assert [every[f"difference_visual{end}"] for end in ("", "_low", "_high")] == [0, 0, 0]
    assert near["retention_visual"] == pytest.approx(159 / 160)
    # One of 200 on the same examples: far narrower than the +-0.055 of each score.
    assert near["difference_visual"] == pytest.approx(-1 / N)
    assert -0.03 < near["difference_visual_low"] < 0 < near["difference_visual_high"] < 0.03
    assert far["difference_visual_high"] < 0
    assert pruned["difference_visual_low"] < -1 / N <= pruned["difference_visual_high"] <= 0
    assert far["difference_textual"] == far["difference_textual_low"] == 0
    assert "difference_visual" not in other  # there is no all-layer tuning with its seed
    assert "difference_visual" not in lost


def test_ties_with_the_best(rows: list[dict[str, Any]]) -> None:
    assert [row.get("ties_best_visual") for row in rows] == [True, True, False, True, True, None]
    assert [row.get("ties_best_textual") for row in rows] == [True] * 5 + [None]


def test_nothing_right_is_no_retention(tmp_path: Path) -> None:
    store = Store(tmp_path)
    rows = [row_of(store, "all", set()), row_of(store, "top", {1})]
    add_comparisons(store, TASKS, rows)
    assert [row["retention_visual"] for row in rows] == [None, None]
    assert rows[1]["difference_visual"] == pytest.approx(1 / N)
