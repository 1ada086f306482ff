"""Token ids and supervision masks: exactly the answers are learned, and an image takes all its places."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from tiny import IMAGE_TOKENS

from vrray.data.encode import encode_prompt, encode_records
from vrray.data.records import Record, Turn
from vrray.data.rows import Row
from vrray.errors import DataError
from vrray.models.loading import load_processor

IMAGES = "<image>" * IMAGE_TOKENS
TALK = Record(
    "talk",
    ("a.png",),
    (
        Turn("<image>\nWhich colour?", "red"),
        Turn("Is it user?", "yes, assistant\n"),
        Turn("And the shape?", "a circle"),
    ),
)


@pytest.fixture(scope="module", params=["tiny", "smol"])
def processor(request: pytest.FixtureRequest) -> Any:
    return load_processor(request.getfixturevalue("tiny_model" if request.param == "tiny" else "smol"))


def encode(processor: Any, *records: Record, **options: Any) -> list[Row]:
    return encode_records(records, processor, IMAGE_TOKENS, **options)


def supervised_parts(row: Row, processor: Any) -> list[str]:
    """The texts of the runs of supervised tokens."""
    runs = groupby(zip(row.ids, row.supervised, strict=True), key=lambda pair: pair[1])
    return [processor.tokenizer.decode([token for token, _ in run]) for supervised, run in runs if supervised]


def test_exactly_the_answers_and_their_ends_are_supervised(processor: Any) -> None:
    (row,) = encode(processor, TALK)
    assert supervised_parts(row, processor) == ["red<|im_end|>", "yes, assistant\n<|im_end|>", "a circle<|im_end|>"]
    assert row.supervised_tokens == sum(row.supervised)


def test_the_text_is_that_of_the_chat(processor: Any) -> None:
    (row,) = encode(processor, TALK)
    assert processor.tokenizer.decode(row.ids) == (
        f"<|im_start|>user\n{IMAGES}\nWhich colour?<|im_end|>\n<|im_start|>assistant\nred<|im_end|>\n"
        "<|im_start|>user\nIs it user?<|im_end|>\n<|im_start|>assistant\nyes, assistant\n<|im_end|>\n"
        "<|im_start|>user\nAnd the shape?<|im_end|>\n<|im_start|>assistant\na circle<|im_end|>\n"
    )


def test_an_image_takes_all_its_places(processor: Any) -> None:
    image_id = processor.tokenizer.convert_tokens_to_ids("<image>")
    with_image, without = encode(processor, TALK, Record("text", (), (Turn("What?", "a circle"),)))
    assert (with_image.ids.count(image_id), without.ids.count(image_id)) == (IMAGE_TOKENS, 0)
    assert not any(with_image.supervised[place] for place, token in enumerate(with_image.ids) if token == image_id)
    (one,) = encode_records([TALK], processor, 1)
    assert len(with_image.ids) == len(one.ids) + IMAGE_TOKENS - 1


@pytest.mark.parametrize("text", ["<image>\nWhich colour?", "Which colour?\n<image>", "<image>Which colour?"])
def test_an_image_comes_first_wherever_it_was_written(processor: Any, text: str) -> None:
    (row,) = encode(processor, Record("r", ("a.png",), (Turn(text, "red"),)))
    assert processor.tokenizer.decode(row.prompt) == (
        f"<|im_start|>user\n{IMAGES}\nWhich colour?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_words_around_an_image_stay_apart(processor: Any) -> None:
    (row,) = encode(processor, Record("r", ("a.png",), (Turn("In this\n<image>\nwhich colour?", "red"),)))
    assert f"{IMAGES}\nIn this\nwhich colour?<|im_end|>" in processor.tokenizer.decode(row.ids)


@pytest.mark.parametrize("images", [("a.png",), ()])
def test_a_question_is_encoded_as_in_training(processor: Any, images: tuple[str, ...]) -> None:
    text = "<image>\nWhich colour?" if images else "Which colour?"
    (row,) = encode(processor, Record("r", images, (Turn(text, "red"),)))
    assert encode_prompt("Which colour?", processor, IMAGE_TOKENS, with_image=bool(images)) == list(row.prompt)


def test_plain_rows_are_start_image_caption_end(processor: Any) -> None:
    caption = Record("c", ("a.png",), (Turn("<image>", "a red circle"),))
    (row,) = encode(processor, caption, template="plain")
    assert processor.tokenizer.decode(row.ids) == f"<|im_start|>{IMAGES}a red circle<|im_end|>"
    assert supervised_parts(row, processor) == ["a red circle<|im_end|>"]
    assert row.images == ("a.png",)


def test_a_row_longer_than_the_limit_is_refused(processor: Any) -> None:
    (row,) = encode(processor, TALK)
    length = len(row.ids)
    assert encode(processor, TALK, max_length=length) == [row]
    with pytest.raises(DataError, match=f"'talk' has {length} tokens, the limit is {length - 1}; split its turns"):
        encode(processor, TALK, max_length=length - 1)


def test_a_template_that_does_not_mark_answers_is_refused(tiny_model: Path) -> None:
    processor = load_processor(tiny_model)
    for mark in ("{% generation %}", "{% endgeneration %}"):
        assert mark in processor.chat_template
        processor.chat_template = processor.chat_template.replace(mark, "")
    with pytest.raises(DataError, match=r"'talk' has no supervised token; does the chat template mark .*generation"):
        encode(processor, TALK)
