"""Sweep options: what is refused with which words, what overrides what."""

from __future__ import annotations

from typing import Any

import pytest

from vrray.errors import SpecError
from vrray.frozen import Frozen
from vrray.job_specs import EvaluateSpec, FinetuneSpec
from vrray.specs import QUICK, SMOL_RECIPE, Recipe, RunSpec, SweepSpec


def test_defaults_are_valid_and_frozen() -> None:
    spec = SweepSpec.parse({})
    assert (spec.model, spec.data) == ("smol", ["demo"])
    with pytest.raises(ValueError, match="frozen"):
        spec.model = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("spec", "name"), [(spec, name) for spec in (SweepSpec, FinetuneSpec, EvaluateSpec) for name in spec.model_fields]
)
def test_every_option_is_described(spec: type[Frozen], name: str) -> None:
    assert spec.model_fields[name].description


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
        ("xyzzy", "unknown option 'xyzzy'; known are model, data, data_weights"),
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
        ({"pack": 2}, "pack 2 is not possible: trials tune full parameters, which differ; use mode lora"),
        ({"pack": 2, "mode": "lora", "packing": True}, "pack 2 is not possible: packing puts .*; leave it away"),
        ({"pack": 2, "mode": "lora", "compile": True}, "pack 2 is not possible: compiled layers"),
        ({"pack": 2, "mode": "lora", "frozen": "partitioned"}, "pack 2 is not possible: .* leave frozen partitioned"),
        ({"pack": 0}, "option pack: .*greater than 0"),
        ({"workers": 10_007}, r"global_batch \d+ is not a multiple of workers 10007"),
        ({"workers": 2, "global_batch": 5}, "global_batch 5 is not a multiple of workers 2"),
        ({"data": ["demo", "my.json"]}, "data demo cannot be mixed"),
        ({"data": ["a.json", "b.json"], "data_weights": [1]}, "data_weights has 1 values for 2 data entries"),
        ({"data": ["a", "b", "c"], "image_folder": ["x", "y"]}, "image_folder has 2 entries for 3 data entries"),
        ({"data_fraction": 0}, "option data_fraction: .*greater than 0"),
        ({"zero": 4}, r"option zero: .*got 4"),
        ({"zero": "most"}, r"option zero: .*got 'most'"),
        ({"zero": 2, "frozen": "partitioned"}, r"frozen partitioned needs zero 3, .* \(got zero 2\)"),
        ({"zero": 0, "frozen": "partitioned"}, r"frozen partitioned needs zero 3, .* \(got zero 0\)"),
        ({"activation_checkpointing": "some"}, "option activation_checkpointing: .*got 'some'"),
        ({"features": "stored"}, "option features: .*got 'stored'"),
        ({"attention": "fast"}, "option attention: .*got 'fast'"),
        ({"loggers": ["tensorboard", "csv"]}, "option loggers: .*got 'csv'"),
        ({"loggers": "wandb"}, "option loggers: .*valid list"),
        ({"checkpoint_minutes": 0}, "option checkpoint_minutes: .*greater than 0"),
        ({"max_failures": -1}, "option max_failures: .*greater than or equal to 0"),
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
        {"data": ["a.json", "b.json"], "image_folder": ["photos"], "data_weights": [1.0, 0.5], "tasks": ["capitals"]},
        {"prune": [0.5, 2]},
        {"frozen": "partitioned"},
        {"frozen": "partitioned", "zero": 3},
        {"frozen": "resident", "zero": 0},
        {"loggers": []},
        {"feature_budget": 0, "features": "auto"},
    ],
)
def test_options_that_go_together(options: dict[str, Any]) -> None:
    spec = SweepSpec.parse(options)
    assert {name: getattr(spec, name) for name in options} == options


@pytest.mark.parametrize(("given", "kept"), [("auto", "auto"), ("2", 2), (2, 2), ("0", 0), (3, 3)])
def test_a_stage_is_a_number_however_it_was_written(given: Any, kept: Any) -> None:
    found = SweepSpec.parse({"zero": given}).zero
    assert found == kept
    assert type(found) is type(kept)


@pytest.mark.parametrize(("given", "kept"), [(False, "off"), (True, "all"), ("off", "off"), ("auto", "auto")])
def test_a_switch_reads_as_yaml_means_it(given: Any, kept: str) -> None:
    assert SweepSpec.parse({"activation_checkpointing": given}).activation_checkpointing == kept


@pytest.mark.parametrize(("model", "default"), [("smol", False), ("a/dir", True)])
def test_grouping_goes_into_the_recipe(model: str, default: bool) -> None:
    assert SweepSpec.parse({"model": model}).recipe().group_by_length == default
    for given in (True, False):
        assert SweepSpec.parse({"model": model, "group_by_length": given}).recipe().group_by_length == given


