"""Pages of a browser, what is expected of them, and their screenshots."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PATIENCE_MS = 60_000  # a test fails after that, so that a machine which is busy with other tests fails none


@contextmanager
def opened(browser: Any, **options: Any) -> Iterator[Any]:
    """A page of 1280x720 in a session of its own; an error in its scripts fails the test."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 720}, **options})
    page, errors = context.new_page(), list[str]()
    page.set_default_timeout(PATIENCE_MS)
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    assert errors == []


def expect(locator: Any) -> Any:
    """What `locator` shall come to within `PATIENCE_MS`."""
    from playwright.sync_api import expect as expecting

    expecting.set_options(timeout=PATIENCE_MS)
    return expecting(locator)


def screenshot(page: Any, name: str) -> None:
    """A picture of the whole page, kept where `VRRAY_SCREENSHOTS` says."""
    if folder := os.environ.get("VRRAY_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)
