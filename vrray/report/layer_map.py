"""Figure: which decoder layers each variant tunes, keeps and removes."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from vrray.report.canvas import BLUE, BODY, INK, MUTED, SMALL, TITLE, VERMILION, message_figure, new_figure, shorten
from vrray.report.rows import Row, group_trials, name_split
from vrray.report.text import format_score

KEPT, TUNED, REMOVED, TUNED_REMOVED = range(4)
COLORS = ("#dcdcdc", BLUE, "#fdeee4", "#b9d9ec")
NAMES = ("kept as it was", "tuned", "removed", "tuned, then removed")
TRIAL_GAP = 0.35
MOST_NUMBERS = 32
FAILED_STRENGTH = 0.35


def draw_layer_map(rows: Sequence[Row]) -> Figure:
    """A row a variant, the variants of a training together; a column a decoder layer; the visual score at the right."""
    depth = _depth(rows)
    if not rows or not depth:
        return message_figure("The sweep has no variant.")
    groups = list(group_trials(rows).values())
    tall = len(rows) + TRIAL_GAP * (len(groups) - 1)
    figure = new_figure(9.5, 1.5 + 0.23 * tall)
    axes = figure.subplots()
    places: list[float] = []
    for group in groups:
        for row in group:
            places.append(places[-1] + 1 + TRIAL_GAP * (row is group[0]) if places else 0.0)
            _draw_row(axes, row, places[-1], depth)
    variants = [row for group in groups for row in group]
    _label_rows(axes, variants, places)
    _label_layers(axes, depth, places[-1])
    figure.suptitle("What each variant tunes and removes", fontsize=TITLE, color=INK)
    axes.set_xlabel("decoder layer (0 is nearest to the input)", fontsize=BODY, color=INK)
    note = f"Score: fraction on the {name_split(rows)} split, ± half the 95 % bootstrap interval."
    _draw_legend(figure, variants, depth, note)
    return figure


def _depth(rows: Sequence[Row]) -> int:
    return max((max((row.depth, *(layer + 1 for layer in row.tuned + row.removed))) for row in rows), default=0)


def _states(row: Row, depth: int) -> list[int]:
    tuned, removed = set(row.tuned), set(row.removed)
    return [TUNED * (layer in tuned) + REMOVED * (layer in removed) for layer in range(depth)]


def _draw_row(axes: Axes, row: Row, place: float, depth: int) -> None:
    states = _states(row, depth)
    strength = 1.0 if row.failure is None else FAILED_STRENGTH
    edges = [layer - 0.5 for layer in range(depth + 1)]
    axes.pcolormesh(
        edges,
        [place - 0.42, place + 0.42],
        [states],
        cmap=ListedColormap([_blend(color, strength) for color in COLORS]),
        vmin=-0.5,
        vmax=len(COLORS) - 0.5,
        edgecolors="white",
        linewidth=1.5,
    )
    color = _blend(VERMILION, strength)
    axes.plot(row.removed, [place] * len(row.removed), "x", color=color, markersize=5, markeredgewidth=1.6)


def _blend(color: str, strength: float) -> tuple[float, ...]:
    """The colour mixed with white. An alpha would show seams between the cells."""
    return tuple(1 - strength * (1 - part) for part in to_rgb(color))


def _label_rows(axes: Axes, variants: Sequence[Row], places: Sequence[float]) -> None:
    axes.set_yticks(places, [shorten(row.variant) for row in variants], fontsize=SMALL, parse_math=False)
    for tick, row in zip(axes.get_yticklabels(), variants, strict=True):
        tick.set_color(INK if row.failure is None else MUTED)
    across = axes.get_yaxis_transform()
    for row, place in zip(variants, places, strict=True):
        text, color = (format_score(row.visual), INK) if row.failure is None else (row.outcome, VERMILION)
        axes.text(1.01, place, text, transform=across, va="center", fontsize=SMALL, color=color)
    axes.text(1.01, places[0] - 1.0, "visual score", transform=across, va="center", fontsize=SMALL, fontweight="bold")


def _label_layers(axes: Axes, depth: int, last: float) -> None:
    axes.set_xlim(-0.5, depth - 0.5)
    axes.set_ylim(last + 0.55, -0.55)
    axes.set_xticks(range(0, depth, math.ceil(depth / MOST_NUMBERS)))
    axes.tick_params(length=0, labelsize=SMALL)
    axes.spines[:].set_visible(False)


def _draw_legend(figure: Figure, variants: Sequence[Row], depth: int, note: str) -> None:
    seen = {state for row in variants for state in _states(row, depth)}
    states = [state for state in (TUNED, KEPT, REMOVED, TUNED_REMOVED) if state in seen]
    cross = Line2D([], [], linestyle="", marker="x", color=VERMILION, markersize=5, markeredgewidth=1.6)
    handles: list[Any] = []  # a tuple of artists is a handle too, which the stubs of matplotlib do not know
    for state in states:
        patch = Patch(color=COLORS[state])
        handles.append((patch, cross) if state in (REMOVED, TUNED_REMOVED) else (patch,))
    names = [NAMES[state] for state in states]
    legend = figure.legend(handles, names, loc="outside lower center", ncols=4, fontsize=SMALL, frameon=False)
    legend.set_title(note, prop=FontProperties(size=SMALL))
    legend.get_title().set_color(MUTED)
