"""How a job ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from vrray.errors import TrainingError
from vrray.job import exit_status


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (None, 0, ""),
        (TrainingError("the reason"), 1, "error: the reason\n"),
        (KeyboardInterrupt(), 130, "the same command goes on from there\n"),
    ],
)
def test_exit_status(raised: BaseException | None, status: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        if raised is not None:
            raise raised

    assert exit_status(work) == status
    assert capsys.readouterr().err.endswith(said)


def test_sigterm_ends_the_work_as_ctrl_c_does(capsys: pytest.CaptureFixture[str]) -> None:
    before, cleaned = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        finally:
            cleaned.append(True)

    assert exit_status(work) == 143
    assert cleaned
    assert (
        capsys.readouterr().err
        == "interrupted; what is finished is in the store, the same command goes on from there\n"
    )
    assert signal.getsignal(signal.SIGTERM) == before


def test_other_errors_keep_their_stack() -> None:
    with pytest.raises(ZeroDivisionError):
        exit_status(lambda: print(1 / 0))


def test_libraries_draw_no_bars_into_a_log() -> None:
    code = """
from vrray.job import exit_status

def work():
    from datasets import Dataset
    from huggingface_hub.utils import tqdm as hub_bar
    from transformers.utils.logging import tqdm as transformers_bar

    assert list(transformers_bar(range(3))) + list(hub_bar(range(3))) == [0, 1, 2] * 2
    assert len(Dataset.from_dict({"a": [1, 2]}).map(lambda row: row)) == 2
    print("done")

exit_status(work)
"""
    bare = {name: value for name, value in os.environ.items() if "PROGRESS_BARS" not in name and name != "TQDM_DISABLE"}
    ran = subprocess.run([sys.executable, "-c", code], env=bare, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, "%|" in ran.stderr) == (0, "done\n", False), ran.stderr
