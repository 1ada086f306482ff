"""The Compare page: one question to two to four variants, answers side by side, a vote."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from dashboard.compare_handlers import SAMPLES, Handlers
from dashboard.compare_talk import DEFAULT_QUESTION, LETTERS, MOST, Talk
from dashboard.compare_view import heading_html, notice_html
from dashboard.leaderboard import View
from dashboard.site import Site
from dashboard.votes import BAD, TIE

_AT_ONCE = 64  # answers of one column that may stream at the same time; the deployment's queue is what bounds them
# Gradio puts a button beside images in a chat that would upload them to a public site; no option takes it away.
_NO_SHARING = "<style>[id^=compare-chat] button[title=Share] { display: none; }</style>"


@dataclass(frozen=True)
class ComparePage:
    """The components that follow from a sweep and a variant, the first two of them sweep and variants; and what sets
    them (`Handlers.taken`)."""

    components: tuple[gr.components.Component, ...]
    take: Callable[[str | None, View, str | None, list[str]], tuple[Any, ...]]


def build(site: Site) -> ComparePage:
    """The page, inside the Blocks or Tab that is open."""
    page = Handlers(site)
    limits = site.answers.limits if site.answers is not None else None
    talk, samples = gr.State(Talk(), time_to_live=3600), gr.State([], time_to_live=3600)
    gr.HTML(_NO_SHARING)
    gr.Markdown("Ask two to four variants the same question and see their answers side by side.")
    with gr.Row():
        sweep = gr.Dropdown(label="Sweep", choices=[], interactive=True, scale=1, elem_id="compare-sweep")
        chosen = gr.Dropdown(
            label=f"Variants (two to {MOST})",
            choices=[],
            multiselect=True,
            max_choices=MOST,
            interactive=True,
            scale=3,
            elem_id="compare-variants",
        )
        mode = gr.Radio(
            ["Named", "Blind"],
            value="Named",
            label="Names",
            info="Blind: hidden and shuffled until your vote",
            scale=1,
            elem_id="compare-mode",
        )
    box = gr.MultimodalTextbox(
        label="Your question, with an image if you like",
        placeholder=f"Add an image and ask about it (without words: {DEFAULT_QUESTION})",
        file_types=["image"],
        file_count="single",
        sources=["upload"],
        max_plain_text_length=8000,
        elem_id="compare-box",
    )
    with gr.Row():
        stop = gr.Button("Stop", size="sm", elem_id="compare-stop")
        again = gr.Button("Regenerate", size="sm", elem_id="compare-again")
        clear = gr.Button("Clear", size="sm", elem_id="compare-clear")
    notice = gr.HTML(notice_html(""), elem_id="compare-notice")
    columns = []
    with gr.Row(equal_height=False):
        for place, letter in enumerate(LETTERS):
            with gr.Column(min_width=280, visible=place < 2) as column:
                heading = gr.HTML(heading_html(f"Model {letter}", ""))
                chat = gr.Chatbot(
                    label=f"Answers of model {letter}",
                    elem_id=f"compare-chat-{letter}",
                    height=340,
                    render_markdown=False,
                    sanitize_html=True,
                    allow_tags=False,
                    latex_delimiters=[],
                    allow_file_downloads=False,
                    buttons=[],
                    placeholder="No answer yet",
                )
                speed = gr.HTML("", elem_id=f"compare-speed-{letter}")
            columns.append(_Column(column, heading, chat, speed))
    with gr.Row(elem_id="compare-votes"):
        votes = [gr.Button(f"{letter} is best", size="sm", interactive=False, visible=False) for letter in LETTERS]
        votes += [gr.Button(text, size="sm", interactive=False, visible=False) for text in ("Tie", "None is good")]
    gallery = gr.Gallery(
        label="Questions from the evaluation data: choose one to ask it",
        columns=SAMPLES,
        fit_columns=False,
        height=220,
        allow_preview=False,
        interactive=False,
        object_fit="contain",
        buttons=[],
        elem_id="compare-samples",
    )
    with gr.Accordion("Decoding settings", open=False), gr.Row():
        most = limits.new_tokens if limits is not None else 1024
        settings = [
            gr.Slider(1, most, value=min(128, most), step=1, label="Max new tokens"),
            gr.Slider(0, 2, value=0, step=0.05, label="Temperature", info="0: always the likeliest token"),
            gr.Slider(0.05, 1, value=1, step=0.05, label="Top-p", info="Share of probability that is drawn from"),
            gr.Number(value=0, precision=0, minimum=0, label="Seed", info="Regenerate takes the next one"),
        ]
    board = [part for column in columns for part in (column.box, column.heading, column.chat, column.speed)]
    outputs = [talk, *board, *votes, notice]
    who = [sweep, chosen, mode]

    gr.on(None, page.opened, [], [sweep, chosen, gallery, samples, notice])
    sweep.input(page.sweep_chosen, [sweep], [chosen, gallery, samples, notice])
    gr.on([sweep.change, chosen.change, mode.change], page.fresh, [talk, *who], outputs, show_progress="hidden")
    emptied = [clear.click, *(column.chat.clear for column in columns)]
    gr.on(emptied, page.fresh, [talk, *who], outputs, show_progress="hidden")
    box.focus(page.warm, [sweep], [notice], show_progress="hidden")
    gallery.select(page.sample, [samples], [box], show_progress="hidden")
    sent = box.submit(page.ask, [box, talk, *who, *settings], [*outputs, box], show_progress="hidden")
    repeated = again.click(page.again, [talk, *settings], [*outputs, settings[-1]], show_progress="hidden")
    for place, column in enumerate(columns):
        for begun in (sent, repeated):
            begun.then(
                page.answer_of(place),
                [talk],
                [column.chat, column.speed],
                concurrency_id=f"answers-{place}",
                concurrency_limit=_AT_ONCE,
                show_progress="hidden",
            ).then(page.settled, [talk], [*board, *votes, notice], show_progress="hidden")
    stop.click(page.stop, [talk], [notice], queue=False, show_progress="hidden")
    for button, value in zip(votes, [*map(str, range(MOST)), TIE, BAD], strict=True):
        button.click(page.vote_of(value), [talk], [*board, *votes, notice], show_progress="hidden")
    return ComparePage((sweep, chosen, gallery, samples, notice), page.taken)


@dataclass(frozen=True)
class _Column:
    box: gr.Column
    heading: gr.HTML
    chat: gr.Chatbot
    speed: gr.HTML
