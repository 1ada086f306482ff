"""What the Compare page shows of a conversation. Everything that somebody or a model wrote is escaped or plain text."""

from __future__ import annotations

import html
from typing import Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache
from gradio.utils import get_upload_folder

from dashboard.compare_talk import LETTERS, MOST, Talk, about
from dashboard.uploads import jpeg
from vrray.data.decode import open_image

_SHOWN_SIDE = 512
_FOLDER = "compare"


def board(talk: Talk) -> tuple[Any, ...]:
    """Updates of the columns and of the vote buttons."""
    updates: list[Any] = []
    for column in range(MOST):
        if column < len(talk.rows):
            detail = "Shown after your vote" if talk.hidden else about(talk.rows[column])
            updates += [gr.Column(visible=True), heading_html(talk.name(column), detail)]
            updates += [gr.Chatbot(value=messages(talk, column)), speed_html(speed_text(talk, column))]
        else:
            unused = gr.Column(visible=column < 2 and not talk.rows)
            updates += [unused, heading_html(f"Model {LETTERS[column]}", ""), gr.Chatbot(value=[]), ""]
    labels = [f"{talk.name(column)} is best" for column in range(len(talk.rows))]
    labels += ["" for _ in range(MOST - len(labels))]
    updates += [gr.Button(label or "-", visible=bool(label), interactive=talk.can_vote) for label in labels]
    good = "Both are bad" if len(talk.rows) == 2 else "None is good"
    updates += [gr.Button(text, visible=bool(talk.rows), interactive=talk.can_vote) for text in ("Tie", good)]
    return tuple(updates)


def messages(talk: Talk, column: int) -> list[Any]:
    """The messages of a column. Gradio puts their text into the page as HTML, with or without Markdown."""
    found: list[dict[str, Any]] = []
    for exchange, shown, answer in zip(talk.asked, talk.shown, talk.answers[column], strict=True):
        if shown is not None:
            found.append({"role": "user", "content": {"path": shown, "alt_text": "the image of the question"}})
        found.append({"role": "user", "content": html.escape(exchange.question, quote=False)})
        if answer:
            found.append({"role": "assistant", "content": html.escape(answer, quote=False)})
    return found


def speed_text(talk: Talk, column: int) -> str:
    if column in talk.failed:
        return talk.failed[column]
    if column in talk.pending:
        return "answering ..."
    return "" if talk.hidden or column >= len(talk.speed) else talk.speed[column]


def shown(images: tuple[bytes, ...]) -> str | None:
    """The path of a small JPEG of the image, in Gradio's cache."""
    if not images:
        return None
    image = open_image(images[0], "of the question")
    image.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))
    return keep_image(jpeg(image), "image.jpg")


def reason(error: Exception) -> str:
    return f"the sweep's sweep.json lacks {error}" if isinstance(error, KeyError) else str(error)


def notice_html(text: str) -> str:
    return f'<div role="status" aria-live="polite">{html.escape(text)}</div>'


def heading_html(name: str, detail: str) -> str:
    return f"<h3>{html.escape(name)}</h3><p>{html.escape(detail)}</p>"


def speed_html(text: str) -> str:
    return f'<p role="status">{html.escape(text)}</p>'


def keep_image(data: bytes, name: str) -> str:
    """The path of a file that the page may show."""
    return save_bytes_to_cache(data, name, cache_dir=f"{get_upload_folder()}/{_FOLDER}")
