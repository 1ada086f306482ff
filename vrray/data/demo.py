"""The demo data: questions about pictures and about countries, from what packages ship, cut into disjoint splits."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vrray.data import demo_easy_vqa, demo_emoji, demo_letters
from vrray.data.demo_geography import geography
from vrray.data.demo_order import interleaved, shuffled
from vrray.data.demo_packages import package_versions
from vrray.data.records import IMAGE_PLACEHOLDER, Record, Turn, write_records
from vrray.data.tasks import Example, Split, Task, prior_floor, read_examples, write_examples
from vrray.errors import DataError

# Raise it whenever the files that are built change.
VERSION = 3

TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task("easy-vqa", "visual", "exact", "Name the colour or shape in a picture (13 answers)."),
        Task("easy-vqa-yesno", "visual", "exact", "Is a colour or shape in a picture; every question half yes."),
        Task(demo_emoji.TASK, "visual", "exact", "The group of an emoji never seen before (8 groups)."),
        Task(demo_letters.TASK, "visual", "exact", "Read a letter in a font never seen before (8 letters)."),
        Task("capitals", "textual", "choice", "The capital of a country out of four capitals."),
        Task("continents", "textual", "choice", "The continent of a country out of six."),
    )
}


@dataclass(frozen=True)
class DemoData:
    """Where the demo data lie; images are named relative to ``image_root``."""

    root: Path
    image_root: Path
    captions: Path
    train: Path
    tasks: Mapping[str, Task]

    def examples(self, task: str, split: Split, limit: int | None = None) -> tuple[Example, ...]:
        """The first ``limit`` examples of a task, all when None; they are shuffled, so a prefix is a fair sample.

        Raises:
            DataError: the task or split is unknown, or ``limit`` is below 1.
        """
        if task not in self.tasks or split not in _OTHER_SPLIT:
            raise DataError(
                f"unknown task and split {task!r}, {split!r}; use one of {', '.join(self.tasks)} "
                f"with one of {', '.join(_OTHER_SPLIT)}"
            )
        if limit is not None and limit < 1:
            raise DataError(f"limit is {limit}; use at least 1, or None for all examples")
        return read_examples(_examples_path(self.root, task, split))[:limit]

    def floor(self, task: str, split: Split, limit: int | None = None) -> float:
        """What guessing from the question alone scores on ``examples`` of the same arguments.

        The guesser knows the training questions of a visual task and the other split of a text task.

        Raises:
            DataError: as ``examples``.
        """
        examples = self.examples(task, split, limit)
        trained_on = _examples_path(self.root, task, "train")
        reference = read_examples(trained_on) if trained_on.exists() else self.examples(task, _OTHER_SPLIT[split])
        return prior_floor(examples, reference)

    @property
    def manifest(self) -> dict[str, Any]:
        """Versions, counts, dropped duplicate images, and the floor of every task and split."""
        manifest: dict[str, Any] = json.loads((self.root / _MANIFEST).read_text(encoding="utf-8"))
        return manifest


def build_demo(home: str | os.PathLike[str]) -> DemoData:
    """Builds the demo data below ``home``/data, or opens them where a complete build of the same versions stands.

    Raises:
        DataError: a package of the demo is not installed, or the folder is there without its manifest.
    """
    packages = package_versions()
    fingerprint = hashlib.sha256(json.dumps([VERSION, packages], sort_keys=True).encode()).hexdigest()[:12]
    root = Path(home) / "data" / f"demo-v{VERSION}-{fingerprint}"
    if not root.exists():
        _build_aside(root, packages)
    if not (root / _MANIFEST).is_file():
        raise DataError(f"{root} has no {_MANIFEST}, so files may be missing; remove the folder and run again")
    return _open(root)


_MANIFEST = "demo.json"
_OTHER_SPLIT: Mapping[Split, Split] = {"select": "test", "test": "select"}
_TRAINING_BATCH = {"easy-vqa": 6, "easy-vqa-yesno": 2, demo_emoji.TASK: 4, demo_letters.TASK: 4}
_TRAINING_BATCHES = 256


def _open(root: Path) -> DemoData:
    return DemoData(root, root / "images", root / "captions.jsonl", root / "train.jsonl", dict(TASKS))


def _examples_path(root: Path, task: str, split: str) -> Path:
    return root / "tasks" / task / f"{split}.jsonl"


def _build_aside(root: Path, packages: Mapping[str, str]) -> None:
    """Builds in a folder beside ``root`` and renames it, so that ``root`` is complete from its first moment."""
    aside = root.with_name(f".{root.name}.{uuid.uuid4().hex}.tmp")
    aside.mkdir(parents=True)
    try:
        _build(aside, packages)
        aside.rename(root)
    except OSError:
        # A process that was faster has left nothing to do.
        if not root.exists():
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _build(folder: Path, packages: Mapping[str, str]) -> None:
    demo = _open(folder)
    shapes = demo_easy_vqa.package_images()
    image_splits, dropped = demo_easy_vqa.assign_images(shapes)
    demo_easy_vqa.copy_images(shapes, image_splits, demo.image_root)
    questions = demo_easy_vqa.read_questions(image_splits)
    emoji = demo_emoji.draw_emoji(demo.image_root, _training_rows(demo_emoji.TASK))
    letters = demo_letters.draw_letters(demo.image_root, _training_rows(demo_letters.TASK))
    examples: dict[str, dict[str, list[Example]]] = {split: dict(tasks) for split, tasks in geography().items()}
    for split in ("train", "select", "test"):
        visual = demo_easy_vqa.open_and_yesno(questions[split], split)
        visual |= {demo_emoji.TASK: emoji[split], demo_letters.TASK: letters[split]}
        examples[split] = visual | examples.get(split, {})
    examples["train"] = {task: examples["train"][task][: _training_rows(task)] for task in _TRAINING_BATCH}
    captions = interleaved(
        demo_easy_vqa.caption_images(questions["train"]),
        demo_emoji.caption_emoji(emoji["train"]),
        demo_letters.caption_letters(letters["train"]),
    )
    write_records(demo.captions, [_caption_record(image, caption) for image, caption in captions])
    write_records(demo.train, [_as_record(example) for example in _mixed(examples["train"])])
    for split, tasks in examples.items():
        for task, asked in tasks.items():
            write_examples(_examples_path(folder, task, split), asked)
    manifest = {
        "version": VERSION,
        "packages": packages,
        "captions": len(captions),
        "train": {task: len(asked) for task, asked in examples["train"].items()},
        "tasks": {task: {split: len(examples[split][task]) for split in _OTHER_SPLIT} for task in TASKS},
        "floors": {task: {split: demo.floor(task, split) for split in _OTHER_SPLIT} for task in TASKS},
        "dropped_duplicate_images": dropped,
    }
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _training_rows(task: str) -> int:
    return _TRAINING_BATCH[task] * _TRAINING_BATCHES


def _mixed(tasks: Mapping[str, Sequence[Example]]) -> Iterable[Example]:
    """The training examples of all tasks; every batch of 16 holds them in the proportion of the whole."""
    for number in range(_TRAINING_BATCHES):
        batch = [tasks[task][number * count : (number + 1) * count] for task, count in _TRAINING_BATCH.items()]
        yield from shuffled((example for part in batch for example in part), f"batch {number}")


def _caption_record(image: str, caption: str) -> Record:
    return Record(f"caption/{image}", (image,), (Turn(IMAGE_PLACEHOLDER, caption),))


def _as_record(example: Example) -> Record:
    assert example.image is not None
    turn = Turn(f"{IMAGE_PLACEHOLDER}\n{example.question}", example.answer)
    return Record(example.id, (example.image,), (turn,))
