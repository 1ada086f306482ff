"""Where two variants differ: the same questions, both answers, and which of them pruning lost or gained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dashboard.catalogue import Catalogue
from vrray.errors import StoreError

Kind = Literal["differ", "lost", "gained", "both right", "both wrong", "all"]
KINDS: tuple[Kind, ...] = ("differ", "lost", "gained", "both right", "both wrong", "all")
_RIGHT = 0.5  # scores are 0 or 1, or a mean probability


@dataclass(frozen=True)
class Pair:
    """One question as two variants answered it."""

    task: str
    example: str
    question: str
    answer: str
    image: str | None
    options: tuple[str, ...]
    first: str
    second: str
    first_score: float
    second_score: float

    @property
    def kind(self) -> Kind:
        right = self.first_score >= _RIGHT, self.second_score >= _RIGHT
        kinds: dict[tuple[bool, bool], Kind] = {(True, False): "lost", (False, True): "gained"}
        return kinds.get(right, "both right" if right[0] else "both wrong")

    @property
    def differs(self) -> bool:
        return self.kind in ("lost", "gained") or self.first != self.second

    def passes(self, kind: Kind) -> bool:
        return kind == "all" or (self.differs if kind == "differ" else self.kind == kind)


def compare(catalogue: Catalogue, sweep: str, first: str, second: str) -> list[Pair]:
    """All questions that both variants were asked, in the order of the tasks.

    Raises:
        StoreError: the store does not hold the answers of one of them, or they were asked different questions.
    """
    one, two = (catalogue.examples(sweep, variant).to_pylist() for variant in (first, second))
    others = {(row["task"], row["example"]): row for row in two}
    pairs = [
        Pair(
            row["task"],
            row["example"],
            row["question"],
            row["answer"],
            row["image"],
            tuple(row["options"] or ()),
            row["prediction"],
            other["prediction"],
            row["score"],
            other["score"],
        )
        for row in one
        if (other := others.get((row["task"], row["example"]))) is not None
    ]
    if not pairs:
        raise StoreError(f"{first!r} and {second!r} have no question in common")
    return pairs


def select(pairs: Sequence[Pair], kind: Kind, task: str | None) -> list[Pair]:
    """The pairs of a kind, of one task or of all."""
    return [pair for pair in pairs if pair.passes(kind) and task in (None, pair.task)]


def counts(pairs: Sequence[Pair], task: str | None) -> dict[Kind, int]:
    """How many pairs there are of each kind."""
    return {kind: len(select(pairs, kind, task)) for kind in KINDS}
