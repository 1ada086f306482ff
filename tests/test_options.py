"""Flags and YAML files: flags win over the file, which wins over defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vrray.errors import SpecError
from vrray.job_specs import FinetuneSpec
from vrray.options import parse_options
from vrray.specs import RunSpec, SweepSpec


def parse(*arguments: object) -> SweepSpec:
    return parse_options(SweepSpec, "A sweep.", [str(argument) for argument in arguments])


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "name: from-file\nexamples: 16\nprune: [0, 0.5]\nplacements:\n  - top\nlearning-rates: [1.0e-3]\ngpu: false\n"
    )
    return path


def test_nothing_given_is_the_defaults() -> None:
    assert parse() == SweepSpec.parse({})


def test_flags_win_over_the_file_which_wins_over_defaults(config: Path) -> None:
    spec = parse("--config", config, "--name", "from-flag", "--placements", "all", "bottom")
    assert (spec.name, spec.placements) == ("from-flag", ["all", "bottom"])
    assert (spec.examples, spec.prune, spec.learning_rates, spec.gpu) == (16, [0, 0.5], [1e-3], False)
    assert spec.calibration == SweepSpec.parse({}).calibration


def test_a_flag_equal_to_the_default_wins_too(config: Path) -> None:
    default = SweepSpec.parse({}).examples
    assert parse("--config", config, "--examples", default).examples == default


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["--gpu"], "gpu", True),
        (["--no-gpu"], "gpu", False),
        ([], "gpu", None),
        (["--quick"], "quick", True),
        (["--activation-checkpointing", "off"], "activation_checkpointing", "off"),
        (["--zero", "2"], "zero", 2),
        (["--zero", "auto"], "zero", "auto"),
        (["--packing"], "packing", True),
        (["--no-group-by-length"], "group_by_length", False),
        (["--loggers", "tensorboard", "mlflow"], "loggers", ["tensorboard", "mlflow"]),
        (["--layers", "1", "1.0", "0.25"], "layers", [1, 1.0, 0.25]),
        (["--seeds", "0", "7"], "seeds", [0, 7]),
        (["--learning-rates", "1e-4", "2e-4"], "learning_rates", [1e-4, 2e-4]),
        (["--placements", "0,2,4", "all"], "placements", ["0,2,4", "all"]),
        (["--mode", "lora"], "mode", "lora"),
        (["--max-steps", "5"], "max_steps", 5),
    ],
)
def test_flags(arguments: list[str], name: str, value: Any) -> None:
    found = getattr(parse(*arguments), name)
    assert found == value
    if isinstance(value, list):
        assert [type(item) for item in found] == [type(item) for item in value]


def test_a_flag_switches_off_what_the_file_switches_on(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("quick: true\n")
    assert parse("--config", tmp_path / "c.yaml").quick
    assert parse("--config", tmp_path / "c.yaml", "--no-quick") == SweepSpec.parse({})


@pytest.mark.parametrize(
    ("content", "name", "value"),
    [
        ("activation_checkpointing: off", "activation_checkpointing", "off"),  # YAML reads false
        ("activation-checkpointing: on", "activation_checkpointing", "all"),
        ("activation_checkpointing: auto", "activation_checkpointing", "auto"),
        ("zero: 2", "zero", 2),
        ("zero: '2'", "zero", 2),
        ("loggers: []", "loggers", []),
    ],
)
def test_what_yaml_makes_of_words(tmp_path: Path, content: str, name: str, value: Any) -> None:
    (tmp_path / "c.yaml").write_text(content)
    found = getattr(parse("--config", tmp_path / "c.yaml"), name)
    assert (found, type(found)) == (value, type(value))


def test_flags_of_a_single_training(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("placement: top\nseed: 3\nactivation_checkpointing: off\n")
    arguments = ["--config", str(tmp_path / "c.yaml"), "--layers", "1", "--learning-rate", "1e-4", "--seed", "4"]
    spec = parse_options(FinetuneSpec, "One training.", arguments)
    expected = {"placement": "top", "layers": 1, "learning_rate": 1e-4, "seed": 4, "activation_checkpointing": "off"}
    assert spec == FinetuneSpec.parse(expected)
    assert type(spec.layers) is int


def test_an_empty_file_gives_nothing(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("# nothing\n")
    assert parse("--config", tmp_path / "c.yaml") == SweepSpec.parse({})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("placement: [all]", "unknown option 'placement'; did you mean 'placements'?"),
        ("- all\n- top", "must map option names to values, found a list"),
        ("just words", "must map option names to values, found a str"),
        ("a: [", "is not valid YAML"),
        ("examples: many", "option examples: .*got 'many'"),
    ],
)
def test_wrong_files(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(SpecError, match=message):
        parse("--config", tmp_path / "c.yaml")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"--config .*absent\.yaml: No such file"):
        parse("--config", tmp_path / "absent.yaml")


@pytest.mark.parametrize("arguments", [["--placement", "all"], ["--mode", "half"], ["--exam", "96"], ["--zero", "4"]])
def test_unknown_flags_and_choices_end_the_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(*arguments)
    assert caught.value.code == 2
    assert arguments[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spec", "sample"),
    [
        (SweepSpec, "the default with data of one's own) [easy-"),
        (FinetuneSpec, "layers tuned: a count or a fraction of the depth [0.25]"),
    ],
)
def test_help_names_every_option_with_its_default(
    spec: type[RunSpec], sample: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_options(spec, "Help.", ["--help"])
    text = capsys.readouterr().out
    for name in spec.model_fields:
        assert f"--{name.replace('_', '-')}" in text
    assert sample in " ".join(text.split())
