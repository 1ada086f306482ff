"""A tiny random LVLM with its tokenizer, its images and its rows: the real pipeline in milliseconds."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3TextConfig,
    Idefics3Config,
    InternVLConfig,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessorPil,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
    SmolVLMConfig,
)

from vrray.data.chunks import FeatureChunk, plan_chunks
from vrray.data.encode import encode_records
from vrray.data.features import compute_chunks
from vrray.data.images import Images, content_hashes
from vrray.data.records import Record, Turn
from vrray.data.rows import KIND as ROWS
from vrray.data.rows import Row, write_rows
from vrray.models.family import family_of, vision_tower
from vrray.models.loading import base_identity, load_model, load_processor, tower_identity
from vrray.models.smol import CHAT_TEMPLATE
from vrray.store import Store
from vrray.train.desk import Setup
from vrray.train.workspace import Workspace

DEPTH = 6
IMAGE_SIDE = 28
IMAGE_TOKENS = 4
TOWER_WIDTH = 16
_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]
_COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "grey": (128, 128, 128)}
_TEXT = "user assistant What is it? Which colour has the big small circle square in this picture? yes no "


def text_config(kind: type[PreTrainedConfig] = LlamaConfig, **changes: Any) -> PreTrainedConfig:
    """Weights are far larger than a trained model's, so that answers depend on every part of the input."""
    return kind(
        **{
            "num_hidden_layers": DEPTH,
            "hidden_size": 32,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 256,
            "initializer_range": 0.2,
            "tie_word_embeddings": False,
        }
        | changes
    )


def tiny_lvlm(seed: int = 0, text: PreTrainedConfig | None = None) -> LlavaForConditionalGeneration:
    """LLaVA with a CLIP tower of 2 layers; an image is 4 tokens."""
    tokenizer = tiny_tokenizer()
    text = text or text_config()
    text.vocab_size = len(tokenizer)
    text.bos_token_id, text.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    text.pad_token_id = tokenizer.pad_token_id
    vision = CLIPVisionConfig(
        hidden_size=TOWER_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=IMAGE_SIDE,
        patch_size=14,
        projection_dim=16,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=IMAGE_TOKENS,
        tie_word_embeddings=text.tie_word_embeddings,
    )
    config.bos_token_id, config.eos_token_id, config.pad_token_id = text.bos_token_id, text.eos_token_id, 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config).eval().requires_grad_(False)
        for parameter in model.model.multi_modal_projector.parameters():
            parameter.normal_(0, 0.5)
        for parameter in model.model.vision_tower.parameters():
            parameter.normal_(0, 0.3)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model


def build_tiny(folder: Path, seed: int = 0, text: PreTrainedConfig | None = None) -> Path:
    """A model directory as users have it."""
    tiny_lvlm(seed, text).save_pretrained(folder)
    return _with_processor(folder)


def tiny_family(kind: str, seed: int = 0) -> PreTrainedModel:
    """A model of another family than LLaVA's; an image is 4 tokens there, too."""
    tokenizer = tiny_tokenizer()
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    vision: dict[str, Any] = {
        "hidden_size": TOWER_WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": IMAGE_SIDE,
        "patch_size": 7,
    }
    config: PreTrainedConfig
    if kind == "internvl":
        sides = {"image_size": [IMAGE_SIDE, IMAGE_SIDE], "patch_size": [7, 7]}
        tower = InternVLVisionConfig(**vision | sides)
        config = InternVLConfig(vision_config=tower, text_config=text_config(Qwen2Config), image_token_id=image_id)
    elif kind == "gemma3":
        kinds = ["sliding_attention", "sliding_attention", "full_attention"] * (DEPTH // 3)
        changes = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8, "layer_types": kinds}
        config = Gemma3Config(
            vision_config=SiglipVisionConfig(**vision, vision_use_head=False),
            text_config=text_config(Gemma3TextConfig, tie_word_embeddings=True, **changes),
            image_token_index=image_id,
            mm_tokens_per_image=IMAGE_TOKENS,
        )
    else:
        tied = kind == "smolvlm"
        config = {"idefics3": Idefics3Config, "smolvlm": SmolVLMConfig}[kind](
            vision_config=vision,
            text_config=text_config(tie_word_embeddings=tied).to_dict(),
            image_token_id=image_id,
            scale_factor=2,
            tie_word_embeddings=tied,
        )
    config.text_config.vocab_size = len(tokenizer)
    for name, value in ids.items():
        setattr(config, name, value)
        setattr(config.text_config, name, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config).eval().requires_grad_(False)
        for parameter in model.get_submodule(family_of(config).projector).parameters():
            parameter.normal_(0, 0.5)
        for parameter in vision_tower(model).parameters():
            parameter.normal_(0, 0.3)
    return model


