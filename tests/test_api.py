"""What users call: its signature is that of the options."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

import vrray
from vrray.api import _warn_of_a_copy
from vrray.errors import SpecError
from vrray.frozen import Frozen
from vrray.job_specs import EvaluateSpec, FinetuneSpec
from vrray.specs import SweepSpec


@pytest.mark.parametrize(
    ("function", "spec", "needed", "returned"),
    [
        (vrray.tune_layers, SweepSpec, {}, vrray.Sweep),
        (vrray.finetune, FinetuneSpec, {}, dict[str, Any]),
        (vrray.evaluate, EvaluateSpec, {"model": None, "sweep": "where"}, vrray.Evaluation),
    ],
)
def test_a_signature_shows_every_option(
    function: Callable[..., Any], spec: type[Frozen], needed: dict[str, Any], returned: Any
) -> None:
    signature = inspect.signature(function)
    assert list(signature.parameters) == list(spec.model_fields)
    assert signature.return_annotation == returned
    defaults = spec.parse(needed).model_copy(update=dict.fromkeys(needed))
    for name, parameter in signature.parameters.items():
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert parameter.default == getattr(defaults, name)
        assert parameter.annotation == spec.model_fields[name].annotation


@pytest.mark.parametrize(
    ("function", "wrong"),
    [(vrray.tune_layers, "placement"), (vrray.finetune, "placements"), (vrray.evaluate, "variant")],
)
def test_wrong_options_are_refused_before_ray_starts(
    function: Callable[..., Any], wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("Ray was started"))
    with pytest.raises(SpecError, match=f"unknown option '{wrong}'; did you mean"):
        function(**{wrong: "all"})


def test_the_evaluate_package_does_not_hide_the_function() -> None:
    code = (
        "import vrray; f = vrray.evaluate; from vrray.evaluate.task_file import read_tasks; assert vrray.evaluate is f"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("submitted", "storage", "warned"),
    [
        (True, "runs", True),
        (True, "./a/runs", True),
        (True, "/mnt/runs", False),
        (True, "~/runs", False),
        (True, "s3://bucket/runs", False),
        (False, "runs", False),
    ],
)
def test_a_submitted_job_is_warned_of_storage_that_goes_with_it(
    submitted: bool, storage: str, warned: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if submitted:
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    _warn_of_a_copy(storage)
    assert ("give an absolute path that every node sees, or a URI" in capsys.readouterr().err) == warned
