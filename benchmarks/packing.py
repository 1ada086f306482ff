"""Eight LoRA trials of one sweep: in packs, one by one on a warm worker group, and one by one from a cold start.

python -m benchmarks.packing [--model smol] [--steps 6] [--micro-batch 8] [--packs 8 4 2]
python -m benchmarks.packing --proportioned 4096 32 --workers 1 --micro-batch 2

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

from benchmarks.models import proportioned_decoder
from vrray.api import connected, pretrain_projector
from vrray.specs import SweepSpec
from vrray.store import MARKER, Store
from vrray.sweep.session import open_session
from vrray.sweep.trial import DELTA


@dataclass(frozen=True)
class Run:
    """The makespan in seconds, what the store says of each trial, and when it was committed; in that order."""

    name: str
    seconds: float
    trials: list[dict[str, Any]]
    committed: list[float]

    @property
    def step_seconds(self) -> float:
        """Seconds in which optimizer steps ran; a pack's steps are those of all its trials."""
        return sum(trial["train_seconds"] / trial.get("pack", 1.0) for trial in self.trials)

    @property
    def between(self) -> float:
        """Seconds from the end of one training to the first step of the next one (median)."""
        later = zip(self.committed, self.committed[1:], self.trials[1:], strict=False)
        return statistics.median(end - trial["train_seconds"] - before for before, end, trial in later)

    @property
    def peak_mib(self) -> float:
        return max(float(trial["peak_mib"]) for trial in self.trials)

    @property
    def loss(self) -> float:
        return statistics.mean(trial["losses"][-1] for trial in self.trials)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smol")
    parser.add_argument(
        "--proportioned",
        type=int,
        nargs=2,
        metavar=("HIDDEN", "DEPTH"),
        help="instead, a random decoder like Llama-3's",
    )
    parser.add_argument("--placements", nargs="+", default=["uniform", "bottom", "lower-middle", "top"])
    parser.add_argument("--rates", nargs="+", default=["1e-4", "3e-4"])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--global-batch", type=int, default=16)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--packs", type=int, nargs="+", default=[8, 4, 2])
    parser.add_argument("--train", nargs=2, metavar=("STORE", "PACK"), help=argparse.SUPPRESS)  # a run's own process
    options = parser.parse_args()
    if options.train:
        return _train(_spec(options, *options.train))
    with tempfile.TemporaryDirectory() as folder:
        if options.proportioned:
            hidden, depth = options.proportioned
            options.model = str(proportioned_decoder(Path(folder, "model"), hidden, depth))
        base = Path(folder, "base")
        names = ("model", "mode", "max_steps", "projector_steps", "global_batch", "micro_batch", "workers")
        pretrain_projector(**{name: getattr(_spec(options, str(base), "1"), name) for name in names}, storage=str(base))
        runs = [_run(options, f"packed by {pack}", base, str(pack)) for pack in options.packs]
        runs.append(_run(options, "one by one, warm", base, "1"))
        runs.append(_run(options, "one by one, cold", base, "1", cold=True))
    _print(runs)


def _spec(options: Any, storage: str, pack: str) -> SweepSpec:
    names = ("model", "placements", "global_batch", "micro_batch", "workers")
    chosen = {name: getattr(options, name) for name in names}
    fixed = {"mode": "lora", "prune": [0], "projector_steps": 2, "max_steps": options.steps}
    spec = SweepSpec.parse({**chosen, **fixed, "learning_rates": options.rates, "pack": pack, "storage": storage})
    return spec.model_copy(update={"tasks": []})


def _train(spec: SweepSpec) -> None:
    with connected(spec.storage), open_session(spec) as session:
        _, failures = session.started().run_trials()
    if failures:
        sys.exit(str(failures))


def _run(options: Any, name: str, base: Path, pack: str, *, cold: bool = False) -> Run:
    """Train on a copy of a store: all trials in one process, or each in one of its own."""
    storage = base.with_name(name.replace(" ", "-"))
    shutil.copytree(base, storage)
    store = Store(str(storage))
    before = set(store.keys(DELTA))
    together = [(options.placements, options.rates)]
    began = time.monotonic()
    for placements, rates in [([p], [r]) for p in options.placements for r in options.rates] if cold else together:
        kept = ["--model", options.model, "--steps", options.steps, "--global-batch", options.global_batch]
        kept += ["--micro-batch", options.micro_batch, "--workers", options.workers]
        own = [*kept, "--placements", *placements, "--rates", *rates, "--train", storage, pack]
        subprocess.run([sys.executable, "-m", "benchmarks.packing", *map(str, own)], check=True, stdout=sys.stderr)
    seconds = time.monotonic() - began
    ended = {key: (storage / DELTA / key / MARKER).stat().st_mtime for key in set(store.keys(DELTA)) - before}
    keys = sorted(ended, key=ended.__getitem__)
    trials = [store.describe(DELTA, key) for key in keys]
    wanted = len(options.placements) * len(options.rates)
    assert len(trials) == wanted, f"{name}: {len(trials)} of {wanted} trials are in the store"
    print(f"{name}: {seconds:.0f} s", file=sys.stderr, flush=True)
    return Run(name, seconds, trials, [ended[key] for key in keys])


def _print(runs: Sequence[Run]) -> None:
    warm, cold = runs[-2:]
    print("| trials | makespan, s | times warm | steps, s | peak of a worker, MiB | mean loss of the last step |")
    print("| --- | --- | --- | --- | --- | --- |")
    for run in runs:
        cells = [f"{run.seconds:.0f}", f"{run.seconds / warm.seconds:.2f}", f"{run.step_seconds:.0f}"]
        print(f"| {run.name} | {' | '.join(cells)} | {run.peak_mib:.0f} | {run.loss:.3f} |")
    print(f"\nFrom the end of one training to the first step of the next, warm: {warm.between:.1f} s (median).")
    start = (cold.seconds - cold.step_seconds) / len(cold.trials)
    print(
        f"\nOne start-up (cold, a trial): {start:.0f} s. One start-up and all steps: {start + warm.step_seconds:.0f} s."
    )


if __name__ == "__main__":
    main()
