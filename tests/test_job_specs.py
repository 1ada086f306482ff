"""Options of layer scores and evaluations: what is refused with which words, what follows from them."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from vrray.errors import SpecError
from vrray.job_specs import EvaluateSpec, ScoreSpec
from vrray.options import parse_options


def test_what_is_scored() -> None:
    assert (ScoreSpec.parse({}).scored, ScoreSpec.parse({"model": "x/y"}).scored) == ("projector", "model")
    assert "change" not in ScoreSpec.parse({}).wanted
    assert ScoreSpec.parse({"of": "all", "scores": ["bi", "bi"]}).wanted == ["bi"]
    sweep = ScoreSpec.parse({"layers": "4", "seed": 3, "calibration": 9}).as_sweep("bottom")
    assert (sweep.placements, sweep.layers, sweep.seeds, sweep.calibration) == (["bottom"], [4], [3], 9)
    assert (sweep.tasks, ScoreSpec.parse({"data": "mine.json"}).as_sweep().tasks) == (["capitals"], [])
    with pytest.raises(SpecError, match="unknown layer score 'anglar'"):
        ScoreSpec.parse({"scores": ["anglar"]})


@pytest.mark.parametrize(
    "options",
    [
        {"model": "my model", "tasks": ["easy-vqa", "a b.yaml"], "blind": False, "feature_budget": 2},
        {"sweep": "where", "variants": ["all", "uniform-8-prune2"], "gpu": True, "limit": 5, "split": "select"},
    ],
)
def test_an_evaluation_is_what_its_command_says(options: dict[str, Any]) -> None:
    spec = EvaluateSpec.parse(options)
    python, script, *arguments = shlex.split(spec.command())
    assert (python, script) == ("python", "jobs/evaluate.py")
    assert parse_options(EvaluateSpec, "", arguments) == spec


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either --model NAME, or --sweep NAME"),
        ({"model": "a", "sweep": "b"}, "give either --model NAME, or --sweep NAME"),
        ({"model": "a", "variants": ["all"]}, "give its name with --sweep"),
        ({"model": "a", "workers": 0}, "option workers"),
        ({"model": "a", "precision": "fp8"}, "option precision"),
    ],
)
def test_wrong_options_of_an_evaluation(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        EvaluateSpec.parse(options)


def test_worker_groups_of_an_evaluation_may_shrink_to_any_number() -> None:
    run = EvaluateSpec.parse({"model": "a", "workers": 6, "cpus_per_worker": 2, "storage": "x"}).as_run()
    assert (run.workers, run.cpus_per_worker, run.storage) == (6, 2, "x")
    assert all(run.recipe().global_batch % workers == 0 for workers in range(1, 7))
