"""Figure: visual score against the number of layers removed, a line a training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vrray.report.canvas import (
    BODY,
    GRID,
    INK,
    MUTED,
    SMALL,
    caption,
    message_figure,
    new_figure,
    shorten,
    spread,
    style,
    tidy,
)
from vrray.report.rows import Row, group_trials, name_split, rank

BASELINES = {"all": (INK, "*"), "none": (MUTED, "X")}
BASELINE_COLORS = {color for color, _ in BASELINES.values()}
WIDE_MARKERS = ("*", "X", "P")  # their shapes fill less of the size
LABEL_INCHES = 0.165


def draw_removed(rows: Sequence[Row]) -> Figure:
    """Lines labelled at their right end; trainings that were not pruned as a point and a thin dashed line."""
    scored = [row for row in rows if row.failure is None and row.visual is not None]
    if not scored:
        return message_figure("No variant has a visual score.")
    lines = _lines(scored)
    height = max(4.6, 1.6 + LABEL_INCHES * 1.1 * (len(lines) + 2))
    figure = new_figure(8, height)
    axes = figure.subplots()
    tidy(axes)
    most = max(len(row.removed) for row in scored)
    axes.set_xlim(-0.25, most + 0.25)
    lone = [line.name for line in lines if len(line.rows) == 1]
    steps = dict(zip(lone, _steps(len(lone), most), strict=True))
    labels = [_draw_line(axes, line, most, steps.get(line.name, 0.0)) for line in lines]
    labels += _draw_floors(axes, scored)
    _draw_labels(axes, labels, LABEL_INCHES / (height - 1.3))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("decoder layers removed after tuning", fontsize=BODY)
    axes.set_ylabel("visual score (fraction)", fontsize=BODY)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    caption(figure, f"Visual score after removing layers ({name_split(rank(scored))} split)", _note(lines, most))
    return figure


@dataclass(frozen=True, slots=True)
class _Line:
    name: str
    color: str
    marker: str
    rows: list[Row]


@dataclass(frozen=True, slots=True)
class _Label:
    text: str
    color: str
    marker: str
    y: float


def _lines(scored: Sequence[Row]) -> list[_Line]:
    lines: list[_Line] = []
    for name, group in group_trials(scored).items():
        index = len([line for line in lines if line.color not in BASELINE_COLORS])
        baseline = BASELINES.get(group[0].placement) if not group[0].removed else None
        color, marker = baseline or style(index)
        lines.append(_Line(name, color, marker, group))
    return lines


def _steps(count: int, most: int) -> list[float]:
    """Small steps aside for trainings with one point, whose whiskers would otherwise hide each other."""
    first, last = (-0.2, 0.2) if most == 0 else (-0.18, -0.07)
    return [first + (last - first) * (place + 0.5) / count for place in range(count)]


def _draw_line(axes: Axes, line: _Line, most: int, nudge: float) -> _Label:
    scores = [row.visual for row in line.rows if row.visual is not None]
    counts = [len(row.removed) + nudge for row in line.rows]
    values = [score.value for score in scores]
    low = [score.value if score.low is None else score.low for score in scores]
    high = [score.value if score.high is None else score.high for score in scores]
    axes.plot(counts, values, color=line.color, linewidth=1.8, zorder=3)
    axes.plot(counts, values, zorder=3, **_marker(line.marker, line.color))
    if len(line.rows) > 1:
        axes.fill_between(counts, low, high, color=line.color, alpha=0.13, linewidth=0)
    else:
        axes.vlines(counts, low, high, color=line.color, linewidth=1.5)
    if _stops_early(line, most):
        axes.hlines(values[-1], counts[-1], most + 0.25, color=line.color, linewidth=0.8, linestyle=(0, (6, 4)))
    return _Label(f"{shorten(line.name)}  {values[-1]:.3f}", line.color, line.marker, values[-1])


def _draw_floors(axes: Axes, scored: Sequence[Row]) -> list[_Label]:
    floors = {
        "blind, no image (best)": [row.blind for row in scored if row.blind is not None],
        "question-only guess": [row.floor_visual for row in scored if row.floor_visual is not None],
    }
    labels = []
    for name, values in floors.items():
        if values:
            axes.axhline(max(values), color=MUTED, linewidth=1.2, linestyle=":", zorder=1)
            labels.append(_Label(f"{name}  {max(values):.3f}", MUTED, "", max(values)))
    return labels


def _draw_labels(axes: Axes, labels: Sequence[_Label], gap: float) -> None:
    """Labels right of the axes, moved apart where their lines end close together, each led to from its line."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    places = spread([label.y for label in labels], gap * (high - low), low, high)
    across = axes.get_yaxis_transform()
    for label, place in zip(labels, places, strict=True):
        axes.plot([1.0, 1.04], [label.y, place], color=label.color, linewidth=0.9, transform=across, clip_on=False)
        axes.plot(1.04, place, transform=across, clip_on=False, **_marker(label.marker, label.color))
        axes.text(1.06, place, label.text, transform=across, va="center", fontsize=SMALL, color=INK, parse_math=False)


def _marker(marker: str, color: str) -> dict[str, Any]:
    size = 9.0 if marker in WIDE_MARKERS else 6.5
    edge = {"markeredgecolor": "white", "markeredgewidth": 0.7}
    return {"linestyle": "", "marker": marker, "color": color, "markersize": size, **edge}


def _note(lines: Sequence[_Line], most: int) -> str:
    note = "Bands and whiskers: 95 % bootstrap interval. Dotted: floors. The number is the line's last score."
    stops = any(_stops_early(line, most) for line in lines)
    return note + ("\nThin dashes carry a last score to its label; nothing was measured there." if stops else "")


def _stops_early(line: _Line, most: int) -> bool:
    return most == 0 or len(line.rows[-1].removed) < most
