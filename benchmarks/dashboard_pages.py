"""The sweep page with a table of many variants: `python -m benchmarks.dashboard_pages [--rounds 5] [--variants 10000]`.

Each round starts `vrray dashboard` anew and drives a headless Chromium on the same machine: from the start of the
command to its first answer, from the request of the page to the leaderboard, and from a click or an entry to the
sorted or filtered table. Needs Debian's package chromium. The first round warms up and is left out.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Page, sync_playwright

from benchmarks.timing import Timing
from tests.cluster.commands import ROOT, free_port
from tests.reader_store import write_large


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--variants", type=int, default=10_000)
    options = parser.parse_args(arguments)
    chromium, timing = shutil.which("chromium"), Timing()
    if chromium is None:
        parser.error("there is no chromium: install Debian's package of that name")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        write_large(Path(folder), options.variants)
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(options.rounds + 1):
            _round(timing, folder, browser, options.variants)
        browser.close()
    print(f"{options.rounds} rounds, {options.variants:,} variants\n\n{timing.table()}")


def _round(timing: Timing, folder: str, browser: Any, variants: int) -> None:
    port = free_port()
    command = [sys.executable, "-m", "vrray.cli", "dashboard", "--store", folder, "--port", str(port)]
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        _wait_for(f"http://127.0.0.1:{port}", process)
        timing.add("the command, until it answers", time.perf_counter() - began)
        page = browser.new_page()
        page.goto("about:blank")
        timing.time("first page, from the request to the leaderboard", lambda: _open(page, port, variants))
        timing.time("sorting, from the click to the sorted table", lambda: _sort(page))
        timing.time("filtering, from the entry to the filtered table", lambda: _filter(page, variants))
        page.close()
    finally:
        process.terminate()
        process.wait(60)


def _wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        try:
            httpx.get(address)
            return
        except httpx.TransportError:
            time.sleep(0.01)
    raise SystemExit("the dashboard has ended; see its message above")


def _open(page: Page, port: int, variants: int) -> None:
    page.goto(f"http://127.0.0.1:{port}", wait_until="commit")
    page.get_by_text(f"1 to 20 of {variants:,} variants").wait_for()


def _sort(page: Page) -> None:
    page.get_by_role("button", name="ms a token").click()
    page.locator("th[aria-sort=ascending]", has_text="ms a token").wait_for()


def _filter(page: Page, variants: int) -> None:
    page.get_by_role("button", name="Filters").click()
    page.get_by_label("Parameters, at most millions").fill("130")
    page.get_by_text(f"of {variants:,} variants").wait_for(state="hidden")


if __name__ == "__main__":
    main()
