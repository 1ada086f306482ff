"""A sweep while it runs: its trials with state, progress and time left, loss curves, and what failed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from dashboard.charts import COLORS, Axis, Line, chart
from dashboard.markup import Markup, join, note, section, tag
from vrray.report.text import DASH
from vrray.sweep.live import HEARTBEAT_SECONDS

_SILENT_SECONDS = 6 * HEARTBEAT_SECONDS
_MOST_TRIALS = 40
_ORDER = ("failed", "training", "evaluating", "trained", "waiting", "stopped", "finished", "in the store")
Live = Mapping[str, Any]


def is_running(live: Live | None) -> bool:
    """Whether the sweep's driver has given a sign of life within the last minute and has not ended."""
    return live is not None and live["ended"] is None and time.time() - live["updated"] < _SILENT_SECONDS


def live_markup(live: Live | None, command: str | None) -> Markup:
    """The state of a running sweep, or how the last run ended; empty where there is nothing to say.

    Args:
        command: the command of the sweep, to be run again after a crash, where it is known.
    """
    if live is None:
        return tag("div")
    trials: Sequence[Live] = live["trials"]
    again = f" Run it again to go on from what is in the store: {command}" if command else ""
    if is_running(live):
        said = live["lines"][-1] if live["lines"] else "starting"
        head = note("Running", f"{_counts(trials)}. Last word: {said}")
    elif live["ended"] is None:
        silent = _duration(time.time() - live["updated"])
        head = note("No sign of life", f"The sweep's driver last wrote {silent} ago; it may have died.{again}", "warn")
    elif live["ended"] != "finished":
        head = note("The last run did not finish", f"{live['ended']}.{again}", "error")
    else:
        return _curves_of_the_last_run(trials)
    return tag("div", head, _table(trials), _curves(trials), cls="v-stack")


def _counts(trials: Sequence[Live]) -> str:
    counts = {state: sum(trial["state"] == state for trial in trials) for state in _ORDER[::-1]}
    left = sum(trial["seconds_left"] or 0.0 for trial in trials if trial["state"] == "training")
    said = ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "no trial yet"
    return said + (f"; {_duration(left)} of training left in those that train" if left else "")


def _table(trials: Sequence[Live]) -> Markup:
    shown = sorted(trials, key=lambda trial: _ORDER.index(trial["state"]))[:_MOST_TRIALS]
    names = ("trial", "state", "progress", "loss", "time left", "evaluations", "message")
    head = tag("tr", *[tag("th", name, scope="col", cls="v-l") for name in names])
    more = f" The {_MOST_TRIALS} most urgent of {len(trials)} are listed." if len(trials) > len(shown) else ""
    about = f"A trial trains one region once and then scores its pruned variants.{more}"
    table = tag("table", tag("thead", head), tag("tbody", *map(_line, shown)), cls="v-table v-live")
    return section("Trials", about, tag("div", table, cls="v-scroll"))


def _line(trial: Live) -> Markup:
    share = trial["step"] / trial["steps"] if trial["steps"] else 0.0
    says = f"step {trial['step']} of {trial['steps']}" if trial["steps"] else ""
    bar = tag(
        "div",
        tag("i", style=f"width:{100 * share:.1f}%"),
        cls="v-bar",
        role="progressbar",
        aria_label=f"{trial['name']}, {says}",
        aria_valuenow=trial["step"],
        aria_valuemin=0,
        aria_valuemax=trial["steps"] or 1,
    )
    loss = f"{trial['losses'][-1][1]:.3f}" if trial["losses"] else DASH
    left = _duration(trial["seconds_left"]) if trial["state"] == "training" and trial["seconds_left"] else DASH
    state = tag("span", trial["state"], cls=f"v-tag v-{trial['state'].replace(' ', '-')}", style="margin:0")
    evaluated = f"{len(trial['evaluated'])}" if trial["evaluated"] else DASH
    cells = (trial["name"], state, join(bar, tag("small", says)), loss, left, evaluated)
    message = tag("td", trial["message"] or "", cls="v-l v-wrap")
    return tag("tr", *[tag("td", cell, cls="v-l") for cell in cells], message)


def _curves(trials: Sequence[Live]) -> Markup:
    """Loss against step, the trials that train first, as many as there are colours."""
    title = "Loss"
    colors = {trial["key"]: place for place, trial in enumerate(trials)}
    drawn = sorted((trial for trial in trials if trial["losses"]), key=lambda trial: _ORDER.index(trial["state"]))
    if not drawn:
        return section(title, "No optimizer step has been reported yet.")
    lines = [
        Line(trial["name"], [(float(step), float(loss)) for step, loss in trial["losses"]], colors[trial["key"]])
        for trial in drawn[:COLORS]
    ]
    more = f" The first {COLORS} of {len(drawn)} trials are drawn." if len(drawn) > COLORS else ""
    points = [point for line in lines for point in line.points]
    ends = [float(trial["steps"]) for trial in drawn[:COLORS]]
    x = Axis.around([0.0, *ends, *(step for step, _ in points)], "optimizer step", whole=True, tight=True)
    y = Axis.around([0.0, *(loss for _, loss in points)], "loss, nats a supervised token")
    about = f"Mean cross-entropy of the supervised tokens, smoothed, by optimizer step.{more}"
    return section(title, about, chart(title, x, y, lines, height=230))


def _curves_of_the_last_run(trials: Sequence[Live]) -> Markup:
    if not any(trial["losses"] for trial in trials):
        return tag("div")
    inner = tag("div", _table(trials), _curves(trials), cls="v-stack")
    return tag("details", tag("summary", "Trainings of the last run, with their loss curves"), inner, cls="v-fold")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
