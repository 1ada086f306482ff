"""The desk: who gets which job, and what becomes of jobs that raised, were lost, or are not wanted any more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

from vrray.budget import Budget
from vrray.errors import TrainingError
from vrray.train import desk as desk_module
from vrray.train.desk import BEGINS, Desk, _lost_a_peer, error_line, follow


@dataclass(frozen=True)
class Named:
    key: str

    def run(self, workspace: Any, report: Any) -> None:
        raise NotImplementedError


A, B, C = Named("a"), Named("b"), Named("c")


def desk_with(*jobs: Named, max_failures: int = 0) -> Desk:
    desk = Desk(max_failures)
    for job in jobs:
        desk.submit(job)
    return desk


def given(desk: Desk, group: str, number: int) -> Any:
    """The one job that a group runs at a number, "close", or None."""
    jobs = desk.jobs(group, number)
    if isinstance(jobs, list):
        (job,) = jobs
        return job
    return jobs


def outcome(desk: Desk, job: Named) -> tuple[bool, str | None]:
    """Whether a job has ended, and with what failure."""
    return desk.follow(job.key)[1:]


def test_every_rank_of_a_group_gets_the_same_jobs() -> None:
    desk = desk_with(A, B, C)
    assert [given(desk, "g", 0), given(desk, "g", 0)] == [A, A]
    assert given(desk, "other", 0) == B
    assert [given(desk, "g", 1), given(desk, "g", 1), given(desk, "g", 0)] == [C, C, A]
    assert given(desk, "g", 2) is None
    desk.close()
    assert [given(desk, "g", 2), given(desk, "g", 1)] == ["close", C]  # a slow rank still gets what the others got


def test_reports_are_followed_to_the_end() -> None:
    desk = desk_with(A)
    assert desk.post("a", {"step": 1}) == desk.post("a", {"step": 2}) == "go on"
    assert desk.follow("a") == ([{"step": 1}, {"step": 2}], False, None)
    desk.post("a", {"step": 3})
    desk.end("a")
    assert desk.follow("a") == ([{"step": 3}], True, None)
    assert desk.follow("a") == ([], True, None)


class Actor:
    """A desk that is called as a Ray actor is; before each look at a job, the workers do something."""

    def __init__(self, desk: Desk, doings: list[Callable[[], object]]):
        self.submit = SimpleNamespace(remote=desk.submit)
        self.follow = SimpleNamespace(remote=self._follow)
        self._desk, self._doings, self.asked = desk, doings, list[str]()

    def _follow(self, key: str) -> Any:
        self.asked.append(key)
        if self._doings:
            self._doings.pop(0)()
        return self._desk.follow(key)


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk_module, "ray", SimpleNamespace(get=lambda value: value))
    monkeypatch.setattr(desk_module, "_IDLE_SECONDS", 0)


def test_jobs_are_followed_in_turn(no_ray: None) -> None:
    desk = Desk()
    actor = Actor(
        desk,
        [
            lambda: desk.post("a", {"step": 1}),
            lambda: desk.post("b", {"step": 2}),
            lambda: desk.end("b"),
            lambda: desk.post("a", {"step": 3}),
            lambda: desk.end("a"),
        ],
    )
    assert [report["step"] for report in follow(actor, A, B)] == [1, 2, 3]
    assert actor.asked[:4] == ["a", "b", "a", "b"]
    assert actor.asked[-1] == "a"


def test_the_first_failure_ends_the_following(no_ray: None) -> None:
    desk = Desk()
    actor = Actor(desk, [lambda: desk.post("b", {"step": 1}), lambda: desk.end("b", "ValueError: wrong")])
    reports = follow(actor, A, B)
    assert next(reports) == {"step": 1}
    with pytest.raises(TrainingError, match="ValueError: wrong"):
        next(reports)


def test_a_job_is_in_line_once() -> None:
    desk = desk_with(A, A)
    assert (given(desk, "g", 0), given(desk, "g", 1)) == (A, None)
    desk.submit(A)  # by a driver that was started anew, while it runs
    assert given(desk, "g", 1) is None
    desk.end("a")
    desk.submit(A)  # it has ended: somebody wants it again
    assert given(desk, "g", 1) == A
    assert outcome(desk, A) == (False, None)


def test_a_job_that_raised_is_not_repeated() -> None:
    desk = desk_with(A, B, max_failures=3)
    assert given(desk, "g", 0) == A
    desk.end("a", "DataError: image x.png cannot be read")
    assert desk.group_failed("g", "DataError: image x.png cannot be read")
    assert outcome(desk, A) == (True, "DataError: image x.png cannot be read")
    assert [given(desk, "next", 0), given(desk, "next", 1)] == [B, None]


def test_a_job_that_raised_is_not_repeated_when_tune_asks_again() -> None:
    desk = desk_with(A, max_failures=3)
    given(desk, "g", 0)
    desk.end("a", "ValueError: wrong")
    desk.submit(A)  # before the group's end is known
    assert desk.group_failed("g", "ValueError: wrong")
    desk.submit(A)
    assert given(desk, "next", 0) is None
    assert desk.follow("a") == ([], True, "ValueError: wrong")


def test_a_lost_job_is_put_back_first_in_line() -> None:
    desk = desk_with(A, B, C, max_failures=1)
    assert given(desk, "g", 0) == A
    assert desk.group_failed("g", "the node is gone")
    (report,), ended, failure = desk.follow("a")
    assert "the node is gone" in str(report.values())
    assert (ended, failure) == (False, None)
    assert [given(desk, "next", number) for number in range(4)] == [A, B, C, None]


def test_only_what_a_lost_group_was_at_is_repeated() -> None:
    desk = desk_with(A, B, C, max_failures=1)
    assert (given(desk, "g", 0), given(desk, "other", 0)) == (A, B)
    desk.end("a")
    assert given(desk, "g", 1) == C
    assert desk.group_failed("g", "the node is gone")
    assert [given(desk, "next", 0), given(desk, "next", 1)] == [C, None]
    assert [outcome(desk, job) for job in (A, B, C)] == [(True, None), (False, None), (False, None)]


@pytest.mark.parametrize("max_failures", [0, 1, 3])
def test_a_job_that_is_lost_too_often_ends(max_failures: int) -> None:
    desk = desk_with(A, max_failures=max_failures)
    for attempt in range(max_failures):
        assert given(desk, f"g{attempt}", 0) == A
        assert desk.group_failed(f"g{attempt}", f"node {attempt} is gone")
        assert outcome(desk, A) == (False, None)
    assert given(desk, "last", 0) == A
    assert desk.group_failed("last", "the last node is gone")  # the group is started anew: others may be in line
    ended, failure = outcome(desk, A)
    assert ended
    assert failure == f"its workers were lost {max_failures + 1} times, at last: the last node is gone"
    assert given(desk, "next", 0) is None


def test_losses_are_counted_for_each_job() -> None:
    desk = desk_with(A, B, max_failures=1)
    for job, group in ((A, "first"), (A, "second"), (B, "third"), (B, "fourth")):
        assert given(desk, group, 0) == job
        assert outcome(desk, job) == (False, None)
        desk.group_failed(group, "gone")
    assert outcome(desk, A)[0] and outcome(desk, B)[0]


def test_a_node_without_memory_left_is_not_tried_again() -> None:
    desk = desk_with(A, B, max_failures=3)
    assert given(desk, "g", 0) == A
    assert desk.group_failed("g", "OutOfMemoryError: the node is low on memory")
    ended, failure = outcome(desk, A)
    assert ended and failure is not None
    assert failure.startswith("OutOfMemoryError: the node is low on memory; a worker's node ran out of memory")
    assert "--micro-batch" in failure
    assert given(desk, "next", 0) == B


def test_a_first_group_that_cannot_start_breaks_the_desk() -> None:
    desk = desk_with(A, B, max_failures=3)
    assert not desk.group_failed("bad", "ModelError: no weights")
    broken = (True, "workers could not start: ModelError: no weights")
    assert [outcome(desk, job) for job in (A, B)] == [broken, broken]
    desk.submit(C)
    assert outcome(desk, C) == broken
    assert given(desk, "late", 0) is None


def test_later_groups_may_fail_to_start_some_times_in_a_row() -> None:
    desk = desk_with(A, B, C, max_failures=2)
    assert given(desk, "good", 0) == A
    assert [desk.group_failed(name, "no room") for name in ("x", "y")] == [True, True]
    assert given(desk, "good", 1) == B  # the count starts anew
    assert [desk.group_failed(name, "no room") for name in ("x", "y", "z")] == [True, True, False]
    assert outcome(desk, C) == (True, "workers could not start: no room")
    assert [outcome(desk, job) for job in (A, B)] == [(False, None)] * 2  # a group is at them


def test_a_cancelled_job() -> None:
    desk = desk_with(A, B)
    assert given(desk, "g", 0) == A
    desk.cancel("a")
    desk.cancel("b")
    assert desk.post("a", {"step": 1}) == "cancel"  # the group learns of it at its next report
    assert given(desk, "g", 1) is None
    assert outcome(desk, B) == (True, "cancelled")
    desk.submit(B)
    assert given(desk, "g", 1) == B


def test_a_desk_that_is_stopped() -> None:
    desk = desk_with(A, B, C)
    assert [given(desk, "g", 0), given(desk, "other", 0)] == [A, B]
    desk.end("b")
    desk.close()
    assert desk.post("a", {"step": 1}) == "go on"  # closed, it lets what runs come to its end
    desk.stop()
    assert desk.post("a", {"step": 2}) == "pause"
    assert desk.post("a", {"answered": 2}) == "cancel"
    assert [given(desk, "g", 1), given(desk, "other", 1)] == ["close", "close"]
    assert [outcome(desk, job) for job in (A, B, C)] == [(True, "cancelled"), (True, None), (True, "cancelled")]


def test_a_job_that_nobody_follows_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(desk_module.time, "monotonic", lambda: now[0])
    desk = desk_with(A)
    now[0] = 50.0
    assert desk.post("a", {}) == "go on"
    desk.follow("a")
    now[0] = 100.0
    assert desk.post("a", {}) == "go on"
    now[0] = 120.0
    assert desk.post("a", {}) == "cancel"


def test_when_the_time_is_over_trainings_are_paused_and_all_else_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(desk_module.time, "monotonic", lambda: now[0])
    desk = Desk(0, Budget(seconds=60), elapsed=20.0)
    for job in (A, B):
        desk.submit(job)
    assert (given(desk, "g", 0), desk.post("a", {BEGINS: "a"}), desk.post("a", {"step": 1})) == (A, "go on", "go on")
    now[0] = 40.0
    assert desk.spent() == "--max-time 1m reached"
    assert (desk.post("a", {"step": 2}), desk.post("a", {"evaluated": 0})) == ("pause", "go on")
    desk.end("a")
    assert desk.follow("a") == ([{"step": 1}, {"step": 2}, {"evaluated": 0}], True, None)
    assert (given(desk, "g", 1), desk.post("b", {BEGINS: "b"})) == (B, "pause")


def test_gpu_time_counts_while_groups_are_at_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(desk_module.time, "monotonic", lambda: now[0])
    desk = Desk(3, Budget(gpu_hours=1, gpus=2))
    for job in (A, B):
        desk.submit(job)
    now[0] = 5000.0
    assert desk.spent() is None  # nobody has worked yet
    given(desk, "g", 0)
    now[0] = 5600.0
    desk.group_failed("g", "gone")  # 600 s were worked, and A waits
    now[0] = 9000.0
    assert [given(desk, "x", 0), given(desk, "y", 0)] == [A, B]
    now[0] = 9500.0
    desk.end("a")
    assert desk.spent() is None  # 1600 s so far
    now[0] = 9700.0
    assert desk.spent() == "--max-gpu-hours 1 reached"
    desk.end("b")
    assert desk.spent() == "--max-gpu-hours 1 reached"


def test_a_deferred_job_comes_again_after_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(desk_module.time, "monotonic", lambda: now[0])
    desk = desk_with(A, B, max_failures=1)
    assert given(desk, "g", 0) == A
    desk.defer("g", "a", "waits for another")
    assert [given(desk, "g", 1), given(desk, "g", 2)] == [B, None]  # not at once
    now[0] = 10.0
    assert given(desk, "g", 2) == A
    desk.defer("g", "a", "waits for another")
    assert desk.follow("a") == ([{"say": "waits for another"}], False, None)  # said once
    assert desk.group_failed("g", "gone")
    now[0] = 20.0
    assert [given(desk, "h", number) for number in range(3)] == [B, A, None]  # what was deferred was not lost


@pytest.mark.parametrize("cancelled", [True, False])
def test_a_deferred_job_that_nobody_wants_or_can_pay_does_not_come_again(cancelled: bool) -> None:
    desk = Desk(0, None if cancelled else Budget(seconds=10), elapsed=20)
    desk.submit(A)
    assert given(desk, "g", 0) == A
    if cancelled:
        desk.cancel("a")
    desk.defer("g", "a", "waits for another")
    assert outcome(desk, A) == (True, "cancelled" if cancelled else None)
    assert given(desk, "g", 1) is None


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (dist.DistBackendError("NCCL communicator was aborted"), True),
        (dist.DistNetworkError("recv failed"), True),
        (RuntimeError("[third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer"), True),
        (RuntimeError("shape mismatch"), False),
        (TrainingError("out of memory"), False),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
        (ValueError("gloo"), False),
    ],
)
def test_errors_that_say_that_a_peer_is_lost(error: BaseException, lost: bool) -> None:
    assert _lost_a_peer(error) == lost


def lonely() -> tuple[bool, str] | None:
    """Rank 1 leaves; rank 0 waits for it in vain."""
    if dist.get_rank() == 1:
        return None
    try:
        dist.all_reduce(torch.ones(1))
    except Exception as error:
        return _lost_a_peer(error), str(error)
    return False, "no error"


def test_a_peer_that_is_really_gone() -> None:
    found, _ = run_ranks(lonely, 2, seconds=60)
    assert found[0], found[1]


def test_an_error_in_one_line() -> None:
    assert error_line(ValueError("first\n  the point of it \n\n")) == "ValueError: the point of it"
    assert error_line(KeyError()) == "KeyError: no message"
