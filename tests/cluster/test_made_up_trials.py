"""The benchmark of many trials with a made-up trainer still goes through the real desk, Tune, store and table."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cluster.commands import ROOT

pytestmark = pytest.mark.ray


def test_a_few_made_up_trials() -> None:
    command = [sys.executable, "-m", "benchmarks.scale", "--trials", "5"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    names, _, found = ([cell.strip() for cell in line.strip("|").split("|")] for line in ran.stdout.splitlines())
    values = dict(zip(names, map(float, found), strict=True))
    assert (values["trials"], values["variants"]) == (5, 26)
    assert min(values.values()) > 0
