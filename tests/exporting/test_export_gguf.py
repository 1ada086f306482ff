"""The decoder as a GGUF file: read back by transformers, it gives the logits and the tokens of the export."""

from __future__ import annotations

import builtins
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import DEPTH, build_family, build_tiny, text_config
from transformers import AutoModelForCausalLM, AutoTokenizer, Phi3Config

import vrray
from vrray.errors import ModelError
from vrray.models.loading import load_model

gguf = pytest.importorskip("gguf")
TEXT = "What is it? Which colour has the big circle, 123?\n\n ok"


def both(model: Path, folder: Path, **options: Any) -> tuple[Path, Path]:
    """An export and its GGUF file."""
    out, file = folder / "out", folder / "files" / "decoder.gguf"
    vrray.export(model=str(model), remove="1,5", out=out, gguf=file, **options)
    return out, file


def read(file: Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=dtype)
    return model, AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


@torch.inference_mode()
def logits(model: Any, ids: list[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([ids])).logits


def fields(file: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items()}


@pytest.mark.parametrize("kind", ["llava", "tied", "idefics3", "smolvlm"])
def test_the_decoder_reads_back(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "source"
    if kind in ("idefics3", "smolvlm"):
        build_family(source, kind)
    else:
        build_tiny(source, text=text_config(tie_word_embeddings=kind == "tied", rope_theta=5e4))
    out, file = both(source, tmp_path)
    model, tokenizer = read(file)
    ids = AutoTokenizer.from_pretrained(out)(TEXT)["input_ids"]
    assert tokenizer(TEXT)["input_ids"] == ids
    assert torch.equal(logits(model, ids), logits(load_model(out), ids))
    assert model.config.num_hidden_layers == DEPTH - 2
    found = fields(file)
    assert found["general.name"] == "out"
    assert found["tokenizer.ggml.pre"] == "gpt-2"
    assert found["tokenizer.chat_template"] == (out / "chat_template.jinja").read_text()
    assert [path.name for path in file.parent.iterdir()] == ["decoder.gguf"]


def test_another_precision(tiny_model: Path, tmp_path: Path) -> None:
    out, file = both(tiny_model, tmp_path, dtype="bf16")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}
    assert kinds["blk.0.attn_q.weight"] == kinds["token_embd.weight"] == "BF16"
    assert kinds["blk.0.attn_norm.weight"] == kinds["output_norm.weight"] == "F32"
    assert torch.equal(logits(read(file)[0], [1, 40, 50]), logits(load_model(out), [1, 40, 50]))


def test_special_tokens_and_rows_without_one(tmp_path: Path) -> None:
    source = build_tiny(tmp_path / "source")
    model = load_model(source)
    model.resize_token_embeddings(model.config.text_config.vocab_size + 5)
    model.save_pretrained(source)
    found = fields(both(source, tmp_path)[1])
    tokens, types = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    assert len(tokens) == len(types) == model.config.text_config.vocab_size
    kinds = {token: gguf.TokenType(kind).name for token, kind in zip(tokens, types, strict=True)}
    assert {kinds[token] for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>")} == {"CONTROL"}
    assert [kind for kind in types[-5:]] == [gguf.TokenType.UNUSED] * 5
    assert kinds["a"] == "NORMAL"
    assert found["tokenizer.ggml.eos_token_id"] == tokens.index("<|im_end|>")


def test_a_sentencepiece_tokenizer_keeps_its_scores(tmp_path: Path) -> None:
    import sentencepiece  # type: ignore[import-untyped]

    source = build_tiny(tmp_path / "source")
    text = tmp_path / "text"
    text.write_text("What is it? Which colour has the circle? red green blue\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "sp"), vocab_size=100, model_type="bpe", byte_fallback=False,
        minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    shutil.copy(tmp_path / "sp.model", source / "tokenizer.model")
    (source / "tokenizer.json").unlink()
    found = fields(both(source, tmp_path)[1])
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "sp.model"))
    count = pieces.vocab_size()
    assert found["tokenizer.ggml.model"] == "llama"
    assert found["tokenizer.ggml.tokens"][:count] == [pieces.id_to_piece(number) for number in range(count)]
    assert found["tokenizer.ggml.scores"][:count] == [pieces.get_score(number) for number in range(count)]
    assert found["tokenizer.ggml.token_type"][:3] == [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 2]


LLAMA_3 = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
    "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
)
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        ([{"type": "Digits", "individual_digits": True}, BYTES | {"use_regex": True}], "smollm"),
        (
            [
                {"type": "Split", "pattern": {"Regex": LLAMA_3}, "behavior": "Isolated", "invert": False},
                BYTES | {"use_regex": False},
            ],
            "llama-bpe",
        ),
        ([{"type": "Digits", "individual_digits": False}, BYTES | {"use_regex": True}], None),
        ([BYTES | {"use_regex": True, "add_prefix_space": True}], None),
        ([{"type": "Whitespace"}], None),
    ],
)
def test_how_text_is_cut(tmp_path: Path, parts: list[dict[str, Any]], name: str | None) -> None:
    source = build_tiny(tmp_path / "source")
    content = json.loads((source / "tokenizer.json").read_text())
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": parts}
    (source / "tokenizer.json").write_text(json.dumps(content))
    if name is None:
        with pytest.raises(ModelError, match=r"--gguf: the tokenizer of .* not written here; use .*convert_hf_to_gguf"):
            both(source, tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["source"]
    else:
        assert fields(both(source, tmp_path)[1])["tokenizer.ggml.pre"] == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"kind": Phi3Config, "pad_token_id": 0}, "--gguf: the decoder is phi3, only llama is written here; use"),
        ({"attention_bias": True}, "--gguf: biases or an activation other than silu"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "--gguf: rope_type 'linear' is not written"),
    ],
)
def test_other_decoders_are_refused_before_anything_is_written(
    tmp_path: Path, text: dict[str, Any], message: str
) -> None:
    source = build_tiny(tmp_path / "source", text=text_config(**text))
    with pytest.raises(ModelError, match=message):
        both(source, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_without_the_package(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name == "gguf":
            raise ImportError(name)
        return own(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ModelError, match="needs the package gguf; install it with: pip install gguf"):
        both(tiny_model, tmp_path)


def test_an_interruption_leaves_neither_file_nor_directory(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
    with pytest.raises(ModelError, match=r"decoder\.gguf cannot be written: .*No space"):
        both(tiny_model, tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["files"]
