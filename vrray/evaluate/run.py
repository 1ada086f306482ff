"""Evaluating the model of a worker group as it stands: ranks share the examples, rank 0 writes the records."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from transformers.generation.streamers import BaseStreamer

from vrray.data.tasks import Example, Metric, TaskExamples
from vrray.evaluate.answer import answer_likelihoods, choose_options, generate_answers
from vrray.metrics import exact_match, mean_interval
from vrray.store import read_parquet
from vrray.train.workspace import Workspace

_LATENCY_TOKENS = 10


@dataclass(frozen=True)
class Answered:
    """One example as a variant answered it; `score` is 0 or 1, or the mean probability of the answer's tokens."""

    task: str
    split: str
    example: str
    prediction: str
    score: float
    blind: bool


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
        answers, scores = _answered(workspace, group.task.metric, examples, blind=blind, batch=batch)
        for place, example, answer, score in zip(places, examples, answers, scores, strict=True):
            mine.append((number, place, Answered(group.task.name, group.split, example.id, answer, score, blind)))
    everyone: list[Any] = [None] * workspace.world
    dist.all_gather_object(everyone, mine)
    return [record for _, _, record in sorted((item for part in everyone for item in part), key=lambda item: item[:2])]


def _answered(
    workspace: Workspace, metric: Metric, examples: Sequence[Example], *, blind: bool, batch: int
) -> tuple[list[str], list[float]]:
    """Answers and their scores; no answer is given where the reference's own likelihood is the score."""
    if metric == "likelihood":
        return [""] * len(examples), answer_likelihoods(workspace, examples, blind=blind, batch=batch)
    if metric == "choice":
        answers = choose_options(workspace, examples, batch=batch)
    else:
        answers = generate_answers(workspace, examples, blind=blind, batch=batch)
    return answers, [float(exact_match(a, e.answer)) for a, e in zip(answers, examples, strict=True)]


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
    pq.write_table(pa.Table.from_pylist([vars(record) for record in records]), folder / "examples.parquet")


def read_records(folder: Path) -> list[Answered]:
    return [Answered(**row) for row in read_parquet(folder / "examples.parquet").to_pylist()]


def summarise(records: Sequence[Answered], tasks: Sequence[TaskExamples]) -> dict[str, Any]:
    """Scores by task, and for each ability the mean of its tasks with a 95 % bootstrap interval (None: no task)."""
    by_task: dict[str, list[float]] = {}
    for record in records:
        by_task.setdefault(record.task, []).append(record.score)
    summary: dict[str, Any] = {"tasks": {name: sum(scores) / len(scores) for name, scores in by_task.items()}}
    for ability in ("visual", "textual"):
        members = [group for group in tasks if group.task.ability == ability and group.task.name in by_task]
        value, low, high = None, None, None
        if members:
            value, low, high = mean_interval([by_task[group.task.name] for group in members])
        summary |= {f"score_{ability}": value, f"score_{ability}_low": low, f"score_{ability}_high": high}
    return summary
