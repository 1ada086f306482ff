"""The tokenizer, the image token and the chat template of a converted model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from originals import TOKENIZERS, random_projector, write_language_model, write_original
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoConfig, AutoTokenizer, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from vrray.data.encode import encode_record
from vrray.data.records import Record, Turn
from vrray.data.templates import TEMPLATES, Dialogue
from vrray.errors import ModelError
from vrray.models.convert import convert
from vrray.models.loading import load_processor

pytestmark = pytest.mark.skipif(not TOKENIZERS.is_dir(), reason="the reference tokenizers are not there")

CASES = {
    "llama": ("bunny-llama", "llama3_like", "visual_region"),
    "phi3": ("bunny-phi3", "phi3_like_with_bos", "bunny"),
    "vicuna_v1": ("llava", "vicuna_like", "llava"),
}
SINGLE_IMAGE = ["r0", "r1", "r2", "r3", "r4", "r6", "r8", "r9"]  # neither odd records nor several images


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A conversation template, and a model converted with a tokenizer that fills its vocabulary."""
    model_type, tokenizer, _ = CASES[request.param]
    folder = tmp_path_factory.mktemp("case")
    source = write_original(folder, model_type, vocabulary=len(AutoTokenizer.from_pretrained(TOKENIZERS / tokenizer)))
    return request.param, convert(source, folder / "out", tokenizer=TOKENIZERS / tokenizer)


def entry(conversation: str) -> dict[str, Any]:
    """What the original code made of the reference records."""
    _, tokenizer, file = CASES[conversation]
    entries = json.loads((TOKENIZERS.parent / f"{file}.json").read_text())
    return next(e for e in entries if (e["version"], e["tokenizer"]) == (conversation, tokenizer))


def records() -> dict[str, Record]:
    raw = json.loads((TOKENIZERS.parent / "records.json").read_text())
    found = {}
    for row in raw:
        texts = [message["value"] for message in row["conversations"]]
        turns = tuple(Turn(*texts[n : n + 2]) for n in range(0, len(texts), 2)) if len(texts) % 2 == 0 else ()
        found[row["id"]] = Record(row["id"], (row["image"],) if "image" in row else (), turns)
    return found


def messages(record: Record) -> list[dict[str, Any]]:
    found = []
    for turn in record.turns:
        parts = [{"type": "image"}] * turn.user.count("<image>")
        text = turn.user.replace("<image>", "").strip() if parts else turn.user
        found.append({"role": "user", "content": [*parts, {"type": "text", "text": text}]})
        found.append({"role": "assistant", "content": turn.assistant})
    return found


def test_prompts_and_labels(case: tuple[str, Path]) -> None:
    conversation, folder = case
    processor, known = load_processor(folder), records()
    tokenizer = processor.tokenizer
    image = tokenizer.convert_tokens_to_ids("<image>")
    expected = {record["id"]: record for record in entry(conversation)["records"]}
    for name in SINGLE_IMAGE:
        text = processor.apply_chat_template(messages(known[name]))
        dialogue = TEMPLATES[conversation]
        assert isinstance(dialogue, Dialogue)
        assert text == dialogue.render(known[name].turns)[0]
        if "prompt" in expected[name]:
            assert text == expected[name]["prompt"]
        if "▁" in tokenizer.get_vocab() and known[name].images:
            continue  # the original puts a space behind an image, which a text in one piece has not
        ids = tokenizer(text)["input_ids"]
        expected_ids, labels = expected[name]["input_ids"], expected[name]["labels"]  # some are cut at 192
        assert [-200 if token == image else token for token in ids][: len(expected_ids)] == expected_ids
        if name != "r2":  # its image stands within the text
            row = encode_record(known[name], processor, 1).row
            assert list(row.ids) == ids
            assert list(row.supervised)[: len(labels)] == [label != -100 for label in labels]


