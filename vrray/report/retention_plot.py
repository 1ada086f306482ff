"""Figure: how much of full tuning each placement keeps, before any pruning."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vrray.report.canvas import (
    BLUE,
    GRID,
    INK,
    MUTED,
    SMALL,
    VERMILION,
    caption,
    message_figure,
    new_figure,
    shorten,
    tidy,
)
from vrray.report.rows import Row, Score, group_trials, name_split, unpruned


def shows_retention(rows: Sequence[Row]) -> bool:
    """Whether the figure shows retention; without a complete `all` variant it shows the scores themselves."""
    return any(row.retention_visual is not None or row.retention_textual is not None for row in unpruned(rows))


def draw_retention(rows: Sequence[Row]) -> Figure:
    """A panel for visual and one for textual, a line a placement, best visual score on top."""
    retention = shows_retention(rows)
    trials = [(name, group[0]) for name, group in group_trials(unpruned(rows)).items()]
    panels = [panel for panel in _panels(trials, retention) if any(panel.points)]
    if not panels:
        return message_figure("No unpruned variant has scores.")
    figure = new_figure(8.5, 1.75 + 0.34 * len(trials))
    every_axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for panel, axes in zip(panels, every_axes, strict=True):
        _draw_panel(axes, panel, retention)
    every_axes[0].set_yticks(range(len(trials)), [shorten(name) for name, _ in trials], parse_math=False)
    every_axes[0].set_ylim(len(trials) - 0.4, -0.6)
    split = name_split([row for _, row in trials])
    if retention:
        note = "Whiskers: 95 % bootstrap interval of the score, divided by the score of all-layer tuning."
        caption(figure, f"What each placement keeps of tuning all layers (unpruned, {split} split)", note)
    else:
        note = "Whiskers: 95 % bootstrap interval. No retention: no complete variant has all layers tuned."
        caption(figure, f"Score of each placement (unpruned, {split} split)", note)
    return figure


@dataclass(frozen=True, slots=True)
class _Panel:
    title: str
    color: str
    marker: str
    points: list[Score | None]


def _panels(trials: Sequence[tuple[str, Row]], retention: bool) -> list[_Panel]:
    if not retention:
        return [
            _Panel("visual", BLUE, "o", [row.visual for _, row in trials]),
            _Panel("textual", VERMILION, "s", [row.textual for _, row in trials]),
        ]
    visual = [_percent(row.visual, row.retention_visual) for _, row in trials]
    textual = [_percent(row.textual, row.retention_textual) for _, row in trials]
    return [_Panel("visual", BLUE, "o", visual), _Panel("textual", VERMILION, "s", textual)]


def _percent(score: Score | None, retention: float | None) -> Score | None:
    """The retention in %, its interval scaled as the score was."""
    if score is None or retention is None:
        return None
    if not score.value or score.low is None or score.high is None:
        return Score(100 * retention)
    scale = 100 * retention / score.value
    return Score(100 * retention, score.low * scale, score.high * scale)


def _draw_panel(axes: Axes, panel: _Panel, retention: bool) -> None:
    tidy(axes)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_title(panel.title, fontsize=10, color=panel.color, loc="left", fontweight="bold")
    if retention:
        axes.axvline(100, color=MUTED, linewidth=1, linestyle="--", zorder=1)
    for place, point in enumerate(panel.points):
        _draw_point(axes, panel, place, point, retention)
    axes.set_xlabel("retention (%, all layers tuned = 100)" if retention else "score (fraction)", fontsize=SMALL)


def _draw_point(axes: Axes, panel: _Panel, place: int, point: Score | None, retention: bool) -> None:
    label = "-"
    if point is not None:
        label = f"{point.value:.1f}" if retention else f"{point.value:.3f}"
        if point.low is not None and point.high is not None:
            ends = [point.low, point.high]
            axes.plot(ends, [place, place], color=panel.color, linewidth=1.5)
            axes.plot(ends, [place, place], "|", color=panel.color, markersize=7, markeredgewidth=1.5)
        axes.plot(point.value, place, panel.marker, color=panel.color, markersize=6)
    axes.text(1.02, place, label, transform=axes.get_yaxis_transform(), va="center", fontsize=SMALL, color=INK)
