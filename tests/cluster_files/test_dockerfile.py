"""The Dockerfile: a linter finds nothing, and what it names exists."""

from __future__ import annotations

import fnmatch
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "cluster" / "Dockerfile"
TEXT = re.sub(r"\\\n\s*", "", DOCKERFILE.read_text())
HADOLINT = str(Path(sys.executable).with_name("hadolint"))


def lint(path: Path) -> str:
    return subprocess.run([HADOLINT, "--no-color", str(path)], capture_output=True, text=True).stdout


def test_the_linter_finds_nothing() -> None:
    assert lint(DOCKERFILE) == ""


@pytest.mark.parametrize(
    ("change", "found"),
    [(("COPY jobs ./jobs", "COPPY jobs ./jobs"), "unexpected"), (("USER 1000", "USER root"), "DL3002")],
)
def test_the_linter_finds_what_is_wrong(change: tuple[str, str], found: str, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(DOCKERFILE.read_text().replace(*change))
    assert found in lint(tmp_path / "Dockerfile")


def copied() -> list[str]:
    return [source for line in re.findall(r"^COPY (.+)$", TEXT, re.MULTILINE) for source in line.split()[:-1]]


def test_what_is_copied_exists_and_is_in_the_context() -> None:
    assert {"vrray", "jobs", "pyproject.toml", "constraints.txt"} <= set(copied())
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    for source in copied():
        assert (ROOT / source).exists(), source
        included = True
        for pattern in patterns:  # the last one that matches decides
            if fnmatch.fnmatch(source, pattern.removeprefix("!")):
                included = pattern.startswith("!")
        assert included, source


def test_what_is_installed_is_what_the_project_offers() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extras,) = re.findall(r'"\.\[([\w,-]+)\]"', TEXT)
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    (python,) = re.findall(r"^FROM python:(\d+\.\d+)", TEXT, re.MULTILINE)
    assert project["requires-python"] == f">={python}"


def test_no_secret_is_asked_for() -> None:
    assert re.findall(r"^ARG (\w+)", TEXT, re.MULTILINE) == ["CONSTRAINTS"]
