"""What users call from Python."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vrray.errors import SpecError
from vrray.frozen import Frozen
from vrray.job_specs import EvaluateSpec, FinetuneSpec, PretrainSpec, ScoreSpec
from vrray.specs import SweepSpec
from vrray.store import Store


class Sweep:
    """A finished sweep in a store: its table, its best variant, its models, its report."""

    def __init__(self, storage: str, name: str):
        self._store, self.name = Store(storage), name
        self.folder = self._store.location("sweeps", name)
        self.table = self._store.read_table(f"sweeps/{name}/table.parquet")

    def best(self) -> dict[str, Any]:
        """The row with the highest visual score on the select split."""
        from vrray.sweep.compare import choose

        return choose(self.table)

    def load(self, variant: str) -> tuple[Any, Any]:
        """The model (pruned, ready to generate) and the processor of a row of the table.

        Raises:
            SpecError: there is no such variant.
        """
        import json

        from vrray.models.loading import base_identity, load_processor, resolve_model
        from vrray.variant import load_variant

        rows = {row["variant"]: row for row in self.table.to_pylist()}
        if variant not in rows or rows[variant]["status"] != "complete":
            raise SpecError(f"no finished variant {variant!r}; the sweep has {', '.join(rows)}")
        row = rows[variant]
        context = json.loads(self._store.read_bytes(f"sweeps/{self.name}/sweep.json"))["context"]
        path = resolve_model(context["model"])
        removed, base = tuple(row["removed_layers"]), base_identity(path)
        # What may go was settled with the plan: a sweep may have pruned inside its region on purpose.
        model = load_variant(self._store, row["key"], removed, path, base, protect=False)
        return model, load_processor(path)

    def report(self, path: str | os.PathLike[str]) -> Path:
        """Write the sweep's report and its figures (in `figures/` beside it) to a local path."""
        target = Path(path)
        (target.parent / "figures").mkdir(parents=True, exist_ok=True)
        folder = f"sweeps/{self.name}"
        for name in self._store.names(f"{folder}/figures"):
            (target.parent / "figures" / name).write_bytes(self._store.read_bytes(f"{folder}/figures/{name}"))
        target.write_bytes(self._store.read_bytes(f"{folder}/report.md"))
        return target


class Scores:
    """Measured layer scores in a store.

    Attributes:
        table: a row a score and layer: `score`, `layer`, `value`, `standard_error`, `samples`.
        correlations: Spearman's rank correlation of each pair of scores `a`, `b`; of a score with itself: between
            rankings by two halves of its calibration samples.
    """

    def __init__(self, storage: str, name: str):
        self._store, self.name = Store(storage), name
        self.folder = self._store.location("layer-scores", name)
        self.table, self.correlations = (
            self._store.read_table(f"layer-scores/{name}/{file}.parquet") for file in ("scores", "correlations")
        )

    def order(self, score: str) -> list[int]:
        """The layers from the most important to the least.

        Raises:
            SpecError: the score was not measured.
        """
        from vrray.scores.table import least_important_first

        values = [row["value"] for row in self.table.to_pylist() if row["score"] == score]
        if not values:
            raise SpecError(
                f"score {score!r} was not measured; {', '.join(self.table['score'].unique().to_pylist())} were"
            )
        return least_important_first(values, range(len(values)))[::-1]


class Evaluation:
    """Scores of variants on tasks, in a store.

    Attributes:
        table: a row a variant and task: `n`, `failed`, the task's main `score`, the plain `mean` of its questions with
            its 95 % bootstrap interval, `blind_score` and `blind_mean` without images, `detail` as JSON.
        examples: a row a question and pass: `question`, `image`, `answers`, `prediction`, `score`, `blind`, `problem`.
    """

    def __init__(self, storage: str, name: str):
        self._store, self.name = Store(storage), name
        self.folder = self._store.location("evaluations", name)
        self.table, self.examples = (
            self._store.read_table(f"evaluations/{name}/{file}.parquet") for file in ("results", "examples")
        )

    def summary(self) -> dict[str, Any]:
        """What `jobs/evaluate.py` prints as its last line."""
        results = self.table.drop_columns(["detail"]).to_pylist()
        report = self._store.shown("evaluations", self.name, "report.md")
        return {"name": self.name, "report": report, "results": results}


def tune_layers(**options: Any) -> Sweep:
    """Train region-tuned variants, prune each of them, score them all, and return the sweep.

    Options are the fields of `vrray.specs.SweepSpec`. Runs on the Ray cluster that is connected, that `RAY_ADDRESS`
    names, or that a job was submitted to; else a local one is started and stopped again.

    Raises:
        VrrayError: an option, the data, the model or the cluster is not fit for it; the message says what to change.
    """
    return run(SweepSpec.parse(options))


