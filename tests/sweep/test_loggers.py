"""Loggers: Tune's own callbacks, refused where their package is not installed."""

from __future__ import annotations

import importlib.util

import pytest
from ray.tune.logger import JsonLoggerCallback, TBXLoggerCallback

from vrray.errors import SpecError
from vrray.sweep.loggers import tune_loggers


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
    # JSON lines are always written: Tune reads its results back from them.
    assert [type(callback) for callback in tune_loggers(["tensorboard"], "sweep")] == [
        JsonLoggerCallback,
        TBXLoggerCallback,
    ]
    assert [type(callback) for callback in tune_loggers([], "sweep")] == [JsonLoggerCallback]
