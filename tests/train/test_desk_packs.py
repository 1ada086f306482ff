"""The desk: which jobs a group is given together, and what becomes of them afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from test_desk import A, Named, desk_with, given, outcome

from vrray.train import desk as desk_module


@dataclass(frozen=True)
class Packed(Named):
    """A job of which `room` run at once with others of its kind."""

    kind: str = "lora"
    room: int = 3

    def packs_with(self, other: Any) -> bool:
        return isinstance(other, Packed) and other.kind == self.kind

    def run_pack(self, workspace: Any, jobs: Any, reports: Any) -> dict[str, str]:
        raise NotImplementedError


P, Q, R, S = (Packed(key) for key in "pqrs")
OTHER = Packed("other", "full")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that have passed, to be set."""
    now = [100.0]
    monkeypatch.setattr(desk_module.time, "monotonic", lambda: now[0])
    return now


def test_jobs_of_a_kind_are_given_together(clock: list[float]) -> None:
    desk = desk_with(P, A, OTHER, Q, R, S)
    assert [desk.jobs("g", 0), desk.jobs("g", 0)] == [[P, Q, R]] * 2
    assert desk.jobs("other", 0) == [A]
    assert desk.jobs("g", 1) is None  # two more may still come
    clock[0] += 11
    assert [desk.jobs("g", 1), desk.jobs("other", 1), desk.jobs("other", 2)] == [[OTHER], [S], None]


def test_a_pack_waits_until_no_more_come(clock: list[float]) -> None:
    desk = desk_with(P)
    clock[0] += 9
    desk.submit(Q)
    clock[0] += 9
    assert desk.jobs("g", 0) is None
    clock[0] += 2
    assert desk.jobs("g", 0) == [P, Q]
    assert desk_with(Packed("single", room=1)).jobs("g", 0) == [Packed("single", room=1)]


def test_packed_jobs_go_on_alone(clock: list[float]) -> None:
    desk = desk_with(P, Q, R, A)
    assert desk.jobs("g", 0) == [P, Q, R]
    desk.cancel("q")
    desk.unpack("g", 0, {"r": "the loss is not finite"})
    assert [outcome(desk, job) for job in (P, Q, R)] == [
        (False, None),
        (True, "cancelled"),
        (True, "the loss is not finite"),
    ]
    desk.submit(S)
    assert [given(desk, "g", 1), given(desk, "other", 0)] == [P, A]  # S does not join P
    desk.end("p")
    assert desk.group_failed("g", "gone")
    assert outcome(desk, P) == (True, None)


def test_a_pack_that_fails_is_taken_apart(clock: list[float]) -> None:
    desk = desk_with(P, Q, R)
    assert desk.jobs("g", 0) == [P, Q, R]
    for _ in range(2):  # each rank says so
        desk.unpack("g", 0, {}, "OutOfMemoryError: no memory")
    assert desk.group_failed("g", "OutOfMemoryError: no memory")
    assert [given(desk, "next", number) for number in range(4)] == [P, Q, R, None]
    reports, ended, failure = desk.follow("p")
    assert "one by one: OutOfMemoryError: no memory" in reports[0]["say"]
    assert (len(reports), ended, failure) == (1, False, None)


def test_a_pack_that_is_lost_is_given_again(clock: list[float]) -> None:
    desk = desk_with(P, Q, R, max_failures=1)
    assert desk.jobs("g", 0) == [P, Q, R]
    desk.end("q")
    assert desk.group_failed("g", "the node is gone")
    clock[0] += 11
    assert desk.jobs("next", 0) == [P, R]
    assert desk.group_failed("next", "again")
    assert [outcome(desk, job)[0] for job in (P, Q, R)] == [True] * 3


def test_a_pack_that_takes_too_much_memory_of_its_node_is_taken_apart(clock: list[float]) -> None:
    desk = desk_with(P, Q)
    clock[0] += 11
    assert desk.jobs("g", 0) == [P, Q]
    assert desk.group_failed("g", "OutOfMemoryError: the node is low on memory")
    assert [outcome(desk, job) for job in (P, Q)] == [(False, None)] * 2
    assert [given(desk, "next", number) for number in range(3)] == [P, Q, None]


def test_a_stopped_job_that_is_wanted_again_is_in_line_once(clock: list[float]) -> None:
    desk = desk_with(P, Q, R)
    desk.jobs("g", 0)
    desk.cancel("q")
    desk.submit(Q)
    desk.unpack("g", 0, {})
    clock[0] += 11
    assert [given(desk, "g", number) for number in (1, 2, 3, 4)] == [P, R, Q, None]
