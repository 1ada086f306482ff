"""Layer scores over depth with a region drawn over them, their rank correlations, and layers to pick."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pyarrow as pa

from dashboard.charts import Axis, Line, chart
from dashboard.figures import ranks
from dashboard.markup import Markup, join, section, tag
from vrray.report.text import DASH
from vrray.scores.table import SCORES, LayerScores

_BAND = 7


def curves(scores: Mapping[str, LayerScores], region: Sequence[int], name: str) -> Markup:
    """A line a score, each as a share of its largest value, and the layers of a region as bands."""
    title = "Layer scores over depth"
    depth = max(len(score.values) for score in scores.values())
    lines = []
    for place, (label, score) in enumerate(scores.items()):
        top = max((abs(value) for value in score.values), default=0.0) or 1.0
        lines.append(Line(label, [(float(layer), value / top) for layer, value in enumerate(score.values)], place))
    low = min(0.0, *(value for line in lines for _, value in line.points))
    bands = [(max(-0.5, layer - 0.5), min(depth - 0.5, layer + 0.5), _BAND) for layer in region if layer < depth]
    every = max(1, math.ceil(depth / 16))
    x = Axis(
        -0.5, depth - 0.5, tuple(float(layer) for layer in range(0, depth, every)), "decoder layer, 0 is the first"
    )
    y = Axis.around([low, 1.0], "share of the score's largest value")
    what = f" Shaded: the {len(region)} layers of {name}." if region else ""
    meanings = [join(tag("dt", label), tag("dd", SCORES.get(label, "a score of another version"))) for label in scores]
    drawing = chart(title, x, y, lines, bands=bands, height=250)
    legend = tag(
        "details", tag("summary", "What the scores measure"), tag("dl", *meanings, cls="v-pairs"), cls="v-more"
    )
    about = f"A line a score; higher is a layer that matters more.{what}"
    return section(title, about, drawing, legend)


def correlation_table(pairs: pa.Table) -> Markup:
    """Spearman's rank correlation of each pair of scores, as a matrix."""
    rows = {(row["a"], row["b"]): row["rank_correlation"] for row in pairs.to_pylist()}
    names = list(dict.fromkeys(a for a, _ in rows))
    head = [tag("th", name, scope="col") for name in names]
    lines = [tag("tr", tag("th", a, scope="row"), *[_correlation(rows.get((a, b))) for b in names]) for a in names]
    table = tag("table", tag("thead", tag("tr", tag("th", "score", scope="col"), *head)), tag("tbody", *lines))
    styled = Markup(table.replace("<table>", '<table class="v-table v-matrix">', 1))
    about = (
        "Spearman's rank correlation, -1 to 1: how far two scores order the layers alike. On the diagonal: the "
        "agreement of rankings by two halves of a score's own samples."
    )
    return section("Do the scores agree?", about, tag("div", styled, cls="v-scroll", tabindex="0"))


def layer_buttons(depth: int, picked: Sequence[int], score: LayerScores | None) -> Markup:
    """A button a decoder layer; a bar beneath its number is darker the more the score puts on it."""
    shares = ranks(score.values) if score is not None and len(score.values) == depth else None
    buttons = []
    for layer in range(depth):
        bar = tag("i", style=f"--a:{0.08 + 0.92 * shares[layer]:.2f}") if shares else None
        buttons.append(
            tag(
                "button",
                str(layer),
                bar,
                type="button",
                cls="v-cell",
                data_pick=f"layer:{layer}",
                aria_pressed=str(layer in picked).lower(),
                aria_label=f"layer {layer}",
            )
        )
    by = f" The bar beneath is darker the higher the layer ranks by {score.name}." if shares and score else ""
    about = f"Pick the decoder layers to tune, 0 is nearest to the input.{by}"
    return section("What if?", about, tag("div", *buttons, cls="v-cells", role="group", aria_label="Decoder layers"))


def _correlation(value: float | None) -> Markup:
    if value is None or math.isnan(value):
        return tag("td", DASH, title="not defined: a constant score, or too few samples")
    strong = abs(value)
    return tag("td", f"{value:.2f}", cls="v-on" if strong > 0.6 else None, style=f"--a:{0.9 * strong:.2f}")
