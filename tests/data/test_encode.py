"""Token ids and supervision masks: exactly the answers are learned, and an image takes all its places."""

from __future__ import annotations

import random
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny import IMAGE_TOKENS
from tokenizers.processors import TemplateProcessing

from vrray.data.encode import encode_prompt, encode_record, encode_records
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


def test_a_question_of_a_named_template_is_encoded_as_in_training(smol: Path) -> None:
    processor = load_processor(smol)
    (row,) = encode(processor, Record("r", ("a.png",), (Turn("Which?\n<image>", "red"),)), template="phi3")
    assert encode_prompt("Which?", processor, IMAGE_TOKENS, template="phi3", with_image=True) == list(row.prompt)
    assert supervised_parts(row, processor) == [" red<|endoftext|>"]


def test_caption_rows_are_start_image_caption_end(processor: Any) -> None:
    caption = Record("c", ("a.png", "b.png"), (Turn("<image><image>", "a red circle"), Turn("Sure?", "yes")))
    (row,) = encode(processor, caption, template="caption")
    assert processor.tokenizer.decode(row.ids) == f"<|im_start|>{IMAGES}{IMAGES}a red circle<|im_end|>"
    assert supervised_parts(row, processor) == ["a red circle<|im_end|>"]
    assert row.images == ("a.png", "b.png")


def test_a_tokenizer_without_a_start_token_puts_none(tiny_model: Path) -> None:
    processor = load_processor(tiny_model)
    before = encode(processor, TALK)
    processor.tokenizer.bos_token = None
    (caption,) = encode(processor, TALK, template="caption")
    assert processor.tokenizer.decode(caption.ids) == f"{IMAGES}red<|im_end|>"
    assert encode(processor, TALK) == before


def test_images_of_a_message_come_first_and_in_order(processor: Any) -> None:
    record = Record("r", ("a.png", "b.png", "c.png"), (Turn("From <image> to <image>?", "2"), Turn("<image>", "3")))
    (row,) = encode(processor, record)
    text = processor.tokenizer.decode(row.ids)
    assert text.startswith(f"<|im_start|>user\n{IMAGES}\n{IMAGES}\nFrom ")
    assert f"<|im_end|>\n<|im_start|>user\n{IMAGES}\n<|im_end|>" in text
    assert (row.images, supervised_parts(row, processor)) == (record.images, ["2<|im_end|>", "3<|im_end|>"])


@pytest.mark.parametrize("text", ["look at <image>", "", "<image> <image> <image>"])
def test_as_many_placeholders_as_images_are_needed(processor: Any, text: str) -> None:
    record = Record("r", ("a.png", "b.png"), (Turn(text, "red"),))
    message = r"^record 'r': (template 'chat' places \d of its 2 images|its text holds image tokens)"
    with pytest.raises(DataError, match=message):
        encode(processor, record)


def test_a_question_must_not_hold_an_image(processor: Any) -> None:
    with pytest.raises(DataError, match="its text holds image tokens besides those of its 1 images"):
        encode_prompt("What is <image>?", processor, IMAGE_TOKENS, with_image=True)


def test_a_longer_row_is_cut_and_says_so(processor: Any) -> None:
    (row,) = encode(processor, TALK)
    length = len(row.ids)
    assert encode_record(TALK, processor, IMAGE_TOKENS, max_length=length) == (row, False)
    first_answer = row.supervised.index(True)
    for limit in (length - 1, first_answer + 1):
        short, cut = encode_record(TALK, processor, IMAGE_TOKENS, max_length=limit)
        assert (short.ids, short.supervised) == (row.ids[:limit], row.supervised[:limit])
        assert (short.images, cut) == (row.images, True)
    message = f"^record 'talk': it has {length} tokens and no answer begins before {first_answer}, where .*max_length"
    with pytest.raises(DataError, match=message):
        encode(processor, TALK, max_length=first_answer)


