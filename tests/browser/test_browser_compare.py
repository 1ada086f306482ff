"""The Compare and Votes pages in a real browser, with a real deployment and with scripted answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.browser.pages import expect, opened, screenshot
from tests.cluster.commands import ROOT, free_port

pytest.importorskip("playwright.sync_api", reason="needs playwright")
pytest.importorskip("ray.serve", reason="needs ray[serve]", exc_type=ImportError)

CHROMIUM = Path("/usr/bin/chromium")
if not CHROMIUM.exists():
    pytest.skip("needs chromium", allow_module_level=True)

LONG = "Tell me a very long story about the sea and a ship that is lost."


@contextmanager
def running(folder: Path, kind: str) -> Iterator[tuple[str, Path]]:
    """The app in a process of its own: its address, and the folder of its store."""
    port, store = free_port(), folder / "store"
    command = [sys.executable, "-m", "tests.browser.compare_app", str(store), str(port), kind]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "GRADIO_ANALYTICS_ENABLED": "False"}
    environment["GRADIO_TEMP_DIR"] = str(folder / "uploads")
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            # A first start downloads the model and says more than that it is up.
            assert "up\n" in iter(process.stdout.readline, ""), (folder / "log").read_text()
            yield f"http://127.0.0.1:{port}", store
        finally:
            process.terminate()
            process.wait(90)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    with running(tmp_path_factory.mktemp("real"), "real") as found:
        yield found


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    with running(tmp_path_factory.mktemp("scripted"), "scripted") as found:
        yield found


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "<img src=x onerror=window.hacked=1>.png"
    Image.new("RGB", (300, 200), (30, 120, 220)).save(path)
    return path


def visit(page: Any, address: str) -> None:
    page.goto(address)
    page.get_by_role("tab", name="Compare").click()
    page.locator("#compare-samples img").first.wait_for()


def choose(page: Any, *names: str) -> None:
    """These variants, instead of those that are chosen."""
    box = page.locator("#compare-variants")
    box.get_by_role("button", name="Clear").or_(box.locator("[title='Clear']")).first.click()
    for name in names:
        box.locator("input").click()
        page.get_by_role("option", name=name, exact=True).click()
    page.keyboard.press("Escape")


def allow(page: Any, tokens: int) -> None:
    page.get_by_text("Decoding settings").click()
    field = page.get_by_label("number input for Max new tokens")
    field.fill(str(tokens))
    field.press("Tab")


def ask(page: Any, question: str) -> None:
    page.locator("#compare-box textarea").fill(question)
    page.locator("#compare-box .submit-button").click()


def answer(page: Any, letter: str) -> Any:
    return page.locator(f"#compare-chat-{letter} .bot.message")


def speed(page: Any, letter: str) -> Any:
    return page.locator(f"#compare-speed-{letter}")


def notice(page: Any) -> Any:
    return page.locator("#compare-notice")


def votes_in(store: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((store / "votes").glob("*.json"))]


def test_three_clicks_from_start_to_two_models_answering_about_ones_own_photo(
    real: tuple[str, Path], page: Any, photo: Path
) -> None:
    page.goto(real[0])
    page.get_by_role("tab", name="Compare").click()  # 1
    expect(page.get_by_text("30 layers, 30 tuned")).to_be_visible()
    with page.expect_file_chooser() as chooser:
        page.locator("#compare-box .upload-button").click()  # 2
    chooser.value.set_files(photo)
    page.locator("#compare-box .thumbnail-item").wait_for()
    page.locator("#compare-box .submit-button").click()  # 3
    expect(speed(page, "A")).to_contain_text("loading smol ...")
    lengths = set()
    for _ in range(1200):
        lengths.add(len(answer(page, "A").inner_text()) if answer(page, "A").count() else 0)
        if "first token after" in speed(page, "A").inner_text():
            break
        page.wait_for_timeout(100)
    assert len(lengths) > 3, "the answer came in one piece"
    for letter in "AB":
        expect(speed(page, letter)).to_contain_text("tokens/s")
        expect(answer(page, letter)).not_to_be_empty()
        expect(page.locator(f"#compare-chat-{letter} .user img")).to_be_visible()
    screenshot(page, "compare-answered")
    assert page.evaluate("window.hacked") is None


def test_stop_ends_the_answers_and_frees_their_places(real: tuple[str, Path], page: Any) -> None:
    visit(page, real[0])
    ask(page, LONG)
    expect(answer(page, "A")).not_to_be_empty()
    page.get_by_role("button", name="Stop", exact=True).click()
    for letter in "AB":
        expect(speed(page, letter)).to_contain_text("stopped")
    length = len(answer(page, "A").inner_text())
    page.wait_for_timeout(1000)
    assert len(answer(page, "A").inner_text()) == length
    allow(page, 8)
    page.get_by_role("button", name="Regenerate").click()
    expect(notice(page)).to_contain_text("Temperature 0 gives the same answer")
    expect(page.get_by_label("Seed")).to_have_value("1")
    expect(speed(page, "B")).to_contain_text("tokens/s")


def test_clear_while_answers_come_leaves_nothing_of_them(real: tuple[str, Path], page: Any) -> None:
    visit(page, real[0])
    allow(page, 1000)
    ask(page, LONG)
    expect(answer(page, "A")).not_to_be_empty()
    page.get_by_role("button", name="Clear", exact=True).last.click()
    expect(answer(page, "A")).to_have_count(0)
    page.wait_for_timeout(1500)
    for letter in "AB":
        expect(answer(page, letter)).to_have_count(0)
        expect(speed(page, letter)).to_be_empty()


def test_a_reload_leaves_nothing_behind_and_frees_the_places(real: tuple[str, Path], browser: Any, page: Any) -> None:
    with opened(browser) as other:  # takes the two places of the deployment for minutes, and leaves
        for one in (other, page):
            visit(one, real[0])
            allow(one, 1000)
            ask(one, LONG)
            expect(speed(one, "B")).to_contain_text("answering ...")
        expect(answer(other, "B")).not_to_be_empty()
    page.reload()
    page.get_by_role("tab", name="Compare").click()
    expect(answer(page, "A")).to_have_count(0)
    allow(page, 4)
    ask(page, "Hello")
    for letter in "AB":  # long before the four answers of 1000 tokens would have ended
        expect(speed(page, letter)).to_contain_text("first token after")


def test_blind_names_come_with_the_vote_which_is_kept_at_once(
    scripted: tuple[str, Path], browser: Any, page: Any
) -> None:
    before = len(votes_in(scripted[1]))
    visit(page, scripted[0])
    page.get_by_label("Blind").check()
    expect(page.get_by_role("heading", name="Model B")).to_be_visible()
    ask(page, "What is it?")
    button = page.get_by_role("button", name="Model A is best")
    expect(button).to_be_enabled()
    heads = page.get_by_role("heading").all_inner_texts()
    assert not {"top-2", "top-2-prune1", "all"} & set(heads)
    expect(speed(page, "A")).to_be_empty()
    screenshot(page, "compare-blind")
    button.click()
    expect(notice(page)).to_contain_text("Your blind vote is kept")
    expect(button).to_have_count(0)
    names = [name for name in page.get_by_role("heading").all_inner_texts() if not name.startswith("Model")]
    *_, vote = votes_in(scripted[1])
    assert len(votes_in(scripted[1])) == before + 1
    assert (vote["blind"], vote["winner"], vote["variants"]) == (True, 0, names)
    assert vote["question"] == "What is it?" and [text.strip() for text in vote["answers"]] == ["1. I see a disc."] * 2
    expect(page.get_by_role("button", name=f"{names[0]} is best")).to_be_disabled()
    with opened(browser) as other:  # the vote is there for everybody, after a reload and in another session
        other.goto(scripted[0])
        other.get_by_role("tab", name="Votes").click()
        expect(other.locator("#votes-table")).to_contain_text(f"places/{names[0]}")
        screenshot(other, "compare-votes")
        other.get_by_label("Named votes").check()
        expect(other.locator("#votes-summary")).to_contain_text("blind and")


def test_what_people_and_models_write_is_text(scripted: tuple[str, Path], page: Any) -> None:
    visit(page, scripted[0])
    ask(page, 'HTML <img src=x onerror="window.hacked=1"> <b>please</b>')
    expect(page.get_by_role("button", name="Tie")).to_be_enabled()
    for letter in "AB":
        chat = page.locator(f"#compare-chat-{letter}")
        assert chat.locator(".message b, .message script, .message a, .message img").count() == 0
        expect(answer(page, letter)).to_contain_text("<b>not bold</b>")
        expect(answer(page, letter)).to_contain_text("1 < 2 & [a](javascript:1)")
    assert page.evaluate("window.hacked") is None


def test_four_variants_a_second_question_and_clear(scripted: tuple[str, Path], page: Any) -> None:
    visit(page, scripted[0])
    choose(page, "untuned", "all", "top-2", "top-2-prune1")
    expect(page.get_by_role("heading", name="top-2-prune1")).to_be_visible()
    page.locator("#compare-samples button").first.click()
    expect(page.locator("#compare-box textarea")).to_have_value("Which colour has the circle?")
    page.locator("#compare-box .submit-button").click()
    expect(answer(page, "D")).to_contain_text("1. I see a disc.")
    expect(page.get_by_role("button", name="None is good")).to_be_enabled()
    ask(page, "And now?")
    expect(answer(page, "D").last).to_contain_text("2. I see a disc.")
    expect(page.get_by_role("button", name="Tie")).to_be_enabled()
    screenshot(page, "compare-four")
    page.get_by_role("button", name="Clear", exact=True).last.click()
    expect(answer(page, "A")).to_have_count(0)
    expect(page.get_by_role("button", name="Tie")).to_be_disabled()


def test_errors_are_messages(scripted: tuple[str, Path], page: Any, tmp_path: Path) -> None:
    visit(page, scripted[0])
    ask(page, "busy")
    expect(notice(page)).to_contain_text("try again in a moment")
    expect(page.get_by_role("button", name="Tie")).to_be_disabled()
    ask(page, "refuse")
    expect(page.get_by_text("the conversation is too long").first).to_be_visible()
    ask(page, "x" * 8001)
    expect(notice(page)).to_contain_text("at most 8000 are taken")
    page.locator("#compare-box textarea").fill("")
    fake = tmp_path / "fake.png"
    fake.write_bytes(b"<svg onload=alert(1)>")
    page.set_input_files("#compare-box input[type=file]", fake)
    page.locator("#compare-box .thumbnail-item").wait_for()
    page.locator("#compare-box .submit-button").click()
    expect(notice(page)).to_contain_text("damaged or not a PNG")
    assert "Traceback" not in page.content()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 720), (390, 844)])
def test_the_page_fits_its_window(
    scripted: tuple[str, Path], browser: Any, photo: Path, scheme: str, width: int, height: int
) -> None:
    with opened(browser, viewport={"width": width, "height": height}, color_scheme=scheme) as page:
        visit(page, scripted[0])
        page.set_input_files("#compare-box input[type=file]", photo)
        page.locator("#compare-box .thumbnail-item").wait_for()
        page.locator("#compare-box .submit-button").click()
        expect(page.get_by_role("button", name="Tie")).to_be_enabled()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        expect(page.locator("#compare-chat-A").get_by_title("Share")).to_be_hidden()
        screenshot(page, f"compare-{width}-{scheme}")


def test_requests_cannot_name_files_or_send_too_much(scripted: tuple[str, Path], tmp_path: Path) -> None:
    """Without a browser, as somebody would who writes requests by hand."""
    secret = tmp_path / "secret.png"
    Image.new("RGB", (8, 8)).save(secret)
    with httpx.Client(base_url=scripted[0], timeout=20) as client:
        config = client.get("/config").json()
        box = next(each["id"] for each in config["components"] if each["props"].get("elem_id") == "compare-box")
        event = next(each for each in config["dependencies"] if [box, "submit"] in each["targets"])
        for path in (str(secret), "/etc/passwd", "../../../etc/passwd", "/proc/self/environ"):
            for address in (f"/gradio_api/file={path}", f"/file={path}", f"/gradio_api/upload/{path}"):
                assert client.get(address).status_code in (403, 404, 405)
            files = [{"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "a.png"}]
            body = {"fn_index": event["id"], "session_hash": "hand", "trigger_id": None}
            data = [{"text": "What?", "files": files}, None, "places", ["all", "untuned"], "Named", 8, 0, 1, 0]
            assert client.post("/gradio_api/queue/join", json={**body, "data": data}).status_code == 200
            with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": "hand"}) as stream:
                ended = next(line for line in stream.iter_lines() if "process_completed" in line)
            assert '"success":false' in ended or "is not an upload" in ended
            assert "Traceback" not in ended
        large = {"files": ("a.png", bytes((10 << 20) + 1), "image/png")}
        assert client.post("/gradio_api/upload", files=large).status_code == 413
        direct = client.post(f"/gradio_api/run/{event.get('api_name')}", json={"data": []})
        assert direct.status_code in (401, 403, 404)
