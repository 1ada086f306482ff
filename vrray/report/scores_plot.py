"""Figure: layer scores over the depth, a panel a score."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from vrray.report.canvas import BODY, GRID, INK, SMALL, caption, new_figure, style, tidy, to_png
from vrray.scores.table import SCORES, LayerScores


def draw_scores(scores: Mapping[str, LayerScores]) -> bytes:
    """PNG bytes; equal scores give equal bytes. Scores have units of their own, so each has its own panel."""
    figure = new_figure(8, 1.0 + 1.45 * len(scores))
    panels = figure.subplots(len(scores), 1, sharex=True, squeeze=False)[:, 0]
    for index, (axes, (name, score)) in enumerate(zip(panels, scores.items(), strict=True)):
        _draw(axes, name, score, *style(index))
    panels[-1].set_xlabel("decoder layer", fontsize=BODY)
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    caption(figure, "Layer scores", "Bands: ± 2 standard errors over the calibration samples. Higher: matters more.")
    return to_png(figure)


def _draw(axes: Axes, name: str, score: LayerScores, color: str, marker: str) -> None:
    tidy(axes)
    layers, values = np.arange(len(score.values)), np.array(score.values)
    errors = 2 * np.array(score.standard_errors)
    axes.fill_between(layers, values - errors, values + errors, color=color, alpha=0.18, linewidth=0)
    axes.plot(layers, values, color=color, marker=marker, markersize=4, linewidth=1.4)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_title(name, loc="left", fontsize=BODY, color=INK, fontweight="bold")
    samples = f"{score.samples} samples" if score.samples else "weights alone"
    axes.set_title(f"{SCORES[name]} ({samples})", loc="right", fontsize=SMALL, color=INK)
