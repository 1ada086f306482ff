"""Every command that runs one of the jobs, in the cluster files and the docs, has options that the job takes."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from vrray.frozen import Frozen
from vrray.options import parse_options

ROOT = Path(__file__).parents[2]
_COMMAND = re.compile(r"(?:\bpython|slurm\.sh) (?:/\S*/)?jobs/(\w+)\.py((?:[^`\n\\]|\\\n)*)")
FILES = [*ROOT.glob("cluster/**/*.*"), ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("jobs/*.py")]
COMMANDS = sorted(
    {
        (str(path.relative_to(ROOT)), job, " ".join(options.replace("\\\n", " ").split()))
        for path in FILES
        for job, options in _COMMAND.findall(path.read_text())
        if options.strip() != "--help"
    }
)


def spec_of(job: str) -> type[Frozen]:
    """The options that a job reads."""
    described = importlib.util.spec_from_file_location(job, ROOT / "jobs" / f"{job}.py")
    assert described is not None and described.loader is not None
    module = importlib.util.module_from_spec(described)
    described.loader.exec_module(module)
    (spec,) = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Frozen)]
    return spec


def test_commands_are_found_where_they_are() -> None:
    found = {name for name, _, _ in COMMANDS}
    assert {"cluster/slurm.sh", "cluster/kuberay/rayjob-sweep.yaml", "README.md", "docs/cluster.md"} <= found
    assert {job for _, job, _ in COMMANDS} == {path.stem for path in ROOT.glob("jobs/*.py")}


@pytest.mark.parametrize(("file", "job", "options"), COMMANDS)
def test_the_job_takes_the_options(file: str, job: str, options: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    words = [word for word in shlex.split(options, comments=True) if not word.startswith("$")]
    arguments = [
        str(tmp_path / "config.yaml") if before == "--config" else word
        for before, word in zip(["", *words], words, strict=False)
    ]
    parse_options(spec_of(job), "", arguments)
