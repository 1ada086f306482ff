"""The leaderboard, and what it says of one variant and of the whole sweep, as markup."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dashboard.board import Board, Indices
from dashboard.markup import Markup, join, section, tag
from vrray.exporting.spec import ExportSpec
from vrray.report.rows import Row, Score
from vrray.report.text import DASH

PAGE = 20  # variants at a time
_ENDS = ("", "_low", "_high")
_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("variant", "variant", ""),
    ("visual", "visual score", "fraction right, with its 95 % interval"),
    ("kept_visual", "visual kept", "share of what tuning all layers scores, with its 95 % interval"),
    ("textual", "textual score", "fraction right, with its 95 % interval"),
    ("kept_textual", "textual kept", "share of what tuning all layers scores, with its 95 % interval"),
    ("tuned", "layers tuned", ""),
    ("removed", "layers removed", ""),
    ("parameters", "parameters, M", "millions"),
    ("latency", "ms a token", "batch 1"),
)


@dataclass(frozen=True)
class View:
    """What one person has chosen to see: the order, the page, the variant."""

    sort: str = "visual"
    descending: bool = True
    page: int = 0
    chosen: str = ""

    def picked(self, pick: str) -> View:
        """The view after a click: on a heading ("sort:NAME"), a page ("page:N"), or a variant ("variant:NAME")."""
        what, _, value = pick.partition(":")
        if what == "sort" and value in {name for name, _, _ in _COLUMNS}:
            best_first = value not in ("variant", "parameters", "latency", "tuned", "removed")
            descending = not self.descending if value == self.sort else best_first
            return View(value, descending, 0, self.chosen)
        if what == "page" and value.isdecimal():
            return View(self.sort, self.descending, int(value), self.chosen)
        if what == "variant":
            return View(self.sort, self.descending, self.page, value)
        return self


def shown_page(view: View, found: Indices) -> Indices:
    """The rows of the page that is looked at; the last one where there are fewer by now."""
    page = min(view.page, max(0, math.ceil(len(found) / PAGE) - 1))
    return found[page * PAGE : (page + 1) * PAGE]


def leaderboard(board: Board, view: View, found: Indices) -> Markup:
    """A page of the table of variants, with headings that sort and names that choose."""
    rows = board.rows(shown_page(view, found))
    columns = [column for column in _COLUMNS if column[0] not in board.numbers or board.measured(column[0])]
    head = [_heading(view, *column) for column in columns]
    body = [_line(board, view, row, [name for name, _, _ in columns]) for row in rows]
    if not body:
        body = [tag("tr", tag("td", "No variant passes these filters; widen them.", colspan=len(columns), cls="v-l"))]
    caption = "Scores are on the select split. Click a heading to sort, a name to choose the variant."
    table = tag(
        "table",
        tag("caption", "Variants of the sweep", cls="v-hidden"),
        tag("thead", tag("tr", *head)),
        tag("tbody", *body),
        cls="v-table",
    )
    scroll = tag("div", table, cls="v-scroll", tabindex="0", role="region", aria_label="Leaderboard, scrolls sideways")
    return section("Leaderboard", caption, scroll, _pager(view, len(found)))


def headline(board: Board) -> Markup:
    """The answer: the best variant, the smallest that cannot be told apart from it, the ceiling and the floor."""
    if board.best is None:
        return tag("div")
    best = board.rows([board.best])[0]
    alike = [int(row) for row in board.ranked if board.tied[row] and board.placements[row] != "none"]
    sizes = board.numbers["parameters"]
    small = min([*alike, board.best], key=lambda row: math.inf if math.isnan(sizes[row]) else sizes[row])
    smallest = board.rows([small])[0]
    score = f"{board.ability} score {_scored(_score(best, board.ability))}"
    others = f"{len(alike)} of {len(board.ranked) - 1} others cannot be told apart from it"
    saved = _saved(best, smallest)
    return tag(
        "dl",
        _stat("Best variant", best.variant, f"{score}; {others}", lead=True),
        _stat("Smallest one not told apart from it", smallest.variant, saved),
        _stat("Ceiling: all layers tuned", *_ceiling(board)),
        _stat("Floor: guess from the question alone", *_floor(best, board.ability)),
        cls="v-stats",
        style="margin:0",
    )


def detail(board: Board, sweep: str, storage: str, variant: str) -> Markup:
    """Everything that the table has about one variant, and the commands to take it."""
    place = board.places[variant]
    cells = board.cells(place)

    def measured(name: str) -> str:
        return _interval([cells.get(f"{name}{end}") for end in _ENDS], number)

    pairs: list[tuple[str, str]] = []
    for ability in ("visual", "textual"):
        kept = [float(board.numbers[f"kept_{ability}{end}"][place]) for end in _ENDS]
        pairs.append((f"{ability} score, select", measured(f"score_{ability}")))
        pairs.append((f"{ability} kept of the ceiling", _interval(kept, percent)))
        if cells[f"difference_{ability}"] is not None:
            pairs.append((f"{ability} difference to the ceiling", measured(f"difference_{ability}")))
        if cells.get(f"test_score_{ability}") is not None:
            pairs.append((f"{ability} score, held-out test", measured(f"test_score_{ability}")))
    named = {"score_visual", "score_textual", "score_visual_low", "score_visual_high"}
    named |= {"score_textual_low", "score_textual_high"}
    tasks = [name for name in board.table.column_names if name.startswith("score_") and name not in named]
    pairs += [(f"task {name.removeprefix('score_')}", number(cells[name])) for name in tasks]
    pairs += [
        ("without the image", number(cells["blind_visual"])),
        ("layers tuned", _layers(cells["tuned_layers"])),
        ("layers removed", _layers(cells["removed_layers"])),
        ("parameters", f"{millions(cells['parameters'])} M, {millions(cells['trained_parameters'])} M of them trained"),
        ("time a token", f"{number(cells['latency_ms_per_token'], 1)} ms"),
        ("training", f"{number(cells['train_seconds'], 0)} s, peak {number(cells['peak_mib'], 0)} MiB a worker"),
    ]
    command = ExportSpec(out=Path("DIR"), storage=storage, sweep=sweep, variant=variant).command()
    about = tag("dl", *[join(tag("dt", name), tag("dd", value)) for name, value in pairs], cls="v-pairs")
    return tag(
        "section",
        tag("h3", f"Chosen variant: {variant}"),
        tag("p", "Scores are fractions with their 95 % intervals.", cls="v-sub"),
        about,
        tag("p", "To take it as a model that transformers loads:", cls="v-sub", style="margin-top:14px!important"),
        tag("pre", tag("code", command), cls="v-code", tabindex="0"),
        cls="v-card",
        aria_label="Chosen variant",
    )


def failures(board: Board, most: int = 12) -> Markup | None:
    """The variants without scores, and why."""
    failed = board.failed
    if not failed:
        return None
    lines = [
        tag("tr", *[tag("td", cell, cls="v-l v-wrap") for cell in (row.variant, row.outcome, row.failure or "")])
        for row in failed[:most]
    ]
    more = f"; the first {most} are shown, all are in the table" if len(failed) > most else ""
    names = ("variant", "status", "why")
    head = tag("thead", tag("tr", *[tag("th", name, scope="col", cls="v-l") for name in names]))
    table = tag("div", tag("table", head, tag("tbody", *lines), cls="v-table"), cls="v-scroll")
    return section("Without a score", f"{len(failed)} variants{more}.", table)


def number(value: float | None, digits: int = 3) -> str:
    return DASH if value is None or math.isnan(value) else f"{value:,.{digits}f}"


def millions(value: float | None) -> str:
    return DASH if value is None else f"{value / 1e6:,.1f}"


def percent(value: float | None) -> str:
    return DASH if value is None or math.isnan(value) else f"{100 * value:.1f}%"


def _heading(view: View, name: str, text: str, unit: str) -> Markup:
    direction = ("descending" if view.descending else "ascending") if name == view.sort else "none"
    arrow = {"descending": " ↓", "ascending": " ↑", "none": ""}[direction]
    button = tag("button", text + arrow, type="button", data_pick=f"sort:{name}", title=unit or None)
    return tag("th", button, scope="col", aria_sort=direction)


def _line(board: Board, view: View, row: Row, columns: Sequence[str]) -> Markup:
    place = board.places[row.variant]
    mark = None
    if place == board.best:
        mark = tag("span", "best", cls="v-tag v-best")
    elif board.tied[place]:
        mark = tag("span", "≈ best", cls="v-tag v-tie", title="not told apart from the best")
    chosen = row.variant == view.chosen
    name = tag("button", row.variant, type="button", cls="v-pickname", data_pick=f"variant:{row.variant}")
    cells = {
        "visual": _scored(row.visual),
        "kept_visual": _kept(board, place, "visual"),
        "textual": _scored(row.textual),
        "kept_textual": _kept(board, place, "textual"),
        "tuned": str(len(row.tuned)),
        "removed": _few(row.removed),
        "parameters": millions(row.parameters),
        "latency": number(row.latency, 1),
    }
    shown = [tag("td", cells[column]) for column in columns if column in cells]
    return tag("tr", tag("td", name, mark), *shown, aria_selected=str(chosen).lower())


def _pager(view: View, count: int) -> Markup:
    last = max(0, math.ceil(count / PAGE) - 1)
    page = min(view.page, last)
    first = page * PAGE + 1 if count else 0
    steps = [
        tag("button", text, type="button", data_pick=f"page:{target}", disabled=not 0 <= target <= last or None)
        for text, target in (("← Previous", page - 1), ("Next →", page + 1))
    ]
    says = f"{first:,} to {min(count, (page + 1) * PAGE):,} of {count:,} variants"
    return tag("div", tag("span", says), tag("span", steps[0], " ", steps[1]), cls="v-pager")


def _stat(title: str, value: str, text: str, lead: bool = False) -> Markup:
    inner = tag("dd", value, tag("small", text))
    return tag("div", tag("dt", title), inner, cls="v-stat v-lead" if lead else "v-stat")


def _saved(best: Row, smallest: Row) -> str:
    parts = [f"{len(smallest.removed)} layers removed", f"{millions(smallest.parameters)} M parameters"]
    if best.parameters and smallest.parameters and smallest.parameters < best.parameters:
        parts[-1] += f" ({1 - smallest.parameters / best.parameters:.1%} fewer)"
    if smallest.latency:
        parts.append(f"{smallest.latency:.1f} ms a token")
    return ", ".join(parts)


def _ceiling(board: Board) -> tuple[str, str]:
    rows = [int(row) for row in board.ranked if board.placements[row] == "all" and not board.numbers["removed"][row]]
    if not rows:
        return DASH, "this sweep has no placement all, so what is kept is unknown"
    row = board.rows(rows[:1])[0]
    texts = [f"{ability} score" for ability in ("visual", "textual") if _score(row, ability)]
    values = [_scored(_score(row, ability)) for ability in ("visual", "textual") if _score(row, ability)]
    return values[0], f"{texts[0]} of {row.variant}" + (f"; textual {values[1]}" if len(values) > 1 else "")


def _floor(best: Row, ability: str) -> tuple[str, str]:
    floor = best.floor_visual if ability == "visual" else best.floor_textual
    if ability == "visual":
        return number(floor), f"visual; the best variant scores {number(best.blind)} without the image"
    return number(floor), "textual"


def _score(row: Row, ability: str) -> Score | None:
    return row.visual if ability == "visual" else row.textual


def _scored(score: Score | None) -> str:
    if score is None:
        return DASH
    half = score.half_width
    return f"{score.value:.3f}" + ("" if half is None else f" ±{half:.3f}")


def _kept(board: Board, place: int, ability: str) -> str:
    """The share that is kept, with half its interval where it is known."""
    value, low, high = (board.numbers[f"kept_{ability}{end}"][place] for end in _ENDS)
    return percent(value) + ("" if math.isnan(high - low) else f" ±{50 * (high - low):.1f}")


def _interval(values: Sequence[float | None], show: Callable[[float | None], str]) -> str:
    value, low, high = values
    known = low is not None and high is not None and not math.isnan(high - low)
    return show(value) + (f" ({show(low)} to {show(high)})" if known else "")


def _layers(layers: list[int] | None) -> str:
    return f"{len(layers)}: {', '.join(map(str, layers))}" if layers else "none"


def _few(layers: tuple[int, ...]) -> str:
    return f"{len(layers)}: {', '.join(map(str, layers))}" if 0 < len(layers) <= 4 else str(len(layers))
