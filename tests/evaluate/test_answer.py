"""Answers: the same however examples are batched, the same as a plain forward pass gives."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import IMAGE_TOKENS, TOWER_WIDTH, Ground
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vrray.data.encode import encode_prompt
from vrray.data.tasks import MAX_NEW_TOKENS, Example
from vrray.evaluate.answer import Reply, answer_likelihoods, choose_options, generate_answers
from vrray.evaluate.options import Choice, option_likelihoods
from vrray.train.workspace import Workspace

QUESTIONS = ["Which colour?", "What?", "Is it a circle or a square in this picture? Say yes or no."]
OPTIONS = [("red", "blue"), ("a big red circle in a square", "no", "yes yes"), ("x", "y", "z", "w")]


@pytest.fixture(scope="module")
def workspace(ground: Ground) -> Workspace:
    return ground.workspace_alone()


@pytest.fixture(scope="module")
def asked(ground: Ground) -> list[Example]:
    """Questions of different lengths, with and without an image, in mixed order."""
    seen = [Example(f"s{n}", QUESTIONS[n % 3], "red", image) for n, image in enumerate(ground.photos[:8])]
    return [*seen[:4], *(Example(f"t{n}", question, "red") for n, question in enumerate(QUESTIONS)), *seen[4:]]


@pytest.fixture(scope="module")
def choices() -> list[Example]:
    return [
        Example(f"c{n}", f"{QUESTIONS[n % 3]} It is" * (1 + n % 2), OPTIONS[n % 3][0], options=OPTIONS[n % 3])
        for n in range(7)
    ]


def texts(replies: list[Reply]) -> list[str]:
    assert all(reply.latency_ms > 0 for reply in replies)
    return [reply.text for reply in replies]


def images(workspace: Workspace, example: Example) -> Any:
    if example.image is None:
        return None
    projected = workspace.model.model.multi_modal_projector(workspace.features.stack([example.image]).float())
    return {"image": BaseModelOutputWithPooling(pooler_output=list(projected))}


@torch.inference_mode()
def greedy_by_hand(workspace: Workspace, example: Example) -> str:
    """One example alone, no cache: a whole forward pass for every token."""
    tokenizer = workspace.processor.tokenizer
    ids = encode_prompt(example.question, workspace.processor, IMAGE_TOKENS, with_image=example.image is not None)
    found: list[int] = []
    while len(found) < MAX_NEW_TOKENS and tokenizer.eos_token_id not in found:
        encoder_outputs = images(workspace, example)
        output = workspace.model(input_ids=torch.tensor([ids + found]), mm_encoder_outputs=encoder_outputs)
        found.append(int(output.logits[0, -1].argmax()))
    return tokenizer.decode(found, skip_special_tokens=True)


@torch.inference_mode()
def likelihood_by_hand(workspace: Workspace, question: str, option: str) -> float:
    tokenizer = workspace.processor.tokenizer
    prompt, rest = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (question, f" {option}"))
    logits = workspace.model(input_ids=torch.tensor([prompt + rest])).logits[0].log_softmax(-1)
    return sum(float(logits[len(prompt) + place - 1, token]) for place, token in enumerate(rest))


@pytest.mark.parametrize("batch", [1, 3, 32])
@pytest.mark.parametrize("blind", [False, True])
def test_generated_answers_are_those_of_a_plain_loop(
    workspace: Workspace, asked: list[Example], batch: int, blind: bool
) -> None:
    expected = [greedy_by_hand(workspace, replace(example, image=None) if blind else example) for example in asked]
    assert texts(generate_answers(workspace, asked, blind=blind, batch=batch)) == expected
    assert len(set(expected)) > 2


def test_features_may_be_computed_while_answering(workspace: Workspace, ground: Ground, asked: list[Example]) -> None:
    live = ground.workspace_alone()
    live.use_live(ground.images, (IMAGE_TOKENS, TOWER_WIDTH))
    expected = generate_answers(workspace, asked, blind=False, batch=3)
    assert generate_answers(live, asked, blind=False, batch=3) == expected


def test_the_image_matters_unless_blind(workspace: Workspace, ground: Ground) -> None:
    same_question = [Example(image, "Which colour?", "red", image) for image in ground.photos]
    assert len(set(texts(generate_answers(workspace, same_question, blind=False, batch=5)))) > 1
    (answer,) = set(texts(generate_answers(workspace, same_question, blind=True, batch=5)))
    assert answer == greedy_by_hand(workspace, Example("t", "Which colour?", "red"))


def choice_of(workspace: Workspace, example: Example) -> Choice:
    prompt, *options = (
        workspace.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in (example.question, *(f" {option}" for option in example.options))
    )
    return Choice(prompt, options)


def test_likelihoods_are_those_of_a_plain_forward_pass(workspace: Workspace, choices: list[Example]) -> None:
    found = option_likelihoods(workspace, [choice_of(workspace, example) for example in choices])
    for example, likelihoods in zip(choices, found, strict=True):
        expected = [likelihood_by_hand(workspace, example.question, option) for option in example.options]
        assert likelihoods == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    "setting", [{"sliding_window": 4}, {"_attn_implementation": "eager"}, {"_attn_implementation": "flash_attention_2"}]
)
def test_likelihoods_are_the_same_with_every_attention(
    workspace: Workspace, choices: list[Example], monkeypatch: pytest.MonkeyPatch, setting: dict[str, Any]
) -> None:
    """A window makes each option a row of its own; flash attention is not even installed, and not used."""
    asked = [choice_of(workspace, example) for example in choices]
    expected = option_likelihoods(workspace, asked)
    config = workspace.model.config.text_config
    for name, value in setting.items():
        monkeypatch.setattr(config, name, value, raising=False)
    for found, wanted in zip(option_likelihoods(workspace, asked), expected, strict=True):
        assert found == pytest.approx(wanted, abs=1e-3)
    assert all(getattr(config, name) == value for name, value in setting.items())


@pytest.mark.parametrize("batch", [1, 3, 32])
def test_the_likeliest_option_is_chosen(workspace: Workspace, choices: list[Example], batch: int) -> None:
    expected = [
        max(example.options, key=lambda option: likelihood_by_hand(workspace, example.question, option))
        for example in choices
    ]
    assert texts(choose_options(workspace, choices, batch=batch)) == expected
    reordered = [replace(example, options=example.options[::-1]) for example in choices]
    assert texts(choose_options(workspace, reordered, batch=batch)) == expected


def test_options_of_one_token(workspace: Workspace) -> None:
    tokenizer = workspace.processor.tokenizer
    pieces = [tokenizer.decode([token]) for token in range(4, 320)]
    single = [text[1:] for text in pieces if text.startswith(" ") and len(text) > 1]
    assert len(single) >= 3
    example = Example("c", "Which?", single[0], options=tuple(single[:3]))
    expected = max(single[:3], key=lambda option: likelihood_by_hand(workspace, "Which?", option))
    assert texts(choose_options(workspace, [example], batch=4)) == [expected]


@torch.inference_mode()
def reply_likelihood_by_hand(workspace: Workspace, example: Example, option: str, *, blind: bool) -> float:
    shown = example.image is not None and not blind
    prompt = encode_prompt(example.question, workspace.processor, IMAGE_TOKENS, with_image=shown)
    rest = workspace.processor.tokenizer(option, add_special_tokens=False)["input_ids"]
    seen = images(workspace, example) if shown else None
    logits = workspace.model(input_ids=torch.tensor([prompt + rest]), mm_encoder_outputs=seen).logits[0].log_softmax(-1)
    return sum(float(logits[len(prompt) + place - 1, token]) for place, token in enumerate(rest))


@pytest.mark.parametrize("batch", [1, 3, 32])
@pytest.mark.parametrize("blind", [False, True])
def test_replies_are_chosen_as_a_plain_forward_pass_ranks_them(
    workspace: Workspace, asked: list[Example], batch: int, blind: bool
) -> None:
    offered = [replace(example, options=OPTIONS[n % 3]) for n, example in enumerate(asked)]
    expected = [
        max(e.options, key=lambda option: reply_likelihood_by_hand(workspace, e, option, blind=blind)) for e in offered
    ]
    assert texts(choose_options(workspace, offered, batch=batch, reply=True, blind=blind)) == expected
    assert len(set(expected)) > 3


@torch.inference_mode()
def answer_likelihood_by_hand(workspace: Workspace, example: Example, *, blind: bool) -> float:
    shown = example.image is not None and not blind
    prompt = encode_prompt(example.question, workspace.processor, IMAGE_TOKENS, with_image=shown)
    rest = workspace.processor.tokenizer(example.answer, add_special_tokens=False)["input_ids"]
    seen = images(workspace, example) if shown else None
    logits = workspace.model(input_ids=torch.tensor([prompt + rest]), mm_encoder_outputs=seen).logits[0].log_softmax(-1)
    mean = sum(float(logits[len(prompt) + place - 1, token]) for place, token in enumerate(rest)) / len(rest)
    return math.exp(mean)


@pytest.mark.parametrize("batch", [1, 3, 32])
@pytest.mark.parametrize("blind", [False, True])
def test_answer_likelihoods_are_those_of_a_plain_forward_pass(
    workspace: Workspace, asked: list[Example], batch: int, blind: bool
) -> None:
    long = [replace(e, answer="a circle " * (1 + n % 3)) for n, e in enumerate(asked)]
    found = answer_likelihoods(workspace, long, blind=blind, batch=batch)
    assert found == pytest.approx([answer_likelihood_by_hand(workspace, e, blind=blind) for e in long], rel=1e-4)
    assert all(0 < value < 1 for value in found)
    if batch == 1 and not blind:
        assert answer_likelihoods(workspace, long, blind=True, batch=1) != pytest.approx(found)
