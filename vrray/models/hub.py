"""Models from the Hugging Face hub, through its cache: configurations, tokenizers and weights, never code."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from vrray.errors import ModelError
from vrray.home import vrray_home

_CONVERSION = "v1"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
_CONFIG = ("config.json",)
_SAFE = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
_PICKLED = ("pytorch_model*.bin",)  # of original checkpoints; opened with weights_only


def is_hub_id(model: str) -> bool:
    """Whether a name has the form `organisation/name` or `organisation/name@revision`."""
    return _HUB_ID.fullmatch(model) is not None


def download_config(model: str) -> Path:
    """A directory with the `config.json` of a hub id.

    Raises:
        ModelError: it cannot be had; with the reason and what to do instead.
    """
    return _download(model, _CONFIG)


def download_model(model: str, *, pickled: bool = False) -> Path:
    """The directory of a hub id's files: safetensors, configuration and tokenizer.

    Args:
        pickled: take .bin weights where there are no safetensors; they must be read with `weights_only`.

    Raises:
        ModelError: it cannot be had, or has no weights of these kinds.
    """
    folder = _download(model, (*_CONFIG, *_SAFE))
    kind = "safetensors"
    if pickled and not any(folder.glob("*.safetensors")):
        folder, kind = _download(model, (*_CONFIG, *_SAFE, *_PICKLED)), "bin"
    _check_weights(model, folder, kind)
    return folder


def converted_model(name: str, checkpoint: str, vision_tower: str) -> Path:
    """The standard directory of an original checkpoint, in the vrray home; downloaded and converted on first use.

    The conversion happens beside the target, which is renamed when whole: a directory of that name is complete.

    Args:
        name: of the directory.
        checkpoint, vision_tower: hub ids.

    Raises:
        ModelError: they cannot be had or converted.
    """
    from vrray.models.convert import convert

    target = vrray_home() / "models" / f"{name}-{_CONVERSION}"
    if target.is_dir():
        return target
    source, tower = (download_model(model, pickled=True) for model in (checkpoint, vision_tower))
    print(f"vrray: converting {checkpoint} once, to {target}", file=sys.stderr, flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        convert(source, Path(scratch, "model"), vision_tower=tower)
        try:
            os.rename(Path(scratch, "model"), target)
        except OSError:
            if not target.is_dir():  # else another process was first, and its directory is whole
                raise
    return target


def _download(model: str, patterns: Sequence[str]) -> Path:
    name, _, revision = model.partition("@")
    try:
        folder = snapshot_download(
            name, revision=revision or None, allow_patterns=list(patterns), ignore_patterns=["*/*"]
        )
    except Exception as error:  # the hub's, the network's or the file system's
        raise _unavailable(model, _reason(error)) from error
    if not Path(folder, "config.json").is_file():
        raise _unavailable(model, "it has no config.json")
    return Path(folder)


def _check_weights(model: str, folder: Path, kind: str) -> None:
    """An interrupted download may have left a part of the files, which the cache alone cannot always tell."""
    pattern = {"safetensors": "*.safetensors", "bin": "pytorch_model*.bin"}[kind]
    if not any(folder.glob(pattern)):
        raise _unavailable(model, f"it has no {pattern}")
    for index in folder.glob(f"*.{kind}.index.json"):
        for shard in sorted(set(json.loads(index.read_text())["weight_map"].values())):
            if not (folder / shard).is_file():
                raise _unavailable(model, f"{shard} of {index.name} is missing")


def _unavailable(model: str, reason: str) -> ModelError:
    return ModelError(
        f"{model} cannot be taken from the hub: {reason}; or download it elsewhere, copy it here and give its "
        "directory (an original Bunny or LLaVA checkpoint is first converted: `vrray convert SRC OUT`)"
    )


def _reason(error: BaseException) -> str:
    """In one line, why a download failed."""
    if isinstance(error, GatedRepoError):
        return "it is gated; accept its terms on its page and log in with `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such model, or it is private; for a private one log in with `hf auth login`"
    if isinstance(error, RevisionNotFoundError):
        return "it has no such revision"
    if isinstance(error, HFValidationError):
        return "it is not a valid hub id"
    if isinstance(error, LocalEntryNotFoundError):
        if isinstance(error.__cause__, OfflineModeIsEnabled):
            return "it is not in the cache, and HF_HUB_OFFLINE forbids to ask; unset it"
        if error.__cause__ is not None:
            return f"the hub cannot be reached ({_reason(error.__cause__)})"
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
