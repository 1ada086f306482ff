"""A sweep, watched in a browser while it runs, then its variants chosen, asked, voted on and looked at."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.browser.conftest import browser  # noqa: F401
from tests.browser.pages import expect, opened, screenshot
from tests.cluster.commands import ROOT, free_port, sweep_command

pytest.importorskip("ray.serve", reason="needs ray[serve]", exc_type=ImportError)
pytestmark = pytest.mark.ray
NAME, QUESTION = "watched", "Which colour is this?"
BOARD = "#sweep-board tbody tr"


@contextmanager
def running(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(90)


def test_from_a_running_sweep_to_a_vote(browser: Any, tmp_path: Path) -> None:  # noqa: F811
    store, port, photo = tmp_path / "store", free_port(), tmp_path / "photo.png"
    logs = tmp_path / "dashboard.log", tmp_path / "sweep.log"
    Image.new("RGB", (300, 200), (30, 120, 220)).save(photo)
    dashboard = [sys.executable, "-m", "vrray.cli", "dashboard", "--store", str(store), "--port", str(port)]
    with running(dashboard, logs[0]) as served, opened(browser) as page:
        while f"dashboard: http://127.0.0.1:{port}" not in logs[0].read_text():
            assert served.poll() is None, logs[0].read_text()
            time.sleep(0.2)
        page.goto(f"http://127.0.0.1:{port}")
        expect(page.locator("#sweep-status")).to_contain_text("python jobs/sweep.py --quick")
        with running(sweep_command(store, name=NAME, placements=["uniform", "all"], max_steps=4), logs[1]) as sweep:
            while not (store / "sweeps" / NAME / "live.json").exists():
                assert sweep.poll() is None, logs[1].read_text()
                time.sleep(0.2)
            page.get_by_role("button", name="Reload").click()
            expect(page.locator("#sweep-live .v-training").first).to_be_visible(timeout=240_000)
            screenshot(page, "watched-live")
            expect(page.locator(BOARD)).to_have_count(5, timeout=300_000)  # the table appears by itself
            assert sweep.wait(90) == 0, logs[1].read_text()
        screenshot(page, "watched-finished")
        _look_at_all_pages(page, photo)
        (vote,) = (json.loads(path.read_text()) for path in (store / "votes").glob("*.json"))
        assert vote["question"] == QUESTION and "uniform-2-prune1" in vote["variants"]


def _look_at_all_pages(page: Any, photo: Path) -> None:
    page.locator(f"{BOARD} .v-pickname", has_text="uniform-2-prune1").click()
    page.get_by_role("heading", name="Chosen variant: uniform-2-prune1").wait_for()
    page.get_by_role("button", name="Add to Compare").click()
    expect(page.locator("#compare-variants .token", has_text="uniform-2-prune1")).to_be_visible()
    page.set_input_files("#compare-box input[type=file]", photo)
    page.locator("#compare-box .thumbnail-item").wait_for()
    page.locator("#compare-box textarea").fill(QUESTION)
    page.locator("#compare-box .submit-button").click()
    for letter in "ABC":
        expect(page.locator(f"#compare-speed-{letter}")).to_contain_text("first token after", timeout=240_000)
    page.get_by_role("button", name="uniform-2-prune1 is best").click()
    expect(page.locator("#compare-notice")).to_contain_text("vote is kept")
    screenshot(page, "watched-compared")

    page.reload()
    page.get_by_role("tab", name="Votes").click()
    page.get_by_label("Named votes").check()
    expect(page.locator("#votes-table")).to_contain_text("uniform-2-prune1")
    page.get_by_role("tab", name="Examples").click()
    expect(page.locator("#examples-card, #examples-where").first).to_be_visible()
    screenshot(page, "watched-examples")
    page.get_by_role("tab", name="Regions").click()
    page.get_by_role("button", name="layer 7", exact=True).click()
    expect(page.get_by_text("1 of 30")).to_be_visible()
    assert "jobs/sweep.py" in page.locator("#regions-command textarea").input_value()
    screenshot(page, "watched-regions")
