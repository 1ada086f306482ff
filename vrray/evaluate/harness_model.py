"""A LLaVA-family model as lm-evaluation-harness asks it. Needs the package lm_eval."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import torch
from lm_eval.models.huggingface import HFLM
from transformers import AutoConfig

from vrray.models.loading import load_model, load_processor

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class DecoderLM(HFLM):
    """The harness's own wrapper of transformers' models, around the decoder's side of a vision-language model.

    Questions have no images, so that its tower and its projector are never run.
    """

    def apply_chat_template(self, chat_history: list[dict[str, Any]], add_generation_prompt: bool = True) -> str:
        """The chat template's text; templates of vision-language models may drop messages that are not in parts."""
        parts = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in chat_history]
        text: str = super().apply_chat_template(parts, add_generation_prompt)
        return text


def load_for_harness(path: Path, dtype: Literal["fp32", "fp16", "bf16"] | None, batch: int) -> DecoderLM:
    """The model of a directory, on the GPU where there is one.

    Args:
        dtype: of the weights; None for that in which they are stored.

    Raises:
        ModelError: it cannot be loaded.
    """
    stored = AutoConfig.from_pretrained(path, trust_remote_code=False).dtype or torch.float32
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = load_model(path, stored if dtype is None else _DTYPES[dtype]).to(device)
    log = logging.getLogger(HFLM.__module__)
    level = log.level
    log.setLevel(logging.ERROR)  # it warns that a model was loaded by somebody else, which is what is wanted
    try:
        return DecoderLM(model, backend="causal", tokenizer=load_processor(path).tokenizer, batch_size=batch)
    finally:
        log.setLevel(level)
