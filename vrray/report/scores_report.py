"""Layer scores as Markdown and as lines for a terminal."""

import math
from collections.abc import Mapping

from vrray.report.text import escape_markdown, format_code, format_text_table
from vrray.scores.table import SCORES, LayerScores, least_important_first

Correlations = Mapping[tuple[str, str], float]


def render_scores(scores: Mapping[str, LayerScores], between: Correlations, context: Mapping[str, str]) -> str:
    """The text of report.md, which refers to `figures/layer_scores.png`.

    Args:
        between: rank correlations of pairs of scores; of a score with itself: between halves of its samples.
        context: what ran, shown as given.
    """
    depth = len(next(iter(scores.values())).values)
    values = [
        [str(layer), *(f"{s.values[layer]:.4g} ±{_error(s.standard_errors[layer])}" for s in scores.values())]
        for layer in range(depth)
    ]
    matrix = [[format_code(a), *(_number(between[a, b]) for b in scores)] for a in scores]
    orders = [
        [format_code(name), " ".join(map(str, _most_important(s))), escape_markdown(SCORES[name])]
        for name, s in scores.items()
    ]
    what = [[escape_markdown(name), escape_markdown(value)] for name, value in context.items()]
    names = [format_code(name) for name in scores]
    sections = [
        "# Layer scores",
        "## What ran",
        format_text_table(["what", "value"], what),
        "## Order",
        "Layers from the most important to the least by each score.",
        format_text_table(["score", "layers", "what it is"], orders),
        "![Layer scores over the depth](figures/layer_scores.png)",
        "## Agreement",
        "Spearman's rank correlation over the layers. On the diagonal: between rankings by two random halves of the "
        "calibration samples, which is how far a ranking depends on the samples that happened to be read.",
        format_text_table(["", *names], matrix),
        "## Values",
        "± one standard error over the calibration samples. Layers are numbered from 0; higher values matter more.",
        format_text_table(["layer", *names], values),
    ]
    return "\n\n".join(sections) + "\n"


def format_scores(scores: Mapping[str, LayerScores], between: Correlations) -> str:
    """A line a score: its layers from the most important to the least, and how stable that order is."""
    width = max(map(len, scores))
    lines = [
        f"{name:<{width}}  halves agree {_number(between[name, name]):>5}  {' '.join(map(str, _most_important(score)))}"
        for name, score in scores.items()
    ]
    return "\n".join(["layers from the most important to the least", *lines])


def _most_important(score: LayerScores) -> list[int]:
    return least_important_first(score.values, range(len(score.values)))[::-1]


def _error(value: float) -> str:
    return "?" if math.isnan(value) else f"{value:.2g}"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"
