"""The drawn emoji: groups in balance, each picture in one split only, recurring ones never drawn alike."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from vrray.data.demo_emoji import GROUPS, PICTURES_PER_GROUP, QUESTION, caption_emoji, draw_emoji
from vrray.data.tasks import Example


class Drawn(NamedTuple):
    images: Path
    examples: dict[str, list[Example]]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    images = tmp_path_factory.mktemp("images")
    return Drawn(images, draw_emoji(images, 160))


def emoji_of(example: Example) -> str:
    return chr(int(Path(example.image or "").stem.split("-")[1], 16))


def test_an_emoji_has_one_group() -> None:
    groups = Counter(emoji for group in GROUPS for emoji in group.emoji)
    assert set(groups.values()) == {1}
    assert min(len(group.emoji) for group in GROUPS) > 2 * PICTURES_PER_GROUP


def test_no_emoji_is_in_two_splits(drawn: Drawn) -> None:
    emoji = {split: {emoji_of(example) for example in examples} for split, examples in drawn.examples.items()}
    assert all(not emoji[one] & emoji[other] for one, other in combinations(emoji, 2))
    assert len(emoji["select"]) == len(emoji["test"]) == len(GROUPS) * PICTURES_PER_GROUP


def test_answers_are_the_groups_of_the_emoji(drawn: Drawn) -> None:
    group_of = {emoji: group.answer for group in GROUPS for emoji in group.emoji}
    for example in (e for examples in drawn.examples.values() for e in examples):
        assert example.answer == group_of[emoji_of(example)]
        assert example.question == QUESTION


@pytest.mark.parametrize("split", ["train", "select", "test"])
def test_eight_in_a_row_hold_every_group(drawn: Drawn, split: str) -> None:
    answers = [example.answer for example in drawn.examples[split]]
    rounds = [tuple(answers[start : start + 8]) for start in range(0, len(answers), 8)]
    assert all(sorted(held) == sorted(group.answer for group in GROUPS) for held in rounds)
    assert len(set(rounds)) == len(rounds)


def test_pictures_show_the_drawing_on_a_pale_ground(drawn: Drawn) -> None:
    for example in drawn.examples["test"]:
        with Image.open(drawn.images / (example.image or "")) as picture:
            assert (picture.size, picture.mode) == ((96, 96), "RGB")
            pixels = np.asarray(picture).astype(np.int64) @ (65536, 256, 1)
        colours, counts = np.unique(pixels, return_counts=True)
        pale = [colour for colour in colours[counts > 200].tolist() if min(colour.to_bytes(3, "big")) >= 150]
        assert pale, example
        assert 0.05 < (pixels != pale[-1]).mean() < 0.99, example


def test_a_recurring_emoji_is_never_drawn_alike(drawn: Drawn) -> None:
    pictures: defaultdict[str, list[bytes]] = defaultdict(list)
    for example in drawn.examples["train"]:
        pictures[emoji_of(example)].append((drawn.images / (example.image or "")).read_bytes())
    assert max(len(same) for same in pictures.values()) > 1
    assert all(len(set(same)) == len(same) for same in pictures.values())


def test_captions_name_the_group(drawn: Drawn) -> None:
    captions = dict(caption_emoji(drawn.examples["train"]))
    assert {(example.answer, captions[example.image or ""]) for example in drawn.examples["train"]} == {
        ("animal", "an animal"),
        ("food", "food"),
        ("face", "a face"),
        ("person", "a person"),
        ("vehicle", "a vehicle"),
        ("building", "a building"),
        ("clothes", "clothes"),
        ("tool", "a tool"),
    }
