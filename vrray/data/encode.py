"""Records to rows: token ids with every image at its full length, and what of them is supervised."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from vrray.data.records import IMAGE_PLACEHOLDER, Record, Turn
from vrray.data.rows import Row
from vrray.data.templates import IMAGE, TEMPLATES, Encoded, Span, Template, answer_mask, token_span, tokenize
from vrray.errors import DataError
from vrray.models.family import ImageText, image_text

CHAT = "chat"
_IMAGE_LINE = re.compile(r"\n?<image>\n?")
_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Encoding(NamedTuple):
    """A row, and whether it was cut at the greatest length."""

    row: Row
    cut: bool


def encode_record(
    record: Record, processor: Any, image_tokens: int, *, template: str = CHAT, max_length: int = 2048
) -> Encoding:
    """Encode a record with the model's own chat template ("chat") or one of `TEMPLATES`.

    A longer row is cut at `max_length`, once its images have their full length. An image behind the cut leaves the
    row's `images`.

    Args:
        image_tokens: how many positions an image takes in the decoder.

    Raises:
        DataError: the template is unknown or does not fit the record, nothing is supervised, an image would be cut
            in two, or no answer begins before `max_length`.
    """
    image_id = _image_id(processor)
    try:
        encoded = _find_template(template, processor, image_id).encode(record.turns, processor.tokenizer)
        _check_images(encoded.ids, len(record.images), template, image_id)
        return _to_row(record, encoded, image_id, image_tokens, max_length)
    except DataError as error:
        raise DataError(f"record {record.id!r}: {error}") from error


def encode_records(
    records: Sequence[Record], processor: Any, image_tokens: int, *, template: str = CHAT, max_length: int = 2048
) -> list[Row]:
    """The rows of `encode_record`."""
    return [
        encode_record(record, processor, image_tokens, template=template, max_length=max_length).row
        for record in records
    ]


def encode_prompt(
    question: str, processor: Any, image_tokens: int, *, template: str = CHAT, with_image: bool
) -> list[int]:
    """Token ids of a question up to where its answer begins; the image, if any, comes first.

    Raises:
        DataError: the template is unknown or asks no questions, or the question's text holds an image of its own.
    """
    image_id = _image_id(processor)
    ids = _find_template(template, processor, image_id).prompt(question, processor.tokenizer, int(with_image))
    _check_images(ids, int(with_image), template, image_id)
    return _expand(ids, image_id, image_tokens)[0]


def _find_template(name: str, processor: Any, image_id: int) -> Template:
    if name == CHAT:
        source = processor.chat_template or processor.tokenizer.chat_template
        if not isinstance(source, str):
            raise DataError(f"the model has no chat template; use one of {', '.join(TEMPLATES)}")
        return _Chat(source, image_id, image_text(processor))
    if name not in TEMPLATES:
        raise DataError(f"unknown template {name!r}; use one of {', '.join([CHAT, *TEMPLATES])}")
    return TEMPLATES[name]


def _image_id(processor: Any) -> int:
    return int(processor.tokenizer.convert_tokens_to_ids(image_text(processor).token))


def _check_images(ids: Sequence[int], images: int, template: str, image_id: int) -> None:
    placed = ids.count(IMAGE)
    if image_id in ids or placed > images:
        raise DataError(f"its text holds image tokens besides those of its {images} images; change the text")
    if placed < images:
        raise DataError(
            f"template {template!r} places {placed} of its {images} images; write one <image> a message, "
            "or use a template that takes several (llama, phi3, bunny, most chat templates)"
        )


def _to_row(record: Record, encoded: Encoded, image_id: int, image_tokens: int, max_length: int) -> Encoding:
    ids, supervised, ends = _expand(encoded.ids, image_id, image_tokens, encoded.supervised)
    length = len(ids)
    if not any(supervised[1:]):
        raise DataError(f"nothing in it is supervised: {encoded.problem or 'the chat template marks no answer'}")
    whole = [end for end in ends if end <= max_length]
    if len(whole) < len(ends) and ends[len(whole)] - image_tokens < max_length:
        raise DataError(
            f"its {length} tokens would be cut at {max_length}, inside image {len(whole) + 1}, which takes tokens "
            f"{ends[len(whole)] - image_tokens} to {ends[len(whole)]}; raise max_length or split its turns"
        )
    if not any(supervised[1:max_length]):
        raise DataError(
            f"it has {length} tokens and no answer begins before {max_length}, where it would be cut; "
            "raise max_length or shorten its first question"
        )
    row = Row(record.id, tuple(ids[:max_length]), tuple(supervised[:max_length]), record.images[: len(whole)])
    return Encoding(row, length > max_length)


def _expand(
    ids: Sequence[int], image_id: int, image_tokens: int, supervised: Sequence[bool] = ()
) -> tuple[list[int], list[bool], list[int]]:
    """Give each `IMAGE` its positions; also says where the images end."""
    long_ids: list[int] = []
    long_supervised: list[bool] = []
    ends: list[int] = []
    begin = 0
    for _ in range(ids.count(IMAGE)):
        place = ids.index(IMAGE, begin)
        long_ids += ids[begin:place]
        long_ids += [image_id] * image_tokens
        long_supervised += supervised[begin:place]
        long_supervised += [False] * image_tokens
        ends.append(len(long_ids))
        begin = place + 1
    return [*long_ids, *ids[begin:]], [*long_supervised, *supervised[begin:]], ends


@dataclass(frozen=True)
class _Chat:
    """A model's own chat template; images come first in their message.

    Where it marks answers with `{% generation %}`, these are supervised. Otherwise an answer is what follows the prompt
    by which the template asks for it, to the special token that ends it.
    """

    source: str
    image_id: int
    images: ImageText
    name: str = CHAT

    def encode(self, turns: Sequence[Turn], tokenizer: Any) -> Encoded:
        messages = []
        for turn in turns:
            messages += [_message("user", _parts(turn.user)), _message("assistant", [_text(turn.assistant)])]
        marked = _MARKER.search(self.source) is not None
        (text,), marks = self._render([messages], tokenizer, return_assistant_tokens_mask=marked)
        encoding = _tokenize_chat(text, tokenizer)
        ids, offsets = encoding.ids, encoding.offsets
        if marked:
            spans = [token_span(offsets, *mark) for mark in marks[0]]
        else:
            asked = [messages[:end] for end in range(1, len(messages), 2)]
            prompts, _ = self._render(asked, tokenizer, add_generation_prompt=True)
            spans = _find_answers(text, prompts, turns, ids, offsets, _special_ids(tokenizer))
        return Encoded(self._mark_images(ids), answer_mask(len(ids), spans))

    def prompt(self, question: str, tokenizer: Any, images: int) -> list[int]:
        message = _message("user", [*[{"type": "image"}] * images, _text(question)])
        (text,), _ = self._render([[message]], tokenizer, add_generation_prompt=True)
        return self._mark_images(_tokenize_chat(text, tokenizer).ids)

    def _render(self, chats: list[Any], tokenizer: Any, **options: bool) -> tuple[list[str], list[list[Span]]]:
        try:
            texts, marks = render_jinja_template(
                chats, chat_template=self.source, **options, **tokenizer.special_tokens_map
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise DataError(f"the model's chat template fails on it: {error}") from error
        written = list(map(self.images.write, texts, marks or [()] * len(texts)))
        return [text for text, _ in written], [mark for _, mark in written]

    def _mark_images(self, ids: list[int]) -> list[int]:
        return [IMAGE if token == self.image_id else token for token in ids]


def _find_answers(
    text: str,
    prompts: Sequence[str],
    turns: Sequence[Turn],
    ids: Sequence[int],
    offsets: Sequence[Span],
    special_ids: frozenset[int],
) -> list[Span]:
    """The tokens of each answer of a rendered conversation; `prompts` are what the template asks each answer with."""
    spans = []
    for number, (prompt, turn) in enumerate(zip(prompts, turns, strict=True), start=1):
        answer, begin = turn.assistant.strip(), len(prompt)
        place = text.find(answer, begin)
        if not text.startswith(prompt) or place < 0 or text[begin:place].strip():
            raise DataError(
                f"the chat template does not render answer {number} right behind the prompt that asks for it, so it "
                "cannot be told what the model has to say; mark answers in the template with {% generation %}, "
                "or use another template"
            )
        end = place + len(answer)
        first, closing = token_span(offsets, begin, len(text))[0], token_span(offsets, end, len(text))[0]
        while closing < len(ids) and not text[end : offsets[closing][1]].strip():
            closing += 1
        if closing == len(ids) or text[end : offsets[closing][0]].strip() or ids[closing] not in special_ids:
            raise DataError(
                f"the chat template ends answer {number} with no special token, so a model would not learn to stop; "
                "end answers with one in the template, or use another template"
            )
        spans.append((first, closing + 1))
    return spans


def _tokenize_chat(text: str, tokenizer: Any) -> Any:
    """The tokenizer puts its start token in front where the chat template has not: so do transformers' processors."""
    started = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    return tokenize([text], tokenizer, add_special_tokens=not started)[0]


@lru_cache(maxsize=8)
def _special_ids(tokenizer: Any) -> frozenset[int]:
    return frozenset(token for token, added in tokenizer.added_tokens_decoder.items() if added.special)


def _message(role: str, parts: list[dict[str, str]]) -> dict[str, Any]:
    return {"role": role, "content": parts}


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _parts(text: str) -> list[dict[str, str]]:
    images = [{"type": "image"}] * text.count(IMAGE_PLACEHOLDER)
    return [*images, _text(_IMAGE_LINE.sub("\n", text).strip("\n") if images else text)]
