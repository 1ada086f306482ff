"""The steps of a training: the same for all ranks, divided among them, and made ahead of use."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from vrray.data.rows import Row
from vrray.data.schedule import Schedule, Step, prefetched

ROWS = tuple(
    Row(f"r{n}", tuple(range(3 + n * 7 % 11)), (False, *(place % 3 != 0 for place in range(2 + n * 7 % 11))), ())
    for n in range(20)
)


def schedule(rank: int = 0, world: int = 1, micro_batch: int = 4, *, grouped: bool = True) -> Schedule:
    return Schedule(ROWS, 8, 10, 3, grouped, rank, world, micro_batch)


def ids(step: Step) -> list[str]:
    return [row.id for row in step.rows]


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(("world", "micro_batch"), [(1, 8), (1, 1), (2, 2), (4, 2), (8, 1)])
def test_steps_do_not_depend_on_who_takes_them(world: int, micro_batch: int, grouped: bool) -> None:
    expected = [ids(step) for step in schedule(grouped=grouped).steps()]
    assert len(expected) == 10
    ranks = [list(schedule(rank, world, micro_batch, grouped=grouped).steps()) for rank in range(world)]
    for number, steps in enumerate(zip(*ranks, strict=True)):
        assert all(ids(step) == expected[number] for step in steps)
        shares = [[len(part) for part in step.micro_batches] for step in steps]
        assert shares == [[micro_batch] * (8 // world // micro_batch)] * world
        taken = [row.id for step in steps for part in step.micro_batches for row in part]
        assert sorted(taken) == sorted(expected[number])


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("begin", [0, 1, 7, 10])
def test_an_interrupted_training_meets_the_steps_that_are_left(begin: int, grouped: bool) -> None:
    assert list(schedule(grouped=grouped).steps(begin)) == list(schedule(grouped=grouped).steps())[begin:]


def test_tokens_are_those_of_all_ranks() -> None:
    step = next(schedule(1, 2).steps())
    assert step.tokens == sum(len(row.ids) for row in step.rows)
    assert step.supervised_tokens == sum(sum(row.supervised) for row in step.rows)
    assert step.tokens > sum(len(row.ids) for part in step.micro_batches for row in part)


def data_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("vrray-data")]


def test_what_is_made_ahead_comes_in_order() -> None:
    def slow_at_first(number: int) -> int:
        time.sleep(0.02 if number % 3 == 0 else 0)
        return number**2

    assert list(prefetched(slow_at_first, range(12))) == [number**2 for number in range(12)]
    assert list(prefetched(slow_at_first, [], ahead=3)) == []
    assert data_threads() == []


@pytest.mark.parametrize("ahead", [1, 2, 4])
def test_so_many_are_made_while_the_caller_is_busy(ahead: int) -> None:
    made: list[int] = []
    waiting = prefetched(lambda number: made.append(number) or number, range(50), ahead)
    assert next(waiting) == 0
    until = time.monotonic() + 10
    while len(made) < 1 + ahead and time.monotonic() < until:
        time.sleep(0.005)
    time.sleep(0.05)
    assert made == list(range(1 + ahead))  # and not all of them: they would fill the memory
    assert list(waiting) == list(range(1, 50))


def test_it_happens_in_another_thread() -> None:
    (name,) = set(prefetched(lambda _: threading.current_thread().name, range(4)))
    assert name.startswith("vrray-data")


def test_an_error_reaches_the_caller_in_its_place() -> None:
    def fail_at_three(number: int) -> int:
        if number == 3:
            raise OSError("image 3 is gone")
        return number

    found = []
    with pytest.raises(OSError, match="image 3 is gone"):
        for result in prefetched(fail_at_three, range(10)):
            found.append(result)
    assert found == [0, 1, 2]
    assert data_threads() == []


def test_its_thread_ends_with_a_caller_that_stops_early() -> None:
    made: list[int] = []

    def endless() -> Iterator[int]:
        number = 0
        while True:
            yield (number := number + 1)

    for result in prefetched(lambda number: made.append(number) or number, endless()):
        if result == 3:
            assert data_threads() != []
            break
    assert data_threads() == []
    assert len(made) <= 6
