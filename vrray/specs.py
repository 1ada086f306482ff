"""Typed, frozen descriptions of what to run. Each option is defined once, here: flags, YAML and Python share it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from vrray.budget import read_duration
from vrray.errors import RegionError
from vrray.frozen import Frozen
from vrray.plans import Ranking, check_amount
from vrray.region import by_score, parse_layers
from vrray.scores.table import SCORES


class Recipe(Frozen):
    """How a stage trains. Defaults: PAPER's fine-tuning stage (LoRA, 695K rows, 8 GPUs)."""

    mode: Literal["full", "lora"] = "lora"
    learning_rate: float = Field(2e-4, gt=0)
    projector_learning_rate: float = Field(2e-5, gt=0)
    global_batch: int = Field(128, ge=1)
    epochs: float = Field(1.0, gt=0)
    max_steps: int | None = Field(None, ge=1)
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    gradient_clip: float = Field(1.0, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    max_length: int = Field(2048, ge=8)
    lora_rank: int = Field(128, ge=1)
    lora_alpha: int = Field(256, ge=1)
    lora_dropout: float = Field(0.05, ge=0, lt=1)
    group_by_length: bool = True
    precision: Literal["bf16", "fp32"] = "bf16"

    def steps(self, rows: int) -> int:
        """Optimizer steps for a number of rows; the last global batch of an epoch is carried over its end."""
        if self.max_steps is not None:
            return self.max_steps
        return max(1, round(self.epochs * rows / self.global_batch))

    def packs_with(self, other: Recipe) -> bool:
        """Whether trials of the two recipes can share a base at the same time."""
        return self.mode == "lora" and all(getattr(self, name) == getattr(other, name) for name in PACK_SHARES)


PACK_SHARES = ("mode", "global_batch", "lora_rank", "lora_alpha", "lora_dropout", "precision")
SMOL_RECIPE = Recipe(
    mode="full",
    learning_rate=3e-4,
    projector_learning_rate=1e-3,
    global_batch=16,
    max_steps=40,
    warmup_ratio=0.1,
    group_by_length=False,  # its rows are of nearly one length; grouped, a batch holds one kind of question only
)
RECIPES = {"smol": SMOL_RECIPE}
HELD_OUT = "held-out"
DEMO_TASKS = ("easy-vqa", "emoji-groups", "font-letters", "capitals")
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
QUICK: dict[str, Any] = {
    "placements": ["all", "uniform"],
    "prune": [0, 2],
    "examples": 16,
    "max_steps": 12,
    "projector_steps": 48,
}


class RunSpec(Frozen):
    """What every training is told: model, data, recipe, how it runs, and where."""

    model: str = Field("smol", description="preset, directory or hub id (organisation/name) of a LLaVA-family model")
    data: list[str] = Field(
        ["demo"],
        min_length=1,
        description="demo, or conversations: JSON, JSONL, Parquet, a Hugging Face dataset folder, WebDataset tars; "
        "several are mixed",
    )
    data_weights: list[PositiveFloat] | None = Field(
        None, description="how often each data entry is passed over in an epoch [once]"
    )
    data_fraction: float = Field(1.0, gt=0, le=1, description="share of the training rows that is used, by seed")
    image_folder: list[str] | None = Field(
        None, description="folders or URIs that image names start from, one or one a data entry [beside the data]"
    )
    max_rejected: float = Field(0.01, ge=0, le=1, description="share of unusable records beyond which a run stops")
    template: Literal["auto", "chat", "llama", "phi3", "vicuna_v1", "bunny"] = Field(
        "auto", description="conversation template; chat: the model's own [what the model was trained with]"
    )
    mode: Literal["full", "lora"] | None = Field(None, description="train full parameters or LoRA [the model's recipe]")
    projector_learning_rate: float | None = Field(None, gt=0, description="its own rate [the model's recipe]")
    global_batch: int | None = Field(None, ge=1, description="rows a step over all workers [the model's recipe]")
    micro_batch: int = Field(8, ge=1, description="rows a worker takes at once; the rest of its share accumulates")
    epochs: float | None = Field(None, gt=0, description="passes over the data [the model's recipe]")
    max_steps: int | None = Field(None, ge=1, description="optimizer steps, instead of epochs [the model's recipe]")
    projector_steps: int = Field(144, ge=1, description="optimizer steps of stage 1, which trains the projector alone")
    group_by_length: bool | None = Field(None, description="batches of rows of about one length [the model's recipe]")
    packing: bool = Field(False, description="put the rows of a micro-batch one behind the other, without padding")
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="auto: bf16 on GPUs and on CPUs with bf16 instructions, else fp32"
    )
    zero: Literal["auto", 0, 1, 2, 3] = Field(
        "auto", description="ZeRO stage: shard nothing, optimizer, gradients too, weights too; auto: 3"
    )
    frozen: Literal["auto", "resident", "partitioned"] = Field(
        "auto", description="keep frozen weights whole on each worker, or partition them with ZeRO-3 too"
    )
    activation_checkpointing: Literal["auto", "off", "all"] = Field(
        "auto", description="decoder layers that recompute activations; auto: as many as memory asks for"
    )
    features: Literal["auto", "cache", "live"] = Field(
        "auto", description="vision features: computed once and stored, or in every step; auto: by feature-budget"
    )
    feature_budget: float = Field(50, ge=0, description="GiB that features=auto may store")
    attention: Literal["auto", "flash_attention_2", "sdpa", "eager"] = Field(
        "auto", description="auto: flash attention on GPUs where it is installed, else sdpa"
    )
    compile: bool = Field(False, description="torch.compile the decoder layers")
    liger: bool = Field(False, description="Liger's fused kernels, on GPUs where they are installed")
    checkpoint_minutes: float = Field(10, gt=0, description="minutes between two checkpoints of a training")
    checkpoint_steps: int | None = Field(None, ge=1, description="steps between two checkpoints, besides the minutes")
    max_skipped: int = Field(5, ge=0, description="steps in a row that may be skipped because the loss is not finite")
    max_failures: int = Field(3, ge=0, description="how often a training goes on after its workers were lost")
    node_wait: float = Field(
        60, ge=0, description="seconds that a lost node may take to be replaced, before fewer workers go on"
    )
    loggers: list[Literal["tensorboard", "mlflow", "wandb"]] = Field(
        ["tensorboard"], description="where the metrics of each step go: tensorboard, mlflow, wandb"
    )
    workers: int = Field(2, ge=1, description="Ray Train workers of one trial")
    cpus_per_worker: float = Field(1, gt=0, description="CPUs of one worker")
    gpu: bool | None = Field(None, description="one GPU a worker [where the cluster has any]")
    storage: str = Field("runs", description="local path or URI of the artefact store")

    @field_validator("data", "image_folder", mode="before")
    @classmethod
    def _read_one(cls, value: Any) -> Any:
        return [value] if isinstance(value, (str, os.PathLike)) else value

    @field_validator("zero", mode="before")
    @classmethod
    def _read_stage(cls, value: Any) -> Any:
        return int(value) if isinstance(value, str) and value.isdigit() else value

    @field_validator("activation_checkpointing", mode="before")
    @classmethod
    def _read_switch(cls, value: Any) -> Any:
        return {False: "off", True: "all"}[value] if isinstance(value, bool) else value  # YAML reads off as false

    @model_validator(mode="after")
    def _check_run(self) -> Self:
        batch = self.recipe().global_batch
        if batch % self.workers:
            raise ValueError(f"global_batch {batch} is not a multiple of workers {self.workers}")
        if "demo" in self.data and len(self.data) > 1:
            raise ValueError("data demo cannot be mixed with other data")
        if self.data_weights is not None and len(self.data_weights) != len(self.data):
            raise ValueError(f"data_weights has {len(self.data_weights)} values for {len(self.data)} data entries")
        if self.image_folder is not None and len(self.image_folder) not in (1, len(self.data)):
            raise ValueError(f"image_folder has {len(self.image_folder)} entries for {len(self.data)} data entries")
        if self.frozen == "partitioned" and self.zero not in ("auto", 3):
            raise ValueError(f"frozen partitioned needs zero 3, which alone partitions weights (got zero {self.zero})")
        return self

    @property
    def is_demo(self) -> bool:
        return self.data == ["demo"]

    def recipe(self) -> Recipe:
        """The model's recipe with the options of this run; precision and learning rate are set per trial."""
        base = RECIPES.get(self.model, Recipe())
        names = ("mode", "projector_learning_rate", "global_batch", "max_steps", "epochs", "group_by_length")
        given: dict[str, Any] = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.max_steps is None and self.epochs is not None:
            given["max_steps"] = None
        if self.model not in RECIPES and given.get("mode") == "full":
            given["learning_rate"] = 2e-5
        return base.model_copy(update=given)


