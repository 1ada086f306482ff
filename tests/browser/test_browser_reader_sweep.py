"""The sweep page in a browser: leaderboard, filters, figures, downloads, a sweep while it runs, states of a store."""

from __future__ import annotations

import io
import time
import zipfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from reader_store import HOSTILE, live_state, write_large, write_live, write_sweep

from tests.browser.pages import expect, screenshot
from tests.cluster.commands import free_port
from vrray.store import Store

LEADERBOARD = "#sweep-board tbody tr"


def _names(page: Any) -> list[str]:
    return [str(name) for name in page.locator(f"{LEADERBOARD} .v-pickname").all_inner_texts()]


def _wait_for_first(page: Any, name: str) -> None:
    page.locator(f"{LEADERBOARD}:first-child .v-pickname", has_text=name).wait_for()


def test_sort_filter_choose_and_download(page: Any, serve: Any, tmp_path: Path) -> None:
    page.goto(serve(write_sweep(tmp_path)))
    page.locator(LEADERBOARD).first.wait_for()
    assert _names(page)[0] == "all" and len(_names(page)) == 20
    assert page.locator("#sweep-status .v-lead dd").inner_text().startswith("all")

    page.get_by_role("button", name="ms a token").click()
    page.locator("th[aria-sort=ascending]", has_text="ms a token").wait_for()
    assert all(name.endswith("prune4") for name in _names(page)[:4])
    page.get_by_role("button", name="Next").click()
    page.get_by_text("21 to 21 of 21 variants").wait_for()
    assert len(_names(page)) == 1

    page.get_by_role("button", name="Filters").click()
    page.get_by_label("Parameters, at most millions").fill("127")
    page.get_by_text("1 to 4 of 4 variants").wait_for()
    page.get_by_role("button", name="Clear filters").click()
    page.get_by_text("1 to 20 of 21 variants").wait_for()

    point = page.locator("#sweep-figures .v-point[aria-label^='bottom-3-prune2:']")
    point.focus()
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Chosen variant: bottom-3-prune2").wait_for()
    assert page.locator("#sweep-figures .v-chosen").get_attribute("aria-label").startswith("bottom-3-prune2")
    page.locator("#sweep-layers tr[aria-selected=true] th", has_text="bottom-3-prune2").wait_for()
    page.get_by_role("radio", name="time a token").check()
    page.get_by_role("heading", name="Score against time").wait_for()

    with page.expect_download() as parquet:
        page.locator("#sweep-files").get_by_text("Table (Parquet)").click()
    assert pq.read_table(parquet.value.path()).num_rows == 22
    with page.expect_download() as report:
        page.locator("#sweep-files").get_by_text("Report and figures (ZIP)").click()
    assert set(zipfile.ZipFile(io.BytesIO(Path(report.value.path()).read_bytes())).namelist()) == {
        "report.md",
        "figures/layer_map.png",
    }
    screenshot(page, "sweep")


def test_a_failure_is_shown_as_text(page: Any, serve: Any, tmp_path: Path) -> None:
    page.goto(serve(write_sweep(tmp_path)))
    page.locator("#sweep-status").get_by_text(HOSTILE).wait_for()
    assert page.title() == "vrray" and page.locator("#sweep-status img").count() == 0


def test_chosen_variants_are_added_to_the_comparison(page: Any, serve: Any, tmp_path: Path) -> None:
    page.goto(serve(write_sweep(tmp_path)))
    compared = ["all", "untuned"]  # as suggested
    for name in ("bottom-3-prune2", "bottom-3-prune4", "all"):
        compared += [name] if name not in compared else []
        page.locator(f"#sweep-figures .v-point[aria-label^='{name}:']").click()
        page.get_by_role("heading", name=f"Chosen variant: {name}").wait_for()
        page.get_by_role("button", name="Add to Compare").click()
        expect(page.get_by_role("tab", name="Compare")).to_have_attribute("aria-selected", "true")
        expect(page.locator("#compare-variants .token")).to_contain_text(compared)
        page.get_by_role("tab", name="Sweep").click()
    page.get_by_role("tab", name="Compare").click()
    expect(page.locator("#compare-chat-D")).to_be_visible()


