"""Original Bunny and LLaVA checkpoints to directories of transformers' `LlavaForConditionalGeneration`.

Weights are read, merged and written tensor by tensor; one is in memory at a time.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessorPil,
    Phi3Config,
    PreTrainedConfig,
    SiglipVisionConfig,
)

from vrray.errors import ModelError
from vrray.models.convert_prompt import (
    Conversation,
    chat_template,
    end_token_id,
    find_tokenizer,
    image_token_id,
    save_processor,
    trained_conversation,
)
from vrray.models.convert_weights import checked_weights, saved_names, with_image_rows
from vrray.models.original import read_json
from vrray.models.original_model import EMBEDDING, Original, find_original
from vrray.models.preprocess import image_processor
from vrray.models.weight_files import whole_or_nothing, write_weights

MAX_SHARD_BYTES = 2_000_000_000
_CONFIGS: Mapping[str, type[PreTrainedConfig]] = {
    "llama": LlamaConfig,
    "phi3": Phi3Config,
    "clip_vision_model": CLIPVisionConfig,
    "siglip_vision_model": SiglipVisionConfig,
}
_ROTARY = ("rope_theta", "rope_scaling", "partial_rotary_factor")  # older names of what rope_parameters holds


def convert(
    source: Path,
    target: Path,
    *,
    vision_tower: Path | None = None,
    base: Path | None = None,
    projector: Path | None = None,
    tokenizer: Path | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Convert a checkpoint; the directory that was written.

    It appears under its name when it is whole. Notes and progress go to stderr.

    Args:
        source: a full fine-tune of Bunny or LLaVA; a stage-1 directory with `mm_projector.bin`; a LoRA directory with
            `non_lora_trainables.bin`; or a plain Llama or Phi-3 model, to be joined with a tower and a projector.
        target: must not exist yet.
        vision_tower: directory of a CLIP or SigLIP model; by default what the checkpoint's `mm_vision_tower` names.
        base: what a stage-1 or LoRA directory belongs to: an original checkpoint, or a plain language model.
        projector: a `mm_projector.bin` to take instead of the checkpoint's. A plain language model without one gets a
            fresh projector.
        tokenizer: directory of the tokenizer; by default the checkpoint's, else the base's.
        max_shard_bytes: size of an output file, unless one tensor alone is larger.

    Raises:
        ModelError: a file is missing, damaged or unsafe; a tensor is missing, unexpected, misshapen or not finite; the
            model cannot be expressed; or the target exists or cannot be written.
    """
    if os.path.lexists(target):
        raise ModelError(f"{target} exists already; name another directory")
    original = find_original(source, vision_tower=vision_tower, base=base, projector=projector)
    config = _llava_config(original)
    weights = checked_weights(original, config)
    found = find_tokenizer([tokenizer] if tokenizer is not None else [f for f in (source, base) if f is not None])
    if found is None and tokenizer is not None:
        raise ModelError(f"--tokenizer {tokenizer} has neither tokenizer.json nor tokenizer.model")
    vocabulary = config.text_config.vocab_size
    config.image_token_index = image_token_id(found, vocabulary)
    if config.image_token_index >= vocabulary:
        weights = with_image_rows(weights, config)
    conversation = trained_conversation(original.family.conversation, found, plain=original.family.tower is None)
    config.conversation = conversation
    images = _image_processor(original, config.vision_config.image_size)
    with whole_or_nothing(target) as folder:
        write_weights(folder, saved_names(weights), max_shard_bytes, "convert")
        config.save_pretrained(folder)
        _generation_config(config, vocabulary, conversation, found, (source, base)).save_pretrained(folder)
        save_processor(
            folder,
            found,
            images,
            chat_template(conversation),
            patch_size=config.vision_config.patch_size,
            select_strategy=config.vision_feature_select_strategy,
            class_token=config.vision_config.model_type == "clip_vision_model",
        )
    _say_what_to_know(original, target, config, vocabulary, tokenizer_found=found is not None)
    return target


