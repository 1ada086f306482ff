"""From the options of an evaluation to what is asked of what. Nothing here asks."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from vrray.data.images import Images, check_image, image_hash
from vrray.errors import DataError, SpecError
from vrray.evaluate.questions import AskedTask
from vrray.evaluate.task_file import read_tasks
from vrray.models.loading import ModelShape, base_identity, conversation, model_shape, resolve_model
from vrray.specs import EvaluateSpec
from vrray.store import Store
from vrray.sweep.answers import Part, Variant, cut_parts
from vrray.sweep.prepare import resolve_precision

_THREADS = 16


@dataclass(frozen=True)
class Evaluation:
    """What is asked of what: the model's directory and identity, variants, tasks, and where the images are."""

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


def prepare_evaluation(spec: EvaluateSpec, *, gpu: bool) -> Evaluation:
    store = Store(spec.storage)
    model, variants = (spec.model, (Variant("model"),)) if spec.model is not None else _of_sweep(spec, store)
    path = resolve_model(model)
    tasks = read_tasks(spec.tasks, split=spec.split, limit=spec.limit, short_answers=spec.short_answers)
    images = Images({task.name: task.images for task in tasks if task.images is not None})
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
        tasks=tuple(with_images(task, images) for task in tasks),
        images=images,
    )


def _of_sweep(spec: EvaluateSpec, store: Store) -> tuple[str, tuple[Variant, ...]]:
    """The base of a sweep, and its variants."""
    folder = f"sweeps/{spec.sweep}"
    if "table.parquet" not in store.names(folder):
        known = ", ".join(store.names("sweeps")) or "none"
        raise SpecError(f"--sweep {spec.sweep}: no finished sweep of that name in {store.uri} (it has {known})")
    table = store.read_table(f"{folder}/table.parquet")
    rows = {row["variant"]: row for row in table.to_pylist() if row["status"] == "complete"}
    names = spec.variants or list(rows)
    if unknown := [name for name in names if name not in rows]:
        raise SpecError(f"--variants {unknown[0]}: no finished variant of that name; the sweep has {', '.join(rows)}")
    variants = (Variant(name, rows[name]["key"], tuple(rows[name]["removed_layers"])) for name in names)
    return json.loads(store.read_bytes(f"{folder}/sweep.json"))["context"]["model"], tuple(dict.fromkeys(variants))


def with_images(task: AskedTask, images: Images) -> AskedTask:
    """A task that knows the contents of its images, and which questions cannot be asked because of theirs.

    Raises:
        DataError: no question can be asked.
    """
    names = list(dict.fromkeys(q.image for q in task.questions if q.image is not None))
    with ThreadPoolExecutor(_THREADS) as pool:
        found = dict(zip(names, pool.map(lambda name: _look(images, f"{task.name}:{name}"), names), strict=True))
    problems = {}
    for place, question in enumerate(task.questions):
        if question.image is None and task.needs_images:
            problems[place] = "the benchmark's files name no image for it, or do not have it"
        elif question.image is not None and isinstance(error := found[question.image], DataError):
            problems[place] = str(error)
    if len(problems) == len(task.questions):
        raise DataError(f"task {task.name!r}: none of its {len(problems)} questions can be asked: {problems[0]}")
    hashes = {name: known for name, known in found.items() if isinstance(known, str)}
    return replace(task, image_hashes=hashes, problems=problems)


def _look(images: Images, name: str) -> str | DataError:
    """The content hash of an image, or what is wrong with it."""
    try:
        data = images.read(name)
        check_image(data, name)
    except DataError as error:
        return error
    return image_hash(data)
