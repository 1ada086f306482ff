"""The page that shows what pruning does to answers: the questions where two variants differ, one at a time."""

from __future__ import annotations

from typing import Any, cast

import gradio as gr
from gradio.context import Context

from dashboard.differences import KINDS, Kind, Pair, compare, counts, select
from dashboard.markup import Markup, note, tag
from dashboard.site import Site
from vrray.errors import VrrayError

_ALL_TASKS = "all tasks"
_NAMES: dict[Kind, str] = {
    "differ": "answers differ",
    "lost": "lost by the second",
    "gained": "gained by the second",
    "both right": "both right",
    "both wrong": "both wrong",
    "all": "all",
}
_NO_SWEEP = "Finish a sweep first: python jobs/sweep.py --quick --storage {uri}. Its questions appear here then."
# Buttons act on the arrow keys and on j and k, wherever the page has the focus but in a field.
_KEYS = """
if (!window.vrrayKeys) {
  window.vrrayKeys = true;
  document.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest('input, textarea, select, [role=tab], [role=listbox], [contenteditable]')) return;
    const name = {ArrowRight: 'next', j: 'next', ArrowLeft: 'back', k: 'back'}[event.key];
    const button = name && document.getElementById('examples-' + name);
    if (button && button.offsetParent) { event.preventDefault(); button.click(); }
  });
}
"""


def build(site: Site) -> None:
    """Create the page's components in the current Blocks."""
    page = _Page(site)
    with gr.Row(elem_classes="v-top"):
        sweep = gr.Dropdown([], label="Sweep", elem_id="examples-sweep", min_width=160)
        first = gr.Dropdown([], label="First variant", elem_id="examples-first", min_width=200)
        second = gr.Dropdown([], label="Second variant", elem_id="examples-second", min_width=200)
        task = gr.Dropdown([_ALL_TASKS], value=_ALL_TASKS, label="Task", elem_id="examples-task", min_width=140)
    kind = gr.Radio(_kinds(None), value="differ", label="Which questions", elem_id="examples-kind")
    with gr.Row(elem_classes="v-steps"):
        back = gr.Button("← Previous", elem_id="examples-back", min_width=130, scale=0)
        where = gr.HTML(elem_id="examples-where", apply_default_css=False)
        following = gr.Button("Next →", elem_id="examples-next", min_width=130, scale=0)
    with gr.Row():
        image = gr.Image(
            label="Image of the question",
            interactive=False,
            buttons=["fullscreen"],
            height=300,
            min_width=240,
            elem_id="examples-image",
            visible=False,
        )
        with gr.Column(scale=2, min_width=280):
            card = gr.HTML(elem_id="examples-card", js_on_load=_KEYS, apply_default_css=False)
    place = gr.State(0)

    chosen = [sweep, first, second, task, kind]
    shown = [place, where, image, card]
    quiet: dict[str, Any] = {"show_progress": "hidden", "queue": False}
    opened = [sweep, first, second, task, kind, *shown]
    tab = Context.block
    if isinstance(tab, gr.Tab):
        tab.select(page.entered, [sweep, first], opened, **quiet)
    else:
        assert Context.root_block is not None, "a page is built inside Blocks"
        Context.root_block.load(page.opened, [sweep], opened, **quiet)
    sweep.input(page.opened, [sweep], opened, **quiet)
    sweep.focus(page.listed, [sweep], [sweep], **quiet)
    for control in (first, second):
        control.input(page.compared, chosen, [task, kind, *shown], **quiet)
    task.input(page.compared, chosen, [task, kind, *shown], **quiet)
    kind.input(page.chosen, chosen, shown, **quiet)
    back.click(page.previous, [place, *chosen], shown, **quiet)
    following.click(page.next, [place, *chosen], shown, **quiet)


