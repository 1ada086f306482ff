"""The token ids of a conversation up to where its next answer begins, as the model saw conversations in training."""

from __future__ import annotations

from typing import Any

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from dashboard.conversation import Conversation, Exchange
from vrray.data.encode import CHAT
from vrray.data.records import IMAGE_PLACEHOLDER, Turn
from vrray.data.templates import IMAGE, TEMPLATES, tokenize
from vrray.errors import DataError
from vrray.models.family import image_text


def conversation_prompt(conversation: Conversation, processor: Any, image_tokens: int, *, template: str) -> list[int]:
    """Token ids of a conversation whose last exchange waits for its answer; each image takes `image_tokens` positions.

    One exchange gives what `vrray.data.encode.encode_prompt` gives; several what `encode_record` trains on.

    Raises:
        DataError: the template is unknown or does not take the conversation, or a text holds an image token.
    """
    images = image_text(processor)
    image_id = int(processor.tokenizer.convert_tokens_to_ids(images.token))
    for mark in {IMAGE_PLACEHOLDER, images.placeholder, images.token}:
        if any(mark in text for exchange in conversation for text in (exchange.question, exchange.answer)):
            raise DataError(f"a message holds {mark!r}, which stands for an image; leave it out")
    if template == CHAT:
        ids = _chat_ids(conversation, processor)
    elif template in TEMPLATES:
        turns = [Turn(_with_images(exchange), exchange.answer) for exchange in conversation]
        encoded = TEMPLATES[template].encode(turns, processor.tokenizer).ids
        ids = [image_id if token == IMAGE else token for token in encoded]
    else:
        raise DataError(f"unknown template {template!r}; use one of {', '.join([CHAT, *TEMPLATES])}")
    wanted = sum(len(exchange.images) for exchange in conversation)
    if ids.count(image_id) != wanted:
        raise DataError(
            f"template {template!r} places {ids.count(image_id)} of the {wanted} images; send one image a message"
        )
    return [token for each in ids for token in ([each] * image_tokens if each == image_id else [each])]


def _with_images(exchange: Exchange) -> str:
    return f"{IMAGE_PLACEHOLDER}\n" * len(exchange.images) + exchange.question


def _chat_ids(conversation: Conversation, processor: Any) -> list[int]:
    """By the model's own chat template; an image that it writes is one token."""
    tokenizer = processor.tokenizer
    messages: list[dict[str, Any]] = []
    for exchange in conversation:
        question, answer = ({"type": "text", "text": said} for said in (exchange.question, exchange.answer))
        messages.append({"role": "user", "content": [*[{"type": "image"}] * len(exchange.images), question]})
        messages.append({"role": "assistant", "content": [answer]})
    try:
        texts, _ = render_jinja_template(
            [messages[:-1]],
            chat_template=processor.chat_template or tokenizer.chat_template,
            add_generation_prompt=True,
            **tokenizer.special_tokens_map,
        )
    except (TemplateError, TypeError, ValueError) as error:
        raise DataError(f"the model's chat template fails on the conversation: {error}") from error
    text, _ = image_text(processor).write(str(texts[0]))
    started = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    (encoding,) = tokenize([text], tokenizer, add_special_tokens=not started)
    ids: list[int] = encoding.ids
    return ids
