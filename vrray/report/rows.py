"""The sweep's table as typed rows, and the questions that every part of the report asks of them."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from vrray.errors import StoreError

COMPLETE = "complete"
SCORES = ("score_visual", "score_textual", "test_score_visual", "test_score_textual")
COLUMNS: tuple[str, ...] = (
    "variant",
    "placement",
    "tuned_layers",
    "removed_layers",
    "depth",
    "status",
    "split",
    *(f"{score}{end}" for score in SCORES for end in ("", "_low", "_high")),
    *(f"{compared}_{ability}" for compared in ("retention", "ties_best") for ability in ("visual", "textual")),
    *(f"difference_{ability}{end}" for ability in ("visual", "textual") for end in ("", "_low", "_high")),
    "blind_visual",
    "floor_visual",
    "floor_textual",
    "parameters",
    "trained_parameters",
    "train_seconds",
    "step_seconds",
    "latency_ms_per_token",
    "peak_mib",
    "key",
)


@dataclass(frozen=True, slots=True)
class Score:
    """A score as a fraction 0 to 1, with its 95 % bootstrap interval where one was computed."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def half_width(self) -> float | None:
        """Half the width of the interval; None without one."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    def overlaps(self, other: "Score") -> bool:
        """Whether the two intervals share a point; False where either is missing."""
        if self.low is None or self.high is None or other.low is None or other.high is None:
            return False
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True, slots=True)
class Row:
    """One variant of a sweep. Numbers that the table has as null or NaN are None.

    Attributes:
        outcome: "complete", "failed", or "not run" or "stopped at step 9" where the run's budget was spent.
        failure: why the variant has no scores; None when it is complete.
        visual, textual: scores on the `select` split.
        retention_visual, retention_textual: score divided by that of placement `all` in the same sweep.
        difference_visual, difference_textual: score minus that of `all`, with the interval of the paired bootstrap.
        ties_best: whether the difference to the best visual score has an interval that holds 0, as the best's own does.
        blind: visual score of the tuned model without the image.
        tasks: score by task name.
        train_seconds, step_seconds: s. latency: ms per generated token. peak_mib: MiB.
    """

    variant: str
    placement: str
    tuned: tuple[int, ...]
    removed: tuple[int, ...]
    depth: int
    outcome: str
    failure: str | None
    split: str | None
    visual: Score | None
    textual: Score | None
    test_visual: Score | None
    test_textual: Score | None
    retention_visual: float | None
    retention_textual: float | None
    difference_visual: Score | None
    difference_textual: Score | None
    ties_best: bool
    blind: float | None
    floor_visual: float | None
    floor_textual: float | None
    tasks: Mapping[str, float | None]
    parameters: int | None
    trained_parameters: int | None
    train_seconds: float | None
    step_seconds: float | None
    latency: float | None
    peak_mib: float | None

    @property
    def trial(self) -> str:
        """Name of the training that the variant comes from: the variant's name without the number of layers removed.

        Where layers went by another ranking than the first, or the variant was healed, that stays in the name.
        """
        return self.variant.replace(f"-prune{len(self.removed)}", "")

    @property
    def has_test(self) -> bool:
        """Whether the variant was scored on the held-out `test` split."""
        return self.test_visual is not None or self.test_textual is not None


def read_rows(table: pa.Table) -> list[Row]:
    """The table's rows, in its order.

    Raises:
        StoreError: the table lacks a column that the report needs; the message names every such column.
    """
    if missing := [name for name in COLUMNS if name not in table.column_names]:
        raise StoreError(
            f"the sweep's table lacks {'column' if len(missing) == 1 else 'columns'} {', '.join(missing)} "
            f"(it has {table.num_columns} columns); write it again with this version of vrray"
        )
    tasks = task_names(table.column_names)
    return [_read_row(cells, tasks) for cells in table.to_pylist()]


def task_names(columns: Iterable[str]) -> list[str]:
    """Names of the tasks that have a column `score_<task>`, in the table's order."""
    return [name.removeprefix("score_") for name in columns if name.startswith("score_") and name not in COLUMNS]


