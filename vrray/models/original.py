"""Checkpoint files of the original code bases, read tensor by tensor: safetensors and .bin, whole or in shards."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from vrray.errors import ModelError

# In the order of preference, as transformers has it; an index names its shards.
_FORMATS = ("model*.safetensors", "pytorch_model*.bin")
_INDEX = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_OTHERS = {"F64": torch.float64, "I64": torch.int64}  # buffers of old checkpoints
_BUFFER = re.compile(r"(.*\.)?(rotary_emb\.inv_freq|position_ids)")


@dataclass(frozen=True)
class Weight:
    """A tensor that is read, or computed, only when it is written.

    `source` says where it comes from, for messages; `load` gives a tensor that nothing else holds,
    and raises a ModelError where it is not finite.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    source: str
    load: Callable[[], torch.Tensor]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_json(file: Path) -> dict[str, Any]:
    """
    Raises:
        ModelError: the file is missing or does not hold a JSON object.
    """
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file} must hold a JSON object, found a {type(content).__name__}")
    return content


def has_weights(folder: Path) -> bool:
    """Whether a directory holds a model's weights, rather than an adapter or a projector alone."""
    return any(any(folder.glob(pattern)) for pattern in _FORMATS)


def checkpoint_tensors(folder: Path) -> dict[str, Weight]:
    """The tensors of a model directory, without the buffers that old checkpoints carry (`inv_freq`, `position_ids`).

    Raises:
        ModelError: a file is missing or damaged, holds something else than floating-point tensors, or disagrees with
            the index.
    """
    for pattern, index in zip(_FORMATS, _INDEX, strict=True):
        if (folder / index).is_file():
            return _indexed(folder / index)
        if files := sorted(folder.glob(pattern)):
            return _union(files)
    raise ModelError(f"{folder} has neither {' nor '.join(_FORMATS)}; is it the directory of a whole model?")


def file_tensors(file: Path) -> dict[str, Weight]:
    """The tensors of one file, safetensors by its suffix, else PyTorch's format.

    A .bin file is opened with `weights_only`, so that nothing in it is ever run.

    Raises:
        ModelError: the file is missing or damaged, or holds something else than floating-point tensors.
    """
    tensors = _safetensors(file) if file.suffix == ".safetensors" else _pytorch(file)
    return {name: weight for name, weight in tensors.items() if not _BUFFER.fullmatch(name)}


def finite(tensor: torch.Tensor, source: str) -> torch.Tensor:
    """The tensor itself.

    Raises:
        ModelError: it holds an infinity or a NaN.
    """
    extremes = torch.stack(torch.aminmax(tensor))  # a NaN anywhere makes both NaN
    if not bool(extremes.isfinite().all()):
        raise ModelError(f"{source} holds values that are not finite; the checkpoint is damaged")
    return tensor


def _indexed(index: Path) -> dict[str, Weight]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise ModelError(f"{index} has no weight_map of tensor names to file names")
    tensors = _union([index.parent / Path(name).name for name in sorted(set(places.values()))])
    listed = {name for name in places if not _BUFFER.fullmatch(name)}
    if missing := sorted(listed - tensors.keys()):
        raise ModelError(f"{index} lists {missing[0]}, which {places[missing[0]]} lacks ({len(missing)} in all)")
    if extra := sorted(tensors.keys() - listed):
        raise ModelError(f"{tensors[extra[0]].source} is not in {index.name} ({len(extra)} in all)")
    return tensors


def _union(files: Sequence[Path]) -> dict[str, Weight]:
    union: dict[str, Weight] = {}
    for file in files:
        tensors = file_tensors(file)
        if twice := sorted(union.keys() & tensors.keys()):
            raise ModelError(f"{union[twice[0]].source} and {tensors[twice[0]].source} are one tensor in two files")
        union |= tensors
    return union


def _safetensors(file: Path) -> dict[str, Weight]:
    found = {}
    try:
        with safe_open(file, "pt") as content:
            for name in content.keys():  # noqa: SIM118 (not a dict)
                part = content.get_slice(name)
                dtype = (_FLOATS | _OTHERS).get(part.get_dtype())
                if dtype is None:
                    raise ModelError(f"{file}: {name} is {part.get_dtype()}; float32, float16 or bfloat16 is needed")
                load = partial(_read_safetensors, file, name)
                found[name] = Weight(tuple(part.get_shape()), dtype, f"{file}: {name}", load)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file} cannot be read: {error}") from error
    return found


def _pytorch(file: Path) -> dict[str, Weight]:
    return {
        name: Weight(tuple(tensor.shape), tensor.dtype, f"{file}: {name}", partial(_read_pytorch, file, name))
        for name, tensor in _unpickled(file).items()
    }


def _read_safetensors(file: Path, name: str) -> torch.Tensor:
    # Opened anew for every tensor: pages of an open file count as this process's memory once they were read.
    try:
        with safe_open(file, "pt") as content:
            tensor = content.get_tensor(name).clone()
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file} cannot be read: {error}") from error
    return finite(tensor, f"{file}: {name}")


def _read_pytorch(file: Path, name: str) -> torch.Tensor:
    tensor = _unpickled(file)[name].detach().clone(memory_format=torch.contiguous_format)
    return finite(tensor, f"{file}: {name}")


def _unpickled(file: Path) -> dict[str, torch.Tensor]:
    try:
        content = torch.load(str(file), map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever a damaged or hostile pickle provokes
        reason = str(error).split("\n")[0]
        raise ModelError(f"{file} was not opened, it must hold nothing but tensors: {reason}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file} must map names to tensors, found a {type(content).__name__}")
    for name, tensor in content.items():
        if not (isinstance(name, str) and isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided):
            raise ModelError(f"{file} must map names to tensors, found {name!r} with a {type(tensor).__name__}")
        if tensor.dtype not in (_FLOATS | _OTHERS).values():
            raise ModelError(f"{file}: {name} is {tensor.dtype}; float32, float16 or bfloat16 is needed")
    return content
