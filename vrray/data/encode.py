"""Records to token ids and supervision masks, with every image already expanded to its tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from vrray.data.records import Record
from vrray.data.rows import Row
from vrray.errors import DataError

Template = Literal["chat", "plain"]
_IMAGE = re.compile(r"\n?<image>\n?")


def encode_records(
    records: Sequence[Record], processor: Any, image_tokens: int, *, template: Template = "chat", max_length: int = 2048
) -> list[Row]:
    """Encode records with the model's chat template, or `plain` (image then caption, for the projector stage).

    Args:
        image_tokens: how many positions an image takes in the decoder.
        max_length: longer rows are an error rather than being cut inside an image or an answer.

    Raises:
        DataError: a row is longer than `max_length`, has nothing supervised, or the template gives no assistant mask.
    """
    image_id = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    encode = _plain if template == "plain" else _chat
    rows = []
    for record in records:
        ids, mask = encode(record, processor)
        ids, mask = _expand(ids, mask, image_id, image_tokens)
        if len(ids) > max_length:
            raise DataError(f"record {record.id!r} has {len(ids)} tokens, the limit is {max_length}; split its turns")
        if not any(mask[1:]):
            raise DataError(
                f"record {record.id!r} has no supervised token; "
                "does the chat template mark answers with {% generation %}?"
            )
        rows.append(Row(record.id, tuple(ids), tuple(mask), record.images))
    return rows


def encode_prompt(question: str, processor: Any, image_tokens: int, *, with_image: bool) -> list[int]:
    """Token ids of a one-question chat up to where the answer begins."""
    parts = ([{"type": "image"}] if with_image else []) + [{"type": "text", "text": question}]
    tokenizer = processor.tokenizer
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": parts}],
        chat_template=processor.chat_template,
        add_generation_prompt=True,
        return_dict=True,
    )["input_ids"]
    image_id = tokenizer.convert_tokens_to_ids(processor.image_token)
    return _expand(ids, [False] * len(ids), image_id, image_tokens)[0]


def _chat(record: Record, processor: Any) -> tuple[list[int], list[bool]]:
    messages = []
    for turn in record.turns:
        messages.append({"role": "user", "content": _parts(turn.user)})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.assistant}]})
    encoded = processor.tokenizer.apply_chat_template(
        messages, chat_template=processor.chat_template, return_dict=True, return_assistant_tokens_mask=True
    )
    return encoded["input_ids"], [bool(flag) for flag in encoded["assistant_masks"]]


def _plain(record: Record, processor: Any) -> tuple[list[int], list[bool]]:
    """Start token, image, caption, end token; a decoder attends badly to a row that lacks its start token."""
    tokenizer = processor.tokenizer
    caption = tokenizer(record.turns[0].assistant, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    image = [tokenizer.convert_tokens_to_ids(processor.image_token)] * len(record.images)
    return start + image + caption, [False] * len(start + image) + [True] * len(caption)


def _parts(text: str) -> list[dict[str, str]]:
    images = [{"type": "image"}] * text.count("<image>")
    words = _IMAGE.sub("\n", text).strip("\n") if images else text
    return [*images, {"type": "text", "text": words}]


def _expand(ids: list[int], mask: list[bool], image_id: int, image_tokens: int) -> tuple[list[int], list[bool]]:
    out_ids: list[int] = []
    out_mask: list[bool] = []
    for token, flag in zip(ids, mask, strict=True):
        repeat = image_tokens if token == image_id else 1
        out_ids += [token] * repeat
        out_mask += [flag] * repeat
    return out_ids, out_mask
