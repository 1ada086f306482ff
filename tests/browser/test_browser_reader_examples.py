"""The pages Examples and Regions in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reader_store import HOSTILE, write_sweep

from tests.browser.pages import screenshot


def _open(page: Any, url: str, tab: str, mode: str = "light") -> None:
    page.goto(f"{url}?__theme={mode}")
    page.locator("#sweep-board tbody tr").first.wait_for()
    page.get_by_role("tab", name=tab).click()


def _choose(page: Any, field: str, value: str) -> None:
    box = page.locator(f"{field} input")
    box.click()
    box.fill(value)
    box.press("Enter")


def test_what_pruning_lost_one_question_at_a_time(page: Any, serve: Any, tmp_path: Path) -> None:
    _open(page, serve(write_sweep(tmp_path)), "Examples")
    page.get_by_text("1 of 8").wait_for()
    assert page.locator("#examples-second input").input_value() == "all-prune4"
    assert page.get_by_label("lost by the second (8)").is_checked()
    card = page.locator("#examples-card")
    card.get_by_text("Which shape is number 0?").wait_for()
    assert card.get_by_text(HOSTILE).is_visible(), "an answer is text"
    assert page.title() == "vrray" and card.locator("img").count() == 0
    page.locator("#examples-image img").wait_for()
    screenshot(page, "examples")

    page.get_by_role("button", name="Next").click()
    page.get_by_text("2 of 8").wait_for()
    page.locator("h1").click()
    page.keyboard.press("ArrowRight")
    page.get_by_text("3 of 8").wait_for()
    page.keyboard.press("k")
    page.get_by_text("2 of 8").wait_for()
    page.keyboard.press("ArrowLeft")
    page.get_by_text("1 of 8").wait_for()
    page.keyboard.press("ArrowLeft")
    page.get_by_text("8 of 8").wait_for()
    assert page.locator("#examples-image").count() == 0, "a question about a text has no image"

    _choose(page, "#examples-task", "shapes")
    page.get_by_label("lost by the second (4)").wait_for()
    page.get_by_text("1 of 4").wait_for()
    _choose(page, "#examples-first", "uniform-3-prune1")
    page.get_by_label("lost by the second (3)").wait_for()
    page.get_by_label("gained by the second (0)").check()
    page.get_by_text("No question of this kind").wait_for()


def test_an_image_that_is_gone_is_a_message(page: Any, serve: Any, tmp_path: Path) -> None:
    store = write_sweep(tmp_path)
    (tmp_path / "pictures" / "shape0.png").unlink()
    _open(page, serve(store), "Examples")
    page.get_by_text("The image cannot be shown").wait_for()
    assert page.locator("#examples-card").get_by_text("Which shape is number 0?").is_visible()


def test_examples_fit_a_phone(page: Any, serve: Any, tmp_path: Path) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    _open(page, serve(write_sweep(tmp_path)), "Examples", "dark")
    page.get_by_text("1 of 8").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    screenshot(page, "examples-phone-dark")


def test_a_region_of_ones_own(page: Any, serve: Any, tmp_path: Path) -> None:
    _open(page, serve(write_sweep(tmp_path)), "Regions")
    assert page.locator("#regions-curves polyline").count() in (0, 2)
    page.locator("#regions-curves polyline").nth(1).wait_for()
    page.get_by_role("heading", name="Do the scores agree?").wait_for()
    page.locator("#regions-cells button").first.wait_for()
    page.get_by_text("No layer is picked").wait_for()
    layer = page.get_by_role("button", name="layer 7", exact=True)
    layer.focus()
    page.keyboard.press("Enter")
    page.locator("#regions-cells [aria-pressed=true]").wait_for()
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "layer 7", "the keyboard stays there"
    page.get_by_role("button", name="layer 21", exact=True).click()
    page.get_by_text("2 of 30").wait_for()
    command = page.locator("#regions-command textarea")
    assert "--placements all 7,21" in command.input_value()
    screenshot(page, "regions")
    page.get_by_role("button", name="Use it below").click()
    page.get_by_text("8 of 30").wait_for()
    page.get_by_role("button", name="Clear layers").click()
    page.get_by_text("No layer is picked").wait_for()
    assert command.input_value() == ""
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
