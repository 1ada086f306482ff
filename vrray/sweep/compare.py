"""How variants of a sweep compare, with all-layer tuning and with the best: paired bootstrap. Light to import."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vrray.data.tasks import ABILITIES, Ability, TaskExamples
from vrray.evaluate.records import read_records, scores_of
from vrray.metrics import interval, resampled_means
from vrray.region import Region
from vrray.store import Store
from vrray.sweep.trial import EVALUATION, evaluation_key

Row = dict[str, Any]


def add_comparisons(store: Store, tasks: Sequence[TaskExamples], rows: Iterable[Row]) -> None:
    """Add retention, the difference to all-layer tuning with its interval, and whether a row ties with the best.

    All-layer tuning is the unpruned variant of placement `all` with the same seed. The differences are of scores on the
    same examples, resampled alike; the interval is the middle 95 %. A row ties with the best where the interval of its
    difference to the best holds 0; the best does so itself.

    Args:
        tasks: of the select split.
        rows: of the sweep's table, which are changed.
    """
    finished = [row for row in rows if row["status"] == "complete"]
    by_ability = {ability: [row for row in finished if row[f"score_{ability}"] is not None] for ability in ABILITIES}
    bests = {ability: best_row(scored, ability) for ability, scored in by_ability.items()}
    ceilings = {ability: _ceilings(scored, ability) for ability, scored in by_ability.items()}
    references = [row for row in bests.values() if row] + [row for rows in ceilings.values() for row in rows.values()]
    resampled = {_variant(row): _resampled(store, tasks, row) for row in references}
    for row in finished:
        own = resampled.get(_variant(row)) or _resampled(store, tasks, row)
        for ability, means in own.items():
            score = row[f"score_{ability}"]
            if ceiling := ceilings[ability].get(row["seed"]):
                top = ceiling[f"score_{ability}"]
                row[f"retention_{ability}"] = score / top if top else None
                row[f"difference_{ability}"] = score - top
                low, high = interval(means - resampled[_variant(ceiling)][ability])
                row |= {f"difference_{ability}_low": low, f"difference_{ability}_high": high}
            if best := bests[ability]:
                low, high = interval(means - resampled[_variant(best)][ability])
                row[f"ties_best_{ability}"] = low <= 0 <= high


def best_row(rows: Sequence[Row], ability: Ability) -> Row | None:
    """The row with the highest score; of equals, the one with fewer parameters, then by name."""
    return min(rows, key=lambda row: (-row[f"score_{ability}"], row["parameters"], row["variant"]), default=None)


def choose(table: pa.Table) -> dict[str, Any]:
    """The row with the highest visual score on the select split; of equals, the one with fewer parameters.

    Without a visual task the textual score counts. The untuned base is a baseline and is not chosen.
    """
    finished = [
        row for row in table.to_pylist() if row["status"] == "complete" and row["placement"] != Region.none(1).placement
    ]
    if not finished:
        return {}
    return best_row(finished, "visual" if finished[0]["score_visual"] is not None else "textual") or {}


def is_ceiling(row: Row) -> bool:
    """Whether a row is unpruned all-layer tuning."""
    return row["placement"] == "all" and not row["removed_layers"]


def _ceilings(rows: Sequence[Row], ability: Ability) -> dict[int, Row]:
    """Unpruned all-layer tuning by seed, the best of several learning rates."""
    unpruned = [row for row in rows if is_ceiling(row)]
    by_seed = {seed: [row for row in unpruned if row["seed"] == seed] for seed in {row["seed"] for row in unpruned}}
    return {seed: best for seed, group in by_seed.items() if (best := best_row(group, ability))}


def _variant(row: Row) -> tuple[str, tuple[int, ...]]:
    return row["key"], tuple(row["removed_layers"])


def _resampled(store: Store, tasks: Sequence[TaskExamples], row: Row) -> dict[Ability, NDArray[np.float64]]:
    """A row's bootstrapped scores `[resamples]` by ability, as far as there are tasks for it."""
    with store.open(EVALUATION, evaluation_key(*_variant(row), tasks, False)) as folder:
        records = read_records(folder)
    groups = {ability: list(scores_of(records, tasks, ability).values()) for ability in ABILITIES}
    return {ability: resampled_means(scores) for ability, scores in groups.items() if scores}
