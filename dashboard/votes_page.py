"""The Votes page: win rates and ratings."""

from __future__ import annotations

import html
from typing import Any

import gradio as gr

from dashboard.ratings import Rating, rate
from dashboard.site import Site
from dashboard.votes import BAD, TIE, Vote, pairs_of
from vrray.errors import VrrayError

_ALL = "All sweeps"
_HEADERS = ["Variant", "Comparisons", "Win rate, %", "95 % interval", "Rating (Elo)", "95 % interval of rating"]
_KINDS = {"Blind votes": True, "Named votes": False}
_EXPLAINED = (
    'Win rate: points a comparison with another variant, a tie and "none is good" being half a point for both. Rating: '
    "Bradley-Terry on the scale of Elo, mean 1000; 400 points are odds of ten to one. Intervals: bootstrap over votes."
)


def build(site: Site) -> None:
    """The page, inside the Blocks or Tab that is open."""
    with gr.Row():
        sweep = gr.Dropdown(label="Sweep", choices=[_ALL], value=_ALL, interactive=True)
        kind = gr.Radio(
            list(_KINDS), value="Blind votes", label="Votes", info="Named: whoever voted saw which variant it was"
        )
        refresh = gr.Button("Refresh", size="sm", elem_id="votes-refresh")
    summary = gr.HTML(_status("No votes yet."), elem_id="votes-summary")
    table = gr.Dataframe(
        headers=_HEADERS,
        value=[],
        interactive=False,
        label="Win rates and ratings of the variants, best first",
        elem_id="votes-table",
        wrap=True,
    )
    gr.Markdown(_EXPLAINED)

    def show(sweep: str, kind: str) -> tuple[Any, Any, Any]:
        try:
            if site.votes is None:
                return gr.skip(), [], _status("This dashboard takes no votes.")
            votes, broken = site.votes.read()
        except (VrrayError, OSError) as error:
            return gr.skip(), [], _status(f"The votes cannot be read: {error}")
        sweeps = [_ALL, *sorted({vote.sweep for vote in votes})]
        chosen = [vote for vote in votes if sweep in (_ALL, vote.sweep) and vote.blind == _KINDS.get(kind)]
        ratings = rate(
            [
                [(_full(a, v, sweep), _full(b, v, sweep), won) for a, b, won in pairs]
                for v, pairs in zip(chosen, pairs_of(chosen), strict=True)
            ]
        )
        choices = gr.Dropdown(choices=sweeps, value=sweep if sweep in sweeps else _ALL)
        return choices, [_line(rating) for rating in ratings], _status(_summary(votes, chosen, broken, ratings))

    gr.on([refresh.click, sweep.input, kind.input], show, [sweep, kind], [sweep, table, summary])
    gr.on(None, lambda: show(_ALL, "Blind votes"), [], [sweep, table, summary])


def _full(variant: str, vote: Vote, sweep: str) -> str:
    """With its sweep, where several are shown."""
    return f"{vote.sweep}/{variant}" if sweep == _ALL else variant


def _line(rating: Rating) -> list[Any]:
    return [
        rating.variant,
        int(rating.games),
        f"{100 * rating.win_rate:.0f}",
        f"{100 * rating.win_low:.0f} to {100 * rating.win_high:.0f}",
        f"{rating.rating:.0f}",
        f"{rating.low:.0f} to {rating.high:.0f}",
    ]


def _summary(votes: list[Vote], chosen: list[Vote], broken: int, ratings: list[Rating]) -> str:
    if not votes:
        text = "No votes yet. Ask a question on the Compare page and say which answer is best."
    else:
        blind, bad = sum(vote.blind for vote in votes), sum(vote.winner == BAD for vote in chosen)
        ties = sum(vote.winner == TIE for vote in chosen)
        text = f"{blind} blind and {len(votes) - blind} named votes; of the {len(chosen)} shown, "
        text += f"{ties} are ties, in {bad} no answer was good."
    if len({rating.group for rating in ratings}) > 1:
        text += " Some variants were never compared with the others, not even through a third: ratings of different "
        text += "groups say nothing about each other."
    if broken:
        text += f" {broken} files under votes/ are no votes and are left out."
    return text


def _status(text: str) -> str:
    return f'<div role="status" aria-live="polite">{html.escape(text)}</div>'
