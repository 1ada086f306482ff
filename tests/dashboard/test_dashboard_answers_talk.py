"""A conversation with several variants: each sees its own answers, names stay hidden until the vote."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from dashboard.compare_talk import Talk, about, default_choice, new_talk, speed_of, with_one_more
from dashboard.conversation import Decoding, End, Exchange
from dashboard.votes import TIE
from vrray.errors import DataError


def row(variant: str, placement: str = "top", removed: int = 0, score: float = 0.5, **changes: Any) -> dict[str, Any]:
    return {
        "variant": variant,
        "placement": placement,
        "tuned_layers": [5],
        "removed_layers": list(range(removed)),
        "depth": 30,
        "status": "complete",
        "score_visual": score,
        "score_textual": None,
        "parameters": 134_500_000,
        **changes,
    }


ROWS = [
    row("a"),
    row("b", removed=2, score=0.9),
    row("all", "all"),
    row("untuned", "none"),
    row("bad", status="failed"),
]


def answered(blind: bool = False) -> Talk:
    talk = new_talk("s", ROWS, ["a", "b"], blind=blind)
    talk.begin(Exchange("first?", (b"image",)), "shown.jpg", Decoding(seed=3))
    for column in range(2):
        talk.answers[column][-1] = f"answer of {talk.rows[column]['variant']}"
        talk.pending.discard(column)
    return talk


def test_each_variant_sees_its_own_answers() -> None:
    talk = answered()
    talk.begin(Exchange("second?"), None, Decoding())
    for column, name in enumerate("ab"):
        first, second = talk.conversation(column)
        assert first == Exchange("first?", (b"image",), f"answer of {name}") and second == Exchange("second?")
    talk.drop_last()
    assert talk.conversation(0) == [Exchange("first?", (b"image",))] and talk.answers[0] == ["answer of a"]
    talk.again(Decoding(seed=4))
    assert talk.answers == [[""], [""]] and talk.pending == {0, 1}


def test_a_vote_needs_whole_answers_and_is_cast_once() -> None:
    talk = answered()
    talk.pending.add(1)
    with pytest.raises(DataError, match="vote once"):
        talk.vote(0)
    talk.pending.clear()
    vote = talk.vote(1)
    assert (vote.variants, vote.winner, vote.blind, vote.images) == (("a", "b"), 1, False, 1)
    assert vote.answers == ("answer of a", "answer of b") and vote.decoding == {**vote.decoding, "seed": 3}
    with pytest.raises(DataError):
        talk.vote(TIE)
    failed = answered()
    failed.failed[0] = "busy"
    assert not failed.can_vote
    with pytest.raises(DataError):
        answered().vote(2)


def test_blind_hides_and_shuffles_until_the_vote() -> None:
    orders = {tuple(each["variant"] for each in answered(blind=True).rows) for _ in range(60)}
    assert orders == {("a", "b"), ("b", "a")}
    talk = answered(blind=True)
    assert [talk.name(column) for column in range(2)] == ["Model A", "Model B"] and talk.hidden
    assert talk.vote(0).blind and not talk.hidden
    assert {talk.name(0), talk.name(1)} == {"a", "b"}
    talk.again(Decoding())
    talk.pending.clear()
    assert not talk.vote(0).blind  # who votes again has seen the names


@pytest.mark.parametrize("chosen", [[], ["a"], ["a", "a"], ["a", "b", "all", "untuned", "a"], ["a", "bad"], ["a", "x"]])
def test_two_to_four_finished_variants_are_compared(chosen: list[str]) -> None:
    with pytest.raises(DataError):
        new_talk("s", ROWS, chosen, blind=False)


def test_the_best_beside_all_layer_tuning_or_the_base_is_chosen() -> None:
    assert default_choice(ROWS, pa.Table.from_pylist(ROWS)) == ["b", "all"]
    few = [row("a"), row("untuned", "none")]
    assert default_choice(few, pa.Table.from_pylist(few)) == ["a", "untuned"]
    assert default_choice(ROWS[-1:], pa.Table.from_pylist(ROWS[-1:])) == []


def test_one_more_variant_takes_the_last_place_where_all_are_taken() -> None:
    assert with_one_more(["a"], "b") == ["a", "b"]
    assert with_one_more(["a", "b"], "a") == with_one_more(["a", "b"], "") == ["a", "b"]
    assert with_one_more(["a", "b", "c", "d"], "e") == ["a", "b", "c", "e"]


def test_layers_parameters_and_speed_are_said() -> None:
    assert about(ROWS[0]) == "30 layers, 1 tuned, 134 M parameters"
    assert about(row("b", removed=2, parameters=7_060_000_000)) == "28 of 30 layers, 1 tuned, 7.06 B parameters"
    assert about(row("c", parameters=None)) == "30 layers, 1 tuned"
    assert speed_of(End("stop", 9, 21, 0.1, 2.0), 0.5) == "first token after 0.50 s, 10.0 tokens/s, 21 tokens"
    assert speed_of(End("cancelled", 9, 1, 0.1, 0.0), 0.5) == "first token after 0.50 s, 1 token, stopped"
