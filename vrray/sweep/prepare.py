"""From a sweep's options to what its workers need: model, rows, features, trials. Nothing here trains."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from vrray.data.chunks import plan_chunks
from vrray.data.demo import DemoData, build_demo
from vrray.data.encode import Template, encode_records
from vrray.data.records import Record, read_records, records_identity
from vrray.data.rows import KIND as ROWS
from vrray.data.rows import write_rows
from vrray.data.tasks import Split, TaskExamples
from vrray.errors import DataError, SpecError
from vrray.home import vrray_home
from vrray.models.loading import (
    ModelShape,
    base_identity,
    load_processor,
    model_shape,
    resolve_model,
    tower_identity,
)
from vrray.pruning import removal_counts
from vrray.region import Region, place
from vrray.specs import Recipe, SweepSpec
from vrray.store import Store, content_key
from vrray.sweep.trial import Site, Trial, trial_key
from vrray.train.execution import Execution
from vrray.train.memory import MemoryChoice, MemoryEstimate, choose_memory, estimate_memory

PROJECTOR_LEARNING_RATE = 5e-4  # PAPER, recipe of stage 1
SMOL_PROJECTOR_LEARNING_RATE = 1e-2
_DEMO_PREFIX = "demo"


@dataclass(frozen=True)
class FeaturePlan:
    """Whether vision features are computed once and stored, their size in GiB, and why."""

    cached: bool
    gib: float
    reason: str


@dataclass(frozen=True)
class Prepared:
    """A sweep ready to run: where (`site`), the projector stage, and every trial of its space by configuration."""

    spec: SweepSpec
    model_path: Path
    precision: Literal["bf16", "fp32"]
    site: Site
    shape: ModelShape
    roots: dict[str, Path]
    projector: Trial
    space: dict[str, list[Any]]
    test: tuple[TaskExamples, ...]
    rows: int
    longest: int
    choice: MemoryChoice
    features: FeaturePlan

    def trial(self, config: dict[str, Any]) -> Trial:
        """The trial of one point of the search space.

        Raises:
            RegionError, PruningError: the point has no region or too little to prune.
        """
        spec = self.spec
        region = place(config["placement"], self.shape.depth, config["layers"], config["seed"])
        rate = config["learning_rate"] or spec.recipe().learning_rate
        recipe = spec.recipe().model_copy(update={"learning_rate": rate, "precision": self.precision})
        key = trial_key(self.site.base, self.site.calibration_key, region, recipe, config["seed"], self.projector.key)
        counts = tuple(removal_counts(spec.prune, region))
        return Trial(key, region, recipe, config["seed"], self.site.calibration_key, self.projector.key, counts)

    def points(self) -> list[dict[str, Any]]:
        """All points of the search space."""
        return [dict(zip(self.space, values, strict=True)) for values in itertools.product(*self.space.values())]

    def configs(self) -> list[dict[str, Any]]:
        """The points that a grid or a random search runs, without those that would train the same weights twice."""
        distinct = list({self.trial(point).key: point for point in reversed(self.points())}.values())[::-1]
        if self.spec.search == "random":
            wanted = min(self.spec.trials or 8, len(distinct))
            chosen = random.Random(self.spec.seeds[0]).sample(range(len(distinct)), wanted)
            return [distinct[index] for index in sorted(chosen)]
        return distinct


def prepare(spec: SweepSpec, store: Store, *, gpu: bool, worker_memory: int) -> Prepared:
    """Resolve the model and the data, encode the rows (once), and lay out the trials.

    Args:
        gpu: workers have a GPU each.
        worker_memory: bytes that one worker may use.
    """
    model_path = resolve_model(spec.model)
    base, shape = base_identity(model_path), model_shape(model_path)
    demo = build_demo(vrray_home())
    recipe = spec.recipe().model_copy(update={"precision": resolve_precision(spec.precision, gpu)})
    records, captions, roots = _records(spec, demo, recipe)
    processor = load_processor(model_path)
    rows, longest = _encode(records, processor, shape, recipe, "chat", base, store)
    caption_rows, _ = _encode(captions, processor, shape, recipe, "plain", base, store)
    select, test = (_tasks(spec, demo, split) for split in ("select", "test"))
    asked = ([example.image for group in groups for example in group.examples] for groups in (select, test))
    sources = [[record.image for record in part] for part in (records, captions)] + list(asked)
    images = [[name for name in names if name] for names in sources]
    features = _features(spec, shape, images)
    tower = tower_identity(model_path) if features.cached else ""
    chunks = [chunk for names in images for chunk in plan_chunks(names, roots, tower)] if features.cached else []
    regions = [place(name, shape.depth, k, spec.seeds[0]) for name in spec.placements for k in spec.layers]
    memory = _memory(spec, shape, recipe, regions, longest, worker_memory)
    projector = _projector_trial(spec, shape, recipe, base, caption_rows)
    site = Site(
        base=base,
        chunks=tuple(dict.fromkeys(chunks)),
        roots=roots,
        feature_shape=(shape.image_tokens, shape.tower_width),
        select=select,
        calibration_key=rows,
        calibration=min(spec.calibration, len(records)),
        execution=Execution(
            micro_batch=spec.micro_batch,
            zero=memory.zero,
            resident=memory.resident,
            recomputed=memory.recomputed,
            packing=spec.packing,
            checkpoint_seconds=60 * spec.checkpoint_minutes,
            checkpoint_steps=spec.checkpoint_steps,
            max_skipped=spec.max_skipped,
            compile=spec.compile,
        ),
    )
    space: dict[str, list[Any]] = {
        "placement": list(spec.placements),
        "layers": list(spec.layers),
        "learning_rate": [*spec.learning_rates] if spec.learning_rates else [None],
        "seed": list(spec.seeds),
    }
    prepared = Prepared(
        spec,
        model_path,
        recipe.precision,
        site,
        shape,
        roots,
        projector,
        space,
        test,
        len(records),
        longest,
        memory,
        features,
    )
    prepared.configs()  # finds regions that do not fit and plans that remove too much, before anything starts
    return prepared


def resolve_precision(wanted: Literal["auto", "bf16", "fp32"], gpu: bool) -> Literal["bf16", "fp32"]:
    """bf16 where the hardware computes in it; elsewhere it is many times slower than fp32 (docs/benchmarks.md)."""
    if wanted != "auto":
        return wanted
    return "bf16" if gpu or torch.cpu._is_avx512_bf16_supported() else "fp32"


def _records(spec: SweepSpec, demo: DemoData, recipe: Recipe) -> tuple[list[Record], list[Record], dict[str, Path]]:
    """Training records, caption records for the projector stage, and where their images are.

    A run of `max_steps` sees at most that many global batches, so no more records than that are taken.
    """
    if spec.data == "demo":
        records, captions, roots = read_records(demo.train), read_records(demo.captions), {"": demo.image_root}
    else:
        records = read_records(Path(spec.data).expanduser())
        captions = [record for record in records if record.image]
        if not captions:
            raise DataError(f"{spec.data} has no record with an image; the projector cannot be trained on it")
        assert spec.images is not None  # SweepSpec demands it
        roots = {"": Path(spec.images).expanduser().resolve(), _DEMO_PREFIX: demo.image_root}
    if recipe.max_steps is not None:
        records = records[: recipe.max_steps * recipe.global_batch]
    # Stage 1 passes over its captions twice.
    return records, captions[: max(1, spec.projector_steps * recipe.global_batch // 2)], roots


def _encode(
    records: Sequence[Record],
    processor: Any,
    shape: ModelShape,
    recipe: Recipe,
    template: Template,
    base: str,
    store: Store,
) -> tuple[str, int]:
    """The key of the encoded rows, and the tokens of the longest."""
    key = content_key(
        {
            "format": 2,
            "records": records_identity(records),
            "base": base,
            "template": template,
            "max_length": recipe.max_length,
        }
    )
    if not store.has(ROWS, key):
        rows = encode_records(records, processor, shape.image_tokens, template=template, max_length=recipe.max_length)
        longest = max(len(row.ids) for row in rows)
        store.put(ROWS, key, lambda folder: write_rows(folder, rows), {"rows": len(rows), "longest": longest})
    return key, int(store.describe(ROWS, key)["longest"])


def _tasks(spec: SweepSpec, demo: DemoData, split: Split) -> tuple[TaskExamples, ...]:
    groups = []
    for name in spec.tasks:
        if name not in demo.tasks:
            raise SpecError(f"unknown task {name!r}; known are {', '.join(demo.tasks)}")
        examples = demo.examples(name, split, spec.examples)
        if spec.data != "demo":
            examples = tuple(replace(e, image=f"{_DEMO_PREFIX}:{e.image}" if e.image else None) for e in examples)
        groups.append(TaskExamples(demo.tasks[name], split, examples, demo.floor(name, split, spec.examples)))
    return tuple(groups)


def _features(spec: SweepSpec, shape: ModelShape, images: Sequence[Sequence[str]]) -> FeaturePlan:
    """Cache the features where they fit the budget; two bytes a value."""
    count = len({name for names in images for name in names})
    gib = count * shape.image_tokens * shape.tower_width * 2 / 2**30
    size = f"{count} images take {gib:.2f} GiB"
    if spec.features != "auto":
        return FeaturePlan(spec.features == "cache", gib, f"as asked; {size}")
    fits = gib <= spec.feature_budget
    return FeaturePlan(fits, gib, f"{size}, the budget is {spec.feature_budget:g} GiB")


def _memory(
    spec: SweepSpec, shape: ModelShape, recipe: Recipe, regions: Sequence[Region], longest: int, available: int
) -> MemoryChoice:
    """How trainings use memory, by the estimate of the trial that needs most."""

    def largest(zero: int, resident: bool, recomputed: int) -> MemoryEstimate:
        estimates = [
            estimate_memory(
                shape,
                region,
                recipe,
                workers=spec.workers,
                micro_batch=min(spec.micro_batch, recipe.global_batch // spec.workers),
                tokens=longest,
                zero=zero,
                resident=resident,
                recomputed=recomputed,
            )
            for region in regions
        ]
        return max(estimates, key=lambda estimate: estimate.total)

    return choose_memory(spec.zero, spec.frozen, spec.activation_checkpointing, shape.depth, available, largest)


def _projector_trial(spec: SweepSpec, shape: ModelShape, recipe: Recipe, base: str, rows: str) -> Trial:
    """Stage 1: the projector alone, on image-caption rows; all trials of the sweep start from its result."""
    rate = SMOL_PROJECTOR_LEARNING_RATE if spec.model == "smol" else PROJECTOR_LEARNING_RATE
    stage = Recipe(
        mode="full",
        projector_learning_rate=rate,
        global_batch=recipe.global_batch,
        max_steps=spec.projector_steps,
        warmup_ratio=recipe.warmup_ratio,
        group_by_length=recipe.group_by_length,
        precision=recipe.precision,
    )
    region, seed = Region.none(shape.depth), spec.seeds[0]
    return Trial(trial_key(base, rows, region, stage, seed, None), region, stage, seed, rows, None, (0,))
