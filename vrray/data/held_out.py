"""Examples from a user's own data: rows held out by image, and the metric that fits their answers."""

from __future__ import annotations

import hashlib
import heapq
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from vrray.data.records import IMAGE_PLACEHOLDER, Record
from vrray.data.tasks import Ability, Example, Metric, Split, Task, TaskExamples, prior_floor
from vrray.errors import DataError
from vrray.store import read_parquet

SHARE = 0.1  # of the images, for each held-out split
FILE = "examples.parquet"
_REFERENCE = 10  # training questions kept for each held-out one, to guess from
_SHORT_WORDS, _SHORT_SHARE = 3, 0.8
_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("split", "id", "question", "answer", "image")] + [("rank", pa.float64())]
)


@dataclass(frozen=True)
class Candidate:
    """A record's first question. Those of the lowest ranks become examples; of training records, what guesses know."""

    split: Literal["train", "select", "test"]
    id: str
    question: str
    answer: str
    image: str | None
    rank: float


def unit_hash(seed: int, *parts: str) -> float:
    """A number in [0, 1) that follows from the seed and the parts alone."""
    digest = hashlib.sha256("\0".join([str(seed), *parts]).encode(errors="replace")).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def split_of(record: Record, seed: int) -> Literal["train", "select", "test"] | None:
    """The split of a record: that of its images (of its question where it has none); None where they disagree."""
    splits = {_split(unit_hash(seed, "split", name)) for name in record.images or (record.turns[0].user,)}
    return splits.pop() if len(splits) == 1 else None


def candidates_of(
    record: Record, split: Literal["train", "select", "test"], identity: str, rank: float
) -> list[Candidate]:
    """The record's first question where it can be asked alone: it has an answer, and one image at most."""
    question = record.turns[0].user.replace(IMAGE_PLACEHOLDER, "").strip()
    answer = record.turns[0].assistant.strip()
    if len(record.images) > 1 or not question or not answer:
        return []
    return [Candidate(split, identity, question, answer, record.images[0] if record.images else None, rank)]


def fewest(candidates: Iterable[Candidate], count: int) -> list[Candidate]:
    """The `count` candidates of the lowest ranks for each split and kind, more of training records."""
    most = {"train": count * _REFERENCE, "select": count, "test": count}
    groups: defaultdict[tuple[str, bool], list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        group = groups[candidate.split, candidate.image is None]
        group.append(candidate)
        if len(group) > 4 * most[candidate.split] + 100:
            group[:] = _lowest(group, most[candidate.split])
    return [chosen for (split, _), group in sorted(groups.items()) for chosen in _lowest(group, most[split])]


def held_out_tasks(candidates: Sequence[Candidate], split: Split, count: int) -> tuple[TaskExamples, ...]:
    """Tasks of at most `count` held-out examples: `held-out` with an image, `held-out-text` without.

    Short answers are generated and compared. Longer ones are scored by the mean probability of an answer's tokens,
    `exp(-loss)`.

    Raises:
        DataError: no record was held out.
    """
    groups = []
    kinds: tuple[tuple[str, Ability, bool], ...] = (("held-out", "visual", True), ("held-out-text", "textual", False))
    for name, ability, with_image in kinds:
        own = [candidate for candidate in candidates if (candidate.image is not None) is with_image]
        chosen = _lowest([candidate for candidate in own if candidate.split == split], count)
        if not chosen:
            continue
        metric = _metric([candidate for candidate in own if candidate.split != "train"])
        examples = tuple(_example(candidate) for candidate in chosen)
        floor = 0.0
        if metric == "exact":
            floor = prior_floor(examples, [_example(c) for c in own if c.split == "train"])
        task = Task(name, ability, metric, f"rows of the data that are not trained on; {_SCORED[metric]}")
        groups.append(TaskExamples(task, split, examples, floor))
    if not groups:
        raise DataError(
            f"no record was held out for the split {split}: the data is too small to be scored on itself; give more "
            f"records, or choose --tasks"
        )
    return tuple(groups)


_SCORED = {
    "exact": "answers are short: a generated answer must match exactly",
    "likelihood": "answers are long: the mean probability of an answer's tokens, exp(-loss)",
}


def write_candidates(folder: Path, candidates: Iterable[Candidate]) -> None:
    rows: list[dict[str, Any]] = [asdict(candidate) for candidate in candidates]
    pq.write_table(pa.Table.from_pylist(rows, _SCHEMA), folder / FILE)


def read_candidates(folder: Path) -> list[Candidate]:
    return [Candidate(**row) for row in read_parquet(folder / FILE).to_pylist()]


def _split(place: float) -> Literal["train", "select", "test"]:
    return "select" if place < SHARE else "test" if place < 2 * SHARE else "train"


def _lowest(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    return heapq.nsmallest(count, candidates, key=lambda candidate: (candidate.rank, candidate.id))


def _metric(candidates: Sequence[Candidate]) -> Metric:
    short = sum(len(candidate.answer.split()) <= _SHORT_WORDS for candidate in candidates)
    return "exact" if short >= _SHORT_SHARE * len(candidates) else "likelihood"


def _example(candidate: Candidate) -> Example:
    return Example(candidate.id, candidate.question, candidate.answer, candidate.image)
