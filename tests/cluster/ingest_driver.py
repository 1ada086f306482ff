"""A driver for the tests to start and to kill: ingests records in many small blocks on a local Ray.

Arguments: a folder of records.json, damaged.json and changing.json, a model's directory, a store. Prints JSON lines.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from vrray.data import ingest as ingest_module
from vrray.data import ingest_run
from vrray.data.images import Images
from vrray.data.ingest import Ingested, ingest
from vrray.data.ingest_block import PART, Choice, RowSpec, Source, Task
from vrray.data.ingest_join import Parts
from vrray.data.sources import Block, index_source
from vrray.errors import VrrayError
from vrray.store import MARKER, Store

BLOCK_ROWS = 500
CPUS = 2


def ingested(store: Store, records: Path, model: Path) -> Ingested:
    spec = RowSpec(str(model), "base", 4, "chat", 256)
    return ingest(store, [Source(str(records))], spec, Choice(held_out=10), Images({}))


def finished(store: Store) -> dict[str, str]:
    """The markers of the finished blocks; a block that is done again gets another one."""
    return {key: store.read_bytes(f"{PART}/{key}/{MARKER}").decode() for key in store.keys(PART)}


def say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def read_and_say(store: Store, tasks: Sequence[Task], held_out: int) -> Parts:
    say(finished=finished(store))
    return read_parts(store, tasks, held_out)


def index_and_cut(location: str, rows_per_block: int) -> list[Block]:
    """The blocks of a file that then loses what it held."""
    blocks = index_source(location, rows_per_block)
    Path(location).write_text("[]")
    return blocks


def refused(store: Store, records: Path, model: Path) -> None:
    """Say by which error the ingestion ends, and after how many seconds its workers have given their CPUs back."""
    try:
        ingested(store, records, model)
    except VrrayError as error:
        began = time.monotonic()
        while ray.available_resources().get("CPU", 0) < CPUS and time.monotonic() < began + 30:
            time.sleep(0.1)
        say(error=type(error).__name__, text=str(error), seconds=time.monotonic() - began)


if __name__ == "__main__":
    folder, model, store = Path(sys.argv[1]), Path(sys.argv[2]), Store(sys.argv[3])
    read_parts = ingest_module.read_parts
    ingest_module.BLOCK_ROWS = BLOCK_ROWS
    ingest_module.read_parts = read_and_say
    ingest_run._LOG_EVERY_SECONDS = 0.1
    ray.init(num_cpus=CPUS, include_dashboard=False, logging_level=logging.WARNING, log_to_driver=False)
    made = ingested(store, folder / "records.json", model)
    say(key=made.key, rows=made.rows, counts=dict(made.counts))
    refused(store, folder / "damaged.json", model)
    ingest_module.index_source = index_and_cut
    refused(store, folder / "changing.json", model)
    ray.shutdown()
