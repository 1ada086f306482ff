"""Evaluating the model of a worker group as it stands: ranks share the examples, rank 0 writes the records."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from transformers.generation.streamers import BaseStreamer

from vrray.data.tasks import Example, Metric, TaskExamples
from vrray.evaluate.answer import answer_likelihoods, choose_options, generate_answers
from vrray.evaluate.records import Answered
from vrray.metrics import exact_match
from vrray.train.workspace import Workspace

_LATENCY_TOKENS = 10


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
