"""The steps of a training as one rank takes them, and putting their micro-batches together ahead of use."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from vrray.data.batches import global_batches, rank_share
from vrray.data.rows import Row, lengths_of

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Step:
    """One optimizer step: all rows of its global batch, and this rank's micro-batches of them."""

    rows: list[Row]
    micro_batches: list[list[Row]]

    @property
    def supervised_tokens(self) -> int:
        return sum(row.supervised_tokens for row in self.rows)

    @property
    def tokens(self) -> int:
        return sum(len(row.ids) for row in self.rows)


@dataclass(frozen=True)
class Schedule:
    """Which rows each step takes, and who takes them: the same steps whatever `rank`, `world` and `micro_batch` are."""

    rows: Sequence[Row]
    global_batch: int
    count: int
    seed: int
    group_by_length: bool
    rank: int
    world: int
    micro_batch: int

    def steps(self, begin: int = 0) -> Iterator[Step]:
        """The steps from number `begin` (counted from 0) to the last."""
        lengths = lengths_of(self.rows).tolist()
        batches = global_batches(
            lengths, self.global_batch, self.count, self.seed, group_by_length=self.group_by_length
        )
        for batch in islice(batches, begin, None):
            mine = [self.rows[row] for row in rank_share(batch, lengths, self.rank, self.world)]
            parts = [mine[start : start + self.micro_batch] for start in range(0, len(mine), self.micro_batch)]
            yield Step([self.rows[row] for row in batch], parts)


def prefetched(make: Callable[[Item], Result], items: Iterable[Item], ahead: int = 2) -> Generator[Result, None, None]:
    """`make(item)` of every item in order, made in a thread while the caller is busy with those before."""
    with ThreadPoolExecutor(1, thread_name_prefix="vrray-data") as pool:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(make, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
