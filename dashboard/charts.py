"""Charts that keep their text readable at any width: lines are stretched SVG, labels and points are HTML beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dashboard.markup import Markup, join, tag

COLORS = 8  # series colours in theme.py, --v-s0 to --v-s7


@dataclass(frozen=True)
class Line:
    """A line through points (x, y); `color` is the number of a series colour, `whiskers` are (x, low, high)."""

    name: str
    points: Sequence[tuple[float, float]]
    color: int
    dashed: bool = False
    marked: bool = False
    whiskers: Sequence[tuple[float, float, float]] = ()


@dataclass(frozen=True)
class Point:
    """A point that can be picked. `pick` is what its click sends; `kind` adds a CSS class."""

    x: float
    y: float
    label: str
    pick: str
    color: int
    kind: str = ""


@dataclass(frozen=True)
class Axis:
    """The range of an axis, its ticks, and what it says."""

    low: float
    high: float
    ticks: tuple[float, ...]
    label: str
    percent: bool = False

    @classmethod
    def around(
        cls, values: Sequence[float], label: str, *, percent: bool = False, whole: bool = False, tight: bool = False
    ) -> Axis:
        """An axis with round ticks that holds all values; it begins and ends at ticks, or, `tight`, at values."""
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        if whole:
            high = max(high, low + 1)
        if high - low < 1e-9:
            pad = abs(low) * 0.05 or 0.5
            low, high = low - pad, high + pad
        step = _round_step((high - low) / 4, whole)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        ticks = tuple(round(number * step, 10) for number in range(first, last + 1))
        if tight:
            return cls(low, high, tuple(tick for tick in ticks if low <= tick <= high), label, percent)
        return cls(ticks[0], ticks[-1], ticks, label, percent)

    def place(self, value: float) -> float:
        """Where a value lies, in percent of the axis."""
        return round(100 * (value - self.low) / (self.high - self.low), 3)

    def text(self, tick: float) -> str:
        return f"{100 * tick:g}%" if self.percent else f"{tick:,g}"


def chart(
    title: str,
    x: Axis,
    y: Axis,
    lines: Sequence[Line] = (),
    points: Sequence[Point] = (),
    *,
    bands: Sequence[tuple[float, float, int]] = (),
    references: Sequence[tuple[float, str]] = (),
    height: int = 260,
    legend: bool = True,
) -> Markup:
    """A chart of lines and points.

    Args:
        title: what a screen reader says of it.
        bands: stretches (from, to, colour) of the x axis that are shaded.
        references: horizontal lines with a label.
    """
    strokes = [_stroke(x, y, line.points, line) for line in lines if len(line.points) > 1]
    strokes += [
        _stroke(x, y, [(a, low), (a, high)], line, "v-whisker") for line in lines for a, low, high in line.whiskers
    ]
    shades = [
        tag(
            "rect",
            x=x.place(start),
            y=0,
            width=round(x.place(end) - x.place(start), 3),
            height=100,
            style=f"fill:var(--v-s{color % COLORS})",
        )
        for start, end, color in bands
    ]
    dots = [
        tag("i", cls="v-dot", style=f"{_at(x, y, a, b)};background:var(--v-s{line.color % COLORS})")
        for line in lines
        if line.marked or len(line.points) == 1
        for a, b in line.points
    ]
    picks = [
        tag(
            "button",
            cls=f"v-point {point.kind}".strip(),
            type="button",
            data_pick=point.pick,
            aria_label=point.label,
            title=point.label,
            style=f"{_at(x, y, point.x, point.y)};--c:var(--v-s{point.color % COLORS})",
        )
        for point in points
    ]
    across = [tag("span", x.text(tick), style=f"left:{x.place(tick)}%") for tick in x.ticks]
    up = [tag("span", y.text(tick), style=f"bottom:{y.place(tick)}%") for tick in y.ticks]
    grid = [tag("i", cls="v-grid", style=f"bottom:{y.place(tick)}%") for tick in y.ticks]
    marks = [
        tag("i", tag("b", label), cls="v-ref", style=f"bottom:{y.place(value)}%")
        for value, label in references
        if y.low <= value <= y.high
    ]
    svg = tag(
        "svg", *shades, *strokes, viewBox="0 0 100 100", preserveAspectRatio="none", aria_hidden="true", cls="v-svg"
    )
    return tag(
        "div",
        tag("div", y.label, cls="v-ylabel"),
        tag(
            "div",
            tag("div", *up, cls="v-yticks", aria_hidden="true"),
            tag("div", *grid, svg, *marks, *dots, *picks, cls="v-plot"),
            tag("div", *across, cls="v-xticks", aria_hidden="true"),
            cls="v-frame",
            style=f"--h:{height}px",
        ),
        tag("div", x.label, cls="v-xlabel"),
        key([(line.name, line.color) for line in lines]) if legend and lines else None,
        cls="v-chart",
        role="group",
        aria_label=title,
    )


def key(entries: Sequence[tuple[str, int]]) -> Markup:
    """Names with their series colours."""
    shown = dict.fromkeys(entries)
    items = [join(tag("i", style=f"background:var(--v-s{color % COLORS})"), name) for name, color in shown]
    return tag("div", *[tag("span", item) for item in items], cls="v-key")


def _stroke(x: Axis, y: Axis, points: Sequence[tuple[float, float]], line: Line, cls: str | None = None) -> Markup:
    return tag(
        "polyline",
        cls=cls,
        points=" ".join(f"{x.place(a)},{round(100 - y.place(b), 3)}" for a, b in points),
        style=f"stroke:var(--v-s{line.color % COLORS})",
        stroke_dasharray="5 4" if line.dashed else None,
        vector_effect="non-scaling-stroke",
    )


def _at(x: Axis, y: Axis, a: float, b: float) -> str:
    return f"left:{x.place(a)}%;bottom:{y.place(b)}%"


def _round_step(raw: float, whole: bool) -> float:
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw - 1e-12)
    return float(max(1, math.ceil(step))) if whole else float(step)
