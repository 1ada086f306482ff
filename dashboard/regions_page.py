"""The page about where to tune: layer scores, placements over them, and regions that one makes up."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import gradio as gr
from gradio.context import Context

from dashboard.board import Board
from dashboard.markup import PICK, Markup, note, tag
from dashboard.region_parts import correlation_table, curves, layer_buttons
from dashboard.site import Site
from dashboard.whatif import Asked, command_for, depth_of, estimated_seconds, no_layers, plan_for, plan_markup
from vrray.errors import VrrayError
from vrray.region import PLACEMENTS, place
from vrray.scores.table import LayerScores

_SWEEP, _MEASURED = "sweep", "measured"
_NO_SCORES = (
    "A sweep that prunes by a score shows that score here; all of them are measured by "
    "python jobs/score_layers.py --storage {uri}."
)
_NO_PLACEMENT = "none"
_STARTING = note("One moment", "The first plan reads the model's configuration, which takes some seconds.")
Sources = dict[str, tuple[str, str]]


def build(site: Site) -> None:
    """Create the page's components in the current Blocks; inside a Tab it is filled when the tab is first opened."""
    page = _Page(site)
    with gr.Row(elem_classes="v-top"):
        source = gr.Dropdown([], label="Layer scores of", elem_id="regions-source", min_width=220)
        placement = gr.Dropdown(
            [_NO_PLACEMENT, *PLACEMENTS], value="uniform", label="Placement", elem_id="regions-placement", min_width=140
        )
        count = gr.Number(8, label="Layers it tunes", minimum=1, precision=0, elem_id="regions-count", min_width=120)
        take = gr.Button("Use it below", elem_id="regions-take", min_width=130, scale=0)
    curve = gr.HTML(elem_id="regions-curves", apply_default_css=False)
    with gr.Row(elem_classes="v-top"):
        model = gr.Dropdown([], label="Model", elem_id="regions-model", min_width=200)
        workers = gr.Number(8, label="Workers, a GPU each", minimum=1, precision=0, min_width=140)
        memory = gr.Number(80, label="Memory of a GPU, GiB", minimum=1, min_width=140)
        clear = gr.Button("Clear layers", elem_id="regions-clear", min_width=130, scale=0)
    cells = gr.HTML(_STARTING, elem_id="regions-cells", js_on_load=PICK, apply_default_css=False)
    plan = gr.HTML(elem_id="regions-plan", apply_default_css=False)
    command = gr.Textbox(
        "",
        label="The command that trains it",
        buttons=["copy"],
        interactive=False,
        lines=1,
        max_lines=4,
        elem_id="regions-command",
    )
    agree = gr.HTML(elem_id="regions-agree", elem_classes="v-empty-ok", apply_default_css=False)
    picked = gr.State(())

    quiet: dict[str, Any] = {"show_progress": "hidden", "queue": False}
    slow: dict[str, Any] = {"show_progress": "minimal", "queue": False}
    whatif = [picked, cells, plan, command]
    asked = [picked, source, model, workers, memory]
    drawn = [source, placement, count]
    opened = [source, model, curve, agree]
    tab = Context.block
    if isinstance(tab, gr.Tab):
        # The scores are there at once; the first plan takes torch along, which takes seconds.
        filled = tab.select(page.opened, [source, model, placement, count], opened, **quiet)
    else:
        assert Context.root_block is not None, "a page is built inside Blocks"
        filled = Context.root_block.load(page.opened, [source, model, placement, count], opened, **quiet)
    filled.then(page.planned, asked, whatif, **slow)
    sourced = source.input(page.sourced, [source, model, placement, count], opened, **quiet)
    sourced.then(page.planned, asked, whatif, **slow)
    for control in (placement, count):
        control.input(page.drawn, drawn, [curve, agree], **quiet)
    take.click(page.taken, [*asked, placement, count], whatif, **slow)
    clear.click(page.cleared, asked, whatif, **slow)
    cells.click(page.toggled, asked, whatif, **slow)
    for control in (model, workers, memory):
        control.input(page.planned, asked, whatif, **slow)


