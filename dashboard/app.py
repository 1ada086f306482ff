"""The app: its tabs, and how it is launched."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from dashboard import compare_page, examples_page, regions_page, sweep_page, votes_page
from dashboard.answers import connect
from dashboard.catalogue import Catalogue
from dashboard.markup import tag
from dashboard.openai_api import LOOPBACK, ApiServer, check_token
from dashboard.serving import Scale
from dashboard.site import Site
from dashboard.theme import CSS, theme
from dashboard.uploads import MAX_BYTES
from dashboard.votes import Votes
from vrray.errors import SpecError
from vrray.store import Store

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
        if self.host not in LOOPBACK and self.auth is None:
            raise SpecError(
                f"--host {self.host} lets others reach the dashboard: add --auth USER:PASSWORD, or leave --host out "
                f"and forward the port, as in ssh -L {self.port}:127.0.0.1:{self.port}"
            )


@dataclass(frozen=True)
class Endpoint:
    """Where OpenAI's chat completions are answered, and the token that they must send.

    Raises:
        SpecError: others could reach it and no token is asked for.
    """

    host: str
    port: int
    token: str | None

    def __post_init__(self) -> None:
        check_token(self.host, self.token)


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
            tag("header", tag("h1", "vrray"), tag("p", f"store {site.store.shown()}"), cls="v-head"),
            apply_default_css=False,
        )
        with gr.Tabs() as tabs:
            with gr.Tab("Sweep", id="sweep"):
                looked_at = sweep_page.build(site)
            with gr.Tab("Compare", id="compare"):
                compared = compare_page.build(site)
            with gr.Tab("Examples", id="examples"):
                examples_page.build(site)
            with gr.Tab("Regions", id="regions"):
                regions_page.build(site)
            with gr.Tab("Votes", id="votes"):
                votes_page.build(site)
        asked = [looked_at.sweep, looked_at.view, *compared.components[:2]]
        followed = looked_at.compare.click(compared.take, asked, [*compared.components])
        followed.then(lambda: gr.Tabs(selected="compare"), None, tabs)
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
        max_file_size=MAX_BYTES,
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


def run(storage: str, where: Launch, endpoint: Endpoint | None = None, *, replicas: int = 1) -> None:
    """`vrray dashboard`: the pages, and the endpoint where it is wanted, until they are interrupted.

    Ray and the model are started by the first question, in `replicas` copies.
    """
    store = Store(storage)
    catalogue, answers = Catalogue(store), connect(store, scale=Scale(replicas=replicas))
    server = None
    try:
        if endpoint is not None:
            server = ApiServer(store, catalogue, answers, **vars(endpoint))
            print(f"endpoint: http://{endpoint.host}:{server.port}/v1", flush=True)
        launch(build_app(Site(store, catalogue, answers, Votes(store))), where)
    finally:
        if server is not None:
            server.close()
        answers.close()
