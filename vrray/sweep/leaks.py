"""Images that are in the evaluation data and in the training data as well: found, counted, listed; never an error."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vrray.data import fingerprints
from vrray.data.blobs import PREFIX as EMBEDDED
from vrray.data.images import Images, Opened, examine
from vrray.data.ingest import TrainedImages, all_images, trained_images, with_embedded
from vrray.data.rows import KIND as ROWS
from vrray.errors import DataError
from vrray.store import Store, content_key, read_parquet
from vrray.sweep.prepare import Prepared

KIND, FILE = "leaks", "leaks.parquet"
_THREADS = 8
_VIEWS = 4096  # images whose views are held, 24 KiB each
_PAIRS = pa.schema(
    [(name, pa.string()) for name in ("image", "training_image", "match")] + [("distance", pa.float64())]
)
_LISTED = pa.schema([("task", pa.string()), ("split", pa.string()), *_PAIRS])


@dataclass(frozen=True)
class Training:
    """What a sweep trained on: the keys of its rows, of those with embedded images, and where the others are."""

    rows: tuple[str, ...]
    embedded: tuple[str, ...]
    images: Images

    def to_json(self) -> dict[str, Any]:
        return {"rows": list(self.rows), "embedded": list(self.embedded), "images": self.images.roots}


@dataclass(frozen=True)
class Asked:
    """The images of a task, one a question; None for a question without."""

    task: str
    split: str
    images: tuple[str | None, ...]


@dataclass(frozen=True)
class TaskLeaks:
    """How many of a task's distinct images are training images, and of its questions are about those."""

    task: str
    split: str
    images: int
    leaked: int
    exact: int
    questions: int
    leaked_questions: int


@dataclass(frozen=True)
class Leaks:
    """What was found: counts by task, and a row for each pair of images.

    Attributes:
        uncompared: pairs that look alike at first, of which an image could not be opened again.
    """

    tasks: tuple[TaskLeaks, ...]
    pairs: pa.Table
    uncompared: int = 0

    def text(self) -> str:
        """The counts in one line."""
        names = dict.fromkeys(leaks.task for leaks in self.tasks)
        tasks = [_sum([leaks for leaks in self.tasks if leaks.task == name]) for name in names]
        said = "; ".join(_said(leaks, first=not place) for place, leaks in enumerate(tasks))
        more = f"; {self.uncompared} pairs of alike images could not be compared" if self.uncompared else ""
        return (said or "no task has images") + more

    def to_json(self) -> list[dict[str, Any]]:
        return [asdict(leaks) for leaks in self.tasks]


def sweep_leaks(store: Store, prepared: Prepared) -> Leaks:
    """The leaks of a sweep's tasks, on both splits."""
    training = training_of(prepared)
    groups = [
        Asked(group.task.name, group.split, tuple(example.image for example in group.examples))
        for group in (*prepared.site.select, *prepared.test)
    ]
    names = {name for group in groups for name in group.images if name is not None}
    opened: dict[str, Opened] = {}
    for key in training.rows:  # of held-out examples
        opened |= all_images(store, key, names)
    opened |= _examine(training.images, names - set(opened))
    return find_leaks(store, training, groups, opened, training.images)


def training_of(prepared: Prepared) -> Training:
    keys = tuple(dict.fromkeys((prepared.data.key, prepared.projector.rows)))
    return Training(keys, prepared.site.embedded, prepared.site.images)


def training_of_sweep(store: Store, name: str) -> Training | None:
    """What a finished sweep trained on; None where an older version ran it, or its rows have been deleted."""
    known = json.loads(store.read_bytes(f"sweeps/{name}/sweep.json")).get("training")
    if known is None or not all(store.has(ROWS, key) for key in known["rows"]):
        return None
    return Training(tuple(known["rows"]), tuple(known["embedded"]), Images(known["images"]))


def find_leaks(
    store: Store, training: Training, groups: Sequence[Asked], opened: Mapping[str, Opened], images: Images
) -> Leaks:
    """Compare the images of tasks with all training images; what was found is kept in the store.

    Args:
        opened: the tasks' images; those that are absent could not be opened, and are not asked about.
        images: where they are.
    """
    names = sorted({name for group in groups for name in group.images if name is not None and name in opened})
    asked = {name: opened[name] for name in names}
    determines = {"format": 1, "rows": training.rows, "asked": [[name, known.hash] for name, known in asked.items()]}
    key = content_key(determines)
    uncompared = 0
    if store.has(KIND, key):
        with store.open(KIND, key) as folder:
            pairs = read_parquet(folder / FILE)
    else:
        found, uncompared = _pairs(store, training, asked, images)
        pairs = pa.Table.from_pylist(found, _PAIRS)
        if not uncompared:
            store.put(KIND, key, lambda folder: pq.write_table(pairs, folder / FILE))
    rows = pairs.to_pylist()
    listed = [{"task": group.task, "split": group.split, **row} for group in groups for row in _of_group(group, rows)]
    counted = tuple(_count(group, opened, rows) for group in groups if any(group.images))
    return Leaks(counted, pa.Table.from_pylist(listed, _LISTED), uncompared)


