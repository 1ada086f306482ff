"""The figures: valid, equal for equal tables, and with what they are for drawn where it belongs."""

import io
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from vrray.report import draw_figures
from vrray.report.canvas import BLUE, VERMILION, shorten, spread
from vrray.report.layer_map import COLORS, REMOVED, TUNED_REMOVED
from vrray.report.retention_plot import draw_retention
from vrray.report.rows import read_rows

NAMES = ["retention_by_placement.png", "score_by_removed.png", "layer_map.png"]
LAYER_MAP_LEGEND = 60  # px at the bottom of the layer map


def _pixels(png: bytes) -> np.ndarray:
    """[height, width, 3], 0 to 255."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def _places(pixels: np.ndarray, color: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the pixels of just that colour."""
    wanted = [int(color[start : start + 2], 16) for start in (1, 3, 5)]
    return np.nonzero((pixels == wanted).all(axis=-1))


def _layer_map(table: pa.Table) -> np.ndarray:
    return _pixels(draw_figures(table)["layer_map.png"])[:-LAYER_MAP_LEGEND]


def test_files_are_png_of_readme_size(sweep_table):
    figures = draw_figures(sweep_table)
    assert list(figures) == NAMES
    for png in figures.values():
        assert png.startswith(b"\x89PNG\r\n\x1a\n")
        height, width, _ = _pixels(png).shape
        assert 1000 <= width <= 1500
        assert 300 <= height <= 1500


def test_equal_tables_give_equal_bytes(sweep_table):
    again = pa.Table.from_pylist(sweep_table.to_pylist(), schema=sweep_table.schema)
    assert draw_figures(sweep_table) == draw_figures(again)


def test_pyplot_stays_out():
    code = "import sys, vrray.report; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_removed_layers_are_crossed_at_their_column(make_row, make_table):
    crosses = {}
    for removed in ([], [3], [26], [3, 26]):
        row = make_row(f"uniform-8-prune{len(removed)}", "uniform", removed=removed)
        crosses[tuple(removed)] = _places(_layer_map(make_table(row)), VERMILION)[1]
    assert len(crosses[()]) == 0
    assert len(crosses[3, 26]) == len(crosses[(3,)]) + len(crosses[(26,)]) > 0
    apart = crosses[(26,)].mean() - crosses[(3,)].mean()
    assert apart == pytest.approx(1425 * 0.8 * 23 / 30, rel=0.1)


def test_removed_layers_are_no_longer_filled_as_kept_or_tuned(make_row, make_table):
    pruned = _layer_map(make_table(make_row("a", "explicit", tuned=[4], removed=[12])))
    assert len(_places(pruned, COLORS[REMOVED])[0]) > 100
    assert len(_places(pruned, COLORS[TUNED_REMOVED])[0]) == 0
    baseline = _layer_map(make_table(make_row("a", "all", tuned=[4, 12], removed=[12])))
    assert len(_places(baseline, COLORS[TUNED_REMOVED])[0]) > 100
    assert len(_places(baseline, COLORS[REMOVED])[0]) == 0


def test_tuned_layers_are_filled(make_row, make_table):
    areas = [
        len(_places(_layer_map(make_table(make_row("x", "explicit", tuned=tuned))), BLUE)[0])
        for tuned in ([], [4], [4, 9], list(range(30)))
    ]
    assert areas[0] == 0
    assert areas[2] == pytest.approx(2 * areas[1], rel=0.1)
    assert areas[3] == pytest.approx(30 * areas[1], rel=0.1)


def test_layer_map_has_a_row_a_variant(make_row, make_failed, make_table):
    rows = [make_row(f"v{place}", "explicit", tuned=[5]) for place in range(4)]
    used = np.unique(_places(_layer_map(make_table(*rows, make_failed("top-8", "top", "killed"))), BLUE)[0])
    assert len(np.split(used, np.nonzero(np.diff(used) > 1)[0] + 1)) == 4


