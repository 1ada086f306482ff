"""Pruning plans: which layers may go, in which order, and how many. Light to import; `pruning` takes layers out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vrray.errors import PruningError
from vrray.region import Region, draw, fraction_of, parse_layers
from vrray.scores.table import SCORES

ORDERS = ("random", "deepest")
_NUMBER = r"([0-9]+(?:\.[0-9]+)?)"
_PARAMETERS = re.compile(rf"params<={_NUMBER}([KMGB]?)", re.IGNORECASE)
_KEPT = re.compile(rf"score>={_NUMBER}(%?)")
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}


@dataclass(frozen=True)
class Ranking:
    """The order in which layers go: by a score, the least first, or one of `ORDERS`.

    Iterative: the score is measured anew each time that a layer has gone.
    """

    by: str
    iterative: bool = False

    @classmethod
    def parse(cls, text: str) -> Ranking:
        """Read "angular" or "angular,iterative".

        Raises:
            PruningError: there is no such ranking.
        """
        by, _, how = text.strip().lower().replace("_", "-").partition(",")
        if by not in (*SCORES, *ORDERS) or how.strip() not in ("", "iterative"):
            known = ", ".join((*SCORES, *ORDERS))
            raise PruningError(f"unknown ranking {text!r}; use one of {known}, with ',iterative' behind a score or not")
        if how and by in (*ORDERS, "change"):
            raise PruningError(
                f"ranking {text!r}: {by} is the same whichever layers have gone; leave ',iterative' away"
            )
        return cls(by, bool(how))

    @property
    def name(self) -> str:
        return f"{self.by}-iterative" if self.iterative else self.by


@dataclass(frozen=True)
class Pruning:
    """What is pruned after a training.

    Attributes:
        rankings: each gives plans of its own; the plans of one are nested.
        candidates: the layers that may go, ascending.
        counts: how many go, ascending, 0 first.
        kept: least shares of the unpruned variant's score: as many layers go as leave that much.
        heal_steps: optimizer steps of the region that follow each removal; 0 for none.
    """

    rankings: tuple[Ranking, ...] = ()
    candidates: tuple[int, ...] = ()
    counts: tuple[int, ...] = (0,)
    kept: tuple[float, ...] = ()
    heal_steps: int = 0


UNPRUNED = Pruning()


@dataclass(frozen=True)
class Plan:
    """The layers that go (ascending, numbered as in the base), and the ranking that says so; none where none go."""

    ranking: str | None
    removed: tuple[int, ...]
    healed: bool = False


def removable(region: Region, protect: str = "region") -> tuple[int, ...]:
    """The layers that a plan may remove, ascending.

    Args:
        protect: "region": what is tuned stays. All-layer tuning leaves nothing outside, and there any layer may go,
            which is the baseline that the paper prunes against. "none": any layer may go. Or a list such as "0,1,29":
            these stay, whatever is tuned.

    Raises:
        PruningError, RegionError: the list is malformed, or has layers that are not there.
    """
    every = tuple(range(region.depth))
    if protect == "region":
        return region.outside or every
    if protect == "none":
        return every
    kept = parse_layers(protect)
    if beyond := [layer for layer in kept if not 0 <= layer < region.depth]:
        raise PruningError(f"protect {protect!r}: a decoder of {region.depth} layers has no layer {beyond[0]}")
    return tuple(layer for layer in every if layer not in kept)


def check_amount(amount: int | float | str) -> None:
    """
    Raises:
        PruningError: it is neither a count, nor a fraction below 1, nor a target such as "params<=110M".
    """
    if isinstance(amount, str):
        if not (_PARAMETERS.fullmatch(amount) or _KEPT.fullmatch(amount)) or not 0 < _kept(amount, 0.5) <= 1:
            raise PruningError(
                f"{amount!r} is neither a count (0, 1, 2, ...), nor a fraction below 1, nor a target: "
                "'params<=110M' or 'score>=95%'"
            )
    elif not amount >= 0 or (isinstance(amount, float) and amount >= 1):  # not: nan is refused too
        raise PruningError(f"{amount} is neither a count (0, 1, 2, ...) nor a fraction below 1")


def plan_pruning(
    amounts: Sequence[int | float | str],
    rankings: Sequence[Ranking],
    region: Region,
    *,
    protect: str = "region",
    heal_steps: int = 0,
    total: int,
    layer: int,
) -> Pruning:
    """Amounts as distinct counts; 0, the unpruned variant, is always in. Fractions are rounded half up.

    Args:
        amounts: counts, fractions of the depth, "params<=110M" (the model has at most so many parameters afterwards),
            "score>=95%" (as many layers go as leave that share of the unpruned variant's score).
        total: parameters of the whole model.
        layer: parameters of one decoder layer.

    Raises:
        PruningError: more layers would go than may.
    """
    candidates = removable(region, protect)
    counts = {0}
    for amount in amounts:
        if isinstance(amount, float):
            counts.add(fraction_of(region.depth, amount))
        elif isinstance(amount, int):
            counts.add(amount)
        elif found := _PARAMETERS.fullmatch(amount):
            most = int(float(found[1]) * _UNITS[found[2].lower()])
            counts.add(max(0, -(-(total - most) // layer)))
    available = min(len(candidates), region.depth - 1)
    if max(counts) > available:
        outside = "beside the region" if protect == "region" else f"with protect {protect!r} and the region"
        raise PruningError(
            f"cannot remove {max(counts)} layers: {available} of {region.depth} may go {outside} {region.name}; "
            f"prune at most {available}, which leaves {(total - available * layer) / 1e6:.1f}M parameters, or tune "
            "fewer layers"
        )
    kept = tuple(sorted({_kept(amount) for amount in amounts if isinstance(amount, str) and _KEPT.fullmatch(amount)}))
    wanted = tuple(sorted(counts))
    return Pruning(tuple(rankings) if wanted != (0,) or kept else (), candidates, wanted, kept, heal_steps)


def fixed_order(by: str, candidates: Sequence[int], seed: int) -> list[int]:
    """The candidates in the order in which they go by one of `ORDERS`."""
    if by == "deepest":
        return sorted(candidates, reverse=True)
    return draw(candidates, f"vrray random pruning, seed {seed}")


def _kept(amount: str, otherwise: float = 0.0) -> float:
    found = _KEPT.fullmatch(amount)
    return float(found[1]) / (100 if found[2] else 1) if found else otherwise
