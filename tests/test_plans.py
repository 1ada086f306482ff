"""Which layers may go, in which order, how many."""

from __future__ import annotations

from typing import Any

import pytest

from vrray.errors import PruningError, RegionError
from vrray.plans import Pruning, Ranking, check_amount, fixed_order, plan_pruning, removable
from vrray.region import Region, place

DEPTH = 6
REGION = place("0,3", DEPTH)
ANGULAR = [Ranking("angular")]


def pruning(amounts: list[Any], region: Region = REGION, **options: Any) -> Pruning:
    return plan_pruning(amounts, ANGULAR, region, total=1000, layer=100, **options)


@pytest.mark.parametrize(
    ("region", "protect", "layers"),
    [
        (REGION, "region", (1, 2, 4, 5)),
        (Region.none(4), "region", (0, 1, 2, 3)),
        (place("all", 4), "region", (0, 1, 2, 3)),
        (REGION, "none", tuple(range(DEPTH))),
        (REGION, "0,5", (1, 2, 3, 4)),
    ],
)
def test_what_may_go(region: Region, protect: str, layers: tuple[int, ...]) -> None:
    assert removable(region, protect) == layers


@pytest.mark.parametrize(
    ("protect", "error", "message"),
    [
        ("0,6", PruningError, "a decoder of 6 layers has no layer 6"),
        ("ends", RegionError, "'ends' is not a layer index"),
    ],
)
def test_what_cannot_be_protected(protect: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message.replace("(", r"\(") if "(" in message else message.split(" is ")[-1]):
        removable(REGION, protect)


@pytest.mark.parametrize(
    ("amounts", "counts"),
    [
        ([2, 0, 2, 1], (0, 1, 2)),
        ([0.5, 3], (0, 3)),
        ([0.3, 0.0], (0, 2)),
        ([1, 0.1], (0, 1)),
        (["params<=800"], (0, 2)),
        (["params<=0.75k"], (0, 3)),
        (["params<=1K", 1], (0, 1)),
    ],
)
def test_amounts_become_counts(amounts: list[Any], counts: tuple[int, ...]) -> None:
    assert pruning(amounts).counts == counts


@pytest.mark.parametrize(("depth", "fraction", "count"), [(30, 0.35, 11), (50, 0.29, 15), (6, 0.25, 2)])
def test_fractions_are_rounded_as_those_of_placements_are(depth: int, fraction: float, count: int) -> None:
    assert pruning([fraction], Region.none(depth)).counts == (0, count)
    assert len(place("uniform", depth, fraction)) == count


def test_shares_of_the_score_are_kept_for_later() -> None:
    found = pruning(["score>=95%", "score>=0.9", 1])
    assert (found.counts, found.kept) == ((0, 1), (0.9, 0.95))


def test_without_an_amount_nothing_is_ranked() -> None:
    assert pruning([0]).rankings == ()
    assert pruning([1]).rankings == tuple(ANGULAR)
    assert pruning(["score>=90%"]).rankings == tuple(ANGULAR)


@pytest.mark.parametrize(
    ("region", "protect", "most"),
    [(REGION, "region", 4), (place("all", DEPTH), "region", 5), (REGION, "none", 5), (REGION, "0,1,2", 3)],
)
def test_too_many_says_how_many_can_go(region: Region, protect: str, most: int) -> None:
    assert pruning([most], region, protect=protect).counts == (0, most)
    message = (
        rf"cannot remove {most + 1} layers: {most} of 6 may go .*{region.name}; prune at most {most}, which leaves"
    )
    with pytest.raises(PruningError, match=message):
        pruning([0, most + 1], region, protect=protect)


def test_a_size_that_cannot_be_reached_says_which_can() -> None:
    with pytest.raises(PruningError, match=r"cannot remove 5 layers: 4 of 6 may go .* leaves 600\.0M parameters"):
        plan_pruning(["params<=500M"], ANGULAR, REGION, total=10**9, layer=10**8)


@pytest.mark.parametrize("amount", ["params<=", "score>=0%", "score>=101%", "score>95%", "most", 1.0, -1, float("nan")])
def test_what_is_no_amount(amount: Any) -> None:
    with pytest.raises(PruningError, match="is neither a count"):
        check_amount(amount)


@pytest.mark.parametrize(
    ("text", "ranking", "name"),
    [
        ("angular", Ranking("angular"), "angular"),
        (" BI,iterative", Ranking("bi", True), "bi-iterative"),
        ("random", Ranking("random"), "random"),
    ],
)
def test_rankings(text: str, ranking: Ranking, name: str) -> None:
    assert Ranking.parse(text) == ranking
    assert ranking.name == name


@pytest.mark.parametrize("text", ["angle", "bi,twice", "random,iterative", "change,iterative", ""])
def test_what_is_no_ranking(text: str) -> None:
    with pytest.raises(PruningError, match="ranking"):
        Ranking.parse(text)


def test_orders_without_a_score() -> None:
    assert fixed_order("deepest", (1, 2, 5), 0) == [5, 2, 1]
    drawn = [fixed_order("random", range(30), seed) for seed in range(20)]
    assert all(sorted(order) == list(range(30)) for order in drawn)
    assert len({tuple(order) for order in drawn}) == 20
    assert drawn[3] == fixed_order("random", range(30), 3)