def test_a_running_sweep_is_followed_to_its_table(page: Any, serve: Any, tmp_path: Path) -> None:
    store = Store(tmp_path)
    write_live(store, "demo", live_state(time.time(), step=5))
    page.goto(serve(store))
    page.get_by_text("1 waiting, 1 training, 1 failed").wait_for()
    page.get_by_text("step 5 of 20").wait_for()
    assert HOSTILE in page.locator("#sweep-live tbody tr").first.inner_text() and page.title() == "vrray"
    assert page.locator("#sweep-live polyline").count() == 1
    screenshot(page, "live")
    write_live(store, "demo", live_state(time.time(), step=11))
    page.get_by_text("step 11 of 20").wait_for()
    write_sweep(tmp_path)
    write_live(store, "demo", live_state(time.time(), step=20, ended="finished"))
    page.locator(LEADERBOARD).first.wait_for()
    assert page.get_by_text("Trainings of the last run").is_visible()


@pytest.mark.parametrize("state", ["empty", "damaged", "died"])
def test_every_state_of_a_store_is_a_message(page: Any, serve: Any, tmp_path: Path, state: str) -> None:
    store = Store(tmp_path)
    says = "Run one: python jobs/sweep.py --quick"
    if state == "damaged":
        write_sweep(tmp_path).write_bytes("sweeps/demo/table.parquet", b"no parquet")
        says = "sweeps/demo/table.parquet cannot be read"
    elif state == "died":
        write_live(store, "demo", live_state(time.time() - 900))
        says = "The sweep's driver last wrote 15 min ago"
    page.goto(serve(store))
    page.get_by_text(says).first.wait_for()
    assert page.get_by_text("Traceback").count() == 0


@pytest.mark.parametrize("size", ["wide", "phone"])
@pytest.mark.parametrize("mode", ["light", "dark"])
def test_it_fits_the_screen(page: Any, serve: Any, tmp_path: Path, size: str, mode: str) -> None:
    width, height = {"wide": (1280, 720), "phone": (390, 844)}[size]
    page.set_viewport_size({"width": width, "height": height})
    page.goto(f"{serve(write_sweep(tmp_path))}?__theme={mode}")
    page.locator(LEADERBOARD).first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.body.classList.contains('dark')") == (mode == "dark")
    screenshot(page, f"sweep-{size}-{mode}")


def test_ten_thousand_variants_are_shown_and_sorted(page: Any, serve: Any, tmp_path: Path) -> None:
    page.goto(serve(write_large(tmp_path)))
    page.get_by_text("1 to 20 of 10,000 variants").wait_for()
    for heading in ("ms a token", "parameters, M", "layers removed"):
        page.get_by_role("button", name=heading).click()
        page.locator("th[aria-sort=ascending]", has_text=heading).wait_for()


def test_a_password_is_asked_for(page: Any, tmp_path: Path) -> None:
    from dashboard.app import Launch, build_app, launch
    from dashboard.catalogue import Catalogue
    from dashboard.site import Site

    store = write_sweep(tmp_path)
    app = build_app(Site(store, Catalogue(store)))
    try:
        url = launch(app, Launch(port=free_port(), auth=("me", "secret")), block=False)
        assert page.request.get(f"{url}gradio_api/info").status in (401, 404)
        assert page.request.get(f"{url}config").status == 401
        page.goto(url)
        page.locator("input[type=password]").wait_for()
        assert "all-prune1" not in page.content()
    finally:
        app.close(verbose=False)


@pytest.mark.parametrize("path", ["sweeps/demo/table.parquet", "../../../../etc/passwd", "..%2f..%2f..%2fetc%2fpasswd"])
def test_no_file_of_the_disk_is_served(page: Any, serve: Any, tmp_path: Path, path: str) -> None:
    url = serve(write_sweep(tmp_path))
    for prefix in ("gradio_api/file=", "file=", "gradio_api/file=" + str(tmp_path) + "/"):
        assert page.request.get(f"{url}{prefix}{path}").status in (403, 404, 405)