class _Page:
    """The events of the page; each returns the new values of the components that `build` names for it."""

    def __init__(self, site: Site):
        self._site, self._catalogue = site, site.catalogue

    def opened(self, source: str | None, model: str | None, placement: str, count: int | None) -> tuple[Any, ...]:
        """The newest scores, and a model to plan with; what was chosen before stays."""
        try:
            sources = self._sources()
        except VrrayError as error:
            message = note("The store cannot be read", str(error), "error")
            return gr.Dropdown([], value=None), gr.Dropdown(["smol"], value="smol"), message, tag("div")
        source = source if source in sources else next(iter(sources), None)
        models = self._models()
        if model not in models:
            known = self._context(source).get("model")
            model = known if known in models else models[0]
        drawn = self.drawn(source, placement, count)
        return gr.Dropdown(list(sources), value=source), gr.Dropdown(models, value=model), *drawn

    def sourced(self, source: str, model: str, placement: str, count: int | None) -> tuple[Any, ...]:
        """Other scores: with the model that they are of."""
        return self.opened(source, self._context(source).get("model") or model, placement, count)

    def drawn(self, source: str | None, placement: str, count: int | None) -> tuple[Any, ...]:
        """The scores with a placement over them, and how far they agree."""
        try:
            scores, pairs = self._scores(source)
        except VrrayError as error:
            return note("No layer scores to show", str(error), "warn"), tag("div")
        if not scores:
            return note("No layer scores yet", _NO_SCORES.format(uri=self._site.store.shown())), tag("div")
        depth = max(len(score.values) for score in scores.values())
        try:
            layers = self._place(placement, depth, count, scores)
        except VrrayError as error:
            return tag("div", note("That placement does not fit", str(error), "error"), curves(scores, (), "")), pairs
        return curves(scores, layers, f"{placement}-{len(layers)}"), pairs

    def taken(
        self, picked: Any, source: str, model: str, workers: int, memory: float, placement: str, count: int
    ) -> tuple[Any, ...]:
        """The layers of the placement become the picked ones."""
        try:
            layers = self._place(placement, depth_of(self._known(model)), count, self._scores(source)[0])
        except VrrayError as error:
            return gr.skip(), gr.skip(), note("That placement does not fit", str(error), "error"), ""
        return self.planned(layers, source, model, workers, memory)

    def cleared(self, picked: Any, *asked: Any) -> tuple[Any, ...]:
        return self.planned((), *asked)

    def toggled(self, event: gr.EventData, picked: tuple[int, ...], *asked: Any) -> tuple[Any, ...]:
        """A click on a layer picks it, or lets it go."""
        what, _, text = str(event._data.get("pick", "")).partition(":")
        if what == "layer" and text.isdecimal():
            picked = tuple(sorted(set(picked) ^ {int(text)}))
        return self.planned(picked, *asked)

    def planned(
        self, picked: tuple[int, ...], source: str | None, model: str, workers: int | None, memory: float | None
    ) -> tuple[Any, ...]:
        """The layers to pick, what tuning the picked ones takes, and the command."""
        try:
            depth = depth_of(self._known(model))
        except VrrayError as error:
            return picked, tag("div"), note("This model cannot be planned", str(error), "error"), ""
        picked = tuple(layer for layer in picked if layer < depth)
        cells = layer_buttons(depth, picked, self._first_score(source))
        if not picked:
            return picked, cells, no_layers(), ""
        asked = Asked(model, picked, int(workers or 1), float(memory or 1))
        try:
            plan = plan_for(asked)
        except VrrayError as error:
            return picked, cells, note("This cannot be planned", str(error), "error"), ""
        context = self._context(source)
        board = self._board(source) if context.get("model") == model else None
        text = command_for(asked, self._site.store.shown(), context)
        return picked, cells, plan_markup(plan, estimated_seconds(plan, board)), text

    def _sources(self) -> Sources:
        """Where scores may come from, by the text that the page shows; measured ones first."""
        measured = {f"{name} (measured scores)": (_MEASURED, name) for name in self._catalogue.measured_scores()}
        return measured | {f"{name} (sweep)": (_SWEEP, name) for name in self._catalogue.sweeps()}

    def _scores(self, source: str | None) -> tuple[dict[str, LayerScores], Markup]:
        kind, name = self._sources().get(source or "", ("", ""))
        if kind == _MEASURED:
            scores, pairs = self._catalogue.scores(name)
            return scores, correlation_table(pairs)
        if kind == _SWEEP:
            found = self._catalogue.ranking_scores(name)
            board = self._catalogue.board(name)
            named = dict(zip(reversed(board.table["key"].to_pylist()), reversed(board.variants), strict=True))
            top = [board.table["key"][int(row)].as_py() for row in board.ranked]
            best = next((key for key in top if key in found), None)
            shown = {f"{found[best].name}": found[best]} if best else {}
            return shown, tag("p", f"Scores of {named.get(best, '')}.", cls="v-meta") if best else tag("div")
        return {}, tag("div")

    def _first_score(self, source: str | None) -> LayerScores | None:
        try:
            return next(iter(self._scores(source)[0].values()), None)
        except VrrayError:
            return None  # said where the scores are drawn

    def _place(self, placement: str, depth: int, count: int | None, scores: dict[str, LayerScores]) -> tuple[int, ...]:
        if placement == _NO_PLACEMENT:
            return ()
        values = {name: score.values for name, score in scores.items()}
        return place(placement, depth, int(count or 1), 0, values).layers

    def _models(self) -> list[str]:
        """The models of the store's sweeps, newest first, and those that vrray knows by name."""
        from vrray.models.presets import presets

        found = []
        for name in self._catalogue.sweeps():
            with suppress(VrrayError):  # one that has not ended yet, or cannot be read
                found.append(self._catalogue.context(name)["model"])
        return list(dict.fromkeys([*found, "smol", *(preset.name for preset in presets())]))

    def _known(self, model: str | None) -> str:
        """The model, where it is one of the list: no request names a path or a download.

        Raises:
            VrrayError: it is not.
        """
        if model not in self._models():
            raise VrrayError(f"model {model!r} is not in the list")
        return str(model)

    def _context(self, source: str | None) -> dict[str, str]:
        kind, name = self._sources().get(source or "", ("", ""))
        try:
            return self._catalogue.context(name) if kind == _SWEEP else {}
        except VrrayError:
            return {}  # a sweep that has not ended yet

    def _board(self, source: str | None) -> Board | None:
        kind, name = self._sources().get(source or "", ("", ""))
        try:
            return self._catalogue.board(name) if kind == _SWEEP else None
        except VrrayError:
            return None
