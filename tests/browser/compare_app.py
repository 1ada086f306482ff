"""An app with the Compare and the Votes page over a store that can answer, in a process of its own.

Arguments: folder of the store, port, and who answers: "real", a Ray Serve deployment with two places, "load", one
with four, or "scripted", lines that a model might say, without Ray. Prints "up" when it listens.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import gradio as gr
import ray
from PIL import Image, ImageDraw

from dashboard import compare_page, votes_page
from dashboard.answers import State, connect
from dashboard.conversation import Busy, Conversation, Decoding, End, Event, Piece, Refused
from dashboard.limits import Limits
from dashboard.serving import Base, Scale
from dashboard.site import Site
from dashboard.uploads import MAX_BYTES
from dashboard.votes import Votes
from tests.dashboard.answering import SmallCatalogue, answering_store
from vrray.models.loading import resolve_model

HTML = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script> <b>not bold</b> 1 < 2 & [a](javascript:1)'


class Scripted:
    """Answers as `dashboard.answers.Answers` gives them; what the question asks for happens."""

    def __init__(self) -> None:
        self.limits = Limits()

    def prepare(self, base: Base) -> State:
        return State("ready", "")

    retry = prepare

    async def ask(
        self, base: Base, variant: str, conversation: Conversation, decoding: Decoding, session: str
    ) -> AsyncGenerator[Event, None]:
        question = conversation[-1].question
        if "busy" in question:
            raise Busy("busy: all 2 places are taken and 100 requests wait; try again in a moment")
        if "refuse" in question and variant.partition("/")[2]:
            yield Refused("the conversation is too long")
            return
        said = HTML if "HTML" in question else f"{len(conversation)}. I see a disc."
        for word in said.split(" "):
            await asyncio.sleep(0.01)
            yield Piece(f"{word} ")
        yield End("stop", 20, len(said.split(" ")), 0.1, 0.5)

    def stop(self, session: str) -> int:
        return 0

    def close(self) -> None:
        pass


def main(folder: str, port: str, kind: str) -> None:
    store = answering_store(Path(folder), resolve_model("smol"), "smol")
    image = Image.new("RGB", (96, 96), "white")
    ImageDraw.Draw(image).ellipse((20, 20, 76, 76), fill="red")
    places = {"real": 2, "load": 4}.get(kind)
    if places is not None:
        ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    answers = Scripted() if places is None else connect(store, scale=Scale(at_once=places))
    site = Site(store, SmallCatalogue(store, image), answers, Votes(store))  # type: ignore[arg-type]
    with gr.Blocks(title="Compare") as app:
        with gr.Tab("Sweep"):
            gr.Markdown("The first page.")
        with gr.Tab("Compare"):
            compare_page.build(site)
        with gr.Tab("Votes"):
            votes_page.build(site)
    app.queue(api_open=False)
    app.launch(
        server_name="127.0.0.1",
        server_port=int(port),
        prevent_thread_lock=True,
        quiet=True,
        allowed_paths=[],
        max_file_size=MAX_BYTES,
    )
    print("up", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    app.close(verbose=False)
    answers.close()
    ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
