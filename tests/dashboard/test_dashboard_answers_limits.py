"""Limits of one session and of all, and what a conversation may be."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import pytest

from dashboard.conversation import Busy, Decoding, Exchange
from dashboard.limits import Gate, Limits
from vrray.errors import DataError

LIMITS = Limits(
    session_at_once=2, session_requests=5, session_tokens=100, total_at_once=3, total_requests=8, total_tokens=150
)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def ask(gate: Gate, session: str, tokens: int, used: int | None = None) -> None:
    with gate.admitted(session, tokens) as settle:
        settle(tokens if used is None else used)


def test_answers_at_once_are_limited_by_session_and_in_all() -> None:
    gate = Gate(LIMITS, Clock())
    with ExitStack() as under_way:
        for _ in range(2):
            under_way.enter_context(gate.admitted("a", 1))
        with pytest.raises(Busy, match="you have 2 answers under way, at most 2 at once"):
            ask(gate, "a", 1)
        under_way.enter_context(gate.admitted("b", 1))
        with pytest.raises(Busy, match="everybody together has 3 answers"):
            ask(gate, "c", 1)
    ask(gate, "c", 1)


def test_requests_and_tokens_are_counted_over_a_minute() -> None:
    clock = Clock()
    gate = Gate(LIMITS, clock)
    for _ in range(5):
        ask(gate, "a", 1)
    clock.now = 20
    with pytest.raises(Busy, match=r"you have asked 5 questions .* try again in 40 s"):
        ask(gate, "a", 1)
    clock.now = 61
    ask(gate, "a", 90)
    with pytest.raises(Busy, match="taken 90 tokens"):
        ask(gate, "a", 11)
    with pytest.raises(Busy, match="everybody together"):
        ask(gate, "b", 61)


def test_what_an_answer_did_not_need_is_given_back() -> None:
    gate = Gate(LIMITS, Clock())
    for _ in range(4):
        ask(gate, "a", 90, used=2)
    with pytest.raises(Busy):
        ask(gate, "a", 93)


def test_a_failure_frees_its_place_and_idle_sessions_are_forgotten() -> None:
    clock = Clock()
    gate = Gate(replace(LIMITS, total_requests=10_000, total_tokens=10**6), clock)
    with pytest.raises(ZeroDivisionError), gate.admitted("a", 1):
        raise ZeroDivisionError
    for number in range(1000):
        ask(gate, f"s{number}", 1)
    clock.now = 61
    ask(gate, "new", 1)
    assert list(gate._sessions) == ["new"] and gate._total.at_once == 0


@pytest.mark.parametrize(
    ("exchanges", "decoding", "message"),
    [
        ([], Decoding(), "empty"),
        ([Exchange("  ")], Decoding(), "empty"),
        ([Exchange("x" * 8001)], Decoding(), "8001 characters"),
        ([Exchange("x")] * 33, Decoding(), "at most 32 questions"),
        ([Exchange("x", (b"",) * 9)], Decoding(), "9 images"),
        ([Exchange("x")], Decoding(max_new_tokens=0), "max new tokens is 0"),
        ([Exchange("x")], Decoding(max_new_tokens=1025), "max new tokens is 1025"),
        ([Exchange("x")], Decoding(temperature=float("nan")), "temperature nan"),
        ([Exchange("x")], Decoding(top_p=0.0), "top-p"),
        ([Exchange("x")], Decoding(seed=-1), "seed -1"),
    ],
)
def test_a_conversation_beyond_the_limits_is_refused(
    exchanges: list[Exchange], decoding: Decoding, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Limits().check(exchanges, decoding)
