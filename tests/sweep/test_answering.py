"""Answers of tasks: whatever the number of ranks and the batch, with images that are missing, found again by key."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from tiny import IMAGE_TOKENS, TOWER_WIDTH, Ground

from vrray.data.images import Images
from vrray.errors import DataError
from vrray.evaluate.benchmarks.question import Question
from vrray.evaluate.questions import AskedTask
from vrray.models.family import family_of
from vrray.models.loading import load_model
from vrray.region import Region
from vrray.store import Store
from vrray.sweep import answers
from vrray.sweep.answering import answer_parts
from vrray.sweep.answers import ANSWERS, AnswersJob, Part, Variant, cut_parts, read_answers
from vrray.sweep.evaluation import with_images
from vrray.variant import DELTA, Delta

MODEL = {"base": "b", "template": "chat", "precision": "fp32"}


def make_task(ground: Ground, folder: Path) -> AskedTask:
    """Questions of several lengths about photos and without any; some cannot be asked."""
    photos, names = folder / "photos", ground.photos[:7]
    shutil.copytree(ground.images.roots[""], photos)
    seen = [Question(f"v{n}", "Which colour? " * (1 + n % 3), ("red",), name) for n, name in enumerate(names)]
    (photos / "broken.png").write_bytes(b"no image")
    bad = [
        Question("gone", "Which colour?", ("red",), "gone.png"),
        Question("broken", "Which colour?", ("red",), "broken.png"),
        Question("marked", "What is <image>?", ("red",)),
        Question("long", "What is it? " * 200, ("red",)),
    ]
    questions = (*seen[:4], *bad, *seen[4:], Question("text", "What is it?", ("red",)))
    prompts = tuple(question.question for question in questions)
    task = AskedTask("colours", "exact", False, questions, prompts, str(photos), max_new_tokens=4)
    return with_images(task, Images({"colours": photos}))


def make_delta(ground: Ground) -> Delta:
    """Another projector."""
    model = load_model(Path(ground.model))
    path = family_of(model.config).projector
    generator = torch.Generator().manual_seed(3)
    tensors = {
        f"{path}.{name}": torch.randn(parameter.shape, generator=generator)
        for name, parameter in model.get_submodule(path).named_parameters()
    }
    return Delta(tensors, Region.none(6), ground.base, "full")


VARIANTS = (Variant("model"), Variant("pruned", None, (1, 4)), Variant("tuned", "other"))


def answered(ground: Ground, store: str, task: AskedTask, batch: int) -> dict[tuple[str, bool], list[Any]]:
    """What the variants say to all questions that are asked, by variant and whether blind."""
    workspace = replace(ground.workspace(), store=Store(store))
    parts = [
        part for variant in VARIANTS for blind in (False, True) for part in cut_parts(variant, task, MODEL, blind=blind)
    ]
    images = Images({"colours": task.images or ""})
    reports: list[dict[str, Any]] = []
    job = AnswersJob("job", tuple(parts), (), images, (IMAGE_TOKENS, TOWER_WIDTH), batch)
    answer_parts(workspace, job, reports.append)
    assert len(reports) == len(parts)
    found: dict[tuple[str, bool], list[Any]] = {}
    for part in parts:
        found.setdefault((part.variant.name, part.blind), []).extend(read_answers(workspace.store, part))
    return found


def make_store(folder: Path, ground: Ground) -> str:
    store = Store(folder)
    store.put(DELTA, "other", make_delta(ground).save)
    return store.uri


def test_answers_do_not_depend_on_ranks_batch_and_parts(
    ground: Ground, tmp_path: Path, one_rank: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make_task(ground, tmp_path)
    alone = answered(ground, make_store(tmp_path / "one", ground), task, 32)
    said = [answer.prediction for answer in alone["model", False]]
    assert len(set(said)) > 2  # photos and lengths matter
    assert all(answer.latency_ms > 0 for answer in alone["model", False] if answer.prediction is not None)
    distinct = {str([answer.prediction for answer in found]) for found in alone.values()}
    assert (
        len(distinct) == len(alone) - 1
    )  # so do images and variants; without images another projector changes nothing
    assert alone["model", True] == alone["tuned", True]
    monkeypatch.setattr(answers, "PART", 5)
    assert answered(ground, make_store(tmp_path / "parts", ground), task, 1) == alone
    for found in run_ranks(answered, 2, ground, make_store(tmp_path / "ranks", ground), task, 2):
        assert found == alone


def test_what_cannot_be_asked_is_recorded(ground: Ground, tmp_path: Path, one_rank: None) -> None:
    task = make_task(ground, tmp_path)
    reasons = {task.questions[place].id: why for place, why in task.problems.items()}
    assert set(reasons) == {"gone", "broken"}
    assert "No such file" in reasons["gone"]
    assert "'colours:broken.png' is damaged" in reasons["broken"]
    (part,) = cut_parts(VARIANTS[0], task, MODEL, blind=False)
    asked = [example.id for example in part.examples]
    assert asked == ["text", "v0", "v3", "v6", "marked", "v1", "v4", "v2", "v5", "long"]  # of similar length together
    found = answered(ground, make_store(tmp_path, ground), task, 4)["model", False]
    problems = {name: answer.problem for name, answer in zip(asked, found, strict=True) if answer.prediction is None}
    assert set(problems) == {"marked", "long"}
    assert "image tokens" in str(problems["marked"])
    assert "tokens and the answer up to 4; the model reads 256" in str(problems["long"])


def test_a_task_of_which_nothing_can_be_asked_is_an_error(ground: Ground, tmp_path: Path) -> None:
    task = make_task(ground, tmp_path)
    seen = replace(task, questions=task.questions[:3])
    with pytest.raises(DataError, match=r"none of its 3 questions can be asked: .*No such file"):
        with_images(seen, Images({"colours": tmp_path}))
    unseen = replace(task, questions=task.questions[-1:], needs_images=True)
    with pytest.raises(DataError, match="none of its 1 questions can be asked: the benchmark's files name no image"):
        with_images(unseen, Images({}))


def test_what_the_store_holds_is_not_asked_again(ground: Ground, tmp_path: Path, one_rank: None) -> None:
    task, store = make_task(ground, tmp_path), make_store(tmp_path, ground)
    (part,) = cut_parts(VARIANTS[0], task, MODEL, blind=False)

    def write(folder: Path) -> None:
        (folder / "answers.parquet").write_bytes(stored)

    answered(ground, store, task, 32)
    with Store(store).open(ANSWERS, part.key) as folder:
        stored = (folder / "answers.parquet").read_bytes()
    info = Store(store).describe(ANSWERS, part.key)
    assert (info["variant"], info["task"], info["blind"], info["questions"]) == ("model", "colours", False, 10)
    # What stands there is taken, also where the model would say something else.
    blind = cut_parts(VARIANTS[0], task, MODEL, blind=True)[0]
    Store(store).delete(ANSWERS, blind.key)
    Store(store).put(ANSWERS, blind.key, write)
    found = answered(ground, store, task, 32)
    assert found["model", True] == found["model", False]


def keys(task: AskedTask, **changes: Any) -> set[str]:
    options: dict[str, Any] = {"variant": VARIANTS[0], "model": MODEL, "blind": False, **changes}
    parts: list[Part] = cut_parts(options["variant"], task, options["model"], blind=options["blind"])
    return {part.key for part in parts}


def test_keys_follow_from_what_determines_the_answers(ground: Ground, tmp_path: Path) -> None:
    task = make_task(ground, tmp_path)
    first = keys(task)
    assert keys(replace(task, name="renamed", scoring="contains")) == first
    other = {
        "variant": keys(task, variant=VARIANTS[1]),
        "delta": keys(task, variant=VARIANTS[2]),
        "template": keys(task, model={**MODEL, "template": "llama"}),
        "blind": keys(task, blind=True),
        "tokens": keys(replace(task, max_new_tokens=5)),
        "prompt": keys(replace(task, prompts=(*task.prompts[:-1], "What?"))),
        "image": keys(replace(task, image_hashes={**task.image_hashes, ground.photos[0]: "0" * 16})),
    }
    assert all(found != first for found in other.values())
    assert len(set.union(*other.values())) == len(other)
