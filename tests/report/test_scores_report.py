"""Layer scores as text, Markdown and a figure."""

from __future__ import annotations

import io
import math

import pytest
from PIL import Image

from vrray.report.scores_plot import draw_scores
from vrray.report.scores_report import format_scores, render_scores
from vrray.scores.table import LayerScores

SCORES = {
    "angular": LayerScores("angular", (0.3, 0.1, 0.2), (0.01, 0.02, 0.03), 4),
    "change": LayerScores("change", (0.0, 0.5, 0.0), (0.0,) * 3, 0),
}
BETWEEN = {
    ("angular", "angular"): 0.97,
    ("angular", "change"): -0.5,
    ("change", "angular"): -0.5,
    ("change", "change"): math.nan,
}


def test_the_order_is_most_important_first() -> None:
    lines = format_scores(SCORES, BETWEEN).splitlines()
    assert lines[1].split() == ["angular", "halves", "agree", "0.97", "0", "2", "1"]
    assert lines[2].split() == ["change", "halves", "agree", "-", "1", "0", "2"]


def test_markdown_has_values_with_errors_and_correlations() -> None:
    text = render_scores(SCORES, BETWEEN, {"model": "smol", "scored": "all"})
    assert "| 1 | 0.1 ±0.02 | 0.5 ±0 |" in text
    assert "| `angular` | 0.97 | -0.50 |" in text
    assert "| `change` | -0.50 | - |" in text
    assert "| scored | all |" in text
    assert "(figures/layer_scores.png)" in text


@pytest.mark.parametrize("names", [["angular"], ["angular", "change"]])
def test_the_figure_grows_with_the_scores(names: list[str]) -> None:
    chosen = {name: SCORES[name] for name in names}
    drawn = draw_scores(chosen)
    assert drawn == draw_scores(chosen)
    image = Image.open(io.BytesIO(drawn))
    assert image.width == 1200 and abs(image.height - (150 + 217.5 * len(names))) < 2