class _Page:
    """The events of the page; each returns the new values of the components that `build` names for it."""

    def __init__(self, site: Site):
        self._site, self._catalogue = site, site.catalogue

    def listed(self, sweep: str | None) -> Any:
        """The sweeps that there are by now."""
        try:
            return gr.Dropdown(self._catalogue.sweeps(), value=sweep)
        except VrrayError:
            return gr.skip()

    def entered(self, sweep: str | None, first: str | None) -> tuple[Any, ...]:
        """The tab was opened; what is shown already stays."""
        return (gr.skip(),) * 9 if first else self.opened(sweep)

    def opened(self, sweep: str | None) -> tuple[Any, ...]:
        """A sweep, with the pair of variants that shows most about pruning."""
        try:
            names = self._catalogue.sweeps()
        except VrrayError as error:
            return self._nothing([], None, note("The store cannot be read", str(error), "error"))
        if not names:
            return self._nothing([], None, note("No sweep yet", _NO_SWEEP.format(uri="runs")))
        name = sweep if sweep in names else names[0]
        try:
            variants = self._catalogue.compared(name)
            first, second = self._telling(name, variants)
            lost = counts(compare(self._catalogue, name, first, second), None)["lost"]
        except VrrayError as error:
            return self._nothing(names, name, note("No answers to show", str(error), "warn"))
        lists = [gr.Dropdown(variants, value=value) for value in (first, second)]
        rest = self.compared(name, first, second, _ALL_TASKS, "lost" if lost else "differ")
        return gr.Dropdown(names, value=name), *lists, *rest

    def compared(self, sweep: str, first: str, second: str, task: str, kind: Kind) -> tuple[Any, ...]:
        """Two variants, or a task: with the counts of each kind of question."""
        try:
            pairs = compare(self._catalogue, sweep, first, second)
        except VrrayError as error:
            return gr.skip(), gr.skip(), *self._message(note("No answers to show", str(error), "error"))
        tasks = list(dict.fromkeys(pair.task for pair in pairs))
        task = task if task in tasks else _ALL_TASKS
        of = None if task == _ALL_TASKS else task
        tasks_choice = gr.Dropdown([_ALL_TASKS, *tasks], value=task)
        kinds = gr.Radio(_kinds(counts(pairs, of)), value=kind)
        return tasks_choice, kinds, *self._show(0, sweep, first, second, select(pairs, kind, of))

    def chosen(self, sweep: str, first: str, second: str, task: str, kind: Kind) -> tuple[Any, ...]:
        return self._step(0, sweep, first, second, task, kind)

    def next(self, place: int, *chosen: str) -> tuple[Any, ...]:
        return self._step(place + 1, *chosen)

    def previous(self, place: int, *chosen: str) -> tuple[Any, ...]:
        return self._step(place - 1, *chosen)

    def _step(self, place: int, *chosen: str) -> tuple[Any, ...]:
        sweep, first, second, task, kind = chosen
        if not (sweep and first and second):
            return (gr.skip(),) * 4
        try:
            pairs = compare(self._catalogue, sweep, first, second)
        except VrrayError as error:
            return self._message(note("No answers to show", str(error), "error"))
        found = select(pairs, cast(Kind, kind), None if task == _ALL_TASKS else task)
        return self._show(place, sweep, first, second, found)

    def _show(self, place: int, sweep: str, first: str, second: str, pairs: list[Pair]) -> tuple[Any, ...]:
        if not pairs:
            text = "No question of this kind. Choose another kind, another task, or two other variants."
            return self._message(note("Nothing here", text))
        place %= len(pairs)
        pair = pairs[place]
        says = f"{place + 1} of {len(pairs)} (keys: ← →)"
        where = tag("p", says, cls="v-meta v-center", role="status", aria_live="polite")
        problem, picture = None, gr.Image(value=None, visible=False)
        if pair.image is not None:
            try:
                found = self._catalogue.image(sweep, pair.image)
                picture = gr.Image(value=found, visible=True, label=f"Image of the question: {pair.image}")
            except VrrayError as error:
                problem = note("The image cannot be shown", str(error), "warn")
        return place, where, picture, _card(pair, first, second, problem)

    def _message(self, message: Markup) -> tuple[Any, ...]:
        return 0, tag("p", "0 of 0", cls="v-meta v-center"), gr.Image(value=None, visible=False), message

    def _nothing(self, names: list[str], name: str | None, message: Markup) -> tuple[Any, ...]:
        empty = [gr.Dropdown([], value=None), gr.Dropdown([], value=None), gr.skip(), gr.Radio(_kinds(None))]
        return gr.Dropdown(names, value=name), *empty, *self._message(message)

    def _telling(self, sweep: str, variants: list[str]) -> tuple[str, str]:
        """The best variant that has a pruned form, and that form with the most layers removed."""
        board = self._catalogue.board(sweep)
        ranked = [board.variants[row] for row in board.ranked if board.variants[row] in set(variants)]
        removed = board.numbers["removed"]
        keys = board.table["key"].to_pylist()
        for name in ranked:
            place = board.places[name]
            if removed[place]:
                continue
            pruned = [v for v in ranked if keys[board.places[v]] == keys[place] and removed[board.places[v]]]
            if pruned:
                return name, max(pruned, key=lambda v: removed[board.places[v]])
        pair = (ranked + variants)[:2]
        return pair[0], pair[-1]


def _kinds(found: dict[Kind, int] | None) -> list[tuple[str, str]]:
    """The choices, with how many questions each has."""
    return [(_NAMES[kind] + (f" ({found[kind]})" if found else ""), kind) for kind in KINDS]


def _card(pair: Pair, first: str, second: str, problem: Markup | None) -> Markup:
    options = f"Options: {', '.join(pair.options)}" if pair.options else None
    about = tag("p", f"{pair.task} · {pair.example} · {_NAMES[pair.kind]}", cls="v-meta")
    answers = [
        _answer("Reference", pair.answer, None),
        _answer(first, pair.first, pair.first_score),
        _answer(second, pair.second, pair.second_score),
    ]
    return tag(
        "article",
        problem,
        about,
        tag("h3", pair.question, cls="v-question"),
        tag("p", options, cls="v-sub") if options else None,
        tag("div", *answers, cls="v-answers"),
        cls="v-card",
        aria_label="Question and answers",
    )


def _answer(title: str, text: str, score: float | None) -> Markup:
    if score is None:
        return tag("div", tag("h4", title), tag("p", text), cls="v-answer")
    right = score >= 0.5
    verdict = (
        ("✓ right" if right else "✗ wrong") if score in (0.0, 1.0) else f"probability of the reference {score:.3f}"
    )
    shown = text if text.strip() else "(no text)"
    head = tag("h4", f"{title} · {verdict}")
    return tag("div", head, tag("p", shown), cls=f"v-answer {'v-right' if right else 'v-wrong'}")