def _llava_config(original: Original) -> LlavaConfig:
    """The configuration, its vocabulary still the original one."""
    vision: Any = _sub_config(original.vision["model_type"], original.vision, original.tower)
    text: Any = _sub_config(original.family.text, original.config, original.folder)
    tokens = (vision.image_size // vision.patch_size) ** 2
    clip = vision.model_type == "clip_vision_model"
    config: Any = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_seq_length=tokens + int(original.class_token),
        projector_hidden_act="gelu",
        vision_feature_layer=original.feature_layer,
        vision_feature_select_strategy="default" if clip and not original.class_token else "full",
        tie_word_embeddings=text.tie_word_embeddings,
        bos_token_id=text.bos_token_id,
        eos_token_id=text.eos_token_id,
        pad_token_id=text.pad_token_id,
    )
    config.architectures = [LlavaForConditionalGeneration.__name__]
    if EMBEDDING in original.weights:
        config.dtype = original.weights[EMBEDDING].dtype
    return config


def _sub_config(kind: str, values: Mapping[str, Any], folder: Path) -> PreTrainedConfig:
    cls = _CONFIGS[kind]
    common = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    own = {field.name for field in dataclasses.fields(cls)} - common
    rotary = _ROTARY if "rope_parameters" in own else ()
    try:
        return cls(**{key: value for key, value in values.items() if key in own or key in rotary})
    except (StrictDataclassError, TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise ModelError(f"{folder / 'config.json'} is not usable: {error}") from error


def _image_processor(original: Original, side: int) -> LlavaImageProcessorPil:
    file = original.tower / "preprocessor_config.json"
    images = image_processor(read_json(file), pad=original.pad)
    if dict(images.crop_size)["height"] != side:
        raise ModelError(f"{file} makes images of {dict(images.crop_size)}, the tower takes {side} pixels")
    return images


def _generation_config(
    config: LlavaConfig,
    vocabulary: int,
    conversation: Conversation,
    tokenizer: Any | None,
    folders: tuple[Path | None, ...],
) -> GenerationConfig:
    """Token ids alone, from the checkpoint; how to sample is left to whoever generates."""
    text: Any = config.text_config
    files = [folder / "generation_config.json" for folder in folders if folder is not None]
    given = next((read_json(file) for file in files if file.is_file()), {})
    ends = given.get("eos_token_id", text.eos_token_id)
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    own_end = end_token_id(conversation, tokenizer)
    ends += [own_end] if own_end is not None and own_end not in ends else []
    padding = given.get("pad_token_id", text.pad_token_id)
    if padding is None:
        padding = tokenizer.pad_token_id if tokenizer is not None else next(iter(ends), None)
    # The decoder must never answer with an image, nor with a row that no training has seen.
    never = sorted({config.image_token_index, *range(vocabulary, text.vocab_size)})
    return GenerationConfig(
        bos_token_id=given.get("bos_token_id", text.bos_token_id),
        eos_token_id=ends[0] if len(ends) == 1 else ends or None,
        pad_token_id=padding,
        suppress_tokens=never,
    )


def _say_what_to_know(
    original: Original, target: Path, config: LlavaConfig, vocabulary: int, *, tokenizer_found: bool
) -> None:
    notes = [f"{target} written"]
    rows = config.text_config.vocab_size - vocabulary
    if rows:
        notes.append(f"{rows} rows were added to the vocabulary of {vocabulary} for the image token")
    if original.fresh_projector:
        notes.append("its projector is freshly initialised; train it before anything else (jobs/pretrain.py)")
    if not original.pad:
        notes.append(
            f"its images are not padded to squares, as {original.folder}/config.json says (image_aspect_ratio); "
            "Bunny and LLaVA are fine-tuned with padding: set do_pad in its processor configuration for that"
        )
    if not tokenizer_found:
        notes.append("no tokenizer was found and it has none; convert again with --tokenizer DIR")
    for note in notes:
        print(f"vrray: {note}", file=sys.stderr, flush=True)
