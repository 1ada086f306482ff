"""A headless Chromium and the real app for the browser tests; screenshots go to `$VRRAY_SCREENSHOTS` where set."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dashboard.app import Launch, build_app, launch
from dashboard.catalogue import Catalogue
from dashboard.site import Site
from tests.cluster.commands import free_port
from vrray.store import Store

Serve = Callable[[Store], str]
Shoot = Callable[[Any, str], None]
SIZES = {"wide": (1280, 720), "phone": (390, 844)}


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
    """A page of 1280x720 that has logged no error by its end."""
    with_errors: list[str] = []
    opened = browser.new_page(viewport={"width": 1280, "height": 720})
    opened.set_default_timeout(15_000)
    opened.on("pageerror", lambda error: with_errors.append(str(error)))
    yield opened
    opened.close()
    assert with_errors == []


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


@pytest.fixture
def shoot(tmp_path: Path) -> Shoot:
    """Takes a screenshot of a whole page, by name."""
    folder = Path(os.environ.get("VRRAY_SCREENSHOTS") or tmp_path)

    def take(page: Any, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=folder / f"dashboard_{name}.png", full_page=True)

    return take
