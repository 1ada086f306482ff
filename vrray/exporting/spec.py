"""What `vrray export` is told."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from vrray.frozen import Frozen
from vrray.scores.table import SCORES

BY = tuple(name for name in SCORES if name != "change")  # which compares with the weights before a tuning
_OF_A_MODEL = ("delta", "remove", "prune", "protect")


class ExportSpec(Frozen):
    """One export: a variant of a sweep, or a model with layers removed."""

    out: Path = Field(description="directory to write; must not exist yet")
    storage: str = Field("runs", description="local path or URI of the artefact store")
    sweep: str | None = Field(None, description="name of a sweep in the store")
    variant: str | None = Field(None, description="a row of that sweep's table, such as uniform-8-prune2")
    model: str | None = Field(None, description="instead of a sweep: a preset, model directory or hub id")
    delta: str | None = Field(None, description="key of a training in the store that is applied to the model")
    remove: list[int] | None = Field(None, description="decoder layers to remove, counted from 0, such as 3,5")
    prune: PositiveInt | PositiveFloat | None = Field(
        None, description="instead: how many layers to remove, a count or a fraction of the depth, by a score"
    )
    by: str = Field("angular", description=f"the score by which they go, the least first: {', '.join(BY)}")
    calibration: Path | None = Field(None, description="conversations to score on: LLaVA JSON or JSONL")
    image_folder: str | None = Field(None, description="where its image names start from [beside the calibration file]")
    samples: int = Field(48, ge=2, description="how many of its first conversations are taken")
    protect: list[int] | None = Field(None, description="layers that must stay, such as 0,4,8 [the delta's region]")
    merge_lora: bool = Field(False, description="add LoRA adapters into the weights instead of writing them beside")
    dtype: Literal["fp32", "fp16", "bf16"] | None = Field(None, description="of the weights [as in the base]")
    shard_gb: float = Field(5, gt=0, description="GB (10**9 bytes) of one weight file at most")
    gguf: Path | None = Field(
        None, description="also write the decoder to this file, for llama.cpp (llama family only)"
    )

    @field_validator("remove", "protect", mode="before")
    @classmethod
    def _read_layers(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.sweep is None) == (self.model is None):
            raise ValueError("give either --sweep NAME with --variant NAME, or --model NAME")
        if (self.sweep is None) != (self.variant is None):
            raise ValueError("--sweep and --variant go together: the sweep's name, and a row of its table")
        if self.sweep is not None and (extra := [name for name in _OF_A_MODEL if getattr(self, name) is not None]):
            raise ValueError(f"--{extra[0]} goes with --model; a variant of a sweep has its own weights and plan")
        if self.remove is not None and self.prune is not None:
            raise ValueError("--remove says which layers go, --prune how many; give one of them")
        if (self.prune is None) != (self.calibration is None):
            raise ValueError("--prune and --calibration go together: how many layers go, and what they are scored on")
        if self.by not in BY:
            raise ValueError(f"--by {self.by} is unknown here; use one of {', '.join(BY)}")
        if self.model is not None and not self._changes_something:
            raise ValueError("nothing to do: give --remove, --prune, --delta, --dtype or --gguf")
        return self

    @property
    def _changes_something(self) -> bool:
        return any(getattr(self, name) is not None for name in ("remove", "prune", "delta", "dtype", "gguf"))

    def command(self) -> str:
        """The command line that says the same."""
        words = ["vrray", "export"]
        for name, value in self.model_dump(exclude_defaults=True).items():
            flag = f"--{name.replace('_', '-')}"
            if isinstance(value, list):
                value = ",".join(map(str, value))
            words += [flag] if value is True else [flag, str(value)]
        return shlex.join(words)
