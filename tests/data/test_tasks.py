"""Examples on disk, the floor of a task, and metrics with numbers worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vrray import metrics
from vrray.data.tasks import Example, prior_floor, read_examples, write_examples
from vrray.errors import DataError
from vrray.metrics import exact_match, interval, mean_interval, resampled_means


def asked(question: str, *answers: str, options: tuple[str, ...] = ()) -> list[Example]:
    return [Example(f"{question}{i}", question, answer, options=options) for i, answer in enumerate(answers)]


def test_examples_round_trip(tmp_path: Path) -> None:
    examples = (Example("1", "What?", "red", "a/1.png"), Example("2", "Which?", "b", options=("a", "b")))
    write_examples(tmp_path / "e.jsonl", examples)
    assert read_examples(tmp_path / "e.jsonl") == examples


BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"id": 3}, "field 'id' is 3; write a text"),
    ({"id": "first"}, "field 'id' repeats 'first'"),
    ({"question": " "}, "field 'question' is ' '"),
    ({"answer": None}, "field 'answer' is None"),
    ({"image": "/a.png"}, "image '/a.png' is absolute"),
    ({"image": "../a.png"}, "may leave the image root"),
    ({"options": "red"}, "field 'options' is 'red'; write a list of texts"),
    ({"options": ["red", 3]}, "field 'options' is .*write a list of texts"),
    ({"options": ["red"]}, "write at least two different options"),
    ({"options": ["red", "Red."]}, "write at least two different options"),
    ({"options": ["blue", "green"]}, "field 'options' lacks the answer 'red'; add it"),
    ({"option": ["blue"]}, "unknown field 'option'; keep id, question"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_FIELDS)
def test_bad_examples(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    good = {"id": "first", "question": "What?", "answer": "red"}
    path = tmp_path / "e.jsonl"
    path.write_text(json.dumps(good) + "\n" + json.dumps(good | {"id": "second"} | changes), encoding="utf-8")
    with pytest.raises(DataError, match=rf"e\.jsonl, row 2 \(line 2\): .*{message}"):
        read_examples(path)


def test_example_that_is_no_object(tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").write_text("3", encoding="utf-8")
    with pytest.raises(DataError, match=r"row 1 \(line 1\): found 3; write an object with id, question and answer"):
        read_examples(tmp_path / "e.jsonl")


def test_floor_guesses_the_most_frequent_answer_of_the_question() -> None:
    reference = asked("colour?", "red", "red", "blue") + asked("shape?", "circle")
    assert prior_floor(asked("colour?", "Red", "blue", "green", "red"), reference) == 0.5
    assert prior_floor(asked("shape?", "circle"), {example.id: example for example in reference}) == 1.0


def test_floor_shares_ties() -> None:
    reference = asked("colour?", "red", "blue")
    assert prior_floor(asked("colour?", "red", "red", "green", "blue"), reference) == pytest.approx(3 * 0.5 / 4)


def test_floor_falls_back_to_the_most_frequent_answer_overall() -> None:
    reference = asked("a?", "red", "red") + asked("b?", "blue")
    assert prior_floor(asked("c?", "red", "blue"), reference) == 0.5
    assert prior_floor(asked("c?", "red"), []) == 0.0


def test_floor_of_a_choice_counts_its_options_only() -> None:
    options = ("blue", "green", "grey", "pink")
    reference = asked("c?", "red", "red", "blue") + asked("d?", "green", "green", "red")
    assert prior_floor(asked("c?", "blue", options=options), reference) == 1.0
    assert prior_floor(asked("d?", "blue", options=options), reference) == 0.0
    assert prior_floor(asked("e?", "green", options=options), reference) == 1.0
    # Nothing known about "red" helps; neither does a seen question whose answers are no options.
    assert prior_floor(asked("e?", "pink", options=options), asked("c?", "red")) == 0.25
    assert prior_floor(asked("c?", "pink", options=options), asked("c?", "red")) == 0.25


def test_floor_of_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="floor of 0 examples"):
        prior_floor([], asked("a?", "red"))


@pytest.mark.parametrize("prediction", ["Red", " red.\n", "RED ."])
def test_exact_match_ignores_case_edges_and_a_period(prediction: str) -> None:
    assert exact_match(prediction, "red")


@pytest.mark.parametrize("prediction", ["red..", "a red", "red!", "re d", ""])
def test_exact_match_ignores_nothing_else(prediction: str) -> None:
    assert not exact_match(prediction, "red")


def test_interval_of_equal_values_is_a_point() -> None:
    assert mean_interval([[0.25] * 5]) == (0.25, 0.25, 0.25)


def test_interval_by_hand() -> None:
    # The mean of two draws from {0, 1} is 0, 1/2, 1 with 1/4, 1/2, 1/4: the middle 40 % is 1/2, the middle 90 % all.
    assert mean_interval([[0.0, 1.0]], level=0.4) == (0.5, 0.5, 0.5)
    assert mean_interval([[0.0, 1.0]], level=0.9) == (0.5, 0.0, 1.0)


def test_interval_approaches_the_normal_one() -> None:
    scores = [0.0] * 200 + [1.0] * 200
    _, low, high = mean_interval([scores])
    half_width = 1.96 * (0.25 / 400) ** 0.5
    assert (low, high) == pytest.approx((0.5 - half_width, 0.5 + half_width), abs=0.01)
    assert (resampled_means([scores]) == resampled_means([scores])).all()
    assert (resampled_means([scores]) != resampled_means([scores], seed=1)).any()


def test_variants_on_the_same_examples_are_resampled_in_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(3)
    one, other = generator.random((2, 150))
    few = [[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]
    both = resampled_means([one, few[0]]) - resampled_means([other, few[1]])
    assert both == pytest.approx(resampled_means([one - other, np.subtract(*few)]))
    # An error common to both cancels: the difference is far surer than either score.
    shifted = resampled_means([one - 0.1])
    assert interval(resampled_means([one]) - shifted) == pytest.approx((0.1, 0.1))
    whole = resampled_means([one])
    monkeypatch.setattr(metrics, "_DRAWN_AT_ONCE", 1000)
    assert (resampled_means([one]) == whole).all()  # drawn in blocks, so that memory is bounded


def test_mean_interval_weighs_tasks_equally() -> None:
    assert mean_interval([[1.0], [0.0, 0.0, 0.0]]) == (0.5, 0.5, 0.5)
    # Only the second task varies, by 0, 1/2 or 1, and counts half.
    assert mean_interval([[1.0, 1.0], [0.0, 1.0]], level=0.9) == (0.75, 0.5, 1.0)


@pytest.mark.parametrize("groups", [[], [[]], [[1.0], []]])
def test_mean_of_nothing_is_refused(groups: list[list[float]]) -> None:
    with pytest.raises(DataError, match="at least one group and one score"):
        mean_interval(groups)
