"""Models for the benchmarks, made from the demo LVLM: other image sizes, and a decoder of Llama-3-8B's proportions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, LlamaConfig, LlavaForConditionalGeneration

from vrray.errors import ModelError
from vrray.models.loading import load_model, load_processor, resolve_model

HEAD_DIM = 64
QUERY_HEADS_PER_KEY_HEAD = 4
SEED = 0


def smol_at(side: int, folder: Path) -> Path:
    """The demo LVLM with images of `side` x `side` pixels, `(side / 32) ** 2` tokens each; its weights are copied.

    Raises:
        ModelError: `side` is not a multiple of the tower's patch size.
    """
    source = resolve_model("smol")
    config, processor = AutoConfig.from_pretrained(source), load_processor(source)
    _set_side(config, processor, side)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("model.safetensors", "generation_config.json"):
        shutil.copy(source / name, folder / name)
    processor.save_pretrained(folder)
    config.save_pretrained(folder)
    return folder


def proportioned_decoder(
    folder: Path, hidden: int = 512, depth: int = 16, *, side: int = 96, vocabulary: int | None = None
) -> Path:
    """An LVLM with the demo's tower and a random decoder whose layers have Llama-3-8B's proportions.

    Intermediate size 3.5 x hidden, four query heads a key-value head, 64 channels a head (128 there), embeddings not
    tied to the head. Projector as in the demo.

    Args:
        vocabulary: tokens kept of the demo's tokenizer, all 49,152 when None. 32 x hidden is Llama-3's proportion
            (128,256 to 4,096); all of them make the language-model head several times too large a share of the work.

    Raises:
        ModelError: `hidden` does not divide into groups of heads, or `side` into the tower's patches.
    """
    group = HEAD_DIM * QUERY_HEADS_PER_KEY_HEAD
    if hidden % group:
        raise ModelError(f"hidden is {hidden}; use a multiple of {group} ({QUERY_HEADS_PER_KEY_HEAD} heads)")
    source = resolve_model("smol")
    config, processor = AutoConfig.from_pretrained(source), load_processor(source)
    _set_side(config, processor, side)
    layers = {
        "hidden_size": hidden,
        "intermediate_size": hidden * 7 // 2,
        "num_hidden_layers": depth,
        "num_attention_heads": hidden // HEAD_DIM,
        "num_key_value_heads": hidden // group,
        "head_dim": HEAD_DIM,
        "vocab_size": vocabulary or config.text_config.vocab_size,
        "tie_word_embeddings": False,
    }
    config.text_config = LlamaConfig(**(config.text_config.to_dict() | layers))
    config.tie_word_embeddings = False
    processor.save_pretrained(folder)
    if vocabulary is not None:
        _cut_vocabulary(folder / "tokenizer.json", vocabulary)
    _random_model(config, source).save_pretrained(folder)
    return folder


def _set_side(config: Any, processor: Any, side: int) -> None:
    """Everything that must agree on the size of an image: tower, number of image tokens, image processor."""
    patch = config.vision_config.patch_size
    if side % patch:
        raise ModelError(f"image side is {side} pixels; use a multiple of the tower's patch, {patch}")
    config.vision_config.image_size = side
    config.image_seq_length = (side // patch) ** 2
    for name in ("size", "crop_size"):
        setattr(processor.image_processor, name, {"height": side, "width": side})


def _random_model(config: Any, source: Path) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = LlavaForConditionalGeneration(config).eval()
    smol: Any = load_model(source)
    model.model.vision_tower.load_state_dict(smol.model.vision_tower.state_dict())
    for name in ("pad_token_id", "eos_token_id", "bos_token_id"):
        setattr(model.generation_config, name, getattr(config, name))
    return model


def _cut_vocabulary(file: Path, vocabulary: int) -> None:
    """Keep the first tokens of a byte-pair tokenizer: ids are in the order of its merges, so they are a whole one."""
    content = json.loads(file.read_text())
    model = content["model"]
    model["vocab"] = {token: index for token, index in model["vocab"].items() if index < vocabulary}
    model["merges"] = [merge for merge in model["merges"] if "".join(merge) in model["vocab"]]
    file.write_text(json.dumps(content, ensure_ascii=False))
