"""What the Compare page knows of a session: who is compared, what was asked, what was answered. No Gradio here."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from dashboard.conversation import Decoding, End, Exchange
from dashboard.votes import BAD, TIE, Vote
from vrray.errors import DataError
from vrray.sweep.compare import choose

LETTERS = "ABCD"
MOST = len(LETTERS)
DEFAULT_QUESTION = "What is in this picture?"


@dataclass
class Talk:
    """A conversation with two to four variants at once; handlers change it in place, all on one event loop.

    Attributes:
        rows: of the sweep's table, in the order of the columns.
        blind: names are hidden until the first vote, which sets `revealed`.
        asked: questions with their images; `answers[column][round]` are the answers.
        shown: for each round the path of the image as the page shows it.
        pending: columns whose answer is awaited; `failed`: those without a whole one, with the reason.
        number: grows with every start of answers, so that a late one knows that it is not wanted any more.
    """

    sweep: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)
    blind: bool = False
    revealed: bool = False
    voted: bool = False
    decoding: Decoding = field(default_factory=Decoding)
    asked: list[Exchange] = field(default_factory=list)
    shown: list[str | None] = field(default_factory=list)
    answers: list[list[str]] = field(default_factory=list)
    speed: list[str] = field(default_factory=list)
    pending: set[int] = field(default_factory=set)
    failed: dict[int, str] = field(default_factory=dict)
    number: int = 0

    @property
    def hidden(self) -> bool:
        """Whether names, sizes and speeds are not to be seen."""
        return self.blind and not self.revealed

    @property
    def can_vote(self) -> bool:
        return bool(self.asked) and not self.pending and not self.failed and not self.voted

    def name(self, column: int) -> str:
        return f"Model {LETTERS[column]}" if self.hidden else str(self.rows[column]["variant"])

    def conversation(self, column: int) -> list[Exchange]:
        """What a column's variant is asked: its own answers before the last question."""
        *before, last = self.asked
        said = zip(before, self.answers[column], strict=False)
        return [*(Exchange(e.question, e.images, answer) for e, answer in said), last]

    def begin(self, exchange: Exchange, shown: str | None, decoding: Decoding) -> None:
        """Ask all columns a further question."""
        self.asked.append(exchange)
        self.shown.append(shown)
        for answers in self.answers:
            answers.append("")
        self._await(decoding)

    def again(self, decoding: Decoding) -> None:
        """Ask all columns the last question again."""
        for answers in self.answers:
            answers[-1] = ""
        self._await(decoding)

    def _await(self, decoding: Decoding) -> None:
        self.decoding, self.number, self.voted, self.failed = decoding, self.number + 1, False, {}
        self.speed = [""] * len(self.rows)
        self.pending = set(range(len(self.rows)))

    def leave(self) -> None:
        """Want no answer any more that is still coming."""
        self.number += 1
        self.pending.clear()

    def drop_last(self) -> None:
        """Take the last question back, where no column answered it: nothing of it stays in the conversation."""
        self.asked.pop()
        self.shown.pop()
        for answers in self.answers:
            answers.pop()

    def vote(self, winner: int | Literal["tie", "bad"]) -> Vote:
        """The vote on the last answers; names are shown from here on.

        Raises:
            DataError: there is nothing to vote on, or it was voted on.
        """
        if not self.can_vote or (isinstance(winner, int) and not 0 <= winner < len(self.rows)):
            raise DataError("vote once, when all answers to a question are complete")
        vote = Vote(
            sweep=self.sweep,
            variants=tuple(row["variant"] for row in self.rows),
            winner=winner,
            blind=self.hidden,
            question=self.asked[-1].question,
            asked=len(self.asked),
            images=sum(len(exchange.images) for exchange in self.asked),
            answers=tuple(answers[-1] for answers in self.answers),
            decoding=asdict(self.decoding),
        )
        self.voted = self.revealed = True
        return vote


def new_talk(sweep: str, rows: Sequence[dict[str, Any]], chosen: Sequence[str], *, blind: bool) -> Talk:
    """A conversation with the chosen variants, their order shuffled where it is blind.

    Raises:
        DataError: they are not two to four different finished variants of the sweep.
    """
    finished = {row["variant"]: row for row in rows if row["status"] == "complete"}
    if unknown := [name for name in chosen if name not in finished]:
        raise DataError(f"{unknown[0]} is no finished variant of {sweep}; choose again")
    if not 2 <= len(set(chosen)) == len(chosen) <= MOST:
        raise DataError(f"choose two to {MOST} variants; {len(set(chosen))} are chosen")
    order = list(chosen)
    if blind:
        random.SystemRandom().shuffle(order)
    return Talk(sweep, [finished[name] for name in order], blind, answers=[[] for _ in order], speed=[""] * len(order))


def default_choice(rows: Sequence[Mapping[str, Any]], table: Any) -> list[str]:
    """The best variant beside all-layer tuning, or beside the untuned base, or beside another one."""
    finished = [str(row["variant"]) for row in rows if row["status"] == "complete"]
    whole = {row["placement"]: str(row["variant"]) for row in rows if not row["removed_layers"]}
    best = choose(table).get("variant")
    wanted = [best, whole.get("all"), whole.get("none"), *finished]
    return list(dict.fromkeys(name for name in wanted if name in finished))[:2]


def with_one_more(chosen: Sequence[str], name: str) -> list[str]:
    """`chosen` and `name`, which takes the last place where all are taken."""
    if not name or name in chosen:
        return list(chosen)
    return [*chosen[: MOST - 1], name]


def about(row: Mapping[str, Any]) -> str:
    """A variant's layers and parameters, for people."""
    depth, removed, tuned = row["depth"], len(row["removed_layers"]), len(row["tuned_layers"])
    layers = f"{depth - removed} of {depth} layers" if removed else f"{depth} layers"
    parameters = row.get("parameters")
    size = "" if parameters is None else f", {parameters / 1e9:.2f} B parameters"
    if parameters is not None and parameters < 1e9:
        size = f", {parameters / 1e6:.0f} M parameters"
    return f"{layers}, {tuned} tuned{size}"


def speed_of(end: End, waited_s: float) -> str:
    """What was measured of an answer; `waited_s` until its first text, as somebody at the page sees it."""
    rate = "" if end.tokens_per_s is None else f", {end.tokens_per_s:.1f} tokens/s"
    ended = {"length": ", cut at the greatest length", "cancelled": ", stopped"}.get(end.finish, "")
    count = "token" if end.tokens == 1 else "tokens"
    return f"first token after {waited_s:.2f} s{rate}, {end.tokens} {count}{ended}"


def winner_of(value: str) -> int | Literal["tie", "bad"]:
    """The winner that a vote button stands for."""
    return "tie" if value == TIE else "bad" if value == BAD else int(value)
