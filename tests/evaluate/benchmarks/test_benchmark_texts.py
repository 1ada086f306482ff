"""Text metrics of the benchmarks, with worked examples."""

from __future__ import annotations

import pytest

from vrray.evaluate.benchmarks.diagrams import relaxed_accuracy
from vrray.evaluate.benchmarks.texts import (
    consensus,
    document_anls,
    edit_distance,
    normalize_vqa,
    normalize_vqa_prediction,
    scene_text_anls,
    text_vqa_accuracy,
    vqa_accuracy,
)


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("same", "same", 0), ("ß", "ss", 2)],
)
def test_edit_distance(first: str, second: str, distance: int) -> None:
    assert edit_distance(first, second) == edit_distance(second, first) == distance


@pytest.mark.parametrize(
    ("prediction", "answers", "score"),
    [
        ("", [""], 1.0),
        ("", ["x"], 0.0),
        ("Hello  World", ["hello world"], 1.0),  # case and spaces do not count
        ("abcd", ["abXX"], 0.5),  # the threshold itself counts
        ("abcd", ["aXXX"], 0.0),
        ("a  b", ["a c"], 0.75),  # one change over the four characters of the raw text
        ("wrong", ["right", "wrong"], 1.0),
    ],
)
def test_document_anls(prediction: str, answers: list[str], score: float) -> None:
    assert document_anls(prediction, answers) == pytest.approx(score)


def test_scene_text_anls_divides_by_the_stripped_length() -> None:
    assert scene_text_anls("  abcd ", ["abce"]) == pytest.approx(0.75)
    assert scene_text_anls("", [""]) == 1.0
    assert scene_text_anls("", ["a"]) == 0.0


@pytest.mark.parametrize(
    ("matches", "score"),
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)],
)
def test_consensus_is_the_mean_over_all_sets_of_nine_annotators(matches: int, score: float) -> None:
    answers = ["red"] * matches + ["blue"] * (10 - matches)
    assert consensus("red", answers) == pytest.approx(score)


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("The Two dogs.", "2 dogs"),
        ("Dont stop", "don't stop"),
        ("youve", "you've"),
        ("1,000 a-b", "1000 ab"),  # a number with a comma takes all punctuation away
        ("a-b", "b"),
        ("red/green", "red green"),
        ("red / green", "red green"),
        ("3.5.", "3.5"),
        ("line\nbreak\ttab", "line break tab"),
        ("None", "0"),
        ("John's", "john's"),
    ],
)
def test_the_official_vqa_normalisation(text: str, normalised: str) -> None:
    assert normalize_vqa_prediction(text) == normalised


def test_textvqa_splits_off_a_genitive_and_vqa_does_not() -> None:
    assert normalize_vqa("John's") == "john 's"
    assert normalize_vqa_prediction("John's") == "john's"


def test_only_the_first_periods_are_taken_away() -> None:
    """The scripts pass a flag as the count of replacements."""
    assert normalize_vqa("." * 40) == "." * 8


def test_vqa_accuracy_takes_references_as_they_are_where_all_agree() -> None:
    assert vqa_accuracy("2", ["2"] * 10) == 1.0
    assert vqa_accuracy("Two.", ["2"] * 10) == 1.0
    assert vqa_accuracy("two", ["two"] * 10) == 0.0  # the script makes 2 of the prediction, and leaves the references
    assert vqa_accuracy("yes", ["yes."] * 10) == 0.0
    assert vqa_accuracy("yes", ["yes."] * 9 + ["no"]) == 1.0  # they differ, so they lose their punctuation
    assert vqa_accuracy("dog", ["dog"] * 3 + ["cat"] * 7) == pytest.approx(0.9)


def test_textvqa_normalises_the_references_too() -> None:
    assert text_vqa_accuracy("two", ["Two"] * 10) == 1.0
    assert text_vqa_accuracy("blue", ["The blue."] * 2 + ["red"] * 8) == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("prediction", "answer", "score"),
    [
        ("105", "100", 1),
        ("95", "100", 1),
        ("105.1", "100", 0),
        ("-105", "-100", 1),
        ("0", "0", 1),
        ("0.01", "0", 0),
        ("1e2", "100", 1),
        ("nan", "100", 0),
        ("inf", "100", 0),
        ("12%", "12%", 1),
        ("12.1%", "12%", 0),
        ("0.12", "12%", 0),
        ("1,000", "1000", 0),
        ("YES", "Yes", 1),
        ("Yes ", "Yes", 0),
    ],
)
def test_relaxed_accuracy(prediction: str, answer: str, score: float) -> None:
    assert relaxed_accuracy(prediction, answer) == score
