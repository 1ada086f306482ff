"""Answering examples with a model: greedy generation, and the likelihood of options behind a shared prompt."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from vrray.data.encode import encode_prompt
from vrray.data.tasks import MAX_NEW_TOKENS, Example
from vrray.errors import DataError
from vrray.evaluate.inputs import image_inputs, left_pad
from vrray.evaluate.options import Choice, option_likelihoods
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
        ids, mask = left_pad([prompts[index] for index in members], workspace)
        output = workspace.model.generate(
            input_ids=ids,
            attention_mask=mask,
            **image_inputs(workspace, ids, _images(examples, members, blind=blind)),
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


def choose_options(
    workspace: Workspace, examples: Sequence[Example], *, batch: int, reply: bool = False, blind: bool = False
) -> list[Reply]:
    """The option that the model finds likeliest after the question: the greatest sum of log-probabilities.

    The question is read once, its options behind it.

    Args:
        reply: options are replies in a conversation about the image; else they continue the question as bare text.
        blind: leave the image out of a conversation.
    """
    tokenizer, before = workspace.processor.tokenizer, "" if reply else " "

    def encoded(text: str) -> list[int]:
        tokens: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return tokens

    if reply:
        prompts = _prompts(workspace, examples, blind=blind)
    else:
        prompts = [encoded(example.question) for example in examples]

    def choose(members: Sequence[int]) -> list[str]:
        asked = [
            Choice(
                prompts[index],
                [encoded(f"{before}{option}") for option in examples[index].options],
                examples[index].image if reply and not blind else None,
            )
            for index in members
        ]
        likelihoods = option_likelihoods(workspace, asked)
        likeliest = [max(range(len(scores)), key=scores.__getitem__) for scores in likelihoods]
        return [examples[index].options[place] for index, place in zip(members, likeliest, strict=True)]

    return _in_batches(prompts, batch, choose)


def answer_likelihoods(workspace: Workspace, examples: Sequence[Example], *, blind: bool, batch: int) -> list[float]:
    """The mean probability of the reference answer's tokens after each question: `exp(-loss)` of the answer.

    The geometric mean, over the first tokens of a long answer; `blind` leaves the image out of the prompt.
    """
    tokenizer = workspace.processor.tokenizer
    prompts = _prompts(workspace, examples, blind=blind)
    answers = [
        tokenizer(example.answer, add_special_tokens=False)["input_ids"][:_ANSWER_TOKENS] for example in examples
    ]
    asked = [
        Choice(prompt, [answer], None if blind else example.image)
        for prompt, answer, example in zip(prompts, answers, examples, strict=True)
    ]
    found = [0.0] * len(examples)
    for members in _by_length([(*choice.prompt, *choice.options[0]) for choice in asked], batch):
        for index, (likelihood,) in zip(
            members, option_likelihoods(workspace, [asked[index] for index in members]), strict=True
        ):
            found[index] = math.exp(likelihood / len(answers[index]))
    return found


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