def pretrain_projector(**options: Any) -> dict[str, Any]:
    """Train the projector alone (stage 1), or find it in the store; its key there, and what was measured.

    Options are the fields of `vrray.job_specs.PretrainSpec`. Trainings and sweeps with the same options start from it.

    Raises:
        VrrayError: as `finetune`.
    """
    from vrray.sweep.single import run_pretrain

    spec = PretrainSpec.parse(options)
    with connected(spec.storage):
        return run_pretrain(spec)


def finetune(**options: Any) -> dict[str, Any]:
    """Train one region, or find the same training in the store; its key there, and what was measured.

    Options are the fields of `vrray.job_specs.FinetuneSpec`; the cluster is found as in `tune_layers`. A training that
    was interrupted goes on from its last checkpoint.

    Raises:
        VrrayError: an option, the data, the model or the cluster is not fit for it; the message says what to change.
    """
    from vrray.sweep.single import run_finetune

    spec = FinetuneSpec.parse(options)
    with connected(spec.storage):
        return run_finetune(spec)


def score_layers(**options: Any) -> Scores:
    """Measure layer scores, with their standard errors and how far they agree.

    Options are the fields of `vrray.job_specs.ScoreSpec`; the cluster is found as in `tune_layers`.

    Raises:
        VrrayError: an option, the data, the model or the cluster is not fit for it; the message says what to change.
    """
    from vrray.sweep.scoring import run_scores

    spec = ScoreSpec.parse(options)
    with connected(spec.storage):
        run_scores(spec)
    return Scores(spec.storage, spec.name)


def evaluate(**options: Any) -> Evaluation:
    """Score a model, or variants of a sweep, on tasks; answers that the store holds are not asked for again.

    Options are the fields of `vrray.job_specs.EvaluateSpec`; the cluster is found as in `tune_layers`.

    Raises:
        VrrayError: an option, a task, the model or the cluster is not fit for it; the message says what to change.
    """
    from vrray.sweep.evaluating import run_evaluation

    spec = EvaluateSpec.parse(options)
    with connected(spec.storage):
        run_evaluation(spec)
    return Evaluation(spec.storage, spec.name)


def export(**options: Any) -> Path:
    """Write a variant of a sweep, or a model with layers removed, as a directory that plain transformers loads.

    Options are the fields of `vrray.exporting.spec.ExportSpec`; no cluster is needed.

    Returns:
        The directory.

    Raises:
        VrrayError: something that is named does not exist, does not fit, or cannot be written; or the target exists.
    """
    from vrray.exporting.run import export as write
    from vrray.exporting.spec import ExportSpec

    return write(ExportSpec.parse(options))


def run(spec: SweepSpec) -> Sweep:
    """`tune_layers` for options that are validated already."""
    from vrray.sweep.run import run_sweep

    with connected(spec.storage):
        run_sweep(spec)
    return Sweep(spec.storage, spec.name)


@contextmanager
def connected(storage: str) -> Iterator[None]:
    """A connection to Ray; one that was not there before is closed again on leaving.

    Args:
        storage: where results will go.
    """
    import logging
    import signal
    import threading

    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C ends the sweep; finished work is in the store
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # its tables would stand beside vrray's own progress
    os.environ.setdefault("TUNE_WARN_THRESHOLD_S", "10")  # a busy machine is no news
    import ray

    if ray.is_initialized():
        yield
        return
    _warn_of_a_copy(storage)
    handler = signal.getsignal(signal.SIGTERM)
    ray.init(logging_level=logging.WARNING, log_to_driver=False)
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # Ray has set its own
    try:
        yield
    finally:
        ray.shutdown()


def _warn_of_a_copy(storage: str) -> None:
    """A submitted job runs in a folder of Ray's, where a relative path ends with the job's files."""
    submitted = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if submitted and "://" not in storage and not Path(storage).expanduser().is_absolute():
        print(
            f"--storage {storage} lies below {Path.cwd()} on the driver's node, which Ray may delete after the job: "
            "give an absolute path that every node sees, or a URI",
            file=sys.stderr,
        )


def _signature(spec: type[Frozen], returned: Any) -> inspect.Signature:
    parameters = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=field.get_default(), annotation=field.annotation
        )
        for name, field in spec.model_fields.items()
    ]
    return inspect.Signature(parameters, return_annotation=returned)


tune_layers.__signature__ = _signature(SweepSpec, Sweep)  # type: ignore[attr-defined]
pretrain_projector.__signature__ = _signature(PretrainSpec, dict[str, Any])  # type: ignore[attr-defined]
score_layers.__signature__ = _signature(ScoreSpec, Scores)  # type: ignore[attr-defined]
finetune.__signature__ = _signature(FinetuneSpec, dict[str, Any])  # type: ignore[attr-defined]
evaluate.__signature__ = _signature(EvaluateSpec, Evaluation)  # type: ignore[attr-defined]
