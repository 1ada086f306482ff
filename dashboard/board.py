"""The table of a sweep, made to be sorted and filtered in milliseconds: numbers as arrays, rows only where shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vrray.report.rows import COLUMNS, COMPLETE, Row, read_rows

Numbers = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Filter:
    """Which variants are shown. An empty choice is no limit; a bound leaves out what was not measured.

    Attributes:
        placements, tuned, removed: names, numbers of layers tuned, numbers of layers removed.
        retention: least share of the ceiling's visual score.
        parameters: most millions of parameters. latency: most ms per token.
    """

    placements: tuple[str, ...] = ()
    tuned: tuple[int, ...] = ()
    removed: tuple[int, ...] = ()
    retention: float | None = None
    parameters: float | None = None
    latency: float | None = None


@dataclass(frozen=True)
class Board:
    """All variants of a sweep. Arrays have a value a row; nan where nothing was measured.

    Attributes:
        ability: what is ranked by: "visual", or "textual" where no task has images.
        numbers: score, retention, layers, parameters in millions, ms per token, by the names of `SORTABLE`; and 95 %
            intervals, `visual_low` to `kept_textual_high`, of retention by the paired difference to the ceiling.
        tied: not told apart from the best.
        ranked: the rows that have a score, best first, of equals the one with fewer parameters.
    """

    table: pa.Table
    ability: str
    variants: tuple[str, ...]
    placements: NDArray[np.object_]
    numbers: dict[str, Numbers]
    complete: NDArray[np.bool_]
    tied: NDArray[np.bool_]
    ranked: Indices
    places: dict[str, int] = field(repr=False)

    @classmethod
    def of(cls, table: pa.Table) -> Board:
        """
        Raises:
            StoreError: the table lacks a column.
        """
        read_rows(table.slice(0, 1))
        variants = tuple(table["variant"].to_pylist())
        numbers = {name: _numbers(table, column) for name, column in SORTABLE.items()}
        numbers["parameters"] /= 1e6
        numbers |= _intervals(table, numbers)
        complete = np.asarray(pc.equal(table["status"], COMPLETE).fill_null(False))
        ability = "visual" if np.isfinite(numbers["visual"]).any() else "textual"
        score = numbers[ability]
        order = np.lexsort((np.arange(len(variants)), _nan_last(numbers["parameters"]), _nan_last(-score)))
        ranked = order[complete[order] & np.isfinite(score[order])]
        tied = np.asarray(table[f"ties_best_{ability}"].fill_null(False))
        placements = np.asarray(table["placement"].to_pylist(), dtype=object)
        if (best := _best(ranked, placements)) is not None:
            tied[best] = False
        places = {variant: place for place, variant in reversed(list(enumerate(variants)))}
        return cls(
            table,
            ability,
            variants,
            placements,
            numbers,
            complete,
            tied,
            ranked,
            places,
        )

    @property
    def best(self) -> int | None:
        """The row of the best variant; the untuned base does not count."""
        return _best(self.ranked, self.placements)

    @property
    def failed(self) -> list[Row]:
        return read_rows(self.table.filter(pa.array(~self.complete)))

    def measured(self, name: str) -> bool:
        """Whether any ranked variant has that number."""
        return bool(np.isfinite(self.numbers[name][self.ranked]).any())

    def rows(self, indices: Sequence[int] | Indices) -> list[Row]:
        """The typed rows of some indices, in that order."""
        return read_rows(self.table.take(pa.array(np.asarray(indices, dtype=np.int64))))

    def cells(self, index: int) -> dict[str, Any]:
        """All columns of one row."""
        found: dict[str, Any] = self.table.slice(index, 1).to_pylist()[0]
        return found

    def values(self, name: str) -> list[Any]:
        """The distinct placements, or counts of layers, in order."""
        if name == "placement":
            return sorted(set(self.placements[self.complete]))
        numbers = self.numbers[name][self.complete]
        return [int(number) for number in np.unique(numbers[np.isfinite(numbers)])]

    def select(self, chosen: Filter, sort: str = "visual", descending: bool = True) -> Indices:
        """The rows that pass, sorted; equals stay in the order of the ranking."""
        keep = np.zeros(len(self.variants), dtype=bool)
        keep[self.ranked] = True
        if chosen.placements:
            keep &= np.isin(self.placements, chosen.placements)
        for name, counts in (("tuned", chosen.tuned), ("removed", chosen.removed)):
            if counts:
                keep &= np.isin(self.numbers[name], counts)
        if chosen.retention is not None:
            keep &= self.numbers["kept_visual"] >= chosen.retention
        for name, most in (("parameters", chosen.parameters), ("latency", chosen.latency)):
            if most is not None:
                keep &= self.numbers[name] <= most
        found = self.ranked[keep[self.ranked]]
        if sort == "variant":
            names = np.asarray([self.variants[row] for row in found], dtype=object)
            order = np.argsort(names, kind="stable")
            return found[order[::-1] if descending else order]
        values = self.numbers[sort][found]
        return found[np.argsort(_nan_last(-values if descending else values), kind="stable")]

    def front(self, cost: str, indices: Indices) -> Indices:
        """The Pareto front among some rows: those that none beats in score at no higher cost."""
        score, price = self.numbers[self.ability], self.numbers[cost]
        known = indices[np.isfinite(score[indices]) & np.isfinite(price[indices])]
        order = known[np.lexsort((-score[known], price[known]))]
        best = np.maximum.accumulate(np.concatenate(([-np.inf], score[order]))) if len(order) else np.empty(0)
        return order[score[order] > best[:-1]] if len(order) else order


SORTABLE: dict[str, str] = {
    "visual": "score_visual",
    "kept_visual": "retention_visual",
    "textual": "score_textual",
    "kept_textual": "retention_textual",
    "tuned": "tuned_layers",
    "removed": "removed_layers",
    "parameters": "parameters",
    "latency": "latency_ms_per_token",
}
assert set(SORTABLE.values()) <= set(COLUMNS)


def _numbers(table: pa.Table, name: str) -> Numbers:
    column = table[name]
    if pa.types.is_list(column.type):
        column = pc.list_value_length(column)
    return np.asarray(pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64).copy()


def _best(ranked: Indices, placements: NDArray[np.object_]) -> int | None:
    return next((int(row) for row in ranked if placements[row] != "none"), None)


def _intervals(table: pa.Table, numbers: dict[str, Numbers]) -> dict[str, Numbers]:
    found = {}
    for ability in ("visual", "textual"):
        ceiling = numbers[ability] - _numbers(table, f"difference_{ability}")
        for end in ("low", "high"):
            found[f"{ability}_{end}"] = _numbers(table, f"score_{ability}_{end}")
            with np.errstate(divide="ignore", invalid="ignore"):
                found[f"kept_{ability}_{end}"] = 1 + _numbers(table, f"difference_{ability}_{end}") / ceiling
    return found


def _nan_last(values: Numbers) -> Numbers:
    return np.where(np.isnan(values), np.inf, values)
