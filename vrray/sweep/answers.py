"""Questions as worker groups are asked them: parts of tasks by variants. Light to import."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vrray.data.chunks import FeatureChunk
from vrray.data.images import Images
from vrray.data.tasks import Example
from vrray.evaluate.questions import AskedTask, Method
from vrray.store import Store, content_key, read_parquet
from vrray.train.desk import Report

ANSWERS = "answers"
PART = 64  # questions of one artefact: what an interruption can cost
FILE = "answers.parquet"
_SCHEMA = pa.schema([("prediction", pa.string()), ("problem", pa.string()), ("latency_ms", pa.float64())])


@dataclass(frozen=True)
class Variant:
    """What is asked: the base (`delta` None) or a delta of the store, with some layers gone."""

    name: str
    delta: str | None = None
    removed: tuple[int, ...] = ()


@dataclass(frozen=True)
class Part:
    """Some questions that a variant is asked, and the key of the artefact with its answers.

    `places` are theirs in the task; those that cannot be asked are left out.
    """

    key: str
    variant: Variant
    task: str
    places: tuple[int, ...]
    examples: tuple[Example, ...]
    method: Method
    max_new_tokens: int
    blind: bool


@dataclass(frozen=True)
class Answer:
    """What a model said and the milliseconds a question took in its batch, or why it could not be asked."""

    prediction: str | None
    problem: str | None = None
    latency_ms: float | None = field(default=None, compare=False)


def cut_parts(variant: Variant, task: AskedTask, model: dict[str, Any], *, blind: bool) -> list[Part]:
    """A task in parts of questions of similar length, by which it is answered and stored.

    Args:
        model: what, besides the variant, determines the answers: the base, its template, the precision.
    """
    asked = [place for place in range(len(task.questions)) if place not in task.problems]
    asked.sort(key=lambda place: len(task.prompts[place]))
    parts = []
    for start in range(0, len(asked), PART):
        places = tuple(asked[start : start + PART])
        examples = tuple(task.example(place) for place in places)
        hashes = [None if blind else task.image_hashes.get(task.questions[place].image or "") for place in places]
        determines = {
            **model,
            "format": 2,
            "delta": variant.delta,
            "removed": list(variant.removed),
            "asked": [[e.question, image, list(e.options)] for e, image in zip(examples, hashes, strict=True)],
            "method": task.method,
            "max_new_tokens": task.max_new_tokens,
            "blind": blind,
        }
        key = content_key(determines)
        parts.append(Part(key, variant, task.name, places, examples, task.method, task.max_new_tokens, blind))
    return parts


def read_answers(store: Store, part: Part) -> list[Answer]:
    """The answers to a part's questions, in their order."""
    with store.open(ANSWERS, part.key) as folder:
        return [Answer(**row) for row in read_parquet(folder / FILE).to_pylist()]


def put_answers(store: Store, part: Part, answers: Sequence[Answer]) -> None:
    """Store the answers to a part's questions, in their order."""
    table = pa.Table.from_pylist([vars(answer) for answer in answers], _SCHEMA)
    info = {"variant": part.variant.name, "task": part.task, "blind": part.blind, "questions": len(answers)}
    store.put(ANSWERS, part.key, lambda folder: pq.write_table(table, folder / FILE), info)


@dataclass(frozen=True)
class AnswersJob:
    """Answers parts, one after the other; their images are in the cached chunks, or read from `images`."""

    key: str
    parts: tuple[Part, ...]
    chunks: tuple[FeatureChunk, ...]
    images: Images
    feature_shape: tuple[int, int]
    batch: int

    def run(self, workspace: Any, report: Report) -> None:
        from vrray.sweep.answering import answer_parts

        answer_parts(workspace, self, report)
