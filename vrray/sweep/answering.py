"""Answering parts of tasks on a rank of a worker group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import groupby
from typing import Any

import torch.distributed as dist

from vrray.data.tasks import Example
from vrray.evaluate.answer import Reply, choose_options, generate_answers, why_unaskable
from vrray.models.loading import decoder_layers
from vrray.pruning import pruned
from vrray.region import Region
from vrray.store import Store
from vrray.sweep.answers import ANSWERS, Answer, AnswersJob, Part, Variant, put_answers
from vrray.sweep.work import agreed
from vrray.train.desk import Report
from vrray.train.workspace import Workspace
from vrray.variant import applied, load_delta


def answer_parts(workspace: Workspace, job: AnswersJob, report: Report) -> None:
    """Answer what of a job the store does not hold, a variant after the other; ranks share the questions of a part."""
    if job.chunks:
        workspace.use_cached(job.chunks)
    else:
        workspace.use_live(job.images, job.feature_shape)
    for variant, parts in groupby(job.parts, key=lambda part: part.variant):
        with _set_on(workspace, variant):
            for part in parts:
                missing = agreed(workspace, partial(_is_missing, workspace.store, part.key))
                if missing:
                    _answer(workspace, part, job.batch)
                report({"answered": len(part.examples) if missing else 0})


@contextmanager
def _set_on(workspace: Workspace, variant: Variant) -> Iterator[None]:
    """The base as a variant for a while; what may be removed was settled with its plan."""
    with ExitStack() as stack:
        if variant.delta is not None:
            delta = load_delta(workspace.store, variant.delta)
            stack.enter_context(applied(workspace.model, delta, workspace.base))
        depth = len(decoder_layers(workspace.model))
        stack.enter_context(pruned(workspace.model, variant.removed, Region.none(depth)))
        yield


def _is_missing(store: Store, key: str) -> bool:
    return not store.has(ANSWERS, key)


def _answer(workspace: Workspace, part: Part, batch: int) -> None:
    places = range(workspace.rank, len(part.examples), workspace.world)
    mine = list(zip(places, _answers(workspace, part, [part.examples[p] for p in places], batch), strict=True))
    everyone: list[Any] = [None] * workspace.world
    dist.all_gather_object(everyone, mine)
    if workspace.rank == 0:
        answers = [answer for _, answer in sorted((pair for each in everyone for pair in each), key=lambda p: p[0])]
        put_answers(workspace.store, part, answers)
    dist.barrier()


def _answers(workspace: Workspace, part: Part, examples: Sequence[Example], batch: int) -> list[Answer]:
    if part.method == "continue":
        return [_answer_of(reply) for reply in choose_options(workspace, examples, batch=batch)]
    problems = [why_unaskable(workspace, e, blind=part.blind, max_new_tokens=part.max_new_tokens) for e in examples]
    asked = [example for example, problem in zip(examples, problems, strict=True) if problem is None]
    if part.method == "choose":
        replies = iter(choose_options(workspace, asked, batch=batch, reply=True, blind=part.blind))
    else:
        tokens = part.max_new_tokens
        replies = iter(generate_answers(workspace, asked, blind=part.blind, batch=batch, max_new_tokens=tokens))
    return [_answer_of(next(replies)) if problem is None else Answer(None, problem) for problem in problems]


def _answer_of(reply: Reply) -> Answer:
    return Answer(reply.text.strip(), None, reply.latency_ms)
