"""An app with the Compare and the Votes page over a store that can answer, in a process of its own.

Arguments: folder of the store, port. Prints "up" when it listens. With three arguments, the third names another base
than the demo LVLM.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import gradio as gr
import ray
from PIL import Image, ImageDraw

from dashboard import compare_page, votes_page
from dashboard.answers import connect
from dashboard.serving import Scale
from dashboard.site import Site
from dashboard.uploads import MAX_BYTES
from dashboard.votes import Votes
from tests.dashboard.answering import SmallCatalogue, answering_store
from vrray.models.loading import resolve_model


def main(folder: str, port: str, model: str = "smol") -> None:
    store = answering_store(Path(folder), resolve_model("smol"), model)
    image = Image.new("RGB", (96, 96), "white")
    ImageDraw.Draw(image).ellipse((20, 20, 76, 76), fill="red")
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    answers = connect(store, scale=Scale())
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
