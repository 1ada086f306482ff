"""Where Ray Tune sends the metrics of each step: TensorBoard, MLflow, Weights & Biases, by Ray's integrations."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

from ray.tune.logger import JsonLoggerCallback

from vrray.errors import SpecError

_PACKAGES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}


class LastResult(JsonLoggerCallback):
    """At its end Tune reads the results of all trials back from their files, into memory: one line each will do."""

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        if trial in self._trial_files:
            self._trial_files[trial].truncate(0)
        super().log_trial_result(iteration, trial, result)


def tune_loggers(names: Sequence[str], experiment: str) -> list[Any]:
    """The Tune callbacks of the named loggers. MLflow and Weights & Biases read their own environment variables.

    Raises:
        SpecError: a logger's package is not installed.
    """
    for name in names:
        if importlib.util.find_spec(_PACKAGES[name]) is None:
            raise SpecError(
                f"loggers: {name} needs the package {_PACKAGES[name]}; pip install {_PACKAGES[name]}, or leave it out"
            )
    return [LastResult(), *(_callback(name, experiment) for name in names)]


def _callback(name: str, experiment: str) -> Any:
    if name == "mlflow":
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        return MLflowLoggerCallback(experiment_name=experiment)
    if name == "wandb":
        from ray.air.integrations.wandb import WandbLoggerCallback

        return WandbLoggerCallback(project="vrray", group=experiment)
    from ray.tune.logger import TBXLoggerCallback

    return TBXLoggerCallback()
