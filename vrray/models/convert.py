"""Original Bunny and LLaVA checkpoints to directories of transformers' `LlavaForConditionalGeneration`.

Weights are read, merged and written tensor by tensor; at most one output file is in memory.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
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
from vrray.models.original import Weight, read_json
from vrray.models.original_model import EMBEDDING, HEAD, INNER_TOWER, PROJECTOR, Original, find_original
from vrray.models.preprocess import image_processor

MAX_SHARD_BYTES = 2_000_000_000
_ROW_MULTIPLE = 64
_CONFIGS: Mapping[str, type[PreTrainedConfig]] = {
    "llama": LlamaConfig,
    "phi3": Phi3Config,
    "clip_vision_model": CLIPVisionConfig,
    "siglip_vision_model": SiglipVisionConfig,
}
_ROTARY = ("rope_theta", "rope_scaling", "partial_rotary_factor")  # older names of what rope_parameters holds
_LINEAR = {"linear_1": "0", "linear_2": "2"}  # the projector's layers here and in the originals
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


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
    weights = _checked(original, config)
    found = find_tokenizer([tokenizer] if tokenizer is not None else [f for f in (source, base) if f is not None])
    if found is None and tokenizer is not None:
        raise ModelError(f"--tokenizer {tokenizer} has neither tokenizer.json nor tokenizer.model")
    vocabulary = config.text_config.vocab_size
    config.image_token_index = image_token_id(found, vocabulary)
    if config.image_token_index >= vocabulary:
        weights = _grow(weights, config)
    conversation = trained_conversation(original.family.conversation, found, plain=original.family.tower is None)
    config.conversation = conversation
    images = image_processor(read_json(original.tower / "preprocessor_config.json"), pad=original.pad)
    if dict(images.crop_size)["height"] != config.vision_config.image_size:
        side = config.vision_config.image_size
        raise ModelError(
            f"{original.tower}: preprocessor_config.json makes images of another size than the tower's {side}"
        )
    with _whole_or_nothing(target) as folder:
        _write_weights(folder, weights, max_shard_bytes)
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


def _checked(original: Original, config: LlavaConfig) -> dict[str, Weight]:
    """The weights in the order of the model, each there and of its shape, and none besides."""
    try:
        with torch.device("meta"):
            model = LlavaForConditionalGeneration(config)
    except (RuntimeError, ValueError, LookupError, ArithmeticError) as error:
        raise ModelError(f"{original.folder / 'config.json'} is not usable: {error}") from error
    expected = {_original_name(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    weights = dict(original.weights)
    if config.tie_word_embeddings:
        del expected[HEAD]
        _drop_tied_head(weights)
    if missing := [name for name in expected if name not in weights]:
        name, more = missing[0], len(missing)
        raise ModelError(f"{original.folder}: {name} {list(expected[name])} is nowhere ({more} weights are missing)")
    if extra := [weight.source for name, weight in weights.items() if name not in expected]:
        raise ModelError(f"{extra[0]} is no part of the model that config.json describes ({len(extra)} such tensors)")
    for name, shape in expected.items():
        weight = weights[name]
        if weight.shape != shape:
            raise ModelError(f"{weight.source} has shape {list(weight.shape)}, config.json needs {list(shape)}")
        if weight.dtype not in _FLOATS:
            raise ModelError(f"{weight.source} is {weight.dtype}; float32, float16 or bfloat16 is needed")
    return {name: weights[name] for name in expected}


def _drop_tied_head(weights: dict[str, Weight]) -> None:
    head = weights.pop(HEAD, None)
    if head is not None and EMBEDDING in weights and not torch.equal(head.load(), weights[EMBEDDING].load()):
        raise ModelError(f"{head.source} differs from the embedding, to which config.json ties it")


def _original_name(parameter: str) -> str:
    """The name in the original code bases of a parameter of `LlavaForConditionalGeneration`."""
    part, _, rest = parameter.removeprefix("model.").partition(".")
    if part == "language_model":
        return f"model.{rest}"
    if part == "multi_modal_projector":
        layer, _, kind = rest.partition(".")
        return f"{PROJECTOR}{_LINEAR[layer]}.{kind}"
    if part == "vision_tower":
        return f"{INNER_TOWER}vision_model.{rest.removeprefix('vision_model.')}"
    return parameter


def _saved_name(name: str) -> str:
    """The name in a saved directory: that of the LLaVA models on the hub, which every version of transformers reads."""
    if name.startswith(PROJECTOR):
        layer, _, kind = name.removeprefix(PROJECTOR).partition(".")
        here = next(key for key, value in _LINEAR.items() if value == layer)
        return f"multi_modal_projector.{here}.{kind}"
    if name.startswith(INNER_TOWER):
        return f"vision_tower.{name.removeprefix(INNER_TOWER)}"
    return f"language_model.{name}"


def _grow(weights: Mapping[str, Weight], config: LlavaConfig) -> dict[str, Weight]:
    """Append rows for the image token to embedding and head, and say in the configuration how many there were."""
    rows = -(-(config.image_token_index + 1) // _ROW_MULTIPLE) * _ROW_MULTIPLE
    config.text_config.original_vocab_size = config.text_config.vocab_size
    config.text_config.vocab_size = rows
    return {
        name: dataclasses.replace(
            weight, shape=(rows, weight.shape[1]), load=partial(_appended, weight, rows, mean=name == EMBEDDING)
        )
        if name in (EMBEDDING, HEAD)
        else weight
        for name, weight in weights.items()
    }


def _appended(weight: Weight, rows: int, *, mean: bool) -> torch.Tensor:
    """Rows of zeros, or of the mean of the others, so that nothing large enters the decoder by chance."""
    tensor = weight.load()
    row = torch.zeros(tensor.shape[1], dtype=torch.float64)
    if mean:
        for part in tensor.split(8192):
            row += part.double().sum(0) / len(tensor)
    return torch.cat([tensor, row.to(tensor.dtype).expand(rows - len(tensor), -1)])


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


@contextmanager
def _whole_or_nothing(target: Path) -> Iterator[Path]:
    """A temporary sibling that gets the target's name when all is written, and vanishes otherwise."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            yield scratch
            scratch.chmod(0o755)
            os.rename(scratch, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise ModelError(f"{target} cannot be written: {error}") from error


def _write_weights(folder: Path, weights: Mapping[str, Weight], limit: int) -> None:
    """safetensors files of at most `limit` bytes, with an index where there are several."""
    total = sum(weight.nbytes for weight in weights.values())
    places: dict[str, int] = {}
    shard: dict[str, torch.Tensor] = {}
    number = size = 0
    with tqdm(total=total, unit="B", unit_scale=True, desc="convert", disable=None, file=sys.stderr) as bar:
        for name, weight in weights.items():
            if shard and size + weight.nbytes > limit:
                save_file(shard, folder / f"{number}", metadata={"format": "pt"})
                shard, size, number = {}, 0, number + 1
            shard[_saved_name(name)] = weight.load()
            places[_saved_name(name)] = number
            size += weight.nbytes
            bar.update(weight.nbytes)
        save_file(shard, folder / f"{number}", metadata={"format": "pt"})
    names = [f"model-{index + 1:05d}-of-{number + 1:05d}.safetensors" for index in range(number + 1)]
    names = ["model.safetensors"] if number == 0 else names
    for index, name in enumerate(names):
        os.rename(folder / f"{index}", folder / name)
        (folder / name).chmod(0o644)  # safetensors leaves them to their owner alone
    if number:
        content = {
            "metadata": {"total_size": total},
            "weight_map": {name: names[place] for name, place in sorted(places.items())},
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(content, indent=2) + "\n")


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
