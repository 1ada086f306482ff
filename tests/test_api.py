"""What users call: its signature is that of the options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

import vrray
from vrray.errors import SpecError
from vrray.specs import FinetuneSpec, RunSpec, SweepSpec


@pytest.mark.parametrize(
    ("function", "spec", "returned"),
    [(vrray.tune_layers, SweepSpec, vrray.Sweep), (vrray.finetune, FinetuneSpec, dict[str, Any])],
)
def test_a_signature_shows_every_option(function: Callable[..., Any], spec: type[RunSpec], returned: Any) -> None:
    signature = inspect.signature(function)
    assert list(signature.parameters) == list(spec.model_fields)
    assert signature.return_annotation == returned
    defaults = spec.parse({})
    for name, parameter in signature.parameters.items():
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert parameter.default == getattr(defaults, name)
        assert parameter.annotation == spec.model_fields[name].annotation


@pytest.mark.parametrize(("function", "wrong"), [(vrray.tune_layers, "placement"), (vrray.finetune, "placements")])
def test_wrong_options_are_refused_before_ray_starts(
    function: Callable[..., Any], wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("Ray was started"))
    with pytest.raises(SpecError, match=f"unknown option '{wrong}'; did you mean"):
        function(**{wrong: "all"})
