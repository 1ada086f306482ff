"""Sweep options: what is refused with which words, what overrides what."""

from __future__ import annotations

from typing import Any

import pytest

from vrray.errors import SpecError
from vrray.specs import QUICK, SMOL_RECIPE, Recipe, SweepSpec


def test_defaults_are_valid_and_frozen() -> None:
    spec = SweepSpec.parse({})
    assert (spec.model, spec.data) == ("smol", "demo")
    with pytest.raises(ValueError, match="frozen"):
        spec.model = "other"  # type: ignore[misc]


@pytest.mark.parametrize("name", SweepSpec.model_fields)
def test_every_option_is_described(name: str) -> None:
    assert SweepSpec.model_fields[name].description


def test_quick_overrides_the_defaults() -> None:
    spec = SweepSpec.parse({"quick": True})
    assert {name: getattr(spec, name) for name in QUICK} == QUICK
    assert all(getattr(SweepSpec.parse({}), name) != value for name, value in QUICK.items())
    assert SweepSpec.parse({"quick": False}) == SweepSpec.parse({})


@pytest.mark.parametrize(
    ("name", "value"),
    [("placements", ["top"]), ("prune", [0, 1]), ("examples", 500), ("max_steps", 7), ("projector_steps", 9)],
)
def test_quick_leaves_what_was_given(name: str, value: Any) -> None:
    spec = SweepSpec.parse({"quick": True, name: value})
    assert getattr(spec, name) == value
    others = [other for other in QUICK if other != name]
    assert [getattr(spec, other) for other in others] == [QUICK[other] for other in others]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("placement", "unknown option 'placement'; did you mean 'placements'?"),
        ("learning_rate", "unknown option 'learning_rate'; did you mean 'learning_rates'?"),
        ("xyzzy", "unknown option 'xyzzy'; known are model, data, images"),
    ],
)
def test_unknown_options(name: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        SweepSpec.parse({name: 1})
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("name", "given", "kept"),
    [
        ("layers", 1, 1),
        ("layers", 1.0, 1.0),
        ("layers", "1", 1),
        ("layers", "1.0", 1.0),
        ("prune", 1, 1),
        ("prune", "1", 1),
        ("prune", "0", 0),
        ("prune", "0.0", 0.0),
        ("prune", "0.5", 0.5),
    ],
)
def test_counts_stay_apart_from_fractions(name: str, given: Any, kept: int | float) -> None:
    for options in ({name: [given]}, {name: given}):
        (value,) = getattr(SweepSpec.parse(options), name)
        assert value == kept
        assert type(value) is type(kept)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ["half"]}, "option layers: .*'half'"),
        ({"layers": [True]}, "option layers: True is not a number"),
        ({"layers": []}, "option layers: .*at least 1 item"),
        ({"prune": [-1]}, "option prune: -1 is neither a count .* nor a fraction below 1"),
        ({"prune": [1.0]}, r"option prune: 1\.0 is neither a count"),
        ({"prune": ["nan"]}, "option prune: nan is neither a count"),
        ({"learning_rates": [1e-4, 0]}, r"option learning_rates: .*greater than 0 \(got 0\)"),
        ({"examples": 4}, r"option examples: .*greater than or equal to 8 \(got 4\)"),
        ({"mode": "all"}, r"option mode: .*'full' or 'lora' \(got 'all'\)"),
        ({"name": "../x"}, "option name: .*pattern"),
        ({"placements": "all"}, r"option placements: .*valid list \(got 'all'\)"),
        ({"trials": 4}, "trials goes with search random or optuna"),
        ({"workers": 10_007}, r"global_batch \d+ is not a multiple of workers 10007"),
        ({"workers": 2, "global_batch": 5}, "global_batch 5 is not a multiple of workers 2"),
        ({"data": "my.json"}, "a data file needs images"),
        ({"workers": 0, "examples": 0}, "option workers: .*; option examples: |option examples: .*; option workers: "),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        SweepSpec.parse(options)


@pytest.mark.parametrize(
    "options",
    [
        {"search": "random", "trials": 4},
        {"workers": 4, "global_batch": 12},
        {"data": "my.json", "images": "photos"},
        {"prune": [0.5, 2]},
    ],
)
def test_options_that_go_together(options: dict[str, Any]) -> None:
    spec = SweepSpec.parse(options)
    assert {name: getattr(spec, name) for name in options} == options


def test_recipe_of_a_preset_and_of_other_models() -> None:
    assert SweepSpec.parse({}).recipe() == SMOL_RECIPE
    assert SweepSpec.parse({"model": "a/dir", "workers": 2}).recipe() == Recipe()


def test_recipe_takes_what_was_given() -> None:
    options = {"mode": "lora", "projector_learning_rate": 0.5, "global_batch": 16, "max_steps": 3}
    assert SweepSpec.parse(options).recipe() == SMOL_RECIPE.model_copy(update=options)


def test_epochs_replace_the_recipes_steps() -> None:
    recipe = SweepSpec.parse({"epochs": 0.5, "global_batch": 8}).recipe()
    assert (recipe.max_steps, recipe.steps(1600)) == (None, 100)
    assert SweepSpec.parse({"epochs": 0.5, "max_steps": 7}).recipe().steps(1600) == 7


def test_epochs_replace_quick_steps() -> None:
    assert SweepSpec.parse({"quick": True, "epochs": 0.5, "global_batch": 8}).recipe().steps(1600) == 100


def test_full_tuning_of_other_models_takes_the_papers_rate() -> None:
    assert SweepSpec.parse({"model": "a/dir", "mode": "full"}).recipe().learning_rate == 2e-5
    assert SweepSpec.parse({"mode": "full"}).recipe().learning_rate == SMOL_RECIPE.learning_rate


@pytest.mark.parametrize(("rows", "steps"), [(1, 1), (128, 1), (191, 1), (256, 2), (665_000, 5195)])
def test_steps_of_an_epoch(rows: int, steps: int) -> None:
    assert Recipe(global_batch=128).steps(rows) == steps
