"""Which tasks are asked: names of the demo's, and YAML files that name a benchmark or data of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, model_validator

from vrray.data.demo import TASKS, build_demo
from vrray.data.held_out import unit_hash
from vrray.data.records import IMAGE_PLACEHOLDER, parse_record, read_rows, shown
from vrray.data.tasks import Split
from vrray.errors import DataError, SpecError
from vrray.evaluate.benchmarks.files import Row
from vrray.evaluate.benchmarks.question import Question
from vrray.evaluate.benchmarks.registry import find_benchmark
from vrray.evaluate.embedded import embedded_images
from vrray.evaluate.metrics import CHOICE_LETTERS
from vrray.evaluate.questions import AskedTask, benchmark_prompt, needs_images, replies_to, with_instruction
from vrray.frozen import Frozen
from vrray.home import vrray_home
from vrray.specs import NAME
from vrray.store import Store

MAX_NEW_TOKENS = 32  # longer than the answers that these benchmarks expect; a model that stops by itself takes fewer
_YAML = (".yaml", ".yml")


class TaskSpec(Frozen):
    """One entry of a task file: a benchmark in its official files, or records of one's own."""

    name: str | None = Field(None, pattern=NAME, description="what the report calls it [the benchmark's name]")
    benchmark: str | None = Field(None, description="name of a benchmark, as `vrray grade --task` knows it")
    annotations: Path | None = Field(None, description="the benchmark's own file or folder")
    data: Path | None = Field(None, description="LLaVA JSON or JSONL, a question and its answer a record")
    images: Path | None = Field(
        None, description="the folder that image names start from [images inside the annotations]"
    )
    metric: Literal["exact", "contains", "vqa", "anls", "relaxed", "choice", "f1"] | None = Field(
        None, description="how answers to `data` are scored"
    )
    limit: int | None = Field(None, ge=1, description="questions that are asked, drawn by their ids [all]")
    method: Literal["generate", "choose"] = Field(
        "generate", description="answers are generated, or the likeliest letter (yes or no) is chosen"
    )
    split: Literal["select", "test"] = Field("test", description="whether variants may be chosen by its figures")
    max_new_tokens: int = Field(MAX_NEW_TOKENS, ge=1, description="of an answer")
    instruction: str | None = Field(None, description="stands behind every question [the benchmark's; none with data]")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.benchmark is None) == (self.data is None):
            raise ValueError("give either benchmark with annotations, or data with metric")
        if (self.benchmark is None) != (self.annotations is None):
            raise ValueError("benchmark and annotations go together: its name, and its own file or folder")
        if (self.data is None) != (self.metric is None):
            raise ValueError("data and metric go together; a benchmark is scored by its own")
        if self.data is not None and self.name is None:
            raise ValueError("name is missing: what the report calls the task")
        return self


def read_tasks(
    names: Sequence[str], *, split: Split, limit: int | None, short_answers: bool, store: Store
) -> tuple[AskedTask, ...]:
    """The tasks of names and files, in their order.

    Args:
        split: of the demo's tasks.
        limit: questions of each task at most, where its entry has no limit of its own.
        short_answers: ask benchmarks' questions with the instruction that fits them.
        store: gets the images that come inside a benchmark's files.

    Raises:
        SpecError: a name is unknown or stands twice, or a file or one of its entries is wrong.
        DataError: a task's data are missing or malformed.
    """
    tasks: list[AskedTask] = []
    for name in names:
        if name.endswith(_YAML):
            tasks += [_load(entry, limit, short_answers, store) for entry in _read_file(Path(name))]
        elif name in TASKS:
            tasks.append(_demo_task(name, split, limit))
        else:
            raise SpecError(f"unknown task {name!r}; known are {', '.join(TASKS)}, and YAML files (.yaml) of tasks")
    found = [task.name for task in tasks]
    if twice := sorted({name for name in found if found.count(name) > 1}):
        raise SpecError(f"two tasks are named {twice[0]!r}; give one of them another name")
    return tuple(tasks)