def _of_group(group: Asked, rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    names = set(group.images)
    return [row for row in rows if row["image"] in names]


def _count(group: Asked, opened: Mapping[str, Opened], rows: Sequence[Mapping[str, Any]]) -> TaskLeaks:
    names = {name for name in group.images if name in opened}
    own = _of_group(group, rows)
    leaked = {row["image"] for row in own}
    exact = {row["image"] for row in own if row["match"] == "exact"}
    about = sum(name in leaked for name in group.images)
    return TaskLeaks(group.task, group.split, len(names), len(leaked), len(exact), len(group.images), about)


def _sum(splits: Sequence[TaskLeaks]) -> TaskLeaks:
    """The counts of a task's splits together, whose images are different ones."""
    counts = ("images", "leaked", "exact", "questions", "leaked_questions")
    return TaskLeaks(splits[0].task, "", **{name: sum(getattr(leaks, name) for leaks in splits) for name in counts})


def _said(leaks: TaskLeaks, *, first: bool) -> str:
    text = f"{leaks.task}: {leaks.leaked} of {leaks.images}" + (
        " images are also in the training data" if first else ""
    )
    if not leaks.leaked:
        return text
    near = leaks.leaked - leaks.exact
    return f"{text} ({leaks.exact} exactly, {near} nearly; {leaks.leaked_questions} of {leaks.questions} questions)"


def _pairs(
    store: Store, training: Training, asked: Mapping[str, Opened], images: Images
) -> tuple[list[dict[str, Any]], int]:
    """The pairs of one picture, and how many could not be compared; exact ones first for each image."""
    exact: list[tuple[str, str]] = []
    alike: list[tuple[str, str]] = []
    seen: set[str] = set()
    for key in training.rows:
        trained = _without(trained_images(store, key), seen)
        seen.update(trained.names)
        exact += _equal(asked, trained)
        alike += _alike(asked, trained)
    same = set(exact)
    alike = [pair for pair in alike if pair not in same]
    distances = list(_distances(store, training, alike, images))
    found = [(*pair, "exact", 0.0) for pair in exact]
    found += [(*pair, "near", value) for pair, value in zip(alike, distances, strict=True) if isinstance(value, float)]
    rows = [
        dict(zip(_PAIRS.names, row, strict=True)) for row in sorted(found, key=lambda row: (row[0], row[3], row[1]))
    ]
    return rows, sum(isinstance(value, DataError) for value in distances)


def _without(trained: TrainedImages, seen: set[str]) -> TrainedImages:
    """The images whose names were not seen yet."""
    if not seen:
        return trained
    new = [place for place, name in enumerate(trained.names) if name not in seen]
    names, hashes = ([values[place] for place in new] for values in (trained.names, trained.hashes))
    return TrainedImages(names, hashes, trained.fingerprints[new])


def _equal(asked: Mapping[str, Opened], trained: TrainedImages) -> Iterator[tuple[str, str]]:
    """The pairs of one file; of each asked image a few at most."""
    wanted = {known.hash for known in asked.values()}
    holders: defaultdict[str, list[str]] = defaultdict(list)
    for name, known in zip(trained.names, trained.hashes, strict=True):
        if known in wanted and len(holders[known]) < fingerprints.NEAREST:
            holders[known].append(name)
    for name, image in asked.items():
        yield from ((name, holder) for holder in holders.get(image.hash, ()))


def _alike(asked: Mapping[str, Opened], trained: TrainedImages) -> Iterator[tuple[str, str]]:
    names = list(asked)
    looks = np.frombuffer(b"".join(image.fingerprint for image in asked.values()), np.uint8)
    looks = looks.reshape(len(names), fingerprints.BYTES)
    for row, place in fingerprints.alike(looks, trained.fingerprints):
        yield names[row], trained.names[place]


def _distances(
    store: Store, training: Training, pairs: Sequence[tuple[str, str]], images: Images
) -> Iterator[float | DataError | None]:
    """What the second look says of pairs, in their order."""
    known = training.images
    if any(name.startswith(EMBEDDED) for _, name in pairs):
        known = with_embedded(store, known, training.embedded)
    first, second = _viewer(known if images is training.images else images), _viewer(known)

    def look(pair: tuple[str, str]) -> float | DataError | None:
        try:
            return fingerprints.same_picture(first(pair[0]), second(pair[1]))
        except DataError as error:
            return error

    with ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(look, pairs)


def _viewer(images: Images) -> Callable[[str], np.ndarray[Any, np.dtype[np.float32]]]:
    return lru_cache(_VIEWS)(lambda name: fingerprints.views(images.open(name)))


def _examine(images: Images, names: Iterable[str]) -> dict[str, Opened]:
    """The images that can be opened."""

    def look(name: str) -> Opened | None:
        try:
            return examine(images.read(name), name)
        except DataError:
            return None

    ordered = sorted(names)
    with ThreadPoolExecutor(_THREADS) as pool:
        found = dict(zip(ordered, pool.map(look, ordered), strict=True))
    return {name: opened for name, opened in found.items() if opened is not None}
