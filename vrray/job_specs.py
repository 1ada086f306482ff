"""Typed, frozen descriptions of what runs beside sweeps: one training, layer scores, an evaluation."""

from __future__ import annotations

import math
import shlex
from copy import copy
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from vrray.frozen import Frozen
from vrray.scores.table import SCORES
from vrray.specs import DEMO_TASKS, NAME, RunSpec, SweepSpec, read_number


class PretrainSpec(RunSpec):
    """Stage 1 alone: the projector is trained on captions, all else is frozen."""

    seed: int = Field(0, description="seed of the data order and of dropout")

    def as_sweep(self) -> SweepSpec:
        """The sweep whose trials would start from this projector; it scores nothing."""
        return self._one_trial({"placements": ["uniform"], "layers": [1]})

    def _one_trial(self, options: dict[str, Any]) -> SweepSpec:
        shared = {name: getattr(self, name) for name in RunSpec.model_fields}
        one = {**shared, **options, "prune": [0], "seeds": [self.seed], "name": "single"}
        return SweepSpec.parse(one).model_copy(update={"tasks": []})


class FinetuneSpec(PretrainSpec):
    """One training of one region, without a sweep around it."""

    placement: str = Field("uniform", description="a name, or explicit layers such as 0,4,8")
    layers: int | float = Field(0.25, description="layers tuned: a count or a fraction of the depth")
    learning_rate: float | None = Field(None, gt=0, description="of the region [the model's recipe]")

    @field_validator("layers", mode="before")
    @classmethod
    def _keep_count_apart_from_fraction(cls, value: Any) -> Any:
        return read_number(value)

    def as_sweep(self) -> SweepSpec:
        """The sweep of this one training; it scores nothing."""
        rates = None if self.learning_rate is None else [self.learning_rate]
        return self._one_trial({"placements": [self.placement], "layers": [self.layers], "learning_rates": rates})


class ScoreSpec(PretrainSpec):
    """Layer scores of one model."""

    scores: list[str] | None = Field(
        None, min_length=1, description=f"any of {', '.join(SCORES)} [all but change, as far as the data gives them]"
    )
    of: str | None = Field(
        None,
        description="what is scored: model (as it is), projector (after stage 1), a placement (after tuning it; "
        "change needs that), or the key of a delta in the store [projector for smol, else model]",
    )
    layers: int | float = Field(0.25, description="layers tuned, where `of` is a placement: a count or a fraction")
    learning_rate: float | None = Field(None, gt=0, description="of that tuning [the model's recipe]")
    calibration: int = Field(48, ge=2, description="training rows that are read")
    examples: int = Field(40, ge=8, description="examples of `capitals`, the demo's texts for ablation-textual")
    name: str = Field("scores", pattern=NAME, description="the folder in the store's layer-scores/")

    @field_validator("layers", mode="before")
    @classmethod
    def _keep_count_apart_from_fraction(cls, value: Any) -> Any:
        return read_number(value)

    @field_validator("scores")
    @classmethod
    def _check_scores(cls, values: list[str] | None) -> list[str] | None:
        for value in values or ():
            if value not in SCORES:
                raise ValueError(f"unknown layer score {value!r}; use one of {', '.join(SCORES)}")
        return values and list(dict.fromkeys(values))

    @property
    def wanted(self) -> list[str]:
        """The scores that are measured."""
        return self.scores or [name for name in SCORES if name != "change"]

    @property
    def scored(self) -> str:
        """What is scored, by a name."""
        return self.of or ("projector" if self.model == "smol" else "model")

    def as_sweep(self, placement: str = "uniform") -> SweepSpec:
        """The sweep of the one training that may be scored."""
        rates = None if self.learning_rate is None else [self.learning_rate]
        options = {"placements": [placement], "layers": [self.layers], "learning_rates": rates}
        spec = self._one_trial({**options, "calibration": self.calibration, "examples": self.examples})
        return spec.model_copy(update={"name": self.name, "tasks": ["capitals"] if self.is_demo else []})


def _of_run(name: str) -> Any:
    """An option that a run has too."""
    return copy(RunSpec.model_fields[name])


class EvaluateSpec(Frozen):
    """An evaluation: which models are asked which tasks."""

    model: str | None = Field(
        None, description="a model as it is: preset, directory or hub id (organisation/name) of a LLaVA-family model"
    )
    sweep: str | None = Field(None, description="instead of a model: name of a sweep in the store")
    variants: list[str] | None = Field(
        None, min_length=1, description="rows of that sweep's table, such as all uniform-8-prune2 [every finished one]"
    )
    tasks: list[str] = Field(
        list(DEMO_TASKS),
        min_length=1,
        description="names of the demo's tasks, and YAML files of benchmarks and of tasks of one's own "
        "(docs/evaluation.md)",
    )
    split: Literal["select", "test"] = Field("test", description="split of the demo's tasks")
    choose_on_test: bool = Field(
        False, description="mark the best variants on test figures too; the report says so, since these flatter them"
    )
    limit: int | None = Field(None, ge=1, description="questions of each task at most, drawn by their ids [all]")
    blind: bool = Field(True, description="ask visual tasks a second time without their images")
    short_answers: bool = Field(True, description="ask benchmarks' questions for a word, a phrase or a letter")
    batch: int = Field(32, ge=1, description="questions that a worker answers at once")
    engine: Literal["vrray", "vllm"] = Field(
        "vrray", description="what generates answers: vrray's worker groups, or vLLM on every GPU (extra vllm)"
    )
    template: Literal["auto", "chat", "llama", "phi3", "vicuna_v1", "bunny"] = _of_run("template")
    precision: Literal["auto", "bf16", "fp32"] = _of_run("precision")
    features: Literal["auto", "cache", "live"] = _of_run("features")
    feature_budget: float = _of_run("feature_budget")
    attention: Literal["auto", "flash_attention_2", "sdpa", "eager"] = _of_run("attention")
    liger: bool = _of_run("liger")
    max_failures: int = Field(3, ge=0, description="how often answering goes on after its workers were lost")
    node_wait: float = _of_run("node_wait")
    workers: int = Field(2, ge=1, description="workers of one group; groups fill the cluster and share the work")
    cpus_per_worker: float = _of_run("cpus_per_worker")
    gpu: bool | None = _of_run("gpu")
    storage: str = _of_run("storage")
    name: str = Field("evaluation", pattern=NAME, description="the folder in the store's evaluations/")

    @model_validator(mode="after")
    def _check_models(self) -> Self:
        if (self.model is None) == (self.sweep is None):
            raise ValueError("give either --model NAME, or --sweep NAME with --variants")
        if self.variants is not None and self.sweep is None:
            raise ValueError("--variants are rows of a sweep's table; give its name with --sweep")
        return self

    def as_run(self) -> RunSpec:
        """How worker groups are started; a group that has lost workers goes on with whatever number is left."""
        names = ("attention", "liger", "max_failures", "node_wait", "workers", "cpus_per_worker", "gpu", "storage")
        shared = {name: getattr(self, name) for name in names}
        return RunSpec.parse({**shared, "global_batch": math.lcm(*range(1, self.workers + 1))})

    def command(self) -> str:
        """The command line that says the same, without the keys of a URI."""
        from vrray.store import shown_uri

        words = ["python", "jobs/evaluate.py"]
        for name, value in self.model_dump(exclude_defaults=True).items():
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                words += [
                    f"--{flag}",
                    *(shown_uri(str(each)) for each in (value if isinstance(value, list) else [value])),
                ]
        return shlex.join(words)
