"""The events of the pages, without a browser: what they say of stores in any state; markup; launching."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from reader_store import HOSTILE, live_state, write_live, write_sweep

from dashboard import examples_page, regions_page, sweep_page
from dashboard.app import Launch, build_app, parse_auth
from dashboard.catalogue import Catalogue
from dashboard.live_part import is_running, live_markup
from dashboard.markup import join, tag
from dashboard.site import Site
from vrray import cli
from vrray.errors import SpecError
from vrray.store import Store

NO_FILTERS: tuple[Any, ...] = ([], [], [], None, None, None)


def _site(store: Store) -> Site:
    return Site(store, Catalogue(store))


def _text(values: tuple[Any, ...]) -> str:
    return " ".join(value for value in values if isinstance(value, str))


def test_text_is_escaped_wherever_it_comes_in() -> None:
    made = tag("p", HOSTILE, join("<b>", tag("i", "x")), title='" onclick="', hidden=True, lang=None)
    assert "<img" not in made and "<script" not in made and "&lt;b&gt;<i>x</i>" in made
    assert 'title="&quot; onclick=&quot;"' in made and " hidden>" in made and "lang" not in made


def test_an_empty_store_says_what_to_do(tmp_path: Path) -> None:
    site = _site(Store(tmp_path))
    assert "python jobs/sweep.py --quick" in _text(sweep_page._Page(site).opened(None, "parameters"))
    assert "python jobs/sweep.py --quick" in _text(examples_page._Page(site).opened(None))
    assert "jobs/score_layers.py" in _text(regions_page._Page(site).opened(None, None, "uniform", 8))


def test_a_damaged_table_is_a_message(tmp_path: Path) -> None:
    store = write_sweep(tmp_path)
    store.write_bytes("sweeps/demo/table.parquet", b"no parquet")
    for page in (
        sweep_page._Page(_site(store)).opened("demo", "latency"),
        examples_page._Page(_site(store)).opened("demo"),
    ):
        assert "table.parquet cannot be read" in _text(page) and "Traceback" not in _text(page)


def test_nothing_of_a_store_is_markup(tmp_path: Path) -> None:
    store = write_sweep(tmp_path)
    write_live(store, "demo", live_state(time.time()))
    page = sweep_page._Page(_site(store))
    shown = _text(page.opened("demo", "parameters")) + _text(examples_page._Page(_site(store)).opened("demo"))
    assert "&lt;script&gt;" in shown and "<script" not in shown and "<img" not in shown


def test_a_click_on_a_point_chooses_the_variant(tmp_path: Path) -> None:
    page = sweep_page._Page(_site(write_sweep(tmp_path)))
    event = gr.EventData(None, {"pick": "variant:top-3-prune2"})
    view, *drawn = page.picked(event, "demo", sweep_page.View(chosen="all"), "parameters", *NO_FILTERS)
    assert view.chosen == "top-3-prune2"
    assert "Chosen variant: top-3-prune2" in drawn[3] and "--variant top-3-prune2" in drawn[3]


def test_a_tick_draws_only_what_changed(tmp_path: Path) -> None:
    store = write_sweep(tmp_path)
    page = sweep_page._Page(_site(store))
    opened = page.opened("demo", "parameters")
    view, seen = opened[1], opened[-2]
    assert not any(isinstance(value, str) for value in page.ticked(seen, "demo", view, "parameters", *NO_FILTERS))
    write_live(store, "demo", live_state(time.time()))
    ticked = page.ticked(seen, "demo", view, "parameters", *NO_FILTERS)
    assert [place for place, value in enumerate(ticked) if isinstance(value, str)] == [3], "the live part alone"
    assert "1 waiting, 1 training" in ticked[3] and "OutOfMemory" in ticked[3]
    write_sweep(tmp_path, removed=1)
    everything = page.ticked(ticked[-2], "demo", view, "parameters", *NO_FILTERS)
    assert "Leaderboard" in _text(everything) and "prune4" not in _text(everything)


def test_a_driver_that_died_is_told_from_one_that_runs() -> None:
    now = time.time()
    assert is_running(live_state(now)) and not is_running(live_state(now - 600))
    assert "No sign of life" in live_markup(live_state(now - 600), "jobs/sweep.py --quick")
    assert "failed: cluster lost" in live_markup(live_state(now, ended="failed: cluster lost"), None)
    assert live_markup(None, None) == "<div></div>"


def test_next_and_previous_go_around(tmp_path: Path) -> None:
    page = examples_page._Page(_site(write_sweep(tmp_path)))
    chosen = ("demo", "uniform-3", "uniform-3-prune2", "shapes", "lost")
    assert "1 of 2" in page.chosen(*chosen)[1]  # type: ignore[arg-type]
    assert "2 of 2" in page.next(0, *chosen)[1] and "1 of 2" in page.next(1, *chosen)[1]
    assert "2 of 2" in page.previous(0, *chosen)[1]
    assert "Nothing here" in page.chosen(*chosen[:4], "gained")[3]  # type: ignore[arg-type]


def test_a_region_is_planned_with_its_command(tmp_path: Path) -> None:
    page = regions_page._Page(_site(write_sweep(tmp_path)))
    event = gr.EventData(None, {"pick": "layer:4"})
    picked, cells, plan, command = page.toggled(event, (0, 9), "demo (sweep)", "smol", 2, 80)
    assert picked == (0, 4, 9) and cells.count('aria-pressed="true"') == 3
    assert "3 of 30" in plan and "Trained parameters" in plan
    assert command.startswith("python jobs/sweep.py --model smol --data demo --placements all 0,4,9 --workers 2")
    assert page.toggled(event, picked, "demo (sweep)", "smol", 2, 80)[0] == (0, 9)


def test_only_models_of_the_list_are_planned(tmp_path: Path) -> None:
    page = regions_page._Page(_site(write_sweep(tmp_path)))
    for model in ("/etc", "somebody/model", None):
        assert "is not in the list" in page.planned((0,), None, model, 2, 80)[2]  # type: ignore[arg-type]


def test_another_host_demands_a_password() -> None:
    with pytest.raises(SpecError, match=r"--host 0\.0\.0\.0 .* add --auth USER:PASSWORD"):
        Launch("0.0.0.0")
    assert Launch("0.0.0.0", auth=("a", "b")).auth == ("a", "b") and Launch("127.0.0.1").auth is None
    assert parse_auth("me:a:b") == ("me", "a:b")
    for text in ("me", "me:", ":secret"):
        with pytest.raises(SpecError, match="USER:PASSWORD"):
            parse_auth(text)


def test_without_gradio_the_command_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["dashboard", "--store", "runs"]) == 1
    assert "pip install 'vrray[dashboard]'" in capsys.readouterr().err


def test_the_app_has_its_tabs_and_no_analytics(tmp_path: Path) -> None:
    app = build_app(_site(write_sweep(tmp_path)))
    assert app.analytics_enabled is False
    names = [
        component.get("props", {}).get("label")
        for component in app.config["components"]
        if component["type"] == "tabitem"
    ]
    assert names[0] == "Sweep" and {"Examples", "Regions"} <= set(names)
