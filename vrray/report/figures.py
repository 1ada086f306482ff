"""The three figures of a sweep, as PNG bytes."""

import pyarrow as pa

from vrray.report.canvas import to_png
from vrray.report.layer_map import draw_layer_map
from vrray.report.removed_plot import draw_removed
from vrray.report.retention_plot import draw_retention
from vrray.report.rows import read_rows

RETENTION = "retention_by_placement.png"
REMOVED = "score_by_removed.png"
LAYERS = "layer_map.png"


def draw_figures(table: pa.Table) -> dict[str, bytes]:
    """PNG bytes by file name; equal tables give equal bytes.

    - `retention_by_placement.png`: visual and textual retention of the unpruned variants (scores without `all`).
    - `score_by_removed.png`: visual score against the number of layers removed.
    - `layer_map.png`: which decoder layers each variant tunes, keeps and removes.

    Raises:
        StoreError: the table lacks a column.
    """
    rows = read_rows(table)
    return {
        RETENTION: to_png(draw_retention(rows)),
        REMOVED: to_png(draw_removed(rows)),
        LAYERS: to_png(draw_layer_map(rows)),
    }
