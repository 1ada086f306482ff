"""The processor of a converted model: its tokenizer with an image token, its image processor, its chat template."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from transformers import AutoTokenizer, LlavaImageProcessorPil, LlavaProcessor

from vrray.errors import ModelError

IMAGE_TOKEN = "<image>"
Conversation = Literal["llama", "phi3", "vicuna_v1"]

# What follows the system text and each question, and what ends an answer (`llama` as in the Visual-Region code).
_SEPARATOR = {"llama": "", "phi3": " ", "vicuna_v1": " "}
_END = {"llama": "<|end_of_text|>", "phi3": "<|endoftext|>", "vicuna_v1": "</s>"}
_TEMPLATE = """\
{%- set system = "A chat between a curious user and an artificial intelligence assistant. \
The assistant gives helpful, detailed, and polite answers to the user's questions." -%}
{%- if messages and messages[0]['role'] == 'system' -%}
{%- if messages[0]['content'] is string -%}
{%- set system = messages[0]['content'] -%}
{%- else -%}
{%- set system = messages[0]['content'] | map(attribute='text') | join('') -%}
{%- endif -%}
{%- set messages = messages[1:] -%}
{%- endif -%}
{{- system + 'SEPARATOR' -}}
{%- for message in messages -%}
{%- if message['content'] is string -%}
{%- set text = message['content'] -%}
{%- else -%}
{%- set text = message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join('') -%}
{%- set images = message['content'] | selectattr('type', 'equalto', 'image') | list | length -%}
{%- if images -%}{%- set text = ('<image>\\n' * images + text) | trim -%}{%- endif -%}
{%- endif -%}
{%- if message['role'] == 'user' -%}
{{- 'USER: ' + text + 'SEPARATOR' -}}
{%- elif message['role'] == 'assistant' -%}
{{- 'ASSISTANT:' -}}
{%- if text -%}{% generation %}{{- ' ' + text + 'END' -}}{% endgeneration %}{%- endif -%}
{%- else -%}
{{- raise_exception('a message is of user or assistant, only the first may be of system') -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}
"""


def find_tokenizer(folders: Sequence[Path]) -> Any | None:
    """The tokenizer of the first directory that holds one, with `<image>` as a special token; None where none does.

    An end token doubles for padding where the tokenizer has no padding token, as in the originals.

    Raises:
        ModelError: it cannot be read.
    """
    folder = next((f for f in folders if (f / "tokenizer.json").is_file() or (f / "tokenizer.model").is_file()), None)
    if folder is None:
        return None
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # tokenizers raises nothing more particular
        needs = "" if (folder / "tokenizer.json").is_file() else "; tokenizer.model needs the package sentencepiece"
        raise ModelError(f"{folder} has no usable tokenizer: {error}{needs}") from error
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def image_token_id(tokenizer: Any | None, vocabulary: int) -> int:
    """The id of `<image>`: the tokenizer's own, else the first that it does not use; `<image>` is added to it.

    Args:
        vocabulary: rows of the model's embedding; the id may lie behind them.

    Raises:
        ModelError: the tokenizer has other tokens behind the embedding's rows.
    """
    if tokenizer is None:
        return vocabulary
    last = max((index for token, index in tokenizer.get_vocab().items() if token != IMAGE_TOKEN), default=-1)
    if last >= vocabulary:
        token = tokenizer.convert_ids_to_tokens(last)
        raise ModelError(
            f"{tokenizer.name_or_path}: token {token!r} has the id {last}, the model's vocabulary has {vocabulary} "
            "entries; name the model's own tokenizer by --tokenizer DIR"
        )
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]}, replace_extra_special_tokens=False)
    return int(tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))


def trained_conversation(conversation: Conversation, tokenizer: Any | None, *, plain: bool) -> Conversation:
    """The conversation template of a model; among plain Llama models, Vicuna is known by its end token."""
    vicuna = plain and conversation == "llama" and tokenizer is not None and tokenizer.eos_token == _END["vicuna_v1"]
    return "vicuna_v1" if vicuna else conversation


def end_token_id(conversation: Conversation, tokenizer: Any | None) -> int | None:
    """The id of the token that ends an answer, where the tokenizer has it."""
    return None if tokenizer is None else tokenizer.get_vocab().get(_END[conversation])


def chat_template(conversation: Conversation) -> str:
    """The prompt that a model was trained with, as a chat template that marks the answers for training.

    The start token is left to the tokenizer: written into the text, it changes how SentencePiece cuts what follows.
    """
    return _TEMPLATE.replace("SEPARATOR", _SEPARATOR[conversation]).replace("END", _END[conversation])


def save_processor(
    folder: Path,
    tokenizer: Any | None,
    images: LlavaImageProcessorPil,
    template: str,
    *,
    patch_size: int,
    select_strategy: str,
    class_token: bool,
) -> None:
    """Write everything that `AutoProcessor.from_pretrained` reads; without a tokenizer what there is besides.

    Args:
        class_token: whether the tower has one, used or not.
    """
    if tokenizer is None:
        images.save_pretrained(folder)
        (folder / "chat_template.jinja").write_text(template)
        return
    LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=patch_size,
        vision_feature_select_strategy=select_strategy,
        chat_template=template,
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=int(class_token),
    ).save_pretrained(folder)
