"""The page that one starts from: a sweep while it runs, its leaderboard, its figures, its files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.context import Context

from dashboard.board import Board, Filter
from dashboard.downloads import FILES, Downloads
from dashboard.figures import layer_map, retention, scatter
from dashboard.leaderboard import View, detail, failures, headline, leaderboard, shown_page
from dashboard.live_part import is_running, live_markup
from dashboard.markup import PICK, Markup, note, tag
from dashboard.site import Site
from vrray.errors import VrrayError

RUNNING_SECONDS, IDLE_SECONDS = 2.0, 15.0
_NO_SWEEP = (
    "Run one: python jobs/sweep.py --quick --storage {uri} takes some minutes on a laptop. It appears here by itself."
)
_FILTERS = 6
_DRAWN = 4
Seen = tuple[str, Any, Any, bool]
"""What a page shows: the sweep, when its table and its live state last changed, whether it runs."""


@dataclass(frozen=True)
class SweepPage:
    """Components that other pages follow: the sweep, what is chosen in it (`View`), and the way to compare that."""

    sweep: gr.Dropdown
    view: gr.State
    compare: gr.Button


def build(site: Site) -> SweepPage:
    """Create the page's components in the current Blocks."""
    page = _Page(site)
    with gr.Row(elem_classes="v-top"):
        sweep = gr.Dropdown([], label="Sweep (newest first)", elem_id="sweep-name", scale=4, min_width=200)
        reload = gr.Button("Reload", elem_id="sweep-reload", scale=0, min_width=110)
    status = gr.HTML(elem_id="sweep-status", apply_default_css=False)
    live = gr.HTML(elem_id="sweep-live", elem_classes="v-empty-ok", apply_default_css=False)
    with gr.Accordion("Filters", open=False, elem_id="sweep-filters"):
        with gr.Row():
            placements = gr.Dropdown([], multiselect=True, label="Placements (none chosen: all)")
            tuned = gr.Dropdown([], multiselect=True, label="Numbers of layers tuned")
            removed = gr.Dropdown([], multiselect=True, label="Numbers of layers removed")
        with gr.Row():
            kept = gr.Number(None, label="Visual score kept, at least %", minimum=0)
            size = gr.Number(None, label="Parameters, at most millions", minimum=0)
            speed = gr.Number(None, label="Time a token, at most ms", minimum=0)
        clear = gr.Button("Clear filters", size="sm")
    board = gr.HTML(elem_id="sweep-board", js_on_load=PICK, apply_default_css=False)
    cost = gr.Radio(
        [("parameters", "parameters"), ("time a token", "latency")],
        value="parameters",
        label="Draw the score against",
        elem_id="sweep-cost",
    )
    figures = gr.HTML(elem_id="sweep-figures", js_on_load=PICK, apply_default_css=False)
    layers = gr.HTML(elem_id="sweep-layers", elem_classes="v-empty-ok", apply_default_css=False)
    chosen = gr.HTML(elem_id="sweep-chosen", elem_classes="v-empty-ok", apply_default_css=False)
    with gr.Row(elem_id="sweep-files"):
        compare = gr.Button("Add to Compare", size="sm", elem_id="sweep-compare")
        files = [gr.DownloadButton(text, size="sm", interactive=False) for text in FILES]
    view, seen = gr.State(View()), gr.State(None)
    timer = gr.Timer(RUNNING_SECONDS)

    filters: list[Any] = [placements, tuned, removed, kept, size, speed]
    drawn = [board, figures, layers, chosen]
    asked = [sweep, view, cost, *filters]
    everything = [sweep, view, status, live, *filters, *drawn, *files, seen, timer]
    quiet: dict[str, Any] = {"show_progress": "hidden", "queue": False}

    blocks = Context.root_block
    assert blocks is not None, "a page is built inside Blocks"
    blocks.load(page.opened, [sweep, cost], everything, **quiet)
    reload.click(page.opened, [sweep, cost], everything, **quiet)
    sweep.input(page.opened, [sweep, cost], everything, **quiet)
    timer.tick(page.ticked, [seen, *asked], everything, **quiet)
    for control in [*filters, cost]:
        control.input(page.filtered, asked, [view, *drawn], **quiet)
    clear.click(page.cleared, asked[:3], [*filters, view, *drawn], **quiet)
    board.click(page.picked, asked, [view, *drawn], **quiet)
    figures.click(page.picked, asked, [view, *drawn], **quiet)
    return SweepPage(sweep, view, compare)


