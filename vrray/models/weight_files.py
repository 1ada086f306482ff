"""Writing a model directory: weights tensor by tensor into safetensors files, all of it or nothing."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BufferedWriter
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tqdm import tqdm

from vrray.errors import ModelError
from vrray.models.original import Weight

_NAMES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
_ALIGNMENT = 8  # bytes; of the first tensor in a file


@contextmanager
def whole_or_nothing(target: Path) -> Iterator[Path]:
    """A temporary sibling that gets the target's name when all is written, and vanishes otherwise.

    Raises:
        ModelError: it cannot be written, such as on a full disk.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            yield scratch
            scratch.chmod(0o755)
            os.rename(scratch, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{target} cannot be written: {error}") from error


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """Where to write a file that gets the target's name when it is whole, and vanishes otherwise.

    Raises:
        ModelError: it cannot be written, such as on a full disk.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
            yield Path(scratch, target.name)
            os.rename(Path(scratch, target.name), target)
    except OSError as error:
        raise ModelError(f"{target} cannot be written: {error}") from error


def write_weights(folder: Path, weights: Mapping[str, Weight], limit: int, title: str) -> None:
    """Write safetensors files of at most `limit` bytes, unless a tensor alone is larger, with an index for several.

    One tensor is in memory at a time. Progress goes to stderr: a bar with a title, or a line a file.

    Raises:
        ModelError: a tensor cannot be read or is not finite.
    """
    total = sum(weight.nbytes for weight in weights.values())
    files = _split(weights, limit)
    names = [f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
    if len(files) == 1:
        names = ["model.safetensors"]
    done = 0
    with tqdm(total=total, unit="B", unit_scale=True, desc=title, disable=None, file=sys.stderr) as bar:
        for name, file in zip(names, files, strict=True):
            write_file(folder / name, file, bar.update)
            done += sum(weight.nbytes for weight in file.values())
            if bar.disable:
                print(f"vrray: {done / 1e9:.1f} of {total / 1e9:.1f} GB written", file=sys.stderr, flush=True)
    if len(files) > 1:
        places = {tensor: name for name, tensors in zip(names, files, strict=True) for tensor in tensors}
        content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(content, indent=2) + "\n")


def write_file(path: Path, weights: Mapping[str, Weight], written: Callable[[int], object] | None = None) -> None:
    """One safetensors file (https://huggingface.co/docs/safetensors): its header's length, the header, the tensors.

    The widest types come first, so that every tensor is aligned.

    Args:
        written: is called with the bytes of each tensor that was written.
    """
    ordered = sorted(weights.items(), key=lambda entry: -entry[1].dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, weight in ordered:
        begin, end = end, end + weight.nbytes
        header[name] = {"dtype": _NAMES[weight.dtype], "shape": list(weight.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, weight in ordered:
            _write_tensor(file, weight)
            if written is not None:
                written(weight.nbytes)


def _write_tensor(file: BufferedWriter, weight: Weight) -> None:
    tensor = weight.load()
    if tensor.shape != weight.shape or tensor.dtype != weight.dtype:
        found, said = (f"{value.dtype} {list(value.shape)}" for value in (tensor, weight))
        raise ModelError(f"{weight.source} is {found}, its header says {said}")
    file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _split(weights: Mapping[str, Weight], limit: int) -> list[dict[str, Weight]]:
    files: list[dict[str, Weight]] = [{}]
    size = 0
    for name, weight in weights.items():
        if files[-1] and size + weight.nbytes > limit:
            files.append({})
            size = 0
        files[-1][name] = weight
        size += weight.nbytes
    return files
