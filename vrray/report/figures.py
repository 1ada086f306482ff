"""The three figures of a sweep, as PNG bytes."""

from collections.abc import Sequence

import pyarrow as pa

from vrray.report.canvas import to_png
from vrray.report.layer_map import draw_layer_map
from vrray.report.removed_plot import draw_removed
from vrray.report.retention_plot import draw_retention
from vrray.report.rows import Row, group_trials, rank, read_rows

RETENTION = "retention_by_placement.png"
REMOVED = "score_by_removed.png"
LAYERS = "layer_map.png"
MOST_TRAININGS = 30


def draw_figures(table: pa.Table) -> dict[str, bytes]:
    """PNG bytes by file name; equal tables give equal bytes.

    - `retention_by_placement.png`: visual and textual retention of the unpruned variants (scores without `all`).
    - `score_by_removed.png`: visual score against the number of layers removed.
    - `layer_map.png`: which decoder layers each variant tunes, keeps and removes.

    Of more trainings than `MOST_TRAININGS` those that `choose_drawn` chooses are drawn.

    Raises:
        StoreError: the table lacks a column.
    """
    rows = choose_drawn(read_rows(table))
    return {
        RETENTION: to_png(draw_retention(rows)),
        REMOVED: to_png(draw_removed(rows)),
        LAYERS: to_png(draw_layer_map(rows)),
    }


def choose_drawn(rows: Sequence[Row]) -> list[Row]:
    """The rows of the trainings with the best variants, of the baselines first, as many as a figure takes."""
    trainings = group_trials(rows)
    if len(trainings) <= MOST_TRAININGS:
        return list(rows)
    best = rank(rows)
    baselines = [row for row in best if row.placement in ("all", "none") and not row.removed]
    training = {row.variant: name for name, group in trainings.items() for row in group}
    ordered = dict.fromkeys(training[row.variant] for row in (*_first_of_each(baselines), *best))
    chosen = {*list(ordered)[:MOST_TRAININGS]}
    return [row for row in rows if training[row.variant] in chosen]


def _first_of_each(ranked: Sequence[Row]) -> list[Row]:
    """The best row of each placement."""
    return list({row.placement: row for row in reversed(ranked)}.values())
