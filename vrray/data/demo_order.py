"""Order that is drawn once and for all: every draw of the demo data has a seed of its own."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def seeded(name: str) -> random.Random:
    """A generator for one purpose, which its name tells; the same name draws the same."""
    return random.Random(f"1 {name}")


def shuffled(items: Iterable[T], name: str) -> list[T]:
    """The items in the order that `seeded(name)` draws."""
    listed = list(items)
    seeded(name).shuffle(listed)
    return listed


def interleaved(*strata: Sequence[T]) -> list[T]:
    """Every prefix holds the strata in the proportion of the whole."""
    placed = [((rank + 0.5) / len(stratum), item) for stratum in strata for rank, item in enumerate(stratum)]
    return [item for _, item in sorted(placed, key=lambda place: place[0])]


def in_rounds(items: Sequence[T], rounds: int, name: str) -> Iterator[T]:
    """All items, `rounds` times over, each time in a new order."""
    for number in range(rounds):
        yield from shuffled(items, f"{name} {number}")