def build_family(folder: Path, kind: str) -> Path:
    """A model directory of another family, with LLaVA's processor, which needs no further package."""
    tiny_family(kind).save_pretrained(folder)
    return _with_processor(folder)


def _with_processor(folder: Path) -> Path:
    size = {"height": IMAGE_SIDE, "width": IMAGE_SIDE}
    LlavaProcessor(
        image_processor=LlavaImageProcessorPil(do_pad=False, size={"shortest_edge": IMAGE_SIDE}, crop_size=size),
        tokenizer=tiny_tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token="<image>",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    return folder


def draw_photos(folder: Path, count: int) -> list[str]:
    """Noisy squares of one colour; the names of the files."""
    generator = np.random.default_rng(5)
    names = [f"{number}-{colour}.png" for number, colour in zip(range(count), list(_COLOURS) * count, strict=False)]
    for name in names:
        colour = _COLOURS[name.removesuffix(".png").split("-")[1]]
        noise = generator.integers(-25, 25, (IMAGE_SIDE, IMAGE_SIDE, 3))
        Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(folder / name)
    return names


def tiny_records(photos: Sequence[str], texts: int) -> list[Record]:
    """A question about each photo, and some without."""
    seen = [
        Record(name, (name,), (Turn("<image>\nWhich colour?", name.removesuffix(".png").split("-")[1]),))
        for name in photos
    ]
    # Lengths differ, so that ranks and micro-batches hold different numbers of supervised tokens.
    plain = [
        Record(f"text-{n}", (), (Turn("What is it? " * (1 + n % 3), "a circle " * (1 + n % 4)),)) for n in range(texts)
    ]
    return seen + plain


@dataclass(frozen=True)
class Ground:
    """What a worker group needs: a store with features, the model, its rows (image rows first)."""

    store: str
    model: str
    base: str
    chunks: tuple[FeatureChunk, ...]
    images: Images
    photos: tuple[str, ...]
    rows: tuple[Row, ...]

    def copied(self, folder: Path) -> Ground:
        """The same with a store of its own, which holds the rows, too, and which one may write into."""
        shutil.copytree(self.store, folder / "store")
        store = Store(folder / "store")
        store.put(ROWS, "rows", lambda folder: write_rows(folder, self.rows))
        return replace(self, store=store.uri)

    def workspace(self, precision: Literal["bf16", "fp32"] = "fp32") -> Workspace:
        """This rank's workspace, as a Ray Train worker sets it up; a process group must be there."""
        workspace = Workspace.set_up(Setup(self.store, self.model, self.base, precision))
        workspace.use_cached(self.chunks)
        return workspace

    def workspace_alone(self) -> Workspace:
        """A workspace of one rank without a process group."""
        model, processor = load_model(Path(self.model)), load_processor(Path(self.model))
        workspace = Workspace(Store(self.store), model, processor, self.base, torch.device("cpu"), rank=0, world=1)
        workspace.use_cached(self.chunks)
        return workspace


def prepare_ground(folder: Path, model: Path, photos: int = 12, texts: int = 12) -> Ground:
    """Draw photos, compute their features with the model's tower, encode rows."""
    (folder / "photos").mkdir()
    names = draw_photos(folder / "photos", photos)
    store, base, images = Store(folder / "store"), base_identity(model), Images({"": folder / "photos"})
    chunks = plan_chunks(names, content_hashes(images, names), tower_identity(model), chunk=8)
    processor, vision = load_processor(model), vision_tower(load_model(model))
    compute_chunks(chunks, images, vision, AutoConfig.from_pretrained(model), processor.image_processor, store)
    rows = encode_records(tiny_records(names, texts), processor, IMAGE_TOKENS)
    return Ground(store.uri, str(model), base, tuple(chunks), images, tuple(names), tuple(rows))


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([_TEXT, " ".join(_COLOURS)] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        additional_special_tokens=["<image>"],
        padding_side="left",
    )
