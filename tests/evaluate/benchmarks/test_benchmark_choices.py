"""Finding the chosen option in a text, with worked examples."""

from __future__ import annotations

import pytest

from vrray.evaluate.benchmarks.bbh import final_answer
from vrray.evaluate.benchmarks.choices import last_option, matched_option, stated_option
from vrray.evaluate.benchmarks.hallusionbench import yes_or_no as hallusion_yes_or_no
from vrray.evaluate.benchmarks.mme import yes_or_no as mme_yes_or_no
from vrray.evaluate.benchmarks.mmmu import normalize, parse_open
from vrray.evaluate.benchmarks.pope import yes_or_no as pope_yes_or_no
from vrray.evaluate.benchmarks.scienceqa import chosen_option


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(C)", "C"),
        ("The answer is D: dog", "D"),
        ("b", ""),
        ("A or B", ""),
        ("A", "A"),
        ("A dog is in the picture", "D"),  # the A may be an article; the text of one option is there
        ("It is the cat.", "C"),
        ("a cat and a dog", ""),
        ("E", ""),
        ("", ""),
    ],
)
def test_mmbench_matches_a_letter_or_the_text_of_an_option(text: str, letter: str) -> None:
    assert matched_option(text, ("bird", "fish", "cat", "dog")) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("(A) is wrong, so (B)", "B"),
        ("(B), not C ", "B"),  # a bracket goes before a letter alone
        ("Between A and C I take C", "C"),
        ("'C'", "C"),
        ("I would say it is the red one", "B"),
        ("the red one", ""),  # too short for the text of an option to count
        ("It may be red or it may be blue", "A"),
        ("D", ""),
    ],
)
def test_mmmu_takes_the_last_option(text: str, letter: str) -> None:
    assert last_option(text, "ABC", ("blue", "red", "green")) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A", "A"),
        ("(B) because", "B"),
        ("C. dog", "C"),
        ("Apple", ""),
        ("The answer is D.", "D"),
        ("Answer: (C)", "C"),
        ("the answer is a bird", ""),
        ("答案是B。", "B"),
        ("答案\uff1aC", "C"),
        ("故选D", "D"),
        ("neither A nor B", ""),
        ("E", ""),
        ("", ""),
    ],
)
def test_exams_take_a_stated_letter(text: str, letter: str) -> None:
    assert stated_option(text) == letter


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("E", 4),
        ("A. x", 0),
        ("A.x", -1),
        ("The answer is C, as", 2),
        ("The answer is C", -1),
        ("F. The answer is B.", 1),
    ],
)
def test_scienceqa(text: str, index: int) -> None:
    assert chosen_option(text, 5) == index


def test_scienceqa_takes_no_option_that_the_question_lacks() -> None:
    assert chosen_option("E", 4) == -1


@pytest.mark.parametrize(
    ("text", "mme", "pope", "hallusion"),
    [
        ("Yes.", "yes", "yes", "yes"),
        ("No, it isn't", "no", "no", "no"),
        ("", "other", "yes", "unclear"),
        ("NO", "no", "yes", "no"),
        ("Not at all", "no", "yes", "unclear"),
        ("It is not. Yes", "other", "no", "yes"),
        ("Yes, no doubt", "yes", "no", "yes"),
        ("I think so, yes", "other", "yes", "yes"),
        ("Perhaps yes, perhaps no", "other", "no", "unclear"),
    ],
)
def test_every_benchmark_has_its_own_yes_and_no(text: str, mme: str, pope: str, hallusion: str) -> None:
    assert (mme_yes_or_no(text), pope_yes_or_no(text), hallusion_yes_or_no(text)) == (mme, pope, hallusion)


def test_numbers_of_mmmu() -> None:
    assert normalize("1,234.567") == [1234.57]
    assert normalize("Red Car") == ["red car"]
    assert normalize("X") == [" x", "x "]
    assert parse_open("It grows.\nSo x = 12.50 N") == {"12.50 n", 12.5}
    assert 1500.0 in parse_open("1.5e3")
    assert parse_open("f is green\nthe answer is") == {"green", "is"}
    assert parse_open("so it is \nred") == {"so it is \nred"}  # an empty tail after a longer one leaves nothing


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("True", "True"),
        ("Let's think step by step. So the answer is (B).", "(B)"),
        ("the answer is 5. No, the answer is 24.\n\nQ: next", "24"),
        ("the answer is ", ""),
        ("", ""),
    ],
)
def test_the_final_answer_of_big_bench_hard(text: str, answer: str) -> None:
    assert final_answer(text) == answer
