"""The app: its tabs, and how it is launched."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from dashboard import examples_page, regions_page, sweep_page
from dashboard.catalogue import Catalogue
from dashboard.markup import shown_uri, tag
from dashboard.site import Site
from dashboard.theme import CSS, theme
from vrray.errors import SpecError
from vrray.store import Store

MAX_UPLOAD = "16mb"
_LOCAL = ("127.0.0.1", "localhost", "::1")
_CACHE_SECONDS = (3600, 24 * 3600)  # how often Gradio's copies of served files are looked through, how old they get


@dataclass(frozen=True)
class Launch:
    """Where the app listens. `auth` is (user, password).

    Raises:
        SpecError: others could reach it and no password is asked for.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    auth: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        if self.host not in _LOCAL and self.auth is None:
            raise SpecError(
                f"--host {self.host} lets others reach the dashboard: add --auth USER:PASSWORD, or leave --host out "
                f"and forward the port, as in ssh -L {self.port}:127.0.0.1:{self.port}"
            )


def parse_auth(text: str) -> tuple[str, str]:
    """
    Raises:
        SpecError: it is not USER:PASSWORD.
    """
    user, separator, password = text.partition(":")
    if not (user and separator and password):
        raise SpecError("--auth must be USER:PASSWORD, neither of them empty")
    return user, password


def build_app(site: Site) -> gr.Blocks:
    """All pages on one site."""
    with gr.Blocks(title="vrray", analytics_enabled=False, delete_cache=_CACHE_SECONDS, elem_classes="v-app") as app:
        gr.HTML(
            tag("header", tag("h1", "vrray"), tag("p", f"store {shown_uri(site.store.uri)}"), cls="v-head"),
            apply_default_css=False,
        )
        with gr.Tabs():
            with gr.Tab("Sweep", id="sweep"):
                sweep_page.build(site)
            # MERGE: the tab "Compare" (compare_page.build) comes here.
            with gr.Tab("Examples", id="examples"):
                examples_page.build(site)
            with gr.Tab("Regions", id="regions"):
                regions_page.build(site)
            # MERGE: the tab "Votes" (votes_page.build) comes here.
    return app


def launch(app: gr.Blocks, where: Launch, *, block: bool = True) -> str:
    """Serve the app until it is interrupted, or, without `block`, in a thread; the URL.

    Nothing is served from the disk but what a page hands out itself, and there is no public API.
    """
    app.queue(api_open=False, default_concurrency_limit=8)
    _, url, _ = app.launch(
        server_name=where.host,
        server_port=where.port,
        auth=where.auth,
        max_file_size=MAX_UPLOAD,
        allowed_paths=[],
        theme=theme(),
        css=CSS,
        footer_links=[],
        show_error=False,
        share=False,
        ssr_mode=False,
        enable_monitoring=False,
        prevent_thread_lock=True,
        quiet=True,
    )
    if block:
        print(f"dashboard: {url}", flush=True)
        app.block_thread()
    return url


def run(storage: str, where: Launch) -> None:
    """`vrray dashboard`."""
    store = Store(storage)
    launch(build_app(Site(store, Catalogue(store))), where)