def test_a_cut_never_divides_an_image(processor: Any) -> None:
    record = Record("r", ("a.png", "b.png"), (Turn("<image>\nWhich?", "red"), Turn("And <image>?", "grey")))
    (row,) = encode(processor, record)
    image_id = processor.tokenizer.convert_tokens_to_ids("<image>")
    begin = row.ids.index(image_id, row.supervised.index(True))
    before, cut = encode_record(record, processor, IMAGE_TOKENS, max_length=begin)
    assert (before.images, before.ids, cut) == (("a.png",), row.ids[:begin], True)
    behind, cut = encode_record(record, processor, IMAGE_TOKENS, max_length=begin + IMAGE_TOKENS)
    assert (behind.images, behind.ids, cut) == (record.images, row.ids[: begin + IMAGE_TOKENS], True)
    for limit in range(begin + 1, begin + IMAGE_TOKENS):
        message = f"its {len(row.ids)} tokens would be cut at {limit}, inside image 2, which takes tokens {begin} to"
        with pytest.raises(DataError, match=message):
            encode(processor, record, max_length=limit)


def test_an_unknown_template_is_refused(processor: Any) -> None:
    with pytest.raises(DataError, match=r"unknown template 'vicuna'; use one of chat, llama, .*vicuna_v1"):
        encode(processor, TALK, template="vicuna")


def test_a_template_for_another_tokenizer_is_refused(processor: Any) -> None:
    with pytest.raises(DataError, match="'vicuna_v1' ends answers with '</s>', which is no token of this model; use"):
        encode(processor, TALK, template="vicuna_v1")


def random_records(count: int) -> list[Record]:
    """Conversations of one to four turns with white space, line breaks and other scripts at every place."""
    generator = random.Random(3)
    pieces = ["red", " ", "\n", "a circle", "user", "assistant\n", "Ñandú", "«日本»", "🙂", "  ", "<|", ".", "1 2"]

    def text() -> str:
        return "x".join("".join(generator.choices(pieces, k=generator.randint(0, 4))) for _ in range(2))

    return [
        Record(
            str(number),
            tuple("a" * images),
            tuple(Turn("<image>" * images * (turn == 0) + text(), text()) for turn in range(1 + number % 4)),
        )
        for number in range(count)
        for images in (number % 3,)
    ]


def test_what_is_learned_decodes_to_the_answers(processor: Any) -> None:
    for record in random_records(120):
        (row,) = encode(processor, record)
        for part, turn in zip(supervised_parts(row, processor), record.turns, strict=True):
            answer = f"{turn.assistant}<|im_end|>"
            # The line break before an answer may share a token with the white space that it begins with.
            assert part == answer or (answer[0].isspace() and part == f"\n{answer}")


def test_answers_are_found_without_marks_as_with_them(processor: Any) -> None:
    unmarked = with_template(processor, processor.chat_template)
    assert "generation" not in unmarked.chat_template.replace("add_generation", "")
    records = [TALK, Record("empty", (), (Turn("What?", ""), Turn("Why?", "red"))), *random_records(120)]
    assert encode(unmarked, *records) == encode(processor, *records)