# Every option of a run, away from its default.
RUN: dict[str, Any] = {
    "model": "a/dir",
    "data": ["my.json"],
    "data_weights": [2.0],
    "data_fraction": 0.5,
    "image_folder": ["photos"],
    "max_rejected": 0.5,
    "template": "llama",
    "mode": "full",
    "projector_learning_rate": 0.25,
    "global_batch": 12,
    "micro_batch": 3,
    "epochs": 2.0,
    "max_steps": 9,
    "projector_steps": 7,
    "group_by_length": False,
    "packing": True,
    "precision": "fp32",
    "zero": 1,
    "frozen": "resident",
    "activation_checkpointing": "all",
    "features": "live",
    "feature_budget": 3.0,
    "attention": "eager",
    "compile": True,
    "liger": True,
    "checkpoint_minutes": 2.0,
    "checkpoint_steps": 5,
    "max_skipped": 1,
    "max_failures": 0,
    "node_wait": 9.0,
    "loggers": ["mlflow", "wandb"],
    "workers": 4,
    "cpus_per_worker": 2.0,
    "gpu": True,
    "storage": "elsewhere",
}


def test_a_single_training_is_the_sweep_of_one_trial() -> None:
    assert RUN.keys() == RunSpec.model_fields.keys()
    assert all(RunSpec.model_fields[name].default != value for name, value in RUN.items())
    one = FinetuneSpec.parse({**RUN, "placement": "0,3", "layers": "2", "learning_rate": 0.5, "seed": 6})
    sweep = one.as_sweep()
    assert {name: getattr(sweep, name) for name in RUN} == RUN
    assert sweep.recipe() == one.recipe()
    assert (sweep.placements, sweep.layers, sweep.learning_rates, sweep.seeds) == (["0,3"], [2], [0.5], [6])
    assert (sweep.prune, sweep.tasks, sweep.search, sweep.trials) == ([0], [], "grid", None)


def test_a_single_training_of_the_defaults() -> None:
    sweep = FinetuneSpec.parse({}).as_sweep()
    assert (sweep.placements, sweep.layers, sweep.learning_rates, sweep.seeds) == (["uniform"], [0.25], None, [0])
    assert sweep.recipe() == SMOL_RECIPE
    (whole,) = FinetuneSpec.parse({"layers": "1.0"}).as_sweep().layers
    assert type(whole) is float  # all layers, not one


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"placements": ["all"]}, "unknown option 'placements'; did you mean 'placement'?"),
        ({"layers": [2]}, r"option layers: \[2\] is not a number"),
        ({"layers": True}, "option layers: True is not a number"),
        ({"learning_rate": 0}, "option learning_rate: .*greater than 0"),
        ({"global_batch": 5}, "global_batch 5 is not a multiple of workers 2"),
        ({"frozen": "partitioned", "zero": 1}, "frozen partitioned needs zero 3"),
    ],
)
def test_wrong_options_of_a_single_training(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        FinetuneSpec.parse(options)


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prune": ["score"]}, "quote targets: 'score>=95%'"),
        ({"prune": ["params<=1.2.3M"]}, "is neither a count"),
        ({"protect": "0-3"}, "option protect: '0-3' in '0-3' is not a layer index.*region or none"),
        ({"placements": ["by:anglar"]}, "unknown layer score 'anglar'; use one of angular"),
        ({"rankings": ["angular", "ANGULAR"]}, "name one of them twice"),
        ({"rankings": ["anglar"]}, "unknown ranking 'anglar'"),
    ],
)
def test_wrong_rankings_and_targets(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        SweepSpec.parse(options)


def test_rankings_and_targets_are_read_as_they_are_typed() -> None:
    options = {"prune": "score >= 95%", "protect": " Region ", "rankings": ["multimodal_bi,iterative"]}
    spec = SweepSpec.parse(options)
    assert (spec.prune, spec.protect) == (["score>=95%"], "region")
    assert SweepSpec.parse({"protect": "4, 0"}).protect == "0,4"


def test_a_pack_is_read_as_it_is_typed() -> None:
    lora = {"mode": "lora"}
    assert [SweepSpec.parse(lora | {"pack": pack}).pack for pack in ("auto", "4", 4, 1)] == ["auto", 4, 4, 1]
    full = SweepSpec.parse({"pack": 1})
    assert (SweepSpec.parse({}).pack, full.pack, full.never_packs() is None) == ("auto", 1, False)
    assert SweepSpec.parse(lora).never_packs() is None


def test_a_search_has_an_end() -> None:
    assert [SweepSpec.parse({"search": search}).most_trials for search in ("random", "optuna")] == [8, 24]
    assert SweepSpec.parse({"search": "optuna", "trials": 5}).most_trials == 5
