"""From a sweep's options to what its workers need: model, rows, features, trials. Nothing here trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from vrray.data.chunks import FeatureChunk, plan_chunks
from vrray.data.demo import DemoData, build_demo
from vrray.data.formats import files
from vrray.data.held_out import Candidate, held_out_tasks
from vrray.data.images import Images, content_hashes
from vrray.data.ingest import Ingested, candidates_in, image_hashes, ingest
from vrray.data.ingest_block import Choice, RowSpec, Source
from vrray.data.rows import FILES, Rows
from vrray.data.rows import KIND as ROWS
from vrray.data.tasks import Split, TaskExamples
from vrray.data.templates import TEMPLATES
from vrray.errors import SpecError
from vrray.home import vrray_home
from vrray.models.loading import (
    ModelShape,
    base_identity,
    conversation,
    model_shape,
    resolve_model,
    tower_identity,
)
from vrray.plans import ORDERS, Ranking
from vrray.region import Region, by_score, place
from vrray.scores.table import missing_score
from vrray.specs import HELD_OUT, Recipe, SweepSpec
from vrray.store import Store
from vrray.sweep.space import Space
from vrray.sweep.trial import Site, Trial, trial_key
from vrray.train.execution import Execution
from vrray.train.memory import MemoryChoice, MemoryEstimate, choose_memory, estimate_memory

PROJECTOR_LEARNING_RATE = 5e-4  # PAPER, recipe of stage 1
SMOL_PROJECTOR_LEARNING_RATE = 1e-2
_DEMO_PREFIX = "demo"
_ALL_FOR = {"change": "all"}  # compares with all layers tuned, whatever `scores_of` says


@dataclass(frozen=True)
class FeaturePlan:
    """Whether vision features are computed once and stored, their size in GiB, and why."""

    cached: bool
    gib: float
    reason: str


@dataclass(frozen=True)
class Prepared:
    """A sweep ready to run: where (`site`), the projector stage, and the space of its trials."""

    spec: SweepSpec
    model_path: Path
    precision: Literal["bf16", "fp32"]
    site: Site
    shape: ModelShape
    template: str
    projector: Trial
    space: Space
    test: tuple[TaskExamples, ...]
    data: Ingested
    choice: MemoryChoice
    features: FeaturePlan

    @property
    def rows(self) -> int:
        """Training rows."""
        return self.data.rows

    @property
    def longest(self) -> int:
        """Tokens of the longest training row."""
        return self.data.longest


def prepare(spec: SweepSpec, store: Store, *, gpu: bool, worker_memory: int) -> Prepared:
    """Resolve the model and the data, encode the rows (once), and lay out the trials.

    Args:
        gpu: workers have a GPU each.
        worker_memory: bytes that one worker may use.
    """
    model_path = resolve_model(spec.model)
    base, shape = base_identity(model_path), model_shape(model_path)
    recipe = spec.recipe().model_copy(update={"precision": resolve_precision(spec.precision, gpu)})
    template = conversation(spec.model, model_path) if spec.template == "auto" else spec.template
    demo = _demo(spec)
    sources, images = _sources(spec, demo)
    rows = RowSpec(str(model_path), base, shape.image_tokens, template, recipe.max_length)
    data = ingest(store, sources, rows, _choice(spec, recipe), images, max_rejected=spec.max_rejected)
    captions = _captions(spec, recipe, demo, sources, rows, images, store)
    candidates = candidates_in(store, data.key) if HELD_OUT in spec.tasks else []
    select, test = (_tasks(spec, demo, candidates, split) for split in ("select", "test"))
    hashes = {**image_hashes(store, data.key), **image_hashes(store, captions.key)}
    trained = list(hashes)
    asked = [
        [e.image for group in groups for e in group.examples if e.image and e.image not in hashes]
        for groups in (select, test)
    ]
    features = _features(spec, shape, [trained, *asked])
    chunks: list[FeatureChunk] = []
    if features.cached:
        tower = tower_identity(model_path)
        hashes |= content_hashes(images, [name for names in asked for name in names])
        chunks = [chunk for names in (trained, *asked) for chunk in plan_chunks(names, hashes, tower)]
    embedded = tuple(made.key for made in (data, captions) if made.embedded)
    # Memory is largest where tuning begins at the bottom: that is taken for what scores will choose.
    names = ["bottom" if by_score(name) else name for name in spec.placements]
    if any((by := by_score(name)) and "all" in (spec.scores_of, _ALL_FOR.get(by[0])) for name in spec.placements):
        names.append("all")
    regions = [place(name, shape.depth, k, spec.seeds[0]) for name in names for k in spec.layers]
    memory = _memory(spec, shape, recipe, regions, data.longest, worker_memory, gpu)
    projector = _projector_trial(spec, shape, recipe, base, captions.key)
    site = Site(
        base=base,
        chunks=tuple(dict.fromkeys(chunks)),
        images=images,
        embedded=embedded,
        feature_shape=(shape.image_tokens, shape.tower_width),
        select=select,
        calibration_key=data.key,
        calibration=min(spec.calibration, data.rows),
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
            rungs=_rungs(recipe.steps(data.rows)) if spec.scheduler == "asha" else (),
        ),
        precision=recipe.precision,
    )
    rankings = [Ranking.parse(text).by for text in spec.rankings] if set(spec.prune) - {0} else []
    texts = any(group.task.ability == "textual" for group in select)
    wanted = [score for score in rankings if score not in ORDERS]
    space = Space(spec, recipe.precision, shape.depth, shape.total, shape.layer, base, data.key, projector.key)
    _check_scores(spec, [*wanted, *space.placing_scores], store, data.key, texts)
    # Finds regions that do not fit and plans that remove too much, before anything starts.
    replace(space, layer_scores={name: [0.0] * shape.depth for name in space.placing_scores}).configs()
    return Prepared(
        spec,
        model_path,
        recipe.precision,
        site,
        shape,
        template,
        projector,
        space,
        test,
        data,
        memory,
        features,
    )


def _check_scores(spec: SweepSpec, scores: Sequence[str], store: Store, key: str, texts: bool) -> None:
    """Refuse layer scores that the calibration rows do not give.

    Args:
        texts: whether there are textual tasks.

    Raises:
        SpecError: one is needed.
    """
    if not scores:
        return
    with store.open(ROWS, key, only=FILES) as folder:
        images = [bool(row.images) for row in Rows(folder)[: spec.calibration]]
    lacking = {"multimodal-bi", "attention", "ablation-visual"} if not any(images) else set()
    if all(images) and not texts:
        lacking.add("ablation-textual")
    for score in scores:
        if score in lacking:
            raise SpecError(missing_score(score))


def resolve_precision(wanted: Literal["auto", "bf16", "fp32"], gpu: bool) -> Literal["bf16", "fp32"]:
    """bf16 where the hardware computes in it; elsewhere it is many times slower than fp32 (docs/benchmarks.md)."""
    if wanted != "auto":
        return wanted
    return "bf16" if gpu or torch.cpu._is_avx512_bf16_supported() else "fp32"


def _demo(spec: SweepSpec) -> DemoData | None:
    """The demo data, where rows or tasks are taken from it."""
    return build_demo(vrray_home()) if spec.is_demo or set(spec.tasks) - {HELD_OUT} else None


def _sources(spec: SweepSpec, demo: DemoData | None) -> tuple[list[Source], Images]:
    """Where records and images are. Images lie beside the data where no folder is given."""
    if spec.is_demo:
        assert demo is not None
        return [Source(str(demo.train))], Images({"": demo.image_root})
    folders = spec.image_folder or [files.parent(files.absolute(location)) for location in spec.data]
    folders = folders * len(spec.data) if len(folders) == 1 else folders
    prefixes = [""] if len(spec.data) == 1 else [str(number) for number in range(len(spec.data))]
    weights = spec.data_weights or [1.0] * len(spec.data)
    sources = [Source(*entry) for entry in zip(spec.data, prefixes, weights, strict=True)]
    roots: dict[str, str] = dict(zip(prefixes, folders, strict=True))
    return sources, Images(roots | ({_DEMO_PREFIX: str(demo.image_root)} if demo else {}))


def _choice(spec: SweepSpec, recipe: Recipe) -> Choice:
    """Which records are trained on: a run of `max_steps` sees at most that many global batches."""
    return Choice(
        seed=spec.seeds[0],
        fraction=spec.data_fraction,
        limit=recipe.max_steps and recipe.max_steps * recipe.global_batch,
        in_order=spec.is_demo,
        held_out=spec.examples if HELD_OUT in spec.tasks else 0,
    )


def _captions(
    spec: SweepSpec,
    recipe: Recipe,
    demo: DemoData | None,
    sources: Sequence[Source],
    rows: RowSpec,
    images: Images,
    store: Store,
) -> Ingested:
    """The rows of stage 1, which passes over them twice: the demo's captions, or the data's own images and answers."""
    choice = replace(
        _choice(spec, recipe), with_image=True, limit=max(1, spec.projector_steps * recipe.global_batch // 2)
    )
    template = "plain" if rows.template in TEMPLATES else "caption"
    entries = [Source(str(demo.captions))] if spec.is_demo and demo else sources
    return ingest(store, entries, replace(rows, template=template), choice, images, max_rejected=spec.max_rejected)


def _tasks(
    spec: SweepSpec, demo: DemoData | None, candidates: Sequence[Candidate], split: Split
) -> tuple[TaskExamples, ...]:
    groups: list[TaskExamples] = []
    for name in spec.tasks:
        if name == HELD_OUT:
            groups += held_out_tasks(candidates, split, spec.examples)
            continue
        assert demo is not None
        if name not in demo.tasks:
            raise SpecError(f"unknown task {name!r}; known are {', '.join([*demo.tasks, HELD_OUT])}")
        examples = demo.examples(name, split, spec.examples)
        if not spec.is_demo:
            examples = tuple(replace(e, image=f"{_DEMO_PREFIX}:{e.image}" if e.image else None) for e in examples)
        groups.append(TaskExamples(demo.tasks[name], split, examples, demo.floor(name, split, spec.examples)))
    return tuple(groups)


def _features(spec: SweepSpec, shape: ModelShape, images: Sequence[Sequence[str]]) -> FeaturePlan:
    """Cache the features where they fit the budget."""
    count = len({name for names in images for name in names})
    gib = count * shape.feature_bytes / 2**30
    size = f"{count} images take {gib:.2f} GiB"
    if spec.features != "auto":
        return FeaturePlan(spec.features == "cache", gib, f"as asked; {size}")
    fits = gib <= spec.feature_budget
    return FeaturePlan(fits, gib, f"{size}, the budget is {spec.feature_budget:g} GiB")


def _memory(
    spec: SweepSpec,
    shape: ModelShape,
    recipe: Recipe,
    regions: Sequence[Region],
    longest: int,
    available: int,
    gpu: bool,
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
                gpu=gpu,
            )
            for region in regions
        ]
        return max(estimates, key=lambda estimate: estimate.total)

    return choose_memory(spec.zero, spec.frozen, spec.activation_checkpointing, shape.depth, available, largest)


def _rungs(steps: int) -> tuple[int, ...]:
    """Where trials are compared: after a quarter of their steps and after half of them."""
    first = max(1, steps // 4)
    return tuple(step for step in (first, 2 * first) if step < steps)


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
    return Trial(trial_key(base, rows, region, stage, seed, None), region, stage, seed, rows, None)
