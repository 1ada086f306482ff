"""Whether a process has ended is told of this machine's processes only, and not by its number alone."""

from __future__ import annotations

import json
import subprocess
import sys

from vrray.process import has_ended, this_process

SAYS = "import json, sys; from vrray.process import this_process; print(json.dumps(this_process()), flush=True); "


def test_a_killed_process_has_ended_even_before_its_parent_knows() -> None:
    command = [sys.executable, "-c", SAYS + "sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        assert said["pid"] == process.pid and not has_ended(said)
        process.kill()
        process.stdout.read()  # until it has closed its output
        while not has_ended(said):
            pass
        process.wait()
    assert has_ended(said)


def test_another_process_of_the_same_number_is_another_one() -> None:
    mine = this_process()
    assert not has_ended(mine)
    assert has_ended({**mine, "started": mine["started"] - 1})


def test_of_other_machines_nothing_is_known() -> None:
    mine = this_process()
    gone = {**mine, "pid": 2**22 + 1}
    assert has_ended(gone)
    assert not has_ended({**gone, "machine": "another"})
    assert not has_ended({"host": mine["host"], "pid": gone["pid"]})
