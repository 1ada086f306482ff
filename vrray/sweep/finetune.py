"""One training of one region, without a sweep around it."""

from __future__ import annotations

from typing import Any

from vrray.errors import TrainingError
from vrray.specs import FinetuneSpec
from vrray.sweep.session import open_session
from vrray.sweep.trial import DELTA

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


def run_finetune(spec: FinetuneSpec) -> dict[str, Any]:
    """Train on the connected Ray cluster, or find the same training in the store: its key, and what was measured.

    Raises:
        ClusterError: the cluster cannot hold the training.
        TrainingError: the training failed.
    """
    with open_session(spec.as_sweep()) as session:
        (trial,), failures = session.run_trials()
        if trial.key in failures:
            raise TrainingError(failures[trial.key])
        info = session.store.describe(DELTA, trial.key)
    layers = {"region": trial.region.name, "layers": list(trial.region.layers)}
    return {"key": trial.key, **layers, **{name: info[name] for name in _SUMMARY if name in info}}