def rank(rows: Iterable[Row]) -> list[Row]:
    """Complete rows, best first: by visual score, then fewer parameters. Rows without a visual score come last."""
    return sorted((row for row in rows if row.failure is None), key=_rank_key)


def ties_best(row: Row, ranked: Sequence[Row]) -> bool:
    """Whether the visual score of the row cannot be told from that of the best; False for the best itself."""
    return row is not ranked[0] and row.ties_best


def failed(rows: Iterable[Row]) -> list[Row]:
    """Rows without scores, in the table's order."""
    return [row for row in rows if row.failure is not None]


def unpruned(rows: Iterable[Row]) -> list[Row]:
    """Complete rows from which no layer was removed, best first."""
    return [row for row in rank(rows) if not row.removed]


def find_ceiling(rows: Iterable[Row]) -> Row | None:
    """The unpruned variant with all layers tuned; None when the sweep has none or it failed."""
    return next((row for row in unpruned(rows) if row.placement == "all"), None)


def group_trials(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Variants by the training they come from, in the table's order, each group by layers removed.

    The name of a group is its placement where no other group has the same one, and else the trial's name.
    """
    trials: dict[str, list[Row]] = {}
    for row in rows:
        trials.setdefault(row.trial, []).append(row)
    placements = Counter(group[0].placement for group in trials.values())
    return {
        group[0].placement if placements[group[0].placement] == 1 else trial: sorted(
            group, key=lambda row: len(row.removed)
        )
        for trial, group in trials.items()
    }


def name_split(rows: Iterable[Row]) -> str:
    """The split that the scores are of, such as "select"."""
    return " and ".join(sorted({row.split for row in rows if row.split})) or "unnamed"


def _rank_key(row: Row) -> tuple[float, float, str]:
    score = math.inf if row.visual is None else -row.visual.value
    return score, math.inf if row.parameters is None else row.parameters, row.variant


def _read_row(cells: Mapping[str, Any], tasks: Sequence[str]) -> Row:
    outcome, _, reason = (cells["status"] or "failed: status missing").partition(":")
    return Row(
        variant=cells["variant"],
        placement=cells["placement"],
        tuned=tuple(cells["tuned_layers"] or ()),
        removed=tuple(cells["removed_layers"] or ()),
        depth=cells["depth"] or 0,
        outcome=outcome,
        failure=None if outcome == COMPLETE else " ".join(reason.split()),
        split=cells["split"],
        visual=_score(cells, "score_visual"),
        textual=_score(cells, "score_textual"),
        test_visual=_score(cells, "test_score_visual"),
        test_textual=_score(cells, "test_score_textual"),
        retention_visual=_number(cells["retention_visual"]),
        retention_textual=_number(cells["retention_textual"]),
        difference_visual=_score(cells, "difference_visual"),
        difference_textual=_score(cells, "difference_textual"),
        ties_best=bool(cells["ties_best_visual"]),
        blind=_number(cells["blind_visual"]),
        floor_visual=_number(cells["floor_visual"]),
        floor_textual=_number(cells["floor_textual"]),
        tasks={task: _number(cells[f"score_{task}"]) for task in tasks},
        parameters=cells["parameters"],
        trained_parameters=cells["trained_parameters"],
        train_seconds=_number(cells["train_seconds"]),
        step_seconds=_number(cells["step_seconds"]),
        latency=_number(cells["latency_ms_per_token"]),
        peak_mib=_number(cells["peak_mib"]),
    )


def _score(cells: Mapping[str, Any], name: str) -> Score | None:
    value = _number(cells[name])
    return None if value is None else Score(value, _number(cells[f"{name}_low"]), _number(cells[f"{name}_high"]))


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)
