"""How a question was asked, in words that let it be asked again."""

from __future__ import annotations

from typing import Any, Literal

from vrray.data.encode import encode_prompt
from vrray.data.tasks import MAX_NEW_TOKENS, Example, TaskExamples
from vrray.errors import DataError
from vrray.evaluate.questions import Method
from vrray.store import content_key

_METHODS: dict[str, Method | Literal["likelihood"]] = {
    "exact": "generate",
    "choice": "continue",
    "likelihood": "likelihood",
}


def shown_prompt(question: str, method: str, processor: Any, template: str, *, with_image: bool) -> str:
    """A question as the model reads it; an image is one placeholder."""
    if method == "continue":
        return question
    try:
        ids = encode_prompt(question, processor, 1, template=template, with_image=with_image)
    except DataError as error:
        return f"it cannot be asked: {error}"
    return str(processor.tokenizer.decode(ids))


def shown_decoding(method: str, max_new_tokens: int) -> str:
    """How an answer comes about."""
    if method == "generate":
        return f"greedy, at most {max_new_tokens} new tokens"
    if method == "likelihood":
        return "the mean probability of the reference answer's tokens"
    return "the option with the greatest sum of log-probabilities"


def describe_group(group: TaskExamples, processor: Any, template: str, images: dict[str, str]) -> dict[str, Any]:
    """How a sweep's task was asked: a row of a report.

    Args:
        images: content hashes by image name.
    """
    first, method = group.examples[0], _METHODS[group.task.metric]
    return {
        "task": group.task.name,
        "scoring": group.task.metric,
        "questions": len(group.examples),
        "split": group.split,
        "decoding": shown_decoding(method, MAX_NEW_TOKENS),
        "data": content_key({"examples": [_identity(example, images) for example in group.examples]}),
        "prompt": shown_prompt(first.question, method, processor, template, with_image=first.image is not None),
    }


def _identity(example: Example, images: dict[str, str]) -> list[Any]:
    return [example.id, example.question, example.answer, list(example.options), images.get(example.image or "")]
