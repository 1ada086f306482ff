"""Time and memory of training, settings side by side in one run, alternating.

python -m benchmarks.training [--sections peer zero growth] [--models smol proportioned] [--rounds 5] [--steps 3]
    [--zero 3]

vrray trains in two gloo workers of one thread, the peer (benchmarks/peer.py: Hugging Face Trainer and PEFT) in one
process of two threads. In each round every setting trains a few steps, so that a change of the machine's speed meets
all of them alike. Prints Markdown: medians over the rounds with their range, and ratios taken round by round.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.models import proportioned_decoder, smol_at
from benchmarks.sides import Case, Processes, ours, theirs
from vrray.models.loading import model_shape
from vrray.region import place
from vrray.specs import Recipe
from vrray.sweep.prepare import resolve_precision
from vrray.train.execution import Execution

SECTIONS = ("peer", "zero", "growth")
BATCH, MICRO_BATCH = 16, 8
# The paper's fine-tuning recipe, with a batch for two cores; full parameters take a tenth of LoRA's rate.
LORA = Recipe(global_batch=BATCH, projector_learning_rate=1e-3)
FULL = LORA.model_copy(update={"mode": "full", "learning_rate": 2e-5})
PLAIN = Execution(micro_batch=MICRO_BATCH)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--models", nargs="+", choices=("smol", "proportioned"), default=["smol", "proportioned"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--zero", type=int, choices=(0, 1, 2, 3), default=3, help="vrray's stage against the peer")
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    options = parser.parse_args()
    precision = resolve_precision(options.precision, gpu=False)
    sizes = f"global batch {BATCH}, micro-batch {MICRO_BATCH}, {precision}"
    print(f"{options.rounds} rounds of {options.steps} steps, {sizes}")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bench = Bench(stack, options.rounds, options.steps, precision)
        for name in options.models:
            model = _model(name, folder)
            for section in options.sections:
                for table in _tables(section, str(model), options.zero):
                    bench.compare(replace(table, title=f"{table.title}, {name}"))


def _model(name: str, folder: Path) -> Path:
    if name == "smol":
        return smol_at(224, folder / name)
    return proportioned_decoder(folder / name, side=224, vocabulary=16_384)


def _tables(section: str, model: str, zero: Literal[0, 1, 2, 3]) -> list[Table]:
    depth = model_shape(Path(model)).depth
    whole, region = place("all", depth), place("uniform", depth, 0.25)

    def case(title: str, **changes: Any) -> Case:
        return replace(Case(title, model, region, FULL, PLAIN), **changes)

    if section == "peer":
        modes = {"all layers, full": (whole, FULL), "region, full": (region, FULL)}
        modes |= {"all layers, LoRA": (whole, LORA), "region, LoRA": (region, LORA)}
        cases = [
            case(
                f"{side}: {title}",
                region=chosen,
                recipe=recipe,
                peer=side == "peer",
                execution=replace(PLAIN, zero=zero),
            )
            for title, (chosen, recipe) in modes.items()
            for side in ("peer", "vrray")
        ]
        pairs = [(f"peer: {title}", f"vrray: {title}") for title in modes]
        pairs.append(("peer: all layers, LoRA", "vrray: region, LoRA"))
        pairs += [(f"vrray: region, {mode}", f"vrray: all layers, {mode}") for mode in ("full", "LoRA")]
        return [Table("against Trainer and PEFT, and the region against all layers", cases, pairs)]
    if section == "zero":
        settings = {"ZeRO 3, frozen resident": PLAIN}
        settings["ZeRO 2, frozen resident"] = replace(PLAIN, zero=2)
        settings["ZeRO 1, frozen resident"] = replace(PLAIN, zero=1)
        settings["ZeRO 0, frozen resident"] = replace(PLAIN, zero=0)
        settings["ZeRO 3, frozen partitioned"] = replace(PLAIN, resident=False)
        settings["ZeRO 3, resident, packed"] = replace(PLAIN, packing=True)
        settings["ZeRO 3, resident, all layers recomputed"] = replace(PLAIN, recomputed=depth)
        return [_against_first("settings", [case(title, execution=how) for title, how in settings.items()])]
    counts = [count for count in (1, 2, 4, 8, 16) if count < depth]
    some = [case(f"{count} layers", region=place("uniform", depth, count)) for count in counts]
    return [
        _against_first("tokens a row", [case(f"x{times}", lengthen=times) for times in (1, 2, 4)]),
        _against_first("layers tuned", [case("all", region=whole), *reversed(some)]),
        _against_first("workers", [case("1 worker", workers=1), case("2 workers")]),
    ]


def _against_first(title: str, cases: list[Case]) -> Table:
    return Table(title, cases, [(case.name, cases[0].name) for case in cases[1:]])


@dataclass(frozen=True)
class Table:
    """Cases to alternate between, and pairs of their names whose times are divided."""

    title: str
    cases: list[Case]
    pairs: list[tuple[str, str]]


@dataclass
class Bench:
    """Runs cases side by side. A side's processes start when first needed, and stay."""

    stack: ExitStack
    rounds: int
    steps: int
    precision: str
    _sides: dict[tuple[bool, int], Processes] = field(default_factory=dict)

    def compare(self, table: Table) -> None:
        """Alternate between the cases of a table, print it."""
        title = table.title
        cases = [replace(c, recipe=c.recipe.model_copy(update={"precision": self.precision})) for c in table.cases]
        results: dict[str, list[dict[str, Any]]] = {case.name: [] for case in cases}
        began = time.monotonic()
        for number in range(self.rounds):
            for case in cases:
                results[case.name].append(self._side(case).run((case, self.steps)))
            said = f"{title}: round {number + 1} of {self.rounds}, {time.monotonic() - began:.0f} s"
            print(said, file=sys.stderr, flush=True)
        print(f"\n### {title}\n")
        _print(results, table.pairs)

    def _side(self, case: Case) -> Processes:
        key = (case.peer, 1 if case.peer else case.workers)
        if key not in self._sides:
            work, threads = (theirs, 2) if case.peer else (ours, 1)
            self._sides[key] = self.stack.enter_context(Processes(key[1], work, threads))
        return self._sides[key]


def _print(results: dict[str, list[dict[str, Any]]], pairs: Sequence[tuple[str, str]]) -> None:
    """Medians over the rounds; a round's time is the median of its steps after the first."""
    steps = {name: [statistics.median(run["seconds"][1:]) for run in runs] for name, runs in results.items()}
    _row("setting", "s/step", "range", "samples/s", "peak MiB", "artefact MiB", "loss of the last step")
    _row(*["---"] * 7)
    for name, values in steps.items():
        runs = results[name]
        size, peak = runs[0].get("bytes"), statistics.median(run["peak_mib"] for run in runs)
        artefact = "" if size is None else f"{size / 2**20:.1f}"
        _row(name, *_spread(values), f"{BATCH / statistics.median(values):.1f}", f"{peak:.0f}", artefact, _loss(runs))
    print()
    _row("times", "ratio", "range")
    _row(*["---"] * 3)
    for above, below in pairs:
        ratios = [one / other for one, other in zip(steps[above], steps[below], strict=True)]
        _row(f"{above} / {below}", *_spread(ratios))


def _row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def _spread(values: Sequence[float]) -> tuple[str, str]:
    return f"{statistics.median(values):.2f}", f"{min(values):.2f}-{max(values):.2f}"


def _loss(runs: Sequence[dict[str, Any]]) -> str:
    return f"{runs[0]['losses'][-1]:.3f}"


if __name__ == "__main__":
    main()
