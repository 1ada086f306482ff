"""Writing an export: weights one by one, configuration, processor, model card; the directory appears when whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from vrray.errors import ModelError, SpecError
from vrray.exporting.adapter import FOLDER as ADAPTER
from vrray.exporting.adapter import write_adapter
from vrray.exporting.card import Exported, model_card
from vrray.exporting.source import Source, find_source
from vrray.exporting.spec import ExportSpec
from vrray.exporting.weights import base_weights, exported_weights
from vrray.models.family import family_of
from vrray.models.loading import base_identity
from vrray.models.original import Weight
from vrray.models.weight_files import whole_file, whole_or_nothing, write_weights
from vrray.pruning import remove_layers
from vrray.region import Region
from vrray.variant import Change, changes

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Tokenizer, processor, chat templates, generation settings, licence; whatever else lies there is not the model's.
_COPIED = (
    "*token*",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*processor_config.json",
    "chat_template*",
    "additional_chat_templates",
    "generation_config.json",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "USE_POLICY*",
)


@dataclass(frozen=True)
class _Work:
    """What is written: `config` is the pruned model's, `parameters` how many it has."""

    source: Source
    config: Any
    weights: dict[str, Weight]
    parameters: int
    adapter: bool


def export(spec: ExportSpec) -> Path:
    """Write the directory of a variant or of a pruned model, and the GGUF file where one is asked for.

    Weights are read, changed and written one by one. Nothing appears under its name before it is whole.

    Returns:
        The directory.

    Raises:
        VrrayError: something that is named does not exist, does not fit, or cannot be written; or the target exists.
    """
    for flag, target in (("--out", spec.out), ("--gguf", spec.gguf)):
        if target is not None and os.path.lexists(target):
            raise ModelError(f"{flag} {target} exists already; name another one or remove it")
    source = find_source(spec)
    work = _prepare(source, spec)
    with ExitStack() as stack:
        folder = stack.enter_context(whole_or_nothing(spec.out))
        write_weights(folder, work.weights, int(spec.shard_gb * 1e9), "export")
        work.config.save_pretrained(folder)
        _copy_files(source.path, folder)
        if work.adapter:
            assert source.delta is not None
            write_adapter(folder / ADAPTER, source.delta, family_of(work.config).layers, source.kept)
        about = Exported(spec.out.name, spec.command(), work.config, work.parameters, work.adapter)
        (folder / "README.md").write_text(model_card(source, about))
        if spec.gguf is not None:
            from vrray.exporting.gguf import write_gguf

            file = stack.enter_context(whole_file(spec.gguf))
            write_gguf(file, spec.out.name, folder, work.config, work.weights)
    return spec.out


def _prepare(source: Source, spec: ExportSpec) -> _Work:
    """Everything that can be refused is refused here, before anything is written."""
    config = AutoConfig.from_pretrained(source.path, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    family, delta = family_of(config), source.delta
    wanted: Mapping[str, Change] = {}
    if delta is not None:
        wanted = changes(model, delta, base_identity(source.path))
    adapter = delta is not None and delta.mode == "lora" and not spec.merge_lora
    if adapter:
        wanted = {name: change for name, change in wanted.items() if name.startswith(f"{family.projector}.")}
        if spec.gguf is not None:
            raise SpecError("--gguf needs --merge-lora here: a GGUF file has no room for adapters")
    weights = base_weights(source.path, model)
    # What may go was settled with the plan: a sweep may have pruned inside its region on purpose.
    remove_layers(model, source.removed, Region.none(source.region.depth))
    dtype = None if spec.dtype is None else _DTYPES[spec.dtype]
    if dtype is not None:
        for part in (model.config, *(getattr(model.config, name) for name in model.config.sub_configs)):
            part.dtype = dtype
    exported = exported_weights(weights, family.layers, source.kept, wanted, dtype)
    if spec.gguf is not None:
        from vrray.exporting.gguf import check_gguf

        check_gguf(source.path, model.config)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return _Work(source, model.config, exported, parameters, adapter)


def _copy_files(source: Path, folder: Path) -> None:
    for path in sorted({path for pattern in _COPIED for path in source.glob(pattern)}):
        if path.is_dir():
            shutil.copytree(path, folder / path.name)
        else:
            shutil.copyfile(path, folder / path.name)
