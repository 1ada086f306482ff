"""The shapes and colours of the package easy-vqa: its images in three splits, their questions and captions."""

from __future__ import annotations

import hashlib
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from vrray.data.demo_order import interleaved, shuffled
from vrray.data.demo_packages import package_folder
from vrray.data.tasks import Example

_FOLDER = "easy-vqa"
_FIRST_SELECT_IMAGE = 3000
_SHAPES = frozenset({"circle", "rectangle", "triangle"})
_YESNO = frozenset({"yes", "no"})


def package_images() -> Path:
    """The folder of the installed package that holds train/images and test/images."""
    return package_folder("easy-vqa") / "data"


def assign_images(source: Path) -> tuple[dict[str, str], dict[str, int]]:
    """Image path -> split, and how many each split lost because an earlier one holds the same bytes."""
    splits: dict[str, str] = {}
    dropped = {"select": 0, "test": 0}
    holder: dict[bytes, str] = {}
    for folder in ("train", "test"):
        for path in sorted((source / folder / "images").glob("*.png"), key=lambda path: int(path.stem)):
            split = "select" if folder == "train" and int(path.stem) >= _FIRST_SELECT_IMAGE else folder
            if holder.setdefault(hashlib.sha256(path.read_bytes()).digest(), split) == split:
                splits[path.relative_to(source).as_posix()] = split
            else:
                dropped[split] += 1
    return splits, dropped


def read_questions(image_splits: Mapping[str, str]) -> dict[str, list[Example]]:
    """Every question of each split; images are named as `copy_images` names them."""
    import easy_vqa  # type: ignore[import-untyped]

    questions: dict[str, list[Example]] = {"train": [], "select": [], "test": []}
    for folder, read in (("train", easy_vqa.get_train_questions), ("test", easy_vqa.get_test_questions)):
        for row, (question, answer, number) in enumerate(zip(*read(), strict=True)):
            image = f"{folder}/images/{number}.png"
            if image in image_splits:
                example = Example(f"easy-vqa/{folder}/{row}", question, answer, f"{_FOLDER}/{image}")
                questions[image_splits[image]].append(example)
    return questions


def copy_images(source: Path, names: Iterable[str], images: Path) -> None:
    """Copies images of the package into the folder `images`, to the names that the questions give them."""
    for name in names:
        target = images / _FOLDER / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target)


def caption_images(questions: Sequence[Example]) -> list[tuple[str, str]]:
    """(image, caption) of each image whose colour and shape its open questions both tell."""
    answers: defaultdict[str, set[str]] = defaultdict(set)
    for example in questions:
        if example.image and example.answer not in _YESNO:
            answers[example.image].add(example.answer)
    captions = []
    for image, known in answers.items():
        shapes, colours = known & _SHAPES, known - _SHAPES
        if shapes and colours:
            captions.append((image, f"a {min(colours)} {min(shapes)}"))
    return shuffled(captions, "captions")


def open_and_yesno(questions: Sequence[Example], seed: str) -> dict[str, list[Example]]:
    """The questions by task: easy-vqa those of shape or colour, easy-vqa-yesno as many yes as no to each text."""
    mixed = shuffled(questions, seed)
    shapes = [example for example in mixed if example.answer in _SHAPES]
    colours = [example for example in mixed if example.answer not in _SHAPES | _YESNO]
    return {"easy-vqa": interleaved(shapes, colours), "easy-vqa-yesno": _balanced(mixed, seed)}


def _balanced(questions: Sequence[Example], seed: str) -> list[Example]:
    """Pairs of a yes and a no to the same question text: every prefix of even length is balanced too."""
    answered: defaultdict[tuple[str, str], list[Example]] = defaultdict(list)
    for example in questions:
        answered[example.question, example.answer].append(example)
    texts = sorted({text for text, answer in answered if answer in _YESNO})
    # The shorter list ends the pairing: the surplus answers are what would leak.
    pairs = [pair for text in texts for pair in zip(answered[text, "yes"], answered[text, "no"], strict=False)]
    return [example for pair in shuffled(pairs, f"pairs {seed}") for example in shuffled(pair, pair[0].id)]
