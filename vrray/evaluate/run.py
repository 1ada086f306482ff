"""Evaluating the model of a worker group as it stands: ranks share the examples, rank 0 writes the records."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from transformers.generation.streamers import BaseStreamer

from vrray.data.tasks import ABILITIES, Ability, Example, Metric, TaskExamples
from vrray.evaluate.answer import answer_likelihoods, choose_options, generate_answers
from vrray.metrics import exact_match, mean_interval
from vrray.store import read_parquet
from vrray.train.workspace import Workspace

_LATENCY_TOKENS = 10
_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("task", "split", "example", "question", "image", "answer", "prediction")]
    + [("score", pa.float64()), ("blind", pa.bool_()), ("latency_ms", pa.float64())]
)


@dataclass(frozen=True)
class Answered:
    """One example as a variant answered it.

    Attributes:
        example: its id within the task and split.
        image: its name among the sweep's images.
        score: 0 or 1, or the mean probability of the answer's tokens; `prediction` is "" then.
        latency_ms: the time of its batch divided by the questions in it; None where nothing was answered.
    """

    task: str
    split: str
    example: str
    question: str
    image: str | None
    answer: str
    prediction: str
    score: float
    blind: bool
    latency_ms: float | None = field(default=None, compare=False)


def evaluate_tasks(
    workspace: Workspace, tasks: Sequence[TaskExamples], *, blind: bool = False, batch: int = 32
) -> list[Answered]:
    """Answer every example once, spread over the ranks; all ranks get all records, in the order of the examples.

    Args:
        blind: leave the images out; tasks without images are then skipped.
    """
    mine: list[tuple[int, int, Answered]] = []
    for number, group in enumerate(tasks):
        if blind and group.task.ability != "visual":
            continue
        places = range(workspace.rank, len(group.examples), workspace.world)
        examples = [group.examples[place] for place in places]
        if not examples:
            continue
        found = _answered(workspace, group.task.metric, examples, blind=blind, batch=batch)
        for place, example, (prediction, score, latency) in zip(places, examples, found, strict=True):
            asked = (example.id, example.question, example.image, example.answer)
            record = Answered(group.task.name, group.split, *asked, prediction, score, blind, latency)
            mine.append((number, place, record))
    everyone: list[Any] = [None] * workspace.world
    dist.all_gather_object(everyone, mine)
    return [record for _, _, record in sorted((item for part in everyone for item in part), key=lambda item: item[:2])]


def _answered(
    workspace: Workspace, metric: Metric, examples: Sequence[Example], *, blind: bool, batch: int
) -> list[tuple[str, float, float | None]]:
    """Predictions, scores and latencies; nothing is predicted where the reference's own likelihood is the score."""
    if metric == "likelihood":
        return [("", score, None) for score in answer_likelihoods(workspace, examples, blind=blind, batch=batch)]
    if metric == "choice":
        replies = choose_options(workspace, examples, batch=batch)
    else:
        replies = generate_answers(workspace, examples, blind=blind, batch=batch)
    return [
        (reply.text, float(exact_match(reply.text, example.answer)), reply.latency_ms)
        for reply, example in zip(replies, examples, strict=True)
    ]


@torch.inference_mode()
def latency_ms_per_token(workspace: Workspace, prompt: str = "What is in the picture?") -> float:
    """Milliseconds for one further token of a greedy answer with a cache, batch 1: the median; other ranks wait."""
    dist.barrier()
    clock = _TokenClock()
    if workspace.rank == 0:
        ids = workspace.processor.tokenizer(prompt, return_tensors="pt")["input_ids"].to(workspace.device)
        workspace.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=_LATENCY_TOKENS,
            min_new_tokens=_LATENCY_TOKENS,
            do_sample=False,
            pad_token_id=workspace.padding_id,
            streamer=clock,
        )
    dist.barrier()
    return clock.median_ms()


class _TokenClock(BaseStreamer):
    """Notes when each token is there."""

    def __init__(self) -> None:
        self._times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self._times.append(time.perf_counter())  # the token is on the CPU by now, so a GPU has finished it

    def end(self) -> None:
        pass

    def median_ms(self) -> float:
        # The prompt comes first, then a token that took the prefill and warmed up.
        steps = [later - earlier for earlier, later in pairwise(self._times[2:])]
        return statistics.median(steps) * 1e3 if steps else 0.0


def write_records(folder: Path, records: Sequence[Answered]) -> None:
    """Write `examples.parquet`, a row an example."""
    pq.write_table(pa.Table.from_pylist([vars(record) for record in records], _SCHEMA), folder / "examples.parquet")


def read_records(folder: Path) -> list[Answered]:
    return [Answered(**row) for row in read_parquet(folder / "examples.parquet").to_pylist()]


def summarise(records: Sequence[Answered], tasks: Sequence[TaskExamples]) -> dict[str, Any]:
    """Scores by task, and for each ability the mean of its tasks with a 95 % bootstrap interval (None: no task)."""
    by_task = {name: scores for ability in ABILITIES for name, scores in scores_of(records, tasks, ability).items()}
    summary: dict[str, Any] = {"tasks": {name: sum(scores) / len(scores) for name, scores in by_task.items()}}
    for ability in ABILITIES:
        members = scores_of(records, tasks, ability)
        value, low, high = mean_interval(list(members.values())) if members else (None, None, None)
        summary |= {f"score_{ability}": value, f"score_{ability}_low": low, f"score_{ability}_high": high}
    return summary


def scores_of(records: Sequence[Answered], tasks: Sequence[TaskExamples], ability: Ability) -> dict[str, list[float]]:
    """The scores of an ability's tasks, by task, in the order of `tasks` and of the records."""
    found: dict[str, list[float]] = {group.task.name: [] for group in tasks if group.task.ability == ability}
    for record in records:
        if record.task in found:
            found[record.task].append(record.score)
    return {name: scores for name, scores in found.items() if scores}
