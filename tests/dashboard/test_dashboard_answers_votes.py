"""Votes are in the store when `add` returns, also if the process is killed then, and files that are none do no harm."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dashboard.votes import BAD, TIE, Vote, Votes, pairs_of
from vrray.errors import DataError
from vrray.store import Store

VOTE = Vote("places", ("a", "b", "c"), 1, blind=True, question="What?", answers=("x", "<b>y</b>", "é"))
VOTING = """
import sys
from dashboard.votes import Vote, Votes
from vrray.store import Store
votes = Votes(Store(sys.argv[1]))
for number in range(100000):
    votes.add(Vote("places", ("a", "b"), number % 2, blind=False, question=str(number)))
    print(number, flush=True)
"""


def test_a_vote_comes_back_as_it_was(tmp_path: Path) -> None:
    Votes(Store(tmp_path)).add(VOTE)
    assert Votes(Store(tmp_path)).read() == ([VOTE], 0)
    assert Votes(Store(tmp_path)).read("another") == ([], 0)


def test_votes_work_on_s3(s3_folder: str) -> None:
    votes = Votes(Store(s3_folder))
    for winner in (0, TIE, BAD):
        votes.add(Vote("places", ("a", "b"), winner, blind=False))  # type: ignore[arg-type]
    assert [vote.winner for vote in votes.read()[0]] == [0, TIE, BAD]


def test_every_vote_that_was_confirmed_survives_a_kill(tmp_path: Path) -> None:
    command = [sys.executable, "-c", VOTING, str(tmp_path / "store")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    assert process.stdout is not None
    for _ in range(50):
        process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    confirmed = 50 + len(process.stdout.read().splitlines())
    process.wait(10)
    votes, broken = Votes(Store(tmp_path / "store")).read()
    assert broken == 0
    assert [vote.question for vote in votes[:confirmed]] == [str(number) for number in range(confirmed)]
    assert confirmed <= len(votes) <= confirmed + 1


def test_processes_that_vote_at_once_lose_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", VOTING.replace("100000", "25"), str(tmp_path)]
    writers = [subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=Path(__file__).parents[2]) for _ in range(3)]
    assert [writer.wait(60) for writer in writers] == [0] * 3
    assert len(Votes(Store(tmp_path)).read()[0]) == 75


def test_later_votes_are_seen_and_what_is_no_vote_is_counted(tmp_path: Path) -> None:
    store = Store(tmp_path)
    votes = Votes(store)
    votes.add(VOTE)
    assert len(votes.read()[0]) == 1
    Votes(store).add(VOTE)
    store.write_text("votes/1-x.json", "{")
    store.write_text("votes/2-x.json", '{"format": 1, "sweep": "s", "variants": ["a"], "answers": [], "winner": 0}')
    store.write_text("votes/3-x.json", "[]")
    store.write_text("votes/4-x.json.1.tmp", "half")
    read, broken = votes.read()
    assert len(read) == 2 and broken == 3


def test_what_is_no_vote_is_refused() -> None:
    for variants, winner in ((("a",), 0), (("a", "a"), 0), (("a", "b"), 2), (("a", "b"), "best"), (("a", "b"), True)):
        with pytest.raises(DataError):
            Vote("places", variants, winner, blind=False)  # type: ignore[arg-type]


def test_the_best_of_several_beats_each_and_ties_are_halves() -> None:
    tie = Vote("places", ("a", "b", "c"), TIE, blind=True)
    first, second = pairs_of([VOTE, tie])
    assert first == [("b", "a", 1.0), ("b", "c", 1.0)]
    assert second == [("a", "b", 0.5), ("a", "c", 0.5), ("b", "c", 0.5)]
    assert pairs_of([Vote("places", ("a", "b"), BAD, blind=True)]) == [[("a", "b", 0.5)]]
