"""Ingestion by Ray Data's workers: what it makes, that a killed one goes on, how it ends when data is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cluster.commands import ROOT
from tests.cluster.ingest_driver import BLOCK_ROWS, finished, ingested
from tests.cluster.processes import below
from vrray.data import ingest as ingest_module
from vrray.data import ingest_run
from vrray.data.ingest import candidates_in
from vrray.data.ingest_block import PART
from vrray.data.rows import KIND, Rows
from vrray.store import Store

pytestmark = pytest.mark.ray

RECORDS = 10_000


def write_records(path: Path, answer: str = "red") -> None:
    """A JSON list of short conversations, without answers where none is given."""
    records = [
        {
            "id": str(number),
            "conversations": [
                {"from": "human", "value": f"What is {number}?"},
                {"from": "gpt", "value": f"{answer} " * (1 + number % 5)},
            ][: 2 if answer else 1],
        }
        for number in range(RECORDS)
    ]
    path.write_text(json.dumps(records))


@dataclass(frozen=True)
class Resumed:
    """Two drivers, one after the other, on one store; the first was killed."""

    store: Store
    finished: dict[str, str]
    left: list[psutil.Process]
    output: str

    def said(self, field: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.output.splitlines() if line.startswith("{")]
        return [line for line in lines if field in line]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("records")
    write_records(folder / "records.json")
    write_records(folder / "damaged.json", answer="")
    write_records(folder / "changing.json", answer="blue")
    return folder


@pytest.fixture(scope="module")
def resumed(folder: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Resumed:
    store = Store(tmp_path_factory.mktemp("store"))
    command = [sys.executable, "-m", "tests.cluster.ingest_driver", str(folder), str(tiny_model), store.uri]
    killed = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while len(store.keys(PART)) < 3:
        assert killed.poll() is None, killed.communicate()[0]
        time.sleep(0.01)
    workers = below(killed.pid, "ray::MapWorker")
    assert workers
    killed.kill()
    killed.wait()
    _, left = psutil.wait_procs(workers, 20)
    done = finished(store)
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stdout + again.stderr
    return Resumed(store, done, left, again.stdout)


def test_workers_give_what_one_process_gives(
    resumed: Resumed, folder: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest_module, "BLOCK_ROWS", BLOCK_ROWS)
    monkeypatch.setattr(ingest_run, "_IN_PROCESS", RECORDS)
    store = Store(tmp_path)
    alone = ingested(store, folder / "records.json", tiny_model)
    (said,) = resumed.said("key")
    assert said == {"key": alone.key, "rows": alone.rows, "counts": dict(alone.counts)}
    with store.open(KIND, alone.key) as here, resumed.store.open(KIND, alone.key) as there:
        assert list(Rows(here)) == list(Rows(there))
    assert candidates_in(store, alone.key) == candidates_in(resumed.store, alone.key)


def test_a_killed_driver_leaves_blocks_that_are_not_done_again(resumed: Resumed) -> None:
    done = len(resumed.finished)
    assert 3 <= done < RECORDS // BLOCK_ROWS
    said = resumed.said("finished")[0]
    assert len(said["finished"]) == RECORDS // BLOCK_ROWS
    assert resumed.finished.items() <= said["finished"].items()
    assert f"data: {done * BLOCK_ROWS} of {RECORDS} records are done, from an earlier start" in resumed.output
    assert not resumed.left


def test_a_log_says_how_far_it_is(resumed: Resumed) -> None:
    output = resumed.output.partition('{"finished"')[0]
    found = re.findall(rf"data: (\d+) of {RECORDS} records, 0 rejected, about \d+ (?:s|min) left", output)
    steps = [int(count) for count in found]
    assert steps and steps == sorted(steps)
    assert len(resumed.finished) * BLOCK_ROWS < steps[0] <= RECORDS


def test_too_many_rejected_records_stop_the_workers(resumed: Resumed) -> None:
    refused = resumed.said("error")[0]
    assert refused["error"] == "DataError"
    found = re.search(r"(\d+) of the first (\d+) records cannot be used.*of 10000 in all", refused["text"])
    assert found and int(found[1]) > RECORDS // 100 and int(found[2]) < RECORDS
    assert refused["seconds"] < 20


def test_an_error_of_a_worker_is_the_drivers(resumed: Resumed) -> None:
    refused = resumed.said("error")[1]
    assert refused["error"] == "DataError"
    assert refused["text"].endswith("has changed since it was indexed; start again")
    assert refused["seconds"] < 20
