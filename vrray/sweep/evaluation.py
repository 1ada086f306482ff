"""From the options of an evaluation to what is asked of what. Nothing here asks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from vrray.data.images import Images, Opened, examine
from vrray.errors import DataError, SpecError
from vrray.evaluate.questions import AskedTask
from vrray.evaluate.task_file import read_tasks
from vrray.job_specs import EvaluateSpec
from vrray.models.loading import ModelShape, base_identity, conversation, model_shape, resolve_model
from vrray.store import Store
from vrray.sweep.answers import Part, Variant, cut_parts
from vrray.sweep.compare import is_ceiling
from vrray.sweep.leaks import Asked, Leaks, find_leaks, training_of_sweep
from vrray.sweep.prepare import resolve_precision

_THREADS = 16


@dataclass(frozen=True)
class Evaluation:
    """What is asked of what: the model's directory and identity, variants, tasks, and where the images are.

    Attributes:
        ceilings: for each variant the name of all-layer tuning with the same seed, where that is asked too.
        leaks: which images the sweep trained on too; None without a sweep, or where that is not known.
    """

    spec: EvaluateSpec
    store: Store
    model: str
    path: Path
    shape: ModelShape
    base: str
    precision: Literal["bf16", "fp32"]
    template: str
    variants: tuple[Variant, ...]
    tasks: tuple[AskedTask, ...]
    images: Images
    ceilings: dict[str, str]
    leaks: Leaks | None

    def leaks_text(self) -> str:
        """What is known of images that were trained on."""
        if self.spec.sweep is None:
            return "not known: the model's training data are not given"
        unknown = "not known: the training data are no longer in the store; run the sweep again"
        return unknown if self.leaks is None else self.leaks.text()

    def parts(self, variant: Variant, task: AskedTask, *, blind: bool) -> list[Part]:
        model = {"base": self.base, "template": self.template, "precision": self.precision}
        if self.spec.engine != "vrray" and task.method == "generate":
            model["engine"] = self.spec.engine  # it rounds in its own way, so its answers are kept apart
        return cut_parts(variant, task, model, blind=blind)

    def all_parts(self) -> list[Part]:
        """In the order in which they are answered: a variant after the other."""
        return [
            part
            for variant in self.variants
            for task in self.tasks
            for blind in self.passes(task)
            for part in self.parts(variant, task, blind=blind)
        ]

    def passes(self, task: AskedTask) -> tuple[bool, ...]:
        """Whether a task is asked with its images, and then without them."""
        return (False, True) if self.spec.blind and task.is_visual else (False,)

    def is_choosing(self, task: AskedTask) -> bool:
        """Whether variants are compared with the best of them on a task's figures."""
        return len(self.variants) > 1 and (task.split == "select" or self.spec.choose_on_test)


def prepare_evaluation(spec: EvaluateSpec, *, gpu: bool) -> Evaluation:
    store = Store(spec.storage)
    model, variants, ceilings = _of_model(spec.model) if spec.model is not None else _of_sweep(spec, store)
    path = resolve_model(model)
    tasks = read_tasks(spec.tasks, split=spec.split, limit=spec.limit, short_answers=spec.short_answers, store=store)
    images = Images({task.name: task.images for task in tasks if task.images is not None})
    opened: dict[str, Opened] = {}
    tasks = tuple(with_images(task, images, opened) for task in tasks)
    return Evaluation(
        spec=spec,
        store=store,
        model=model,
        path=path,
        shape=model_shape(path),
        base=base_identity(path),
        precision=resolve_precision(spec.precision, gpu),
        template=conversation(model, path) if spec.template == "auto" else spec.template,
        variants=variants,
        tasks=tasks,
        images=images,
        ceilings=ceilings,
        leaks=_leaks(spec, store, tasks, opened, images),
    )


def _of_model(model: str) -> tuple[str, tuple[Variant, ...], dict[str, str]]:
    return model, (Variant("model"),), {}


def _of_sweep(spec: EvaluateSpec, store: Store) -> tuple[str, tuple[Variant, ...], dict[str, str]]:
    """The base of a sweep, its variants, and the names of their ceilings."""
    folder = f"sweeps/{spec.sweep}"
    if "table.parquet" not in store.names(folder):
        known = ", ".join(store.names("sweeps")) or "none"
        raise SpecError(f"--sweep {spec.sweep}: no finished sweep of that name in {store.shown()} (it has {known})")
    table = store.read_table(f"{folder}/table.parquet")
    rows = {row["variant"]: row for row in table.to_pylist() if row["status"] == "complete"}
    names = spec.variants or list(rows)
    if unknown := [name for name in names if name not in rows]:
        raise SpecError(f"--variants {unknown[0]}: no finished variant of that name; the sweep has {', '.join(rows)}")
    variants = (Variant(name, rows[name]["key"], tuple(rows[name]["removed_layers"])) for name in names)
    whole = {rows[name]["seed"]: name for name in reversed(names) if is_ceiling(rows[name])}
    ceilings = {name: whole[rows[name]["seed"]] for name in names if rows[name]["seed"] in whole}
    model = json.loads(store.read_bytes(f"{folder}/sweep.json"))["context"]["model"]
    return model, tuple(dict.fromkeys(variants)), ceilings


def _leaks(
    spec: EvaluateSpec, store: Store, tasks: Sequence[AskedTask], opened: Mapping[str, Opened], images: Images
) -> Leaks | None:
    training = None if spec.sweep is None else training_of_sweep(store, spec.sweep)
    if training is None:
        return None
    groups = [Asked(task.name, "", tuple(task.image_name(question) for question in task.questions)) for task in tasks]
    return find_leaks(store, training, groups, opened, images)


def with_images(task: AskedTask, images: Images, opened: dict[str, Opened] | None = None) -> AskedTask:
    """A task that knows the contents of its images, and which questions cannot be asked because of theirs.

    Args:
        opened: gets what is kept of each image that was opened.

    Raises:
        DataError: no question can be asked.
    """
    names = list(dict.fromkeys(q.image for q in task.questions if q.image is not None))
    with ThreadPoolExecutor(_THREADS) as pool:
        found = dict(zip(names, pool.map(lambda name: _look(images, task, name), names), strict=True))
    problems = {}
    for place, question in enumerate(task.questions):
        if question.image is None and task.needs_images:
            problems[place] = "the benchmark's files name no image for it, or do not have it"
        elif question.image is not None and isinstance(error := found[question.image], DataError):
            problems[place] = str(error)
    if len(problems) == len(task.questions):
        raise DataError(f"task {task.name!r}: none of its {len(problems)} questions can be asked: {problems[0]}")
    usable = {name: known for name, known in found.items() if isinstance(known, Opened)}
    if opened is not None:
        opened |= {f"{task.name}:{name}": known for name, known in usable.items()}
    return replace(task, image_hashes={name: known.hash for name, known in usable.items()}, problems=problems)


def _look(images: Images, task: AskedTask, image: str) -> Opened | DataError:
    """What is kept of an image, or what is wrong with it."""
    if image in task.unusable:
        return DataError(task.unusable[image])
    name = f"{task.name}:{image}"
    try:
        return examine(images.read(name), name)
    except DataError as error:
        return error
