"""Eight LoRA trials of one sweep: in packs, one by one on a warm worker group, and one by one from a cold start.

python -m benchmarks.packing [--model smol] [--steps 6] [--micro-batch 8] [--packs 8 4 2]

Stage 1 and the vision features are in the store before any run; each run starts from a copy of it, in processes of its
own, and nothing is evaluated. The makespan is from the start of the first process to the end of the last. Prints
Markdown.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vrray.api import connected, pretrain_projector
from vrray.specs import SweepSpec
from vrray.store import Store
from vrray.sweep.session import open_session
from vrray.sweep.trial import DELTA

PLACEMENTS = ("uniform", "bottom", "lower-middle", "top")
RATES = (1e-4, 3e-4)
TRIALS = len(PLACEMENTS) * len(RATES)


@dataclass(frozen=True)
class Run:
    """The makespan in seconds, and what the store says of each trial."""

    name: str
    seconds: float
    trials: list[dict[str, Any]]

    @property
    def step_seconds(self) -> float:
        """Seconds in which optimizer steps ran; a pack's steps are those of all its trials."""
        return sum(trial["train_seconds"] / trial.get("pack", 1.0) for trial in self.trials)

    @property
    def peak_mib(self) -> float:
        return max(float(trial["peak_mib"]) for trial in self.trials)

    @property
    def loss(self) -> float:
        return statistics.mean(trial["losses"][-1] for trial in self.trials)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smol")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--global-batch", type=int, default=16)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--packs", type=int, nargs="+", default=[8, 4, 2])
    parser.add_argument("--train", nargs="+", help=argparse.SUPPRESS)  # a run in its own process: store, pack, options
    options = parser.parse_args()
    if options.train:
        storage, pack, placements, rates = options.train
        return _train(_spec(options, storage, pack, placements.split("/"), [float(r) for r in rates.split("/")]))
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder, "base")
        shared = ("model", "global_batch", "micro_batch", "workers")
        told = {name: getattr(options, name) for name in shared}
        pretrain_projector(**told, mode="lora", projector_steps=2, max_steps=options.steps, storage=str(base))
        everything = ["/".join(PLACEMENTS), "/".join(map(str, RATES))]
        runs = [_run(f"packed by {pack}", base, [[str(pack), *everything]]) for pack in options.packs]
        runs.append(_run("one by one, warm", base, [["1", *everything]]))
        each = [["1", placement, str(rate)] for placement in PLACEMENTS for rate in RATES]
        runs.append(_run("one by one, cold", base, each))
    _print(runs)


def _spec(options: Any, storage: str, pack: str, placements: Sequence[str], rates: Sequence[float]) -> SweepSpec:
    spec = SweepSpec.parse(
        {
            "model": options.model,
            "mode": "lora",
            "placements": [*placements],
            "learning_rates": [*rates],
            "prune": [0],
            "max_steps": options.steps,
            "projector_steps": 2,
            "global_batch": options.global_batch,
            "micro_batch": options.micro_batch,
            "workers": options.workers,
            "pack": pack,
            "storage": storage,
        }
    )
    return spec.model_copy(update={"tasks": []})


def _train(spec: SweepSpec) -> None:
    with connected(), open_session(spec) as session:
        _, failures = session.started().run_trials()
    if failures:
        sys.exit(str(failures))


def _run(name: str, base: Path, commands: Sequence[Sequence[str]]) -> Run:
    """Run commands one after the other on a copy of a store."""
    storage = base.with_name(name.replace(" ", "-"))
    shutil.copytree(base, storage)
    store = Store(str(storage))
    before, began = set(store.keys(DELTA)), time.monotonic()
    for command in commands:
        own = [sys.executable, "-m", "benchmarks.packing", *sys.argv[1:], "--train", str(storage), *command]
        subprocess.run(own, check=True, stdout=sys.stderr)
    seconds = time.monotonic() - began
    trials = [store.describe(DELTA, key) for key in set(store.keys(DELTA)) - before]
    assert len(trials) == TRIALS, f"{name}: {len(trials)} of {TRIALS} trials are in the store"
    print(f"{name}: {seconds:.0f} s", file=sys.stderr, flush=True)
    return Run(name, seconds, trials)


def _print(runs: Sequence[Run]) -> None:
    warm, cold = runs[-2:]
    print("| trials | makespan, s | times warm | steps, s | peak of a worker, MiB | mean loss of the last step |")
    print("| --- | --- | --- | --- | --- | --- |")
    for run in runs:
        cells = [f"{run.seconds:.0f}", f"{run.seconds / warm.seconds:.2f}", f"{run.step_seconds:.0f}"]
        print(f"| {run.name} | {' | '.join(cells)} | {run.peak_mib:.0f} | {run.loss:.3f} |")
    start = (cold.seconds - cold.step_seconds) / TRIALS
    print(
        f"\nOne start-up (cold, a trial): {start:.0f} s. One start-up and all steps: {start + warm.step_seconds:.0f} s."
    )


if __name__ == "__main__":
    main()