SYSTEM_FIRST = """\
{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}\
{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}\
{% for part in m['content'] %}{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] | trim }}{% endif %}\
{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

ONE_LINE = """\
{% for m in messages %}{{ m['role'] | capitalize }}:{% if m['content'][0]['type'] != 'image' %} {% endif %}\
{% for part in m['content'] %}{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}\
{% endfor %}\
<|im_end|>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"""

END_OF_ALL = """\
{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {% for part in m['content'] %}\
{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}[/INST]\
{% else %} {{ m['content'][0]['text'] }}\n<|im_end|>{% endif %}{% endfor %}\
{% if not add_generation_prompt %}{{ '<|endoftext|>' }}{% endif %}"""


@pytest.mark.parametrize(("source", "begin"), [(ONE_LINE, "User:"), (END_OF_ALL, "[INST] ")], ids=["without", "with"])
def test_a_row_has_one_start_token(tiny_model: Path, source: str, begin: str) -> None:
    """The tokenizer puts one in front of a text; a template may have written it already."""
    processor = with_template(load_processor(tiny_model), source)
    start = processor.tokenizer.bos_token_id
    processor.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", start)]
    )
    (row,) = encode(processor, TALK)
    assert (row.ids[0], row.ids.count(start)) == (start, 1)
    assert processor.tokenizer.decode(row.ids[1:]).startswith(begin)
    assert encode_prompt("Which colour?", processor, IMAGE_TOKENS, with_image=True) == list(row.prompt)
    assert supervised_parts(row, processor)[-1].endswith("<|im_end|>")


@pytest.mark.parametrize(
    ("source", "answers", "begin"),
    [
        (
            SYSTEM_FIRST,
            ["red<|im_end|>", "yes, assistant<|im_end|>", "a circle<|im_end|>"],
            "<|im_start|>system\nBe kind.",
        ),
        (ONE_LINE, [" red<|im_end|>", " yes, assistant\n<|im_end|>", " a circle<|im_end|>"], "User:<image>"),
        (
            END_OF_ALL,
            [" red\n<|im_end|>", " yes, assistant\n\n<|im_end|>", " a circle\n<|im_end|>"],
            "<|im_start|>[INST]",
        ),
    ],
    ids=["system", "one-line", "end-of-all"],
)
def test_templates_of_other_models(processor: Any, source: str, answers: list[str], begin: str) -> None:
    other = with_template(processor, source)
    (row,) = encode(other, TALK)
    assert supervised_parts(row, other) == answers
    assert processor.tokenizer.decode(row.ids).startswith(begin)
    prompt = encode_prompt("Which colour?", other, IMAGE_TOKENS, with_image=True)
    assert prompt == list(row.prompt)


ANSWER = "{{- text + '<|im_end|>' -}}"


@pytest.mark.parametrize(
    ("part", "instead", "message"),
    [
        ("'<|im_start|>assistant\\n'", "'<|im_start|>answer\\n'", "does not render answer 1 right behind the prompt"),
        (ANSWER, "{{- '<think>' + text + '<|im_end|>' -}}", "does not render answer 1 right behind the prompt that"),
        (ANSWER, "{{- text -}}", "ends answer 3 with no special token, so a model would not learn to stop"),
        (ANSWER, "{{- text + ' done <|im_end|>' -}}", "ends answer 1 with no special token"),
        (ANSWER, "{{- raise_exception('no') -}}", "chat template fails on it: no"),
        ("{{- '<image>\\n' -}}", "", "template 'chat' places 0 of its 1 images"),
        ("message['content'] is string", "message['content'] + 'x'", "chat template fails on it: can only concatenate"),
    ],
)
def test_a_template_in_which_answers_cannot_be_found_is_refused(
    tiny_model: Path, part: str, instead: str, message: str
) -> None:
    processor = load_processor(tiny_model)
    template = with_template(processor, processor.chat_template).chat_template
    assert part in template
    with pytest.raises(DataError, match=f"^record 'talk': .*{message}"):
        encode(with_template(processor, template.replace(part, instead, 1)), TALK)


def test_marks_that_no_answer_stands_in_are_refused(tiny_model: Path) -> None:
    processor = load_processor(tiny_model)
    source = processor.chat_template.replace("message['role'] == 'assistant'", "message['role'] == 'bot'")
    with pytest.raises(DataError, match="nothing in it is supervised: the chat template marks no answer"):
        encode(SimpleNamespace(tokenizer=processor.tokenizer, image_token="<image>", chat_template=source), TALK)


def test_a_model_without_a_chat_template_needs_a_named_one(tiny_model: Path) -> None:
    tokenizer = load_processor(tiny_model).tokenizer
    tokenizer.chat_template = None
    with pytest.raises(DataError, match="the model has no chat template; use one of llama, "):
        encode(SimpleNamespace(tokenizer=tokenizer, image_token="<image>", chat_template=None), TALK)


def with_template(processor: Any, source: str) -> Any:
    """A processor with another chat template, and without marks of answers."""
    for mark in ("{% generation %}", "{% endgeneration %}"):
        source = source.replace(mark, "")
    return SimpleNamespace(tokenizer=processor.tokenizer, image_token="<image>", chat_template=source)
