"""Preparing a large set of conversations: vrray's ingestion on a local Ray against `datasets.map`, alternating.

python -m benchmarks.data [--records 100000] [--rounds 2] [--template chat] [--sections speed resume] [--skip-peer]

Records are generated in the proportions of LLaVA-665K (benchmarks/conversations.py), tokenised for the demo LVLM with
images of 224 pixels (49 tokens each). Both sides have two workers and do the same: read a JSON list, check each record
and its photo, encode it with its mask, write Arrow. Prints Markdown: medians over the rounds with their range.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.conversations import draw_photos, words_of, write_conversations
from benchmarks.data_sides import Run, Work, ours, ours_again, theirs, theirs_again
from benchmarks.models import smol_at
from vrray.data.ingest import BLOCK_ROWS
from vrray.data.ingest_block import PART
from vrray.data.rows import KIND, Rows
from vrray.data.templates import TEMPLATES
from vrray.models.loading import load_processor, model_shape
from vrray.store import Store

SECTIONS = ("speed", "resume")
MAX_LENGTH = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--template", choices=("chat", *TEMPLATES), default="chat")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--skip-peer", action="store_true", help="measure vrray alone")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vrray-bench-") as name:
        work = _generate(Path(name), options.records, options.template)
        if "speed" in options.sections:
            _speed(work, options.records, options.rounds, peer=not options.skip_peer)
        if "resume" in options.sections:
            _resume(work, options.records)


def _generate(folder: Path, count: int, template: str) -> Work:
    model, records, photos = smol_at(224, folder / "model"), folder / "records.json", folder / "photos"
    names = write_conversations(records, count, words_of(load_processor(model).tokenizer))
    draw_photos(photos, names)
    _say(f"{count} records generated, {records.stat().st_size / count:.0f} bytes each; {len(names)} photos")
    return Work(records, photos, model, model_shape(model).image_tokens, template, MAX_LENGTH, folder / "made")


def _speed(work: Work, count: int, rounds: int, *, peer: bool) -> None:
    sides = {"vrray": (ours, ours_again)} | ({"datasets.map": (theirs, theirs_again)} if peer else {})
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, (function, again) in sides.items():
            results[name].append(_measure(work, function, again))
            _say(f"round {number + 1} of {rounds}, {name}: {results[name][-1]}")
    tokens = results["vrray"][0]["tokens"]
    print(f"\n### {count:,} records, template {work.template}, {tokens:.0f} tokens each on average\n")
    _row("", "records/s", "range", "CPU ms/record", "driver MiB", "worker MiB", "bytes/record", "second start, s")
    _row(*["---"] * 8)
    for name, runs in results.items():
        rates = [run["rows"] / run["seconds"] for run in runs]
        cpu, driver, worker, size, again = (
            statistics.median(run[field] for run in runs)
            for field in ("cpu_seconds", "driver_mib", "worker_mib", "bytes", "again")
        )
        middle, spread = f"{statistics.median(rates):.0f}", f"{min(rates):.0f}-{max(rates):.0f}"
        cells = (f"{cpu / count * 1000:.2f}", f"{driver:.0f}", f"{worker:.0f}", f"{size / count:.0f}", f"{again:.3f}")
        _row(name, middle, spread, *cells)
    if peer:
        ratios = [one["seconds"] / other["seconds"] for one, other in zip(*reversed(results.values()), strict=True)]
        spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
        print(f"\ndatasets.map / vrray, in seconds: {statistics.median(ratios):.2f} ({spread})")


def _measure(work: Work, function: Callable[[Work], Any], again: Callable[[Work], Any]) -> dict[str, Any]:
    """One run from nothing, and a second one that finds its result."""
    shutil.rmtree(work.target, ignore_errors=True)
    made = Run(function, work).wait()
    found = Run(again, work).wait()
    kept = work.target / "rows"
    measured = {
        "again": found["seconds"],
        "bytes": sum(file.stat().st_size for file in kept.rglob("*") if file.is_file()),
    }
    if function is ours:
        measured["tokens"] = _mean_tokens(work)
    return {**made, **measured}


def _mean_tokens(work: Work) -> float:
    store = Store(work.target)
    (key,) = store.keys(KIND)
    with store.open(KIND, key) as folder:
        return float(Rows(folder).lengths.mean())


def _resume(work: Work, count: int) -> None:
    """SIGKILL of the driver when half of the blocks are done, and a second start."""
    shutil.rmtree(work.target, ignore_errors=True)
    store, began = Store(work.target), time.monotonic()
    killed = Run(ours, work)
    while len(store.keys(PART)) * BLOCK_ROWS < count / 2:
        time.sleep(0.2)
    seconds = time.monotonic() - began
    gone = killed.kill()
    done = sum(store.describe(PART, key)["counts"]["records"] for key in store.keys(PART))
    resumed = Run(ours, work).wait()
    print(f"\n### Killed in the middle, {count:,} records\n")
    _row("killed after, s", "records done", "its workers gone after, s", "records redone", "second run, s")
    _row(*["---"] * 5)
    _row(f"{seconds:.0f}", f"{done:,}", f"{gone:.1f}", f"{resumed['rows'] - done:,}", f"{resumed['seconds']:.0f}")


def _row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
