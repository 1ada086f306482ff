"""Evaluating models by themselves: variants are asked tasks on the worker groups of a cluster, answers are stored."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from vrray.data.chunks import FeatureChunk, plan_chunks
from vrray.data.features import KIND as FEATURES
from vrray.job_specs import EvaluateSpec
from vrray.models.loading import tower_identity
from vrray.specs import RunSpec
from vrray.sweep.answers import ANSWERS, AnswersJob, Part
from vrray.sweep.evaluated import FOLDER, write_results
from vrray.sweep.evaluation import Evaluation, prepare_evaluation
from vrray.sweep.jobs import FeaturesJob
from vrray.sweep.leaks import FILE as LEAKS
from vrray.sweep.vllm_answers import answer_with_vllm, check_available, check_servable
from vrray.train.desk import Setup, follow
from vrray.train.group import WorkerGroups
from vrray.train.launch import Capacity
from vrray.upkeep.records import recorded

_BYTES = {"bf16": 2, "fp32": 4}


def run_evaluation(spec: EvaluateSpec) -> None:
    """Answer on the connected Ray cluster what the store does not hold; write results, examples and report.

    Raises:
        SpecError: a sweep, a variant or a task is not there.
        DataError: a task's data are missing or malformed, or none of its images can be read.
        ClusterError: the cluster cannot hold a worker group.
        TrainingError: the workers failed.
    """
    run, capacity = spec.as_run(), Capacity.of_cluster()
    gpu = capacity.uses_gpus(run)
    if spec.engine == "vllm":
        check_available(gpu=gpu)
    capacity.trials_at_once(run)  # refuses a cluster that is too small before anything is prepared
    evaluation = prepare_evaluation(spec, gpu=gpu)
    if evaluation.leaks is not None:
        _say(evaluation.leaks.text())
    if spec.engine == "vllm":
        check_servable(evaluation)
    with recorded(evaluation.store, f"{FOLDER}/{spec.name}"):
        _answer_missing(evaluation, run, capacity, gpu=gpu)
        write_results(evaluation)
        if evaluation.leaks is not None:
            evaluation.store.write_table(f"{FOLDER}/{spec.name}/{LEAKS}", evaluation.leaks.pairs)


def _answer_missing(evaluation: Evaluation, run: RunSpec, capacity: Capacity, *, gpu: bool) -> None:
    """Answer what the store does not hold."""
    spec, parts = evaluation.spec, evaluation.all_parts()
    missing = [part for part in _distinct(parts) if not evaluation.store.has(ANSWERS, part.key)]
    asked = sum(len(part.examples) for part in parts)
    _say(f"{asked} questions to ask, {sum(len(part.examples) for part in missing)} without an answer in the store")
    if spec.engine == "vllm":
        answer_with_vllm(evaluation, [part for part in missing if part.method == "generate"], int(capacity.gpus))
        missing = [part for part in missing if part.method != "generate"]  # these choose among options
    if missing:
        weights = evaluation.shape.total * _BYTES[evaluation.precision]
        groups = min(capacity.trials_at_once(run, weights), len(missing))
        setup = Setup(
            evaluation.store.uri,
            str(evaluation.path),
            evaluation.base,
            evaluation.precision,
            spec.attention,
            spec.liger,
            evaluation.template,
        )
        with WorkerGroups(run, setup, count=groups, gpu=gpu) as workers:
            _answer(evaluation, missing, workers.desk, groups)


def _answer(evaluation: Evaluation, missing: Sequence[Part], desk: Any, groups: int) -> None:
    """Let the groups share the parts; vision features come first, where they are to be stored."""
    chunks = _chunks(evaluation, missing)
    absent = [chunk for chunk in chunks if not evaluation.store.has(FEATURES, chunk.key)]
    if absent:
        _say(f"vision features of {sum(len(chunk.images) for chunk in absent)} images")
        shares = [share for place in range(groups) if (share := tuple(absent[place::groups]))]
        jobs = [FeaturesJob(_key("features"), share, evaluation.images, (), evaluation.path) for share in shares]
        for _ in follow(desk, *jobs):
            pass
    shape = (evaluation.shape.image_tokens, evaluation.shape.tower_width)
    asking = [
        AnswersJob(_key("answers"), tuple(share), tuple(chunks), evaluation.images, shape, evaluation.spec.batch)
        for share in (missing[place::groups] for place in range(groups))
    ]
    done, total = 0, sum(len(part.examples) for part in missing)
    for report in follow(desk, *asking):
        if "say" in report:
            _say(str(report["say"]))
        if report.get("answered"):
            done += report["answered"]
            _say(f"answered {done} of {total}")


def _chunks(evaluation: Evaluation, parts: Sequence[Part]) -> list[FeatureChunk]:
    """The features that are stored; none where they are to be computed live."""
    spec, tower = evaluation.spec, tower_identity(evaluation.path)
    wanted = {example.image for part in parts if not part.blind for example in part.examples} - {None}
    gib = len(wanted) * evaluation.shape.feature_bytes / 2**30
    if spec.features == "live" or (spec.features == "auto" and gib > spec.feature_budget):
        return []
    chunks = []
    for task in evaluation.tasks:
        hashes = {f"{task.name}:{name}": known for name, known in task.image_hashes.items()}
        # Of all images, so that a run that goes on finds the chunks of the one before.
        names = [name for question in task.questions if (name := task.image_name(question)) in hashes]
        chunks += plan_chunks([name for name in names if name is not None], hashes, tower)
    return [chunk for chunk in chunks if not wanted.isdisjoint(chunk.images)]


def _distinct(parts: Sequence[Part]) -> list[Part]:
    """One part of each key: two variants may be the same model."""
    return list({part.key: part for part in parts}.values())


def _key(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex[:8]}"


def _say(text: str) -> None:
    print(text, flush=True)
