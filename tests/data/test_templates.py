"""The prompts, token ids and label masks of the original implementations, record by record."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import processors
from transformers import AutoTokenizer

from vrray.data.encode import encode_prompt, encode_record
from vrray.data.records import Record, Turn
from vrray.data.templates import IMAGE, TEMPLATES, Dialogue, Template
from vrray.errors import DataError

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference" / "conversations"
pytestmark = pytest.mark.skipif(not REFERENCE.is_dir(), reason=f"{REFERENCE} is not there")

# The slow tokenizer of the reference puts a space before a text that begins with one already; the fast one does not.
KNOWN_EXCEPTION = ("plain", "vicuna_like", "r9")
DIALOGUES = [template for template in TEMPLATES.values() if isinstance(template, Dialogue)]


@lru_cache
def read(name: str) -> Any:
    return json.loads((REFERENCE / name).read_text(encoding="utf-8"))


@lru_cache
def tokenizer_of(name: str) -> Any:
    return AutoTokenizer.from_pretrained(REFERENCE / "tokenizers" / name)


def entries(having: str = "records") -> list[Any]:
    """(code base, one of its entries: a version with a tokenizer)."""
    return [
        pytest.param(base, entry, id=f"{base}-{entry['version']}-{entry['tokenizer']}")
        for base in (("visual_region", "bunny", "llava") if REFERENCE.is_dir() else ())
        for entry in read(f"{base}.json")
        if having in entry
    ]


def template_of(base: str, version: str) -> Template:
    """Bunny keeps one image in a message, and its `llama` has another separator."""
    template = TEMPLATES["llama-bunny" if (base, version) == ("bunny", "llama") else version]
    return replace(template, one_image=True) if base == "bunny" and isinstance(template, Dialogue) else template


def turns_of(record_id: str) -> tuple[Turn, ...]:
    """The turns of a record, without an assistant's message at the beginning: readers leave it out."""
    (conversation,) = (row["conversations"] for row in read("records.json") if row["id"] == record_id)
    texts = [message["value"] for message in conversation[conversation[0]["from"] == "gpt" :]]
    return tuple(Turn(user, assistant) for user, assistant in zip(texts[::2], texts[1::2], strict=True))


def cases(*wanted: str) -> list[Any]:
    """(code base, entry, expected record) where the original gives the wanted outcome."""
    found = []
    for parameter in entries():
        base, entry = parameter.values
        for expected in entry["records"]:
            outcome = next((key for key in ("error", "warning") if expected.get(key)), "labels")
            if outcome in wanted and "no branch for this version" not in expected.get("error", ""):
                found.append(pytest.param(base, entry, expected, id=f"{parameter.id}-{expected['id']}"))
    return found


@pytest.mark.parametrize(("base", "entry", "expected"), cases("labels", "warning"))
def test_token_ids_and_labels_are_the_originals(base: str, entry: Any, expected: Any) -> None:
    template, tokenizer = template_of(base, entry["version"]), tokenizer_of(entry["tokenizer"])
    encoded = template.encode(turns_of(expected["id"]), tokenizer)
    ids = encoded.ids
    labels = [token if learned else -100 for token, learned in zip(ids, encoded.supervised, strict=True)]
    if IMAGE not in ids:  # the original cuts texts without an image here already
        ids, labels = ids[: entry["model_max_length"]], labels[: entry["model_max_length"]]
    expected_ids, expected_labels = list(expected["input_ids"]), list(expected["labels"])
    if (entry["version"], entry["tokenizer"], expected["id"]) == KNOWN_EXCEPTION:
        space = expected_ids.pop(2)
        assert (expected_labels.pop(2), tokenizer.convert_ids_to_tokens(space)) == (space, "▁")
    assert (ids, labels) == (expected_ids, expected_labels)
    assert bool(encoded.problem) == bool(expected["warning"])


@pytest.mark.parametrize(("base", "entry", "expected"), cases("labels", "warning"))
def test_the_text_of_a_dialogue_is_the_originals(base: str, entry: Any, expected: Any) -> None:
    template = template_of(base, entry["version"])
    if isinstance(template, Dialogue):
        assert template.render(turns_of(expected["id"]))[0] == expected["prompt"]
    else:
        assert f"<image>{turns_of(expected['id'])[0].assistant}\n" == expected["prompt"]


