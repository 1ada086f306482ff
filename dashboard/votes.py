"""Votes: one small file each in the store, written at once and never changed."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from vrray.errors import DataError
from vrray.store import Store

FOLDER = "votes"
TIE, BAD = "tie", "bad"
_FORMAT = 1


@dataclass(frozen=True)
class Vote:
    """Which of some answers to one question was the best.

    Attributes:
        winner: a place in `variants`, or `TIE` or `BAD` (none is good).
        blind: the names were hidden until the vote.
        variants: in the order of the columns; `answers` are theirs.
        asked: the question, and how many came before it in the conversation.
        decoding: as `Decoding` has it.
        seconds: since 1970.
    """

    sweep: str
    variants: tuple[str, ...]
    winner: int | Literal["tie", "bad"]
    blind: bool
    question: str = ""
    asked: int = 1
    images: int = 0
    answers: tuple[str, ...] = ()
    decoding: dict[str, Any] | None = None
    seconds: float = 0.0

    def __post_init__(self) -> None:
        places = range(len(self.variants))
        if not 2 <= len(set(self.variants)) == len(self.variants):
            raise DataError(f"a vote is about two or more different variants, not {list(self.variants)}")
        if self.winner not in (TIE, BAD) and (isinstance(self.winner, bool) or self.winner not in places):
            raise DataError(f"the winner is one of {list(places)}, {TIE!r} or {BAD!r}, not {self.winner!r}")


class Votes:
    """The votes of a store; may be used from several threads and processes at once."""

    def __init__(self, store: Store):
        self._store, self._lock = store, threading.Lock()
        self._known: dict[str, Vote | None] = {}

    def add(self, vote: Vote) -> str:
        """Write a vote; the name of its file. When this returns, it is in the store."""
        name = f"{time.time_ns()}-{uuid.uuid4().hex[:8]}.json"
        self._store.write_text(f"{FOLDER}/{name}", json.dumps({"format": _FORMAT, **asdict(vote)}, indent=1))
        return name

    def read(self, sweep: str | None = None) -> tuple[list[Vote], int]:
        """The votes, oldest first, of one sweep or of all; and how many files are no vote. Each file is read once."""
        with self._lock:
            names = [name for name in self._store.names(FOLDER) if name.endswith(".json")]
            for name in names:
                if name not in self._known:
                    self._known[name] = _parse(self._store.read_bytes(f"{FOLDER}/{name}"))
            known = [self._known[name] for name in sorted(names)]
        votes = [vote for vote in known if vote is not None and sweep in (None, vote.sweep)]
        return votes, known.count(None)


def pairs_of(votes: Sequence[Vote]) -> list[list[tuple[str, str, float]]]:
    """For each vote, the comparisons in it: (variant, variant, points of the first).

    The best of several has beaten each of the others; nothing is known of those among each other. A tie, and "none is
    good", is half a point for each of every two.
    """
    found = []
    for vote in votes:
        names = vote.variants
        if isinstance(vote.winner, int):
            best = names[vote.winner]
            found.append([(best, other, 1.0) for other in names if other != best])
        else:
            found.append([(a, b, 0.5) for place, a in enumerate(names) for b in names[place + 1 :]])
    return found


def _parse(data: bytes) -> Vote | None:
    try:
        values = json.loads(data)
        if values.pop("format") != _FORMAT:
            return None
        return Vote(**{**values, "variants": tuple(values["variants"]), "answers": tuple(values["answers"])})
    except (ValueError, TypeError, KeyError, AttributeError, DataError):
        return None
