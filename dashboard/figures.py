"""The figures of a sweep as markup: score against cost, what is kept by layers removed, the layer map."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dashboard.board import Board, Indices
from dashboard.charts import COLORS, Axis, Line, Point, chart, key
from dashboard.leaderboard import number
from dashboard.markup import Markup, join, section, tag
from vrray.report.canvas import shorten
from vrray.report.rows import Row
from vrray.scores.table import LayerScores, least_important_first

COSTS = {"parameters": "parameters, millions", "latency": "time a token, ms (batch 1)"}
_CELLS = (44, 32)  # where there are many points, one is shown for each cell of such a grid


def scatter(board: Board, found: Indices, cost: str, chosen: str) -> Markup:
    """Score against what a variant costs, and the Pareto front; a click on a point chooses it."""
    score, price = board.numbers[board.ability], board.numbers[cost]
    tuned = board.placements[found] != "none"
    known = found[np.isfinite(score[found]) & np.isfinite(price[found]) & tuned]
    title = f"Score against {'size' if cost == 'parameters' else 'time'}"
    if not len(known):
        return section(title, "No variant that passes the filters has both figures.")
    front = board.front(cost, known)
    wanted = [board.places[chosen]] if chosen in board.places and board.places[chosen] in known else []
    picked = np.asarray(list(dict.fromkeys([*_thinned(price[known], score[known], known), *front, *wanted])))
    colors = placement_colors(board)
    at_front = set(front.tolist())
    points = [
        Point(
            float(price[row]),
            float(score[row]),
            f"{board.variants[row]}: score {score[row]:.3f}, {price[row]:,.1f} {'M' if cost == 'parameters' else 'ms'}"
            + (", on the Pareto front" if row in at_front else ""),
            f"variant:{board.variants[row]}",
            colors[board.placements[row]],
            f"{'v-front' if row in at_front else ''} {'v-chosen' if board.variants[row] == chosen else ''}".strip(),
        )
        for row in map(int, picked)
    ]
    stairs = Line("Pareto front", _stairs([(float(price[row]), float(score[row])) for row in front]), 7, dashed=True)
    x = Axis.around([point.x for point in points], COSTS[cost])
    y = Axis.around([point.y for point in points], f"{board.ability} score, fraction right (select split)")
    less = (
        ""
        if len(picked) == len(known)
        else f" {len(picked):,} of {len(known):,} are drawn, the whole front among them."
    )
    names = sorted({board.placements[row] for row in map(int, picked)})
    legend = key([(name, colors[name]) for name in names][:COLORS])
    text = "A point a variant; filled ones are on the Pareto front: none scores higher at no more cost. "
    text += f"Click one to choose it. The untuned base is left out.{less}"
    return section(title, text, chart(title, x, y, [stairs], points, legend=False), legend)


def retention(board: Board, found: Indices) -> Markup:
    """What is left by layers removed, a line a placement: visual and textual side by side."""
    panels = [_retention(board, found, ability) for ability in ("visual", "textual")]
    drawn = [panel for panel in panels if panel is not None]
    title = "What is kept as layers go"
    several = "Bars: 95 % intervals; where a placement has several variants with as many removed, their mean and range."
    if not drawn:
        return section(title, "No variant that passes the filters has a score.")
    names = sorted({board.placements[row] for row in map(int, found)} - {"none"})
    colors = placement_colors(board)
    kept = any(board.measured(f"kept_{ability}") for ability in ("visual", "textual"))
    what = "Share of the score of tuning all layers" if kept else "Score, since the sweep has no placement all"
    legend = key([(name, colors[name]) for name in names][:COLORS])
    return section(title, f"{what}, a line a placement. {several}", tag("div", *drawn, cls="v-grid2"), legend)


def layer_map(board: Board, rows: Sequence[Row], scores: LayerScores | None, of: str, chosen: str) -> Markup:
    """A row a variant, a column a decoder layer; beneath, the layer scores of one of them as a heat strip."""
    depth = max((row.depth for row in rows), default=0)
    title = "Layer map"
    if not depth:
        return section(title, "No variant passes the filters.")
    head = [tag("th", str(layer) if layer % _every(depth) == 0 else "", scope="col") for layer in range(depth)]
    lines = [_map_line(board, row, depth, row.variant == chosen) for row in rows]
    strip = _strip(scores, depth) if scores is not None and len(scores.values) == depth else None
    legend = tag(
        "div",
        *[
            tag("span", tag("i", text, cls=f"v-swatch-{kind}"), name)
            for kind, text, name in (("t", "", "tuned"), ("k", "", "kept as it was"), ("x", "✕", "removed"))
        ],
        cls="v-key",
    )
    table = tag(
        "table",
        tag("caption", "Which decoder layers each variant tunes, keeps and removes", cls="v-hidden"),
        tag("thead", tag("tr", tag("th", "variant", scope="col"), *head, tag("th", "score", scope="col", cls="v-num"))),
        tag("tbody", *lines),
        tag("tfoot", strip) if strip else None,
        cls="v-map",
        style=f"min-width:{260 + 15 * depth}px",
    )
    about = "A row a variant of this page of the leaderboard, a column a decoder layer (0 is nearest to the input)."
    if strip is not None and scores is not None:
        about += f" Beneath: {scores.name} score of the layers of {of}, darker is more important, by rank."
    scroll = tag("div", table, cls="v-scroll", tabindex="0", role="region", aria_label="Layer map, scrolls sideways")
    return section(title, about, scroll, legend)


def placement_colors(board: Board) -> dict[str, int]:
    """A series colour for each placement of the sweep, whatever is filtered."""
    return {name: place for place, name in enumerate(sorted(set(board.placements)))}


def ranks(values: Sequence[float]) -> list[float]:
    """For each layer, 0 for the least important to 1 for the most."""
    order = least_important_first(values, range(len(values)))
    places = {layer: place for place, layer in enumerate(order)}
    return [places[layer] / max(1, len(values) - 1) for layer in range(len(values))]


def _retention(board: Board, found: Indices, ability: str) -> Markup | None:
    kept = f"kept_{ability}"
    percent = bool(np.isfinite(board.numbers[kept][found]).any())
    values, low, high = (board.numbers[f"{kept if percent else ability}{end}"] for end in ("", "_low", "_high"))
    colors, lines = placement_colors(board), []
    for name in sorted(set(board.placements[found]) - {"none"}):
        rows = found[(board.placements[found] == name) & np.isfinite(values[found])]
        counts = board.numbers["removed"][rows]
        points, whiskers = [], []
        for count in np.unique(counts):
            same = rows[counts == count]
            points.append((float(count), float(values[same].mean())))
            first, last = (low[same[0]], high[same[0]]) if len(same) == 1 else (values[same].min(), values[same].max())
            if np.isfinite(last - first):
                whiskers.append((float(count), float(first), float(last)))
        if points:
            lines.append(Line(name, points, colors[name], marked=True, whiskers=whiskers))
    if not lines:
        return None
    counted = [count for line in lines for count, _ in line.points]
    heights = [value for line in lines for _, value in line.points]
    heights += [end for line in lines for _, *ends in line.whiskers for end in ends]
    x = Axis.around([0.0, *counted], "layers removed", whole=True)
    label = f"{ability} score kept" if percent else f"{ability} score, fraction right"
    y = Axis.around(heights, label, percent=percent)
    return chart(f"{label} by layers removed", x, y, lines, height=230, legend=False)


def _thinned(x: np.ndarray, y: np.ndarray, rows: Indices) -> list[int]:
    """All rows where they are few; of many, the best ranked in each cell of a grid."""
    columns, lines = _CELLS
    if len(rows) <= columns * lines // 4:
        return [int(row) for row in rows]
    cells = _bins(x, columns) * lines + _bins(y, lines)
    _, first = np.unique(cells, return_index=True)
    return [int(row) for row in rows[np.sort(first)]]


def _bins(values: np.ndarray, count: int) -> np.ndarray:
    low, high = values.min(), values.max()
    return np.minimum(count - 1, (count * (values - low) / ((high - low) or 1.0)).astype(np.int64))


def _stairs(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    path: list[tuple[float, float]] = []
    for x, y in points:
        if path:
            path.append((x, path[-1][1]))
        path.append((x, y))
    return path


def _map_line(board: Board, row: Row, depth: int, chosen: bool) -> Markup:
    tuned, removed = set(row.tuned), set(row.removed)
    kinds = {(True, False): ("v-t", ""), (False, True): ("v-x", "✕"), (True, True): ("v-tx", "✕")}
    cells = []
    for layer in range(depth):
        cls, text = kinds.get((layer in tuned, layer in removed), (None, ""))
        cells.append(tag("td", text, cls=cls, aria_hidden="true"))
    score = row.visual if board.ability == "visual" else row.textual
    gone = f"removes {', '.join(map(str, row.removed))}" if row.removed else "removes none"
    says = f"{row.variant}: tunes {', '.join(map(str, row.tuned)) or 'none'}; {gone}"
    name = tag("th", shorten(row.variant, 23), scope="row", aria_label=says, title=row.variant)
    value = tag("td", number(score.value if score else None), cls="v-num")
    return tag("tr", name, *cells, value, aria_selected=str(chosen).lower())


def _strip(scores: LayerScores, depth: int) -> Markup:
    shares = ranks(scores.values)
    cells = [
        tag(
            "td",
            style=f"--a:{0.06 + 0.94 * shares[layer]:.2f}",
            title=f"layer {layer}: {scores.name} {scores.values[layer]:.4g}",
        )
        for layer in range(depth)
    ]
    order = [str(layer) for layer in sorted(range(depth), key=lambda layer: -shares[layer])]
    says = f"{scores.name} score, layers from the most important: {', '.join(order)}"
    return tag("tr", tag("th", join(scores.name, " score"), scope="row", aria_label=says), *cells, cls="v-heat")


def _every(depth: int) -> int:
    return 1 if depth <= 34 else 2 if depth <= 64 else 5