def test_vrray_encodes_with_its_chat_template(case: tuple[str, Path]) -> None:
    conversation, folder = case
    processor = load_processor(folder)
    record = records()["r4"]
    own, named = (encode_record(record, processor, 4, template=name).row for name in ("chat", conversation))
    assert own == named


def test_generation_prompts(case: tuple[str, Path]) -> None:
    conversation, folder = case
    processor = load_processor(folder)
    for prompt in entry(conversation)["generation_prompts"]:
        parts = [{"type": "image"}] * prompt["question"].count("<image>")
        text = prompt["question"].replace("<image>\n", "")
        asked = [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]
        found = processor.apply_chat_template(asked, add_generation_prompt=True)
        assert found == prompt["prompt"]


def test_other_messages(case: tuple[str, Path]) -> None:
    conversation, folder = case
    processor = load_processor(folder)
    end, separator = {"llama": ("<|end_of_text|>", ""), "phi3": ("<|endoftext|>", " ")}.get(conversation, ("</s>", " "))
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": " Both? "}]},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": [{"type": "image"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
    ]
    assert processor.apply_chat_template(talk) == (
        f"Be brief.{separator}USER: <image>\n<image>\n Both?{separator}ASSISTANT:"
        f"USER: <image>{separator}ASSISTANT: Yes.{end}"
    )
    with pytest.raises(Exception, match="a message is of user or assistant"):
        processor.apply_chat_template([{"role": "tool", "content": "x"}])


@torch.inference_mode()
def test_a_photo_and_a_question_from_end_to_end(case: tuple[str, Path]) -> None:
    conversation, folder = case
    processor, model = load_processor(folder), LlavaForConditionalGeneration.from_pretrained(folder)
    config, vocabulary = model.config, len(AutoTokenizer.from_pretrained(TOKENIZERS / CASES[conversation][1]))
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 31, 3), np.uint8))
    asked = [{"role": "user", "content": [{"type": "image", "image": photo}, {"type": "text", "text": "What is it?"}]}]
    inputs = processor.apply_chat_template(
        asked, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    ids = inputs["input_ids"][0].tolist()
    assert ids.count(processor.tokenizer.bos_token_id) == 1
    assert ids.count(config.image_token_index) == config.image_seq_length == 4
    assert config.image_token_index == vocabulary
    assert config.text_config.original_vocab_size == vocabulary
    assert config.text_config.vocab_size == -(-(vocabulary + 1) // 64) * 64
    model.lm_head.weight[vocabulary:] = 0
    model.lm_head.weight[:vocabulary] *= -1
    output = model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert output[0, len(ids) :].max() < vocabulary


def test_without_start_tokens(tmp_path: Path) -> None:
    folder = TOKENIZERS / "phi_like_no_bos"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    out = convert(write_original(tmp_path, "bunny-phi3", len(tokenizer)), tmp_path / "out", tokenizer=folder)
    asked = [{"role": "user", "content": "Why?"}]
    ids = load_processor(out).apply_chat_template(asked, tokenize=True, return_dict=True)["input_ids"][0]
    assert tokenizer.convert_ids_to_tokens(ids[0]) == "A"


# --- the image token


def write_tokenizer(folder: Path, words: list[str], **more: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {word: index for index, word in enumerate(["<unk>", "<s>", "</s>", *words])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="<unk>")),
        unk_token="<unk>",
        eos_token="</s>",
        **more,
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("words", "vocabulary", "image_id", "rows"),
    [
        (["a", "b"], 40, 5, 40),  # the first id that is free
        (["a", "<image>", "b"], 40, 4, 40),  # its own
        ([f"w{n}" for n in range(37)], 40, 40, 64),  # no room: rows are added
        ([f"w{n}" for n in range(60)], 63, 63, 64),
        ([f"w{n}" for n in range(61)], 64, 64, 128),
        ([*(f"w{n}" for n in range(37)), "<image>"], 40, 40, 64),  # its own lies behind the rows
    ],
)
def test_image_token(tmp_path: Path, words: list[str], vocabulary: int, image_id: int, rows: int) -> None:
    source = write_original(tmp_path, "llava", vocabulary)
    write_tokenizer(source, words)
    out = convert(source, tmp_path / "out")
    config = AutoConfig.from_pretrained(out)
    assert (config.image_token_index, config.text_config.vocab_size) == (image_id, rows)
    assert getattr(config.text_config, "original_vocab_size", None) == (vocabulary if rows != vocabulary else None)
    tokenizer = load_processor(out).tokenizer
    assert tokenizer.convert_tokens_to_ids("<image>") == image_id
    assert tokenizer("<image>", add_special_tokens=False)["input_ids"] == [image_id]
    assert "<image>" in tokenizer.all_special_tokens
    assert tokenizer.pad_token == "<unk>"
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation["suppress_tokens"] == sorted({image_id, *range(vocabulary, rows)})


def test_a_tokenizer_larger_than_the_embedding(tmp_path: Path) -> None:
    source = write_original(tmp_path, "llava", vocabulary=40)
    write_tokenizer(source, [f"w{n}" for n in range(38)])
    with pytest.raises(ModelError, match=r"token 'w37' has the id 40, the model's vocabulary has 40 entries"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_which_tokenizer_is_taken(tmp_path: Path) -> None:
    source, plain = write_original(tmp_path), tmp_path / "plain"
    stage_1 = tmp_path / "stage1"
    stage_1.mkdir()
    shutil.copy(source / "config.json", stage_1)
    torch.save(random_projector(seed=3), stage_1 / "mm_projector.bin")
    for place in (source, plain, tmp_path / "apart"):
        write_tokenizer(place, [place.name])
    cases: list[tuple[str, Path, dict[str, Path]]] = [
        ("checkpoint", source, {}),
        ("plain", stage_1, {"base": plain}),
        ("apart", source, {"tokenizer": tmp_path / "apart"}),
    ]
    for word, given, options in cases:
        out = convert(given, tmp_path / f"with-{word}", **options)
        assert load_processor(out).tokenizer.convert_tokens_to_ids(word) == 3
    with pytest.raises(ModelError, match=r"--tokenizer .*tower has neither"):
        convert(source, tmp_path / "none", tokenizer=tmp_path / "tower")


def test_no_tokenizer_anywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = convert(write_original(tmp_path), tmp_path / "out")
    assert "no tokenizer was found and it has none; convert again with --tokenizer DIR" in capsys.readouterr().err
    assert {file.name for file in out.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "chat_template.jinja",
    }


@pytest.mark.parametrize(("kind", "eos", "expected"), [("llama", "</s>", "vicuna_v1"), ("llama", "<s>", "llama")])
def test_vicuna_among_plain_language_models(tmp_path: Path, kind: str, eos: str, expected: str) -> None:
    write_original(tmp_path / "any")
    plain = write_language_model(tmp_path / "plain", kind)
    write_tokenizer(plain, [])
    file = plain / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token": eos}))
    out = convert(plain, tmp_path / "out", vision_tower=tmp_path / "any" / "tower")
    assert AutoConfig.from_pretrained(out).conversation == expected


def test_end_tokens(tmp_path: Path) -> None:
    """All that the checkpoint names end an answer, and so does the conversation's own."""
    source = write_original(tmp_path, "bunny-phi3")
    write_tokenizer(source, ["<|endoftext|>", "<|end|>"])
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [4, 2], "temperature": 0.2}))
    generation = json.loads((convert(source, tmp_path / "out") / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [4, 2, 3]
    assert generation["pad_token_id"] == 0
    assert "temperature" not in generation


def test_a_broken_tokenizer(tmp_path: Path) -> None:
    source = write_original(tmp_path)
    (source / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="has no usable tokenizer"):
        convert(source, tmp_path / "out")