class _Page:
    """The events of the page; each returns the new values of the components that `build` names for it."""

    def __init__(self, site: Site):
        self._site, self._catalogue = site, site.catalogue
        self._downloads = Downloads(site.catalogue)

    def opened(self, sweep: str | None, cost: str) -> tuple[Any, ...]:
        """Everything about a sweep; about the newest one where none is chosen, or it is gone."""
        try:
            names = self._catalogue.sweeps()
        except VrrayError as error:
            return self._nothing(note("The store cannot be read", str(error), "error"))
        if not names:
            return self._nothing(note("No sweep yet", _NO_SWEEP.format(uri=self._site.store.shown())))
        name = sweep if sweep in names else names[0]
        return (gr.Dropdown(names, value=name), *self._sweep(name, View(), cost, Filter(), fresh=True))

    def ticked(self, seen: Seen | None, sweep: str | None, view: View, cost: str, *filters: Any) -> tuple[Any, ...]:
        """What has changed in the store since it was drawn; mostly nothing."""
        if not sweep or seen is None:
            return self.opened(None, cost) if self._any() else self._skip()
        now = self._seen(sweep)
        if now == seen:
            return self._skip()
        if now[1] == seen[1]:  # the table is the same: only the live state is drawn
            every = gr.Timer(_seconds(now)) if now[3] != seen[3] else gr.skip()
            live = self._live(sweep)
            return gr.skip(), gr.skip(), gr.skip(), live, *self._skip()[4:-2], now, every
        return gr.skip(), *self._sweep(sweep, view, cost, _filter(*filters), fresh=False)

    def filtered(self, sweep: str, view: View, cost: str, *filters: Any) -> tuple[Any, ...]:
        view = View(view.sort, view.descending, 0, view.chosen)
        return view, *self._draw(sweep, view, cost, _filter(*filters))

    def cleared(self, sweep: str, view: View, cost: str) -> tuple[Any, ...]:
        empty: tuple[Any, ...] = ([], [], [], None, None, None)
        return *empty, *self.filtered(sweep, view, cost, *empty)

    def picked(self, event: gr.EventData, sweep: str, view: View, cost: str, *filters: Any) -> tuple[Any, ...]:
        """A click on a heading, a page, a variant."""
        after = view.picked(str(event._data.get("pick", "")))
        if after.chosen == view.chosen:
            board, _, layers, _ = self._draw(sweep, after, cost, _filter(*filters), figures=False)
            return after, board, gr.skip(), layers, gr.skip()
        return after, *self._draw(sweep, after, cost, _filter(*filters))

    def _sweep(self, name: str, view: View, cost: str, chosen: Filter, *, fresh: bool) -> tuple[Any, ...]:
        """All but the list of sweeps; `fresh` sets the filters back."""
        seen, board, status = self._seen(name), None, note("No sweep", "")
        try:
            board = self._catalogue.board(name)
            status = self._status(name, board)
        except VrrayError as error:
            status = note("The table cannot be shown", str(error), "error")
            if seen[1] is None:
                status = tag("div") if seen[3] else note("No table yet", str(error), "warn")
        if board is not None and not view.chosen and board.best is not None:
            view = View(view.sort, view.descending, view.page, board.variants[board.best])
        filters = _choices(board, fresh)
        drawn = self._draw(name, view, cost, chosen) if board is not None else (tag("div"),) * _DRAWN
        files = self._downloads.buttons(name, seen[1])
        return view, status, self._live(name), *filters, *drawn, *files, seen, gr.Timer(_seconds(seen))

    def _draw(self, name: str, view: View, cost: str, chosen: Filter, *, figures: bool = True) -> tuple[Any, ...]:
        """The leaderboard, the figures, the layer map, and the chosen variant."""
        try:
            board = self._catalogue.board(name)
            found = board.select(chosen, view.sort, view.descending)
            rows = board.rows(shown_page(view, found))
            drawings = [scatter(board, found, cost, view.chosen), retention(board, found)] if figures else []
            scores = self._catalogue.ranking_scores(name)
        except VrrayError as error:
            return note("The table cannot be shown", str(error), "error"), *(tag("div"),) * (_DRAWN - 1)
        known = view.chosen in board.places
        key = board.cells(board.places[view.chosen])["key"] if known else ""
        of, strip = (view.chosen, scores[key]) if key in scores else _any_scores(board, scores)
        about = detail(board, name, self._site.store.shown(), view.chosen) if known else tag("div")
        return (
            leaderboard(board, view, found),
            tag("div", *drawings, cls="v-stack"),
            layer_map(board, rows, strip, of, view.chosen),
            about,
        )

    def _status(self, name: str, board: Board) -> Markup:
        try:
            context = self._catalogue.context(name)
        except VrrayError as error:
            context = {"note": str(error)}
        told = [f"{key}: {context[key]}" for key in ("model", "data", "seeds", "tasks", "note") if key in context]
        count = f"{len(board.variants):,} variants, {len(board.variants) - int(board.complete.sum()):,} without a score"
        failed = failures(board)
        return tag("div", tag("p", " · ".join([count, *told]), cls="v-meta"), headline(board), failed, cls="v-stack")

    def _live(self, name: str) -> Markup:
        try:
            state = self._catalogue.live(name)
        except VrrayError as error:
            return note("The live state cannot be read", str(error), "warn")
        command = None
        if state is not None and state["ended"] != "finished":
            try:
                command = self._catalogue.context(name).get("command")
            except VrrayError:
                command = None  # a first run has left none yet
        return live_markup(state, command)

    def _seen(self, name: str) -> Seen:
        try:
            state = self._catalogue.live(name)
        except VrrayError:
            state = None
        stamps = (self._site.store.stamp(f"sweeps/{name}/{file}") for file in ("table.parquet", "live.json"))
        return (name, *stamps, is_running(state))  # type: ignore[return-value]

    def _any(self) -> bool:
        try:
            return bool(self._catalogue.sweeps())
        except VrrayError:
            return False

    def _nothing(self, message: Markup) -> tuple[Any, ...]:
        empty = (tag("div"),) * _DRAWN
        files = self._downloads.buttons("", None)
        choices = _choices(None, True)
        return gr.Dropdown([], value=None), View(), message, tag("div"), *choices, *empty, *files, None, gr.skip()

    def _skip(self) -> tuple[Any, ...]:
        return (gr.skip(),) * (4 + _FILTERS + _DRAWN + len(FILES) + 2)


