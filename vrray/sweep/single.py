"""One training without a sweep around it: stage 1 alone, or a region after it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from vrray.errors import TrainingError
from vrray.job_specs import FinetuneSpec, PretrainSpec
from vrray.sweep.session import Session, open_session
from vrray.sweep.trial import DELTA, Trial
from vrray.upkeep.records import recorded

_SUMMARY = (
    "loss",
    "step_seconds",
    "samples_per_second",
    "tokens_per_second",
    "supervised_tokens_per_second",
    "model_flop_utilisation",
    "waiting_share",
    "padded_share",
    "skipped",
    "peak_mib",
    "train_seconds",
    "delta_bytes",
    "zero",
    "micro_batch",
    "world",
)


def run_pretrain(spec: PretrainSpec) -> dict[str, Any]:
    """Train the projector alone, or find it in the store: its key, and what was measured.

    Raises:
        ClusterError: the cluster cannot hold the training.
        TrainingError: the training failed.
    """
    with open_session(spec.as_sweep()) as session, _recorded(session, session.prepared.projector):
        session.pretrain()
        return _summary(session, session.prepared.projector)


def run_finetune(spec: FinetuneSpec) -> dict[str, Any]:
    """Train on the connected Ray cluster, or find the same training in the store: its key, and what was measured.

    Raises:
        ClusterError: the cluster cannot hold the training.
        TrainingError: the training failed.
    """
    with open_session(spec.as_sweep()) as session:
        session = session.started()
        with _recorded(session, session.trials[0]):
            (trial,), unfinished = session.run_trials()
            if trial.key in unfinished:
                raise TrainingError(unfinished[trial.key].removeprefix("failed: "))
            return _summary(session, trial)


def _recorded(session: Session, trial: Trial) -> AbstractContextManager[object]:
    """A training without a name goes by its key."""
    return recorded(session.store, f"trainings/{trial.key}")


def _summary(session: Session, trial: Trial) -> dict[str, Any]:
    info = session.store.describe(DELTA, trial.key)
    layers = {"region": trial.region.name, "layers": list(trial.region.layers)}
    return {"key": trial.key, **layers, **{name: info[name] for name in _SUMMARY if name in info}}