def _read_file(path: Path) -> list[TaskSpec]:
    """The entries, with their paths seen from the file's folder."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"--tasks {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError(f"--tasks {path} is not valid YAML: {error}") from error
    entries = content if isinstance(content, list) else [content]
    return [_parse(entry, path, number) for number, entry in enumerate(entries, start=1)]


def _parse(entry: Any, path: Path, number: int) -> TaskSpec:
    if not isinstance(entry, dict):
        raise SpecError(f"--tasks {path}, task {number}: found {shown(entry)}; write name, data, images and metric")
    try:
        spec = TaskSpec.parse({str(name): value for name, value in entry.items()})
    except SpecError as error:
        raise SpecError(f"--tasks {path}, task {number}: {error}") from None
    folder = path.resolve().parent
    places = {name: folder / place for name in ("annotations", "data", "images") if (place := getattr(spec, name))}
    return spec.model_copy(update=places)


def _demo_task(name: str, split: Split, limit: int | None) -> AskedTask:
    demo = build_demo(vrray_home())
    examples = demo.examples(name, split, limit)
    choice = demo.tasks[name].metric == "choice"
    return AskedTask(
        name=name,
        scoring="exact",
        official=False,
        questions=tuple(Question(e.id, e.question, (e.answer,), e.image, e.options) for e in examples),
        prompts=tuple(example.question for example in examples),
        images=str(demo.image_root) if demo.tasks[name].ability == "visual" else None,
        method="continue" if choice else "generate",
        split=split,
    )


def _load(spec: TaskSpec, limit: int | None, short_answers: bool, store: Store) -> AskedTask:
    task = _own_task(spec) if spec.benchmark is None else _benchmark_task(spec, short_answers, store)
    if not task.questions:
        raise DataError(f"task {task.name!r} has no questions; give data with at least one")
    if task.is_visual and task.images is None:
        raise SpecError(f"task {task.name!r} has questions about images; say in which folder these are: images: FOLDER")
    if task.method == "choose" and not task.replies and not all(question.options for question in task.questions):
        raise SpecError(f"task {task.name!r} has questions without options to choose from; write method: generate")
    count = spec.limit or limit or len(task.questions)
    # Official files are often sorted by category, so that their first questions would be no fair sample.
    drawn = sorted(range(len(task.questions)), key=lambda place: unit_hash(0, "limit", task.questions[place].id))
    places = sorted(drawn[:count])
    return replace(
        task,
        questions=tuple(task.questions[place] for place in places),
        prompts=tuple(task.prompts[place] for place in places),
    )


def _benchmark_task(spec: TaskSpec, short_answers: bool, store: Store) -> AskedTask:
    assert spec.benchmark is not None and spec.annotations is not None
    benchmark = find_benchmark(spec.benchmark)
    questions = list(benchmark.read(spec.annotations))
    images, unusable = None if spec.images is None else str(spec.images), {}
    if spec.images is None and (found := embedded_images(store, benchmark, spec.annotations)):
        images, unusable = found.root, found.problems
        questions = [replace(q, image=name) for q, name in zip(questions, found.names, strict=True)]
    # Of GQA only the balanced questions are scored.
    questions = [q for q in questions if q.labels.get("balanced", "yes") == "yes"]
    if silent := [question.id for question in questions if not question.question.strip()]:
        raise DataError(
            f"{spec.annotations}: has no text for question {shown(silent[0])}; put the benchmark's file of questions "
            f"beside it ({benchmark.files})"
        )
    instruction = spec.instruction if spec.instruction is not None or short_answers else ""
    return AskedTask(
        name=spec.name or benchmark.name,
        scoring=benchmark.name,
        official=True,
        questions=tuple(questions),
        prompts=tuple(benchmark_prompt(benchmark, question, instruction) for question in questions),
        images=images,
        max_new_tokens=spec.max_new_tokens,
        method=spec.method,
        needs_images=needs_images(benchmark),
        replies=replies_to(benchmark),
        split=spec.split,
        unusable=unusable,
    )


def _own_task(spec: TaskSpec) -> AskedTask:
    assert spec.data is not None and spec.metric is not None and spec.name is not None
    questions: dict[str, Question] = {}
    for number, (place, row) in enumerate(read_rows(spec.data), start=1):
        question = _own_question(row, number, place)
        if question.id in questions:
            raise DataError(f"{place}: field 'id' repeats {question.id!r}; make ids unique, or leave them all out")
        if spec.metric == "choice" and not set(question.answers) <= set(CHOICE_LETTERS):
            raise DataError(f"{place}: the answer is {shown(question.answers[0])}; metric choice needs A, B, C or D")
        questions[question.id] = question
    return AskedTask(
        name=spec.name,
        scoring=spec.metric,
        official=False,
        questions=tuple(questions.values()),
        prompts=tuple(with_instruction(q.question, spec.instruction or "") for q in questions.values()),
        images=None if spec.images is None else str(spec.images),
        max_new_tokens=spec.max_new_tokens,
        method=spec.method,
        replies=CHOICE_LETTERS if spec.metric == "choice" else (),
        split=spec.split,
    )


def _own_question(row: object, number: int, place: str) -> Question:
    named = {**row, "id": number} if isinstance(row, dict) and row.get("id") is None else row
    record = parse_record(named, place)
    if len(record.turns) != 1 or len(record.images) > 1:
        raise DataError(
            f"{place}: {len(record.turns)} answers and {len(record.images)} images; a task asks one question a record, "
            "about one image at most"
        )
    (turn,) = record.turns
    assert isinstance(row, dict)
    answers = Row(place, row).texts("answers") if row.get("answers") is not None else (turn.assistant.strip(),)
    question = turn.user.replace(IMAGE_PLACEHOLDER, "").strip()
    if not question or not all(answer.strip() for answer in answers):
        raise DataError(f"{place}: the question or an answer is blank; write both")
    return Question(record.id, question, answers, record.images[0] if record.images else None)