def _seconds(seen: Seen) -> float:
    return RUNNING_SECONDS if seen[3] else IDLE_SECONDS


def _choices(board: Board | None, fresh: bool) -> tuple[Any, ...]:
    """The filters with what there is to choose from."""
    cleared: dict[str, Any] = {"value": []} if fresh else {}
    lists = [board.values(name) if board else [] for name in ("placement", "tuned", "removed")]
    numbers = [gr.Number(value=None) if fresh else gr.skip() for _ in range(3)]
    return *[gr.Dropdown(choices, multiselect=True, **cleared) for choices in lists], *numbers


def _filter(
    placements: list[str],
    tuned: list[int],
    removed: list[int],
    kept: float | None,
    size: float | None,
    speed: float | None,
) -> Filter:
    least = None if kept is None else kept / 100
    return Filter(tuple(placements or ()), tuple(tuned or ()), tuple(removed or ()), least, size, speed)


def _any_scores(board: Board, scores: dict[str, Any]) -> tuple[str, Any]:
    """Layer scores of the best variant's training, or of any other."""
    if not scores:
        return "", None
    keys = board.table["key"].to_pylist()
    place = next((int(row) for row in board.ranked if keys[int(row)] in scores), None)
    if place is None:
        return "another training of this sweep", next(iter(scores.values()))
    return board.variants[place], scores[keys[place]]