def test_whiskers_are_as_wide_as_the_interval(make_row, make_table):
    widths = []
    for half in (0.01, 0.04):
        rows = [make_row("all", "all", retention_visual=1.0, retention_textual=0.6 / 0.6, half=half)]
        rows.append(make_row("none", "none", visual=0.3, retention_visual=1 / 3, retention_textual=1.0, half=0.001))
        pixels = _pixels(draw_figures(make_table(*rows))[NAMES[0]])
        across = _places(pixels[120 : pixels.shape[0] // 2], BLUE)[1]
        widths.append(across.max() - across.min())
    assert widths[1] > 2.5 * widths[0]


def test_retention_interval_is_divided_by_the_score_of_all(sweep_table):
    figure = draw_retention(read_rows(sweep_table))
    ends = [line.get_xdata() for line in figure.axes[0].lines if line.get_marker() == "|"]
    assert ends[1] == pytest.approx([100 * 0.902 / 0.931, 100 * 0.942 / 0.931])
    assert "retention (%" in figure.axes[0].get_xlabel()


def test_without_all_the_axis_says_score(sweep_without_all):
    figure = draw_retention(read_rows(sweep_without_all))
    assert figure.axes[0].get_xlabel() == "score (fraction)"
    assert "no complete variant has all layers tuned" in figure.get_supxlabel()


def test_line_falls_with_the_score(make_row, make_table):
    rows = [make_row("uniform-8", "uniform", visual=0.9, blind_visual=None, floor_visual=0.1)]
    rows.append(make_row("uniform-8-prune1", "uniform", visual=0.4, removed=[3], blind_visual=None, floor_visual=0.1))
    down, across = _places(_pixels(draw_figures(make_table(*rows))[NAMES[1]]), BLUE)
    left, right = down[across < 300].mean(), down[(across > 600) & (across < 800)].mean()
    assert right > left + 100


@pytest.mark.parametrize("floor", ["blind_visual", "floor_visual"])
def test_floors_are_dotted_across(make_row, make_table, floor):
    lengths = []
    for value in (None, 0.5):
        cells = {"blind_visual": None, "floor_visual": None, floor: value}
        table = make_table(make_row("a", "uniform", **cells), make_row("b", "top", visual=0.1, **cells))
        pixels = _pixels(draw_figures(table)[NAMES[1]])
        inside = pixels[200:450, 120:800].astype(int)
        grey = (np.ptp(inside, axis=-1) < 8) & (inside.max(axis=-1) < 200)
        lengths.append(grey.sum(axis=1).max())
    assert lengths[0] == 0
    assert lengths[1] > 150


def test_band_is_as_wide_as_the_interval(make_row, make_table):
    areas = []
    for half in (0.01, 0.05):
        rows = [make_row("a", "uniform", half=half), make_row("a-prune1", "uniform", removed=[3], half=half)]
        red, green, blue = np.moveaxis(_pixels(draw_figures(make_table(*rows))[NAMES[1]]).astype(int), -1, 0)
        areas.append(((blue - red > 20) & (green > 200)).sum())
    assert areas[1] == pytest.approx(5 * areas[0], rel=0.3)


def test_unusual_tables_draw(make_row, make_failed, make_table, sweep_without_all):
    forty = [
        make_row(f"p{place % 10}-8-prune{place // 10}", f"p{place % 10}", removed=list(range(place // 10)), tuned=[9])
        for place in range(40)
    ]
    bare = make_row("$a_b$ | very long name " * 3, "explicit", **dict.fromkeys(("blind_visual", "floor_visual")))
    bare |= {"score_visual_low": None, "score_visual_high": None, "score_textual": None}
    unscored = make_failed("x", "top", "killed", tuned_layers=None, removed_layers=None)
    tables = [make_table(), make_table(unscored), make_table(bare), make_table(*forty), sweep_without_all]
    for table in tables:
        assert all(png.startswith(b"\x89PNG") for png in draw_figures(table).values())


def test_labels_are_spread_in_order_and_within_bounds():
    placed = spread([0.5, 0.95, 0.94, 0.96, 0.1], gap=0.1, low=0.0, high=1.0)
    assert placed[4] == pytest.approx(0.1)
    assert placed[0] == pytest.approx(0.5)
    assert placed[2] < placed[1] < placed[3] <= 1.0
    assert np.diff(sorted(placed)).min() == pytest.approx(0.1)


def test_long_names_keep_their_end():
    assert shorten("layers-0-3-7-11-15-19-23-27-31-35-37-prune2") == "layers-0-3-7-11-15-…1-35-37-prune2"
    assert shorten("uniform-8") == "uniform-8"
