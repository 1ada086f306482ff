"""The weights of a converted model: checked against its configuration, with rows for the image token."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial

import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

from vrray.errors import ModelError
from vrray.models.original import Weight
from vrray.models.original_model import EMBEDDING, HEAD, INNER_TOWER, PROJECTOR, Original

_ROW_MULTIPLE = 64
_LINEAR = {"linear_1": "0", "linear_2": "2"}  # the projector's layers here and in the originals
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def checked_weights(original: Original, config: LlavaConfig) -> dict[str, Weight]:
    """The weights in the order of the model: each is there, of its shape and type, and none is there besides.

    Args:
        config: with the original vocabulary.

    Raises:
        ModelError: otherwise, or where the configuration describes no model.
    """
    try:
        with torch.device("meta"):
            model = LlavaForConditionalGeneration(config)
    except (RuntimeError, ValueError, LookupError, ArithmeticError, AssertionError) as error:
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


def with_image_rows(weights: Mapping[str, Weight], config: LlavaConfig) -> dict[str, Weight]:
    """Rows for the image token appended to embedding and head, up to a multiple of 64.

    The configuration gets their number, and under `original_vocab_size` what it was, so that losses and answers can
    leave the new ones out.
    """
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


def saved_names(weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """The weights under the names of the LLaVA models on the hub, which every version of transformers reads."""
    return {_saved_name(name): weight for name, weight in weights.items()}


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
    if name.startswith(PROJECTOR):
        layer, _, kind = name.removeprefix(PROJECTOR).partition(".")
        here = next(key for key, value in _LINEAR.items() if value == layer)
        return f"multi_modal_projector.{here}.{kind}"
    if name.startswith(INNER_TOWER):
        return f"vision_tower.{name.removeprefix(INNER_TOWER)}"
    return f"language_model.{name}"


def _appended(weight: Weight, rows: int, *, mean: bool) -> torch.Tensor:
    """Rows of zeros, or of the mean of the others, so that nothing large enters the decoder by chance."""
    tensor = weight.load()
    row = torch.zeros(tensor.shape[1], dtype=torch.float64)
    if mean:
        for part in tensor.split(8192):
            row += part.double().sum(0) / len(tensor)
    return torch.cat([tensor, row.to(tensor.dtype).expand(rows - len(tensor), -1)])