@pytest.mark.parametrize(("base", "entry", "expected"), cases("error"))
def test_what_the_originals_fail_on_is_refused(base: str, entry: Any, expected: Any) -> None:
    with pytest.raises(DataError, match="'plain' takes one caption of an image, this conversation has"):
        template_of(base, entry["version"]).encode(turns_of(expected["id"]), tokenizer_of(entry["tokenizer"]))


@pytest.mark.parametrize(("base", "entry"), entries())
def test_prompts_for_generation_are_the_originals(base: str, entry: Any) -> None:
    template, tokenizer = template_of(base, entry["version"]), tokenizer_of(entry["tokenizer"])
    assert len(entry["generation_prompts"]) == (0 if entry["version"] == "plain" else 3)
    for expected in entry["generation_prompts"]:
        images = expected["question"].count("<image>")
        question = expected["question"].removeprefix("<image>\n")
        assert template.prompt(question, tokenizer, images) == expected["input_ids"]


@pytest.mark.parametrize(("base", "entry"), entries(having="collated"))
def test_rows_are_cut_as_the_original_collator_cuts_them(base: str, entry: Any) -> None:
    processor, collated = with_image_token(entry["tokenizer"]), entry["collated"]
    name = "llama-bunny" if (base, entry["version"]) == ("bunny", "llama") else entry["version"]
    refused = 0
    for record_id, length, kept in zip(collated["ids"], collated["lengths"], collated["labels_kept"], strict=True):
        turns = turns_of(record_id)
        images = sum(turn.user.count("<image>") for turn in turns)
        if images > 1:
            continue  # the one record whose placeholders outnumber its images
        record = Record(record_id, tuple(f"{number}.jpg" for number in range(images)), turns)
        if kept == 0:
            refused += 1
            with pytest.raises(DataError, match=f"record '{record_id}': nothing in it is supervised"):
                encode_record(record, processor, 1, template=name, max_length=192)
            continue
        row, cut = encode_record(record, processor, 1, template=name, max_length=192)
        if (name, entry["tokenizer"], record_id) == KNOWN_EXCEPTION:
            length, kept = length - 1, kept - 1
        assert (len(row.ids), row.supervised_tokens) == (length, kept)
        assert cut == (record_id in ("r6", "r7"))
    assert refused == (0 if entry["version"] == "plain" else 2)


@pytest.mark.parametrize("tokenizer", ["llama3_like", "phi3_like_with_bos", "phi_like_no_bos", "vicuna_like"])
@pytest.mark.parametrize("template", DIALOGUES, ids=lambda template: template.name)
def test_what_is_learned_decodes_to_the_answers(template: Dialogue, tokenizer: str) -> None:
    fast = tokenizer_of(tokenizer)
    if template.end not in fast.get_vocab():
        with pytest.raises(DataError, match=rf"ends answers with '{template.end}', which is no token of this model"):
            template.encode((Turn("a", "b"),), fast)
        return
    turns = (
        Turn("<image>\nWhich? ASSISTANT:x", "tw o  words"),
        Turn("Ñandú 🙂", "«日本» 🙂"),
        Turn("  and\n", "\n line\n\n"),
        Turn("?", "USER: x ASSISTANT:"),
        Turn("one", "."),
    )
    encoded = template.encode(turns, fast)
    runs = groupby(zip(encoded.ids, encoded.supervised, strict=True), key=lambda pair: pair[1])
    learned = [fast.decode([token for token, _ in run]) for supervised, run in runs if supervised]
    assert [text.removeprefix(" ") for text in learned] == [
        f"{turn.assistant}{template.end}".removeprefix(" ") for turn in turns
    ]
    assert encoded.ids.count(IMAGE) == 1
    assert encoded.ids.count(fast.bos_token_id) == (
        1 if fast.bos_token_id in fast("")["input_ids"] else len(turns) * (fast.bos_token == template.end)
    )


