"""How a job ends."""

from __future__ import annotations

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


def test_other_errors_keep_their_stack() -> None:
    with pytest.raises(ZeroDivisionError):
        exit_status(lambda: print(1 / 0))
