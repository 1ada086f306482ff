"""The decoder of an export as a GGUF file for llama.cpp: decoders of the llama architecture.

Names and the layout of the file are those of the package gguf (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vrray.errors import ModelError
from vrray.exporting.weights import parameter_name
from vrray.models.family import family_of
from vrray.models.original import Weight, read_json

_OTHERWISE = "use llama.cpp's convert_hf_to_gguf.py instead"
_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_LOWEST = -1000.0  # score of a token that text is never cut into
_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PRE_TOKENIZERS: dict[str, list[tuple[str, Any]]] = {
    "gpt-2": [("ByteLevel", True)],
    "smollm": [("Digits", True), ("ByteLevel", True)],
    "llama-bpe": [("Split", _LLAMA_3), ("ByteLevel", False)],
}
_FILE_TYPES = {torch.float32: "ALL_F32", torch.float16: "MOSTLY_F16", torch.bfloat16: "MOSTLY_BF16"}


def check_gguf(path: Path, config: Any) -> None:
    """Refuse what this writer cannot express.

    Args:
        path: directory with the tokenizer.
        config: the model's.

    Raises:
        ModelError: the decoder or its tokenizer is of another kind, or the package gguf is missing.
    """
    text = config.text_config
    if text.model_type != "llama":
        raise ModelError(f"--gguf: the decoder is {text.model_type}, only llama is written here; {_OTHERWISE}")
    if text.rope_parameters["rope_type"] != "default":
        raise ModelError(f"--gguf: rope_type {text.rope_parameters['rope_type']!r} is not written here; {_OTHERWISE}")
    if text.attention_bias or text.mlp_bias or text.hidden_act != "silu":
        raise ModelError(f"--gguf: biases or an activation other than silu are not written here; {_OTHERWISE}")
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise ModelError("--gguf needs the package gguf; install it with: pip install gguf") from error
    _tokenizer_kind(path)


def write_gguf(file: Path, name: str, folder: Path, config: Any, weights: Mapping[str, Weight]) -> None:
    """Write the decoder, one tensor in memory at a time.

    Args:
        file, name: to be written, and what the model is called in it.
        folder: of the exported model, with its tokenizer.
        config, weights: the exported model's.
    """
    import gguf

    writer = gguf.GGUFWriter(file, "llama")
    tensors = _decoder_tensors(config, weights)
    matrices = [weight.dtype for weight in tensors.values() if len(weight.shape) > 1]
    _add_metadata(writer, config.text_config, name)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[matrices[0]]])
    _add_tokenizer(writer, folder, config.text_config.vocab_size)
    for place, weight in tensors.items():
        # llama.cpp wants vectors in float32.
        dtype = torch.float32 if len(weight.shape) == 1 else weight.dtype
        writer.add_tensor_info(
            place,
            weight.shape,
            np.dtype(f"u{dtype.itemsize}"),
            dtype.itemsize * math.prod(weight.shape),
            gguf.GGMLQuantizationType[_NAMES[dtype]],
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for place, weight in tensors.items():
        writer.write_tensor_data(_stored(place, weight.load(), config.text_config))
    writer.close()


def _decoder_tensors(config: Any, weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """The decoder's weights by their names in GGUF."""
    import gguf

    decoder = f"{family_of(config).decoder}."
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.text_config.num_hidden_layers)
    found = {}
    for name, weight in weights.items():
        parameter = parameter_name(name)
        if parameter.startswith(decoder):
            parameter = f"model.{parameter.removeprefix(decoder)}"
        elif not parameter.startswith("lm_head."):
            continue
        place = names.get_name(parameter, try_suffixes=(".weight",))
        assert place is not None, parameter
        found[place] = weight
    return found


def _stored(name: str, tensor: torch.Tensor, text: Any) -> np.ndarray[Any, Any]:
    """A tensor as llama.cpp reads it: queries and keys with the two halves of each head interleaved."""
    heads = {"attn_q": text.num_attention_heads, "attn_k": text.num_key_value_heads}.get(name.split(".")[-2])
    if heads is not None:
        tensor = tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
    if tensor.ndim == 1:
        tensor = tensor.float()
    integers = {2: torch.int16, 4: torch.int32}[tensor.dtype.itemsize]
    return tensor.contiguous().view(integers).numpy()


def _add_metadata(writer: Any, text: Any, name: str) -> None:
    writer.add_name(name)
    writer.add_block_count(text.num_hidden_layers)
    writer.add_context_length(text.max_position_embeddings)
    writer.add_embedding_length(text.hidden_size)
    writer.add_feed_forward_length(text.intermediate_size)
    writer.add_head_count(text.num_attention_heads)
    writer.add_head_count_kv(text.num_key_value_heads)
    writer.add_key_length(text.head_dim)
    writer.add_value_length(text.head_dim)
    writer.add_rope_dimension_count(text.head_dim)
    writer.add_rope_freq_base(text.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(text.rms_norm_eps)
    writer.add_vocab_size(text.vocab_size)


def _add_tokenizer(writer: Any, folder: Path, vocabulary: int) -> None:
    import gguf

    kind, pre = _tokenizer_kind(folder)
    vocab = gguf.BpeVocab(folder) if kind == "gpt2" else gguf.SentencePieceVocab(folder)
    entries = [(text, score, int(token_type)) for text, score, token_type in vocab.all_tokens()]
    # The embedding may have more rows than the tokenizer has tokens.
    unused = int(gguf.TokenType.UNUSED)
    entries += [(f"[PAD{number}]".encode(), _LOWEST, unused) for number in range(len(entries), vocabulary)]
    for token in _tokenizer_json(folder).get("added_tokens", []):
        if entries[token["id"]][2] in (unused, int(gguf.TokenType.NORMAL)):
            added = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
            entries[token["id"]] = (token["content"].encode(), _LOWEST, int(added))
    tokens, scores, types = (list(column) for column in zip(*entries, strict=True))
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    if kind == "llama":
        writer.add_token_scores(scores)
    writer.add_token_types(types)
    gguf.SpecialVocab(folder, load_merges=kind == "gpt2", n_vocab=vocabulary).add_to_gguf(writer, quiet=True)


def _tokenizer_kind(folder: Path) -> tuple[str, str]:
    """llama.cpp's names of the tokenizer's model and of how text is cut before it.

    Raises:
        ModelError: it is of a kind that is not known here.
    """
    if (folder / "tokenizer.model").is_file():
        return "llama", "default"
    content = _tokenizer_json(folder)
    model, pre = content.get("model", {}), content.get("pre_tokenizer") or {}
    parts = pre.get("pretokenizers", [pre])
    *cuts, last = [(part.get("type"), _rule(part)) for part in parts]
    plain = content.get("normalizer") is None and model.get("type") == "BPE" and not model.get("byte_fallback")
    for name, rules in _PRE_TOKENIZERS.items():
        if plain and last[0] == "ByteLevel" and [*cuts, last] == rules:
            return "gpt2", name
    raise ModelError(f"--gguf: the tokenizer of {folder} is of a kind that is not written here; {_OTHERWISE}")


def _rule(part: Mapping[str, Any]) -> Any:
    """What tells one pre-tokenizer from another of its type."""
    match part.get("type"):
        case "Split":
            return part.get("pattern", {}).get("Regex")
        case "Digits":
            return part.get("individual_digits")
        case "ByteLevel":
            return part.get("use_regex", True) and not part.get("add_prefix_space")
    return None


def _tokenizer_json(folder: Path) -> dict[str, Any]:
    return read_json(folder / "tokenizer.json") if (folder / "tokenizer.json").is_file() else {}
