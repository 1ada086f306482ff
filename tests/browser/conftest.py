"""A headless Chromium and the real app for the browser tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dashboard.app import Launch, build_app, launch
from dashboard.catalogue import Catalogue
from dashboard.site import Site
from tests.browser.pages import opened
from tests.cluster.commands import free_port
from vrray.store import Store

Serve = Callable[[Store], str]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Skips where there is no Chromium. It ends with its module, since its event loop is in the way of others."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium: install Debian's package chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    with opened(browser) as page:
        yield page


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serves stores, each by an app of its own on a free port."""
    apps = []

    def start(store: Store) -> str:
        app = build_app(Site(store, Catalogue(store)))
        apps.append(app)
        return launch(app, Launch(port=free_port()), block=False)

    yield start
    for app in apps:
        app.close(verbose=False)