class SweepSpec(RunSpec):
    """One sweep: which regions are trained, which plans are pruned, and on what they are scored."""

    placements: list[str] = Field(
        ["all", "uniform", "bottom", "top"],
        min_length=1,
        description="names, explicit layers such as 0,4,8, or the layers that a score puts highest, such as by:angular "
        "or by:angular,spread",
    )
    layers: list[int | float] = Field(
        [0.25], min_length=1, description="layers tuned: counts or fractions of the depth"
    )
    scores_of: Literal["projector", "all"] = Field(
        "projector",
        description="the model whose layer scores by:SCORE placements follow: after stage 1, or with all layers tuned "
        "(by:change always takes the latter)",
    )
    prune: list[int | float | str] = Field(
        [0, 1, 2, 3, 4],
        min_length=1,
        description="layers removed: counts, fractions of the depth, 'params<=110M', or 'score>=95%' (of the unpruned "
        "select score)",
    )
    rankings: list[str] = Field(
        ["angular"],
        min_length=1,
        description="which layers go first: by a score, the lowest (with ',iterative': measured anew each time), or "
        "random, deepest",
    )
    protect: str = Field(
        "region", description="layers that never go: region (what is tuned), none, or a list such as 0,1,29"
    )
    heal_steps: int = Field(0, ge=0, description="steps of region training after each removal, as a further variant")
    tasks: list[str] = Field(
        list(DEMO_TASKS),
        min_length=1,
        description="evaluation tasks: easy-vqa, easy-vqa-yesno, emoji-groups, font-letters, capitals, continents, "
        "held-out (rows of the data kept from training, the default with data of one's own)",
    )
    examples: int = Field(40, ge=8, description="examples of each task and split")
    calibration: int = Field(48, ge=2, description="training rows that rank the layers for pruning")
    learning_rates: list[PositiveFloat] | None = Field(
        None, description="learning rates of the region [the model's recipe]"
    )
    seeds: list[int] = Field([0], min_length=1, description="seeds of the trainings")
    search: Literal["grid", "random", "optuna"] = Field("grid", description="how trials are chosen from the options")
    trials: int | None = Field(
        None, ge=1, description="number of trials of a random [8] or Optuna search [24, its placements first]"
    )
    scheduler: Literal["none", "asha"] = Field("none", description="asha stops weak trials early")
    max_time: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="wall-clock time of this run, such as 8h, 90m or seconds; then trainings are paused",
    )
    max_trials: int | None = Field(
        None, ge=0, description="trials that this run trains at most; those in the store are not counted"
    )
    max_gpu_hours: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="GPU hours of this run's workers while they are at work; then trainings are paused",
    )
    pack: Literal["auto"] | PositiveInt = Field(
        "auto",
        description="LoRA trials that share a worker group and its frozen base at the same time; auto: as many as "
        "memory holds and are worth it",
    )
    name: str = Field("sweep", pattern=NAME, description="the sweep's folder in the store")
    quick: bool = Field(False, description="a small sweep: two placements, two pruning plans, fewer steps and examples")

    @model_validator(mode="before")
    @classmethod
    def _apply_quick(cls, options: Any) -> Any:
        if not isinstance(options, dict) or not options.get("quick"):
            return options
        left_out = {"max_steps"} if options.get("epochs") is not None else set()  # either says how long to train
        return {**{name: value for name, value in QUICK.items() if name not in left_out}, **options}

    @model_validator(mode="before")
    @classmethod
    def _score_held_out_rows(cls, options: Any) -> Any:
        own = isinstance(options, dict) and options.get("data") not in (None, "demo", ["demo"])
        return {"tasks": [HELD_OUT], **options} if own else options

    @field_validator("layers", mode="before")
    @classmethod
    def _keep_counts_apart_from_fractions(cls, values: Any) -> Any:
        """`1` is one layer, `1.0` is all of them; text from a flag or YAML keeps that difference."""
        return [read_number(value) for value in _listed(values)]

    @field_validator("prune", mode="before")
    @classmethod
    def _read_amounts(cls, values: Any) -> Any:
        return [_amount(value) for value in _listed(values)]

    @field_validator("max_time", mode="before")
    @classmethod
    def _read_duration(cls, value: Any) -> Any:
        return read_duration(value) if isinstance(value, str) else value

    @field_validator("placements")
    @classmethod
    def _check_placements(cls, values: list[str]) -> list[str]:
        for value in values:
            by = by_score(value)
            if by is not None and by[0] not in SCORES:
                raise ValueError(f"{value!r}: unknown layer score {by[0]!r}; use one of {', '.join(SCORES)}")
        return values

    @field_validator("prune")
    @classmethod
    def _check_prune(cls, values: list[int | float | str]) -> list[int | float | str]:
        for value in values:
            check_amount(value)
        return values

    @field_validator("protect")
    @classmethod
    def _check_protect(cls, value: str) -> str:
        name = value.strip().lower()
        try:
            return name if name in ("region", "none") else ",".join(map(str, parse_layers(name)))
        except RegionError as error:
            raise ValueError(f"{error}, region or none") from error

    @field_validator("rankings")
    @classmethod
    def _check_rankings(cls, values: list[str]) -> list[str]:
        names = [Ranking.parse(value).name for value in values]
        if len(set(names)) < len(names):
            raise ValueError(f"rankings {values} name one of them twice")
        return values

    @model_validator(mode="after")
    def _check_search(self) -> Self:
        if self.search == "grid" and self.trials is not None:
            raise ValueError("trials goes with search random or optuna; a grid runs every combination")
        return self

    @model_validator(mode="after")
    def _check_pack(self) -> Self:
        if self.pack != "auto" and self.pack > 1 and (why := self.never_packs()):
            raise ValueError(f"pack {self.pack} is not possible: {why}")
        return self

    def never_packs(self) -> str | None:
        """Why trials of these options cannot share a base at the same time; None where they can."""
        if self.recipe().mode != "lora":
            return "trials tune full parameters, which differ; use mode lora"
        if self.packing:
            return "packing puts the rows of all trials into one sequence; leave it away"
        if self.compile:
            return "compiled layers would be compiled again for each set of trials; leave compile away"
        if self.frozen == "partitioned":
            return "the base that trials share is resident; leave frozen partitioned away"
        return None

    @property
    def most_trials(self) -> int:
        """Number of trials of a search, at most."""
        return self.trials or {"optuna": 24}.get(self.search, 8)


def _amount(value: Any) -> int | float | str:
    if isinstance(value, str) and "=" in value:
        return "".join(value.split())
    try:
        return read_number(value)
    except ValueError:
        raise ValueError(f"{value!r} is neither a number nor a target; quote targets: 'score>=95%'") from None


def _listed(values: Any) -> Sequence[Any]:
    return values if isinstance(values, (list, tuple)) else [values]


def read_number(value: Any) -> int | float:
    """A number or its text; `1` stays a count and `1.0` a fraction.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"{value!r} is not a number")
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            return float(value)
    return value
