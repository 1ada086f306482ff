"""Answering examples with a model: greedy generation, and the likelihood of options behind a shared prompt."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from vrray.data.encode import encode_prompt
from vrray.data.tasks import MAX_NEW_TOKENS, Example
from vrray.errors import DataError
from vrray.models.family import family_of, project_features, vocabulary_logits
from vrray.train.workspace import Workspace

_ANSWER_TOKENS = 128  # of a reference answer that are scored


@dataclass(frozen=True)
class Reply:
    """What a model answered; `latency_ms` is the time of its batch divided by the questions in it."""

    text: str
    latency_ms: float = field(compare=False)


@torch.inference_mode()
def generate_answers(
    workspace: Workspace,
    examples: Sequence[Example],
    *,
    blind: bool,
    batch: int,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> list[Reply]:
    """Greedy answers, in the order of the examples; `blind` leaves the image out of the prompt."""
    prompts = _prompts(workspace, examples, blind=blind)

    def generate(members: Sequence[int]) -> list[str]:
        ids, mask = _left_pad([prompts[index] for index in members], workspace)
        output = workspace.model.generate(
            input_ids=ids,
            attention_mask=mask,
            **_image_inputs(workspace, ids, _images(examples, members, blind=blind)),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=workspace.padding_id,
        )
        texts: list[str] = workspace.processor.tokenizer.batch_decode(
            output[:, ids.shape[1] :], skip_special_tokens=True
        )
        return texts

    return _in_batches(prompts, batch, generate)


def why_unaskable(workspace: Workspace, example: Example, *, blind: bool, max_new_tokens: int) -> str | None:
    """Why an example cannot be answered; None where it can: its text holds no image tokens, and the model reads it."""
    try:
        (prompt,) = _prompts(workspace, [example], blind=blind)
    except DataError as error:
        return str(error)
    most = getattr(workspace.model.config.text_config, "max_position_embeddings", None)
    if most is not None and len(prompt) + max_new_tokens > most:
        return f"its prompt has {len(prompt)} tokens and the answer up to {max_new_tokens}; the model reads {most}"
    return None


@torch.inference_mode()
def choose_options(
    workspace: Workspace, examples: Sequence[Example], *, batch: int, reply: bool = False, blind: bool = False
) -> list[Reply]:
    """The option that the model finds likeliest after the question: the greatest sum of log-probabilities.

    The question is read once; its options continue from a copy of its cache.

    Args:
        reply: options are replies in a conversation about the image; else they continue the question as bare text.
        blind: leave the image out of a conversation.
    """
    tokenizer, before = workspace.processor.tokenizer, "" if reply else " "
    if reply:
        prompts = _prompts(workspace, examples, blind=blind)
    else:
        prompts = [tokenizer(example.question, add_special_tokens=False)["input_ids"] for example in examples]

    def choose(members: Sequence[int]) -> list[str]:
        options = [
            [
                tokenizer(f"{before}{option}", add_special_tokens=False)["input_ids"]
                for option in examples[index].options
            ]
            for index in members
        ]
        images = _images(examples, members, blind=blind) if reply else []
        likelihoods = _option_likelihoods(workspace, [prompts[index] for index in members], options, images)
        likeliest = [max(range(len(scores)), key=scores.__getitem__) for scores in likelihoods]
        return [examples[index].options[place] for index, place in zip(members, likeliest, strict=True)]

    return _in_batches(prompts, batch, choose)


@torch.inference_mode()
def answer_likelihoods(workspace: Workspace, examples: Sequence[Example], *, blind: bool, batch: int) -> list[float]:
    """The mean probability of the reference answer's tokens after each question: `exp(-loss)` of the answer.

    The geometric mean, over the first tokens of a long answer; `blind` leaves the image out of the prompt.
    """
    tokenizer = workspace.processor.tokenizer
    prompts = _prompts(workspace, examples, blind=blind)
    answers = [tokenizer(example.answer, add_special_tokens=False)["input_ids"] for example in examples]
    rows = [(*prompt, *answer[:_ANSWER_TOKENS]) for prompt, answer in zip(prompts, answers, strict=True)]
    likelihoods = [0.0] * len(examples)
    for members in _by_length(rows, batch):
        ids, mask = _right_pad([rows[index] for index in members], workspace)
        hidden = workspace.model.model(
            input_ids=ids,
            attention_mask=mask,
            **_image_inputs(workspace, ids, _images(examples, members, blind=blind)),
            use_cache=False,
        ).last_hidden_state
        for place, index in enumerate(members):
            begin, end = len(prompts[index]), len(rows[index])
            logits = vocabulary_logits(workspace.model, hidden[place, begin - 1 : end - 1])
            loss = nn.functional.cross_entropy(logits, ids[place, begin:end])
            likelihoods[index] = math.exp(-float(loss))
    return likelihoods


def _prompts(workspace: Workspace, examples: Sequence[Example], *, blind: bool) -> list[list[int]]:
    return [
        encode_prompt(
            example.question,
            workspace.processor,
            workspace.image_tokens,
            template=workspace.template,
            with_image=example.image is not None and not blind,
        )
        for example in examples
    ]


def _images(examples: Sequence[Example], members: Sequence[int], *, blind: bool) -> list[str]:
    return [image for index in members if (image := examples[index].image) is not None and not blind]


def _option_likelihoods(
    workspace: Workspace,
    prompts: Sequence[Sequence[int]],
    options: Sequence[Sequence[Sequence[int]]],
    images: Sequence[str] = (),
) -> list[list[float]]:
    core = workspace.model.model
    ids, mask = _left_pad(prompts, workspace)
    counts = torch.tensor([len(row) for row in options])
    owner = torch.repeat_interleave(torch.arange(len(options)), counts).to(workspace.device)
    flat = [option for row in options for option in row]
    tokens, present = _right_pad(flat, workspace)
    first = core(
        input_ids=ids,
        attention_mask=mask,
        position_ids=_positions(mask),
        **_image_inputs(workspace, ids, images),
        use_cache=tokens.shape[1] > 1,
    )
    first_BV = nn.functional.log_softmax(vocabulary_logits(workspace.model, first.last_hidden_state[:, -1]), dim=-1)
    sums = first_BV[owner, tokens[:, 0]].double()
    if tokens.shape[1] > 1:
        cache = first.past_key_values
        cache.batch_select_indices(owner)
        wide_mask = torch.cat([mask[owner], present[:, :-1]], dim=1)
        rest = core(
            input_ids=tokens[:, :-1],
            attention_mask=wide_mask,
            position_ids=_positions(wide_mask)[:, mask.shape[1] :],
            past_key_values=cache,
            use_cache=True,
        )
        later = present[:, 1:].bool()
        logits = vocabulary_logits(workspace.model, rest.last_hidden_state[later])
        losses = nn.functional.cross_entropy(logits, tokens[:, 1:][later], reduction="none").double()
        sums.index_add_(0, later.nonzero()[:, 0], -losses)
    return [part.tolist() for part in sums.split(counts.tolist())]


def _image_inputs(workspace: Workspace, ids: torch.Tensor, images: Sequence[str]) -> dict[str, Any]:
    """What `forward` takes instead of pixels, for images in the order of their rows `[rows, tokens]`."""
    if not images:
        return {}
    family = family_of(workspace.model.config)
    encoded = family.encoded(project_features(workspace.model, workspace.features.stack(images)))
    return {"mm_encoder_outputs": encoded, **family.token_inputs(workspace.model.config, ids)}


def _in_batches(
    prompts: Sequence[Sequence[int]], batch: int, answer: Callable[[Sequence[int]], list[str]]
) -> list[Reply]:
    """Prompts answered in batches of similar length, by their places; the replies in the order of the prompts."""
    replies: dict[int, Reply] = {}
    for members in _by_length(prompts, batch):
        began = time.perf_counter()
        texts = answer(members)
        each = (time.perf_counter() - began) * 1e3 / len(members)
        replies |= {index: Reply(text, each) for index, text in zip(members, texts, strict=True)}
    return [replies[index] for index in range(len(prompts))]


def _by_length(prompts: Sequence[Sequence[int]], batch: int) -> list[list[int]]:
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
    return [order[start : start + batch] for start in range(0, len(order), batch)]


def _left_pad(rows: Sequence[Sequence[int]], workspace: Workspace) -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = _right_pad([row[::-1] for row in rows], workspace)
    return ids.flip(1), mask.flip(1)


def _right_pad(rows: Sequence[Sequence[int]], workspace: Workspace) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), workspace.padding_id, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(list(row))
        mask[index, : len(row)] = 1
    return ids.to(workspace.device), mask.to(workspace.device)


def _positions(mask: torch.Tensor) -> torch.Tensor:
    return (mask.cumsum(1) - 1).clamp(min=0)
