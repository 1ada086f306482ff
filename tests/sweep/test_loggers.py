"""Loggers: Tune's own callbacks, refused where their package is not installed."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from ray.tune.logger import TBXLoggerCallback

from vrray.errors import SpecError
from vrray.sweep.loggers import LastResult, tune_loggers


@pytest.mark.parametrize(
    ("name", "package"), [("mlflow", "mlflow"), ("wandb", "wandb"), ("tensorboard", "tensorboardX")]
)
def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch, name: str, package: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked, *rest: None if asked == package else find(asked))
    message = rf"loggers: {name} needs the package {package}; pip install {package}, or leave it out"
    with pytest.raises(SpecError, match=message):
        tune_loggers([name], "sweep")


def test_the_loggers_are_tunes_own() -> None:
    # The last result is always written: Tune reads it back.
    assert [type(callback) for callback in tune_loggers(["tensorboard"], "sweep")] == [LastResult, TBXLoggerCallback]
    assert [type(callback) for callback in tune_loggers([], "sweep")] == [LastResult]


@dataclass(frozen=True)
class SimpleTrial:
    """As much of a Tune trial as a logger asks for."""

    local_path: str
    config: None = None

    def init_local_path(self) -> None:
        pass


def test_of_a_trial_the_last_result_is_kept(tmp_path: Path) -> None:
    logger = LastResult()
    logger._restore_from_remote = lambda file_name, trial: None
    trial = SimpleTrial(str(tmp_path))
    for step in range(1000):
        logger.log_trial_result(step, trial, {"step": step, "trial": "top-2"})
    logger.log_trial_end(trial)
    (line,) = (tmp_path / "result.json").read_text().splitlines()
    assert json.loads(line) == {"step": 999, "trial": "top-2"}
