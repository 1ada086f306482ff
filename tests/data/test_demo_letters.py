"""The drawn letters: in balance, large, in fonts that no other split has."""

from __future__ import annotations

import random
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vrray.data import demo_letters
from vrray.data.demo_letters import FONTS, LETTERS, QUESTION, caption_letters, draw_letters
from vrray.data.tasks import Example


class Drawn(NamedTuple):
    images: Path
    examples: dict[str, list[Example]]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    images = tmp_path_factory.mktemp("images")
    return Drawn(images, draw_letters(images, 160))


def pixels_of(picture: Image.Image) -> NDArray[np.int64]:
    return np.asarray(picture).astype(np.int64)


def ink(pixels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Where a picture is not of its most frequent colour."""
    colours = pixels @ (65536, 256, 1)
    known, counts = np.unique(colours, return_counts=True)
    return np.asarray(colours != known[counts.argmax()])


def test_splits_share_no_family_and_no_font() -> None:
    files = {split: {file for _, names in families.values() for file in names} for split, families in FONTS.items()}
    for one, other in combinations(FONTS, 2):
        assert not FONTS[one].keys() & FONTS[other].keys()
        assert not files[one] & files[other]


def test_pictures_are_drawn_in_every_font_of_their_split_and_no_other(drawn: Drawn) -> None:
    for split, examples in drawn.examples.items():
        used = Counter(Path(example.image or "").stem.split("-", 2)[2] for example in examples)
        assert used.keys() == {Path(file).stem for _, files in FONTS[split].values() for file in files}
        per_family = [sum(used[Path(file).stem] for file in files) for _, files in FONTS[split].values()]
        assert max(per_family) == min(per_family)


@pytest.mark.parametrize("split", ["train", "select", "test"])
def test_eight_in_a_row_hold_every_letter(drawn: Drawn, split: str) -> None:
    answers = [example.answer for example in drawn.examples[split]]
    rounds = [tuple(answers[start : start + 8]) for start in range(0, len(answers), 8)]
    assert all(sorted(held) == sorted(LETTERS) for held in rounds)
    assert len(set(rounds)) == len(rounds)
    assert {example.question for example in drawn.examples[split]} == {QUESTION}


def test_letters_are_large_and_legible(drawn: Drawn) -> None:
    for example in (e for examples in drawn.examples.values() for e in examples):
        with Image.open(drawn.images / (example.image or "")) as picture:
            assert (picture.size, picture.mode) == ((96, 96), "RGB")
            pixels = pixels_of(picture)
        inked = ink(pixels)
        rows, columns = np.flatnonzero(inked.any(axis=1)), np.flatnonzero(inked.any(axis=0))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert 45 <= max(height, width) <= 86 and min(height, width) >= 30, example
        assert 0.05 < inked.mean() < 0.5, example
        assert np.ptp(pixels.reshape(-1, 3), axis=0).min() >= 80, example


def test_the_letter_is_what_differs_between_two_pictures_of_one_draw() -> None:
    font = demo_letters._font_path("font-caladea", "Caladea-Regular.ttf")
    pictures = [pixels_of(demo_letters._write(letter, font, random.Random(3))) for letter in LETTERS]
    assert all((one != other).any() for one, other in combinations(pictures, 2))
    assert (pixels_of(demo_letters._write(LETTERS[0], font, random.Random(3))) == pictures[0]).all()


def test_captions_say_the_letter(drawn: Drawn) -> None:
    captions = dict(caption_letters(drawn.examples["train"]))
    assert {captions[example.image or ""] for example in drawn.examples["train"]} == {
        f"the letter {letter}" for letter in LETTERS
    }
    assert all(captions[e.image or ""] == f"the letter {e.answer}" for e in drawn.examples["train"])
