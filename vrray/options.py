"""Command-line flags and YAML files from a spec, so that an option is defined in one place only."""

from __future__ import annotations

import argparse
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic.fields import FieldInfo

from vrray.errors import SpecError
from vrray.frozen import Frozen

SpecType = TypeVar("SpecType", bound=Frozen)


def parse_options(spec: type[SpecType], description: str, arguments: Sequence[str] | None = None) -> SpecType:
    """A spec from flags, which win over the YAML file of `--config`, which wins over defaults.

    Raises:
        SpecError: an option is unknown or wrong, or the file cannot be read.
    """
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE", help="YAML file with any of the options below")
    for name, field in spec.model_fields.items():
        _add_flag(parser, name, field)
    given = vars(parser.parse_args(arguments))
    path = given.pop("config")
    from_file = _read_yaml(Path(path)) if path is not None else {}
    return spec.parse({**from_file, **{name: value for name, value in given.items() if value is not None}})


def _add_flag(parser: argparse.ArgumentParser, name: str, field: FieldInfo) -> None:
    flag = "--" + name.replace("_", "-")
    kind, repeated = _kind(field.annotation)
    default = "" if field.default is None else f" [{_shown(field.default)}]"
    text = f"{field.description}{default}".replace("%", "%%")
    if kind is bool:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
    elif repeated:
        parser.add_argument(flag, nargs="+", metavar="VALUE", default=None, help=text)
    else:
        choices = [str(c) for c in typing.get_args(kind)] if typing.get_origin(kind) is typing.Literal else None
        parser.add_argument(flag, choices=choices, metavar=None if choices else "VALUE", default=None, help=text)


def _kind(annotation: Any) -> tuple[Any, bool]:
    """The type of one value, and whether there may be several."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        members = [member for member in typing.get_args(annotation) if member is not type(None)]
        return _kind(members[0]) if len(members) == 1 else (str, False)
    if typing.get_origin(annotation) is list:
        return str, True
    return annotation, False


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise SpecError(f"--config {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise SpecError(f"--config {path} is not valid YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SpecError(f"--config {path} must map option names to values, found a {type(content).__name__}")
    return {str(name).replace("-", "_"): value for name, value in content.items()}