@pytest.mark.parametrize("name", ["llama", "llama-bunny"])
def test_offsets_without_white_space_change_nothing(name: str) -> None:
    """As with the real Llama-3 tokenizer, whose offsets leave out the space before a word."""
    fast = AutoTokenizer.from_pretrained(REFERENCE / "tokenizers" / "llama3_like")
    backend = fast.backend_tokenizer
    trimming = processors.ByteLevel(add_prefix_space=False, trim_offsets=True)
    backend.post_processor = processors.Sequence([trimming, backend.post_processor])
    turns = (Turn("<image>\nWhich?", "  two spaces \n"), Turn("b  ", "\n\nred  "), Turn("c", "x"))
    words = fast("a b", return_offsets_mapping=True)
    assert words["offset_mapping"][-1] == (2, 3)
    assert TEMPLATES[name].encode(turns, fast) == TEMPLATES[name].encode(turns, tokenizer_of("llama3_like"))


def test_a_prompt_begins_as_a_conversation() -> None:
    for name, tokenizer in (("llama", "llama3_like"), ("phi3", "phi_like_no_bos"), ("vicuna_v1", "vicuna_like")):
        encoded = TEMPLATES[name].encode((Turn("<image>\nWhich?", "red"),), tokenizer_of(tokenizer))
        prompt = TEMPLATES[name].prompt("Which?", tokenizer_of(tokenizer), 1)
        assert prompt == encoded.ids[: encoded.supervised.index(True)]


def test_an_empty_answer_is_passed_over_unless_it_is_the_last() -> None:
    tokenizer = tokenizer_of("vicuna_like")
    between = TEMPLATES["vicuna_v1"].encode((Turn("a", ""), Turn("b", "red"), Turn("c", ""), Turn("d", "x")), tokenizer)
    learned = [token for token, flag in zip(between.ids, between.supervised, strict=True) if flag]
    assert tokenizer.decode(learned).replace(" ", "") == "red</s>x</s>"
    last = TEMPLATES["vicuna_v1"].encode((Turn("b", "red"), Turn("c", "")), tokenizer)
    assert (any(last.supervised), last.problem) == (False, "the last answer is empty")


@pytest.mark.parametrize("text", ["a</s>b", "a</s>", "</s>", "it says ASSISTANT: a"])
@pytest.mark.parametrize("where", ["question", "answer"])
def test_texts_that_hold_the_marks_of_answers_are_not_learned(text: str, where: str) -> None:
    turn = Turn(text, "red") if where == "question" else Turn("Which?", text)
    encoded = TEMPLATES["vicuna_v1"].encode((turn, Turn("b", "red")), tokenizer_of("vicuna_like"))
    assert not any(encoded.supervised)
    assert "finds answers by ' ASSISTANT: ' and '</s>', which the texts hold as well" in encoded.problem


@pytest.mark.parametrize(("name", "tokenizer"), [("vicuna_v1", "vicuna_like"), ("llama-bunny", "llama3_like")])
def test_images_that_a_template_drops_are_refused(name: str, tokenizer: str) -> None:
    record = Record("two", ("a.png", "b.png"), (Turn("From <image> to <image>?", "red"),))
    with pytest.raises(DataError, match=f"'two': template '{name}' places 1 of its 2 images; write one <image>"):
        encode_record(record, with_image_token(tokenizer), 3, template=name)


def test_several_images_stay_where_they_are_written() -> None:
    processor = with_image_token("llama3_like")
    record = Record("two", ("a.png", "b.png"), (Turn("From <image> to <image>?", "red"),))
    row, cut = encode_record(record, processor, 3, template="llama")
    text = processor.tokenizer.decode(row.ids)
    assert text.endswith(f"USER: From {'<image>' * 3} to {'<image>' * 3}?ASSISTANT: red<|end_of_text|>")
    assert (row.images, cut) == (("a.png", "b.png"), False)


def test_captions_ask_nothing() -> None:
    for name in ("plain", "caption"):
        with pytest.raises(DataError, match=f"'{name}' is for captions and asks no question"):
            encode_prompt("What?", with_image_token("vicuna_like"), 3, template=name, with_image=True)


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(DataError, match="Slow gives no offsets; save the model with its fast tokenizer"):
        TEMPLATES["llama"].encode((Turn("a", "b"),), Slow())


def with_image_token(tokenizer: str) -> Any:
    """What a processor has for encoding."""
    fast = AutoTokenizer.from_pretrained(REFERENCE / "tokenizers" / tokenizer)
    fast.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return SimpleNamespace(tokenizer=fast, image_token="<image>")
