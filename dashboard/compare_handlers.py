"""What the events of the Compare page do."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from dashboard.answers import Answers, base_of
from dashboard.compare_talk import (
    DEFAULT_QUESTION,
    MOST,
    Talk,
    default_choice,
    new_talk,
    speed_of,
    winner_of,
    with_one_more,
)
from dashboard.compare_view import board, keep_image, messages, notice_html, reason, shown, speed_html, speed_text
from dashboard.conversation import Decoding, End, Exchange, Piece
from dashboard.leaderboard import View
from dashboard.serving import variant_id
from dashboard.site import Site
from dashboard.uploads import png, upload_of
from dashboard.votes import BAD, TIE
from vrray.errors import DataError, VrrayError

SAMPLES = 6
_EVERY_S = 0.1  # between two updates of an answer on the page


class Handlers:
    """What the page's events do; those that change a `Talk` are coroutines, so that none of them runs at a time."""

    def __init__(self, site: Site):
        self._site = site

    @property
    def _answers(self) -> Answers:
        if self._site.answers is None:
            raise DataError("this dashboard only reads: it was started without models to answer")
        answers: Answers = self._site.answers
        return answers

    def opened(self) -> tuple[Any, ...]:
        """On opening the page: the sweeps of the store, and the first of them that can be read."""
        try:
            sweeps = self._site.catalogue.sweeps()
        except VrrayError as error:
            return gr.Dropdown(choices=[]), gr.Dropdown(choices=[]), [], [], notice_html(str(error))
        if not sweeps:
            text = "No finished sweep here yet. Run jobs/sweep.py with this --storage, then reload the page."
            return gr.Dropdown(choices=[]), gr.Dropdown(choices=[]), [], [], notice_html(text)
        first = next((sweep for sweep in sweeps if self._is_finished(sweep)), sweeps[0])
        return gr.Dropdown(choices=sweeps, value=first), *self.sweep_chosen(first)

    def _is_finished(self, sweep: str) -> bool:
        try:
            return self._site.catalogue.table(sweep).num_rows > 0
        except VrrayError:
            return False

    def sweep_chosen(self, sweep: str, added: str = "", beside: Sequence[str] = ()) -> tuple[Any, ...]:
        """Its variants, those chosen and one more or else some suggested, and samples of what it was evaluated on."""
        try:
            table = self._site.catalogue.table(sweep)
            rows = table.to_pylist()
        except VrrayError as error:
            return gr.Dropdown(choices=[], value=[]), [], [], notice_html(str(error))
        names = [row["variant"] for row in rows if row["status"] == "complete"]
        value = with_one_more(list(beside) or default_choice(rows, table), added if added in names else "")
        text = (
            "" if len(value) >= 2 else "This sweep has fewer than two finished variants, so there is none to compare."
        )
        samples, problem = [], ""
        try:
            samples = self._samples(sweep, value[0]) if value else []
        except VrrayError as error:
            problem = f"No samples: {error}"
        gallery = [(image, question) for question, _, image in samples]
        kept = [(question, path) for question, path, _ in samples]
        return gr.Dropdown(choices=names, value=value), gallery, kept, notice_html(text or problem)

    def taken(self, sweep: str | None, view: View, compared: str | None, already: list[str]) -> tuple[Any, ...]:
        """What was chosen on the leaderboard, beside those `already` on the page or, for another sweep, suggested."""
        try:
            sweeps = self._site.catalogue.sweeps()
        except VrrayError as error:
            return gr.skip(), gr.skip(), gr.skip(), gr.skip(), notice_html(str(error))
        if sweep not in sweeps:
            return gr.skip(), gr.skip(), gr.skip(), gr.skip(), notice_html("Choose a sweep on the first page.")
        beside = already if compared == sweep else []
        return gr.Dropdown(choices=sweeps, value=sweep), *self.sweep_chosen(sweep, view.chosen, beside)

    def _samples(self, sweep: str, variant: str) -> list[tuple[str, str, Any]]:
        """Some questions with their images, one an image, spread over the tasks: (question, path, image)."""
        by_task: dict[str, list[dict[str, Any]]] = {}
        for row in self._site.catalogue.examples(sweep, variant).to_pylist():
            if row["image"] is not None:
                by_task.setdefault(row["task"], []).append(row)
        found: dict[str, tuple[str, str, Any]] = {}
        for number in range(SAMPLES):
            for rows in by_task.values():
                row = rows[number] if number < len(rows) else None
                if row is None or row["image"] in found or len(found) == SAMPLES:
                    continue
                image = self._site.catalogue.image(sweep, row["image"])
                if image is not None:
                    path = keep_image(png(image), "sample.png")
                    found[row["image"]] = (row["question"], path, image)
        return list(found.values())

    def sample(self, samples: list[tuple[str, str]], event: gr.SelectData) -> Any:
        """A sample into the text box."""
        index = event.index if isinstance(event.index, int) else -1
        if not 0 <= index < len(samples):
            return gr.skip()
        question, path = samples[index]
        return {"text": question, "files": [path]}

    async def warm(self, sweep: str) -> Any:
        """Begin to load the model while the question is being written."""
        try:
            state = self._answers.prepare(base_of(self._site.store, self._site.catalogue.context(sweep)))
        except (VrrayError, KeyError) as error:
            return notice_html(reason(error))
        return gr.skip() if state.kind == "ready" else notice_html(state.message)

    async def fresh(self, talk: Talk, sweep: str, chosen: list[str], mode: str, request: gr.Request) -> tuple[Any, ...]:
        """A new conversation with what is chosen; answers under way end."""
        if talk.pending:
            talk.leave()
            self._answers.stop(_session(request))
        try:
            rows = self._site.catalogue.table(sweep).to_pylist()
            talk = new_talk(sweep, rows, chosen, blind=mode == "Blind")
        except VrrayError as error:
            return Talk(), *board(Talk()), notice_html(str(error))
        return talk, *board(talk), notice_html("")

    async def ask(
        self,
        message: dict[str, Any] | None,
        talk: Talk,
        sweep: str,
        chosen: list[str],
        mode: str,
        tokens: float,
        temperature: float,
        top_p: float,
        seed: float | None,
        request: gr.Request,
    ) -> tuple[Any, ...]:
        """Take a question: all columns await their answers from here on."""
        try:
            if talk.pending:
                raise DataError("the answers to the last question are still coming; wait, or press Stop")
            text, images = upload_of(message, get_upload_folder())
            if not talk.rows or talk.sweep != sweep:
                rows = self._site.catalogue.table(sweep).to_pylist()
                talk = new_talk(sweep, rows, chosen, blind=mode == "Blind")
            exchange = Exchange(text or (DEFAULT_QUESTION if images else ""), images)
            decoding = _decoding(tokens, temperature, top_p, seed)
            self._answers.limits.check([*talk.asked, exchange], decoding)
            self._answers.retry(base_of(self._site.store, self._site.catalogue.context(sweep)))
        except (VrrayError, KeyError) as error:
            return talk, *board(talk), notice_html(reason(error)), gr.skip()
        talk.begin(exchange, shown(images), decoding)
        return talk, *board(talk), notice_html(""), gr.MultimodalTextbox(value=None)

    async def again(
        self, talk: Talk, tokens: float, temperature: float, top_p: float, seed: float | None
    ) -> tuple[Any, ...]:
        """The last question once more, with the next seed."""
        try:
            if talk.pending or not talk.asked:
                raise DataError("there is no complete answer to regenerate; ask a question first")
            decoding = _decoding(tokens, temperature, top_p, (seed or 0) + 1)
            self._answers.limits.check(talk.asked, decoding)
        except VrrayError as error:
            return talk, *board(talk), notice_html(str(error)), gr.skip()
        talk.again(decoding)
        text = (
            "Temperature 0 gives the same answer again; raise it in the decoding settings." if not temperature else ""
        )
        return talk, *board(talk), notice_html(text), decoding.seed

    def answer_of(self, column: int) -> Callable[..., AsyncIterator[tuple[Any, Any]]]:
        """`answer` of one column, as Gradio can look at its arguments."""

        async def answer(talk: Talk, request: gr.Request) -> AsyncIterator[tuple[Any, Any]]:
            async with aclosing(self.answer(column, talk, request)) as updates:
                async for update in updates:
                    yield update

        return answer

    async def answer(self, column: int, talk: Talk, request: gr.Request) -> AsyncGenerator[tuple[Any, Any], None]:
        """The answer of a column, as it grows."""
        if column not in talk.pending:
            yield gr.skip(), gr.skip()
            return
        number, begun, first, told = talk.number, time.monotonic(), 0.0, 0.0
        try:
            base = base_of(self._site.store, self._site.catalogue.context(talk.sweep))
            if (state := self._answers.prepare(base)).kind == "loading":
                yield gr.skip(), speed_html(state.message)
                await self._answers.ready(base)
                begun = time.monotonic()
            asked, variant = talk.conversation(column), variant_id(talk.rows[column])
            async with aclosing(self._answers.ask(base, variant, asked, talk.decoding, _session(request))) as events:
                async for event in events:
                    if talk.number != number:
                        return
                    if isinstance(event, Piece):
                        first = first or time.monotonic()
                        talk.answers[column][-1] += event.text
                        if time.monotonic() - told >= _EVERY_S:
                            told = time.monotonic()
                            yield messages(talk, column), gr.skip()
                    elif isinstance(event, End):
                        talk.speed[column] = speed_of(event, (first or time.monotonic()) - begun)
                    else:
                        raise DataError(event.message)
        except (VrrayError, KeyError) as error:
            if talk.number == number:
                talk.failed[column] = reason(error)
        finally:
            if talk.number == number:
                talk.pending.discard(column)
        if talk.number == number:
            yield messages(talk, column), speed_html(speed_text(talk, column))

    async def settled(self, talk: Talk) -> tuple[Any, ...]:
        """When a column has ended: votes are open after the last; a question that none could answer is taken back."""
        if talk.pending:
            return *[gr.skip()] * (4 * MOST + MOST + 2), gr.skip()
        reasons = list(dict.fromkeys(talk.failed.values()))
        text = " ".join(reasons)
        if talk.asked and len(talk.failed) == len(talk.rows):
            talk.drop_last()
            talk.failed = {}
            talk.voted = True  # what is last now was open to votes before
        return *board(talk), notice_html(text) if text else gr.skip()

    async def stop(self, talk: Talk, request: gr.Request) -> Any:
        stopped = self._answers.stop(_session(request)) if self._site.answers is not None else 0
        return notice_html("Stopped." if stopped else "Nothing is being answered.")

    def vote_of(self, value: str) -> Callable[..., Any]:
        """`vote` of one button."""

        async def vote(talk: Talk) -> tuple[Any, ...]:
            return await self.vote(value, talk)

        return vote

    async def vote(self, value: str, talk: Talk) -> tuple[Any, ...]:
        """Write a vote, then show who was who."""
        try:
            if self._site.votes is None:
                raise DataError("this dashboard takes no votes")
            vote = talk.vote(winner_of(value))
            self._site.votes.add(replace(vote, seconds=time.time()))
        except (VrrayError, OSError) as error:
            return *board(talk), notice_html(f"The vote was not counted: {error}")
        who = {TIE: "a tie", BAD: "none is good"}.get(value) or f"{talk.rows[int(value)]['variant']} is best"
        return *board(talk), notice_html(f"Your {'blind ' if vote.blind else ''}vote is kept: {who}.")


def _decoding(tokens: float, temperature: float, top_p: float, seed: float | None) -> Decoding:
    return Decoding(int(tokens), float(temperature), float(top_p), int(seed or 0))


def _session(request: gr.Request) -> str:
    return f"page:{request.session_hash}"
