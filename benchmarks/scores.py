"""What layer scores and pruning levels cost, against plain forward passes over the same rows, alternating in one run.

python -m benchmarks.scores [--rounds 5] [--rows 64]

One process of all cores, the demo LVLM, the first training rows of the demo data. Prints Markdown: medians over the
rounds with their range, and ratios taken round by round.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import AutoConfig

from benchmarks.timing import Timing, inside
from vrray.data.features import compute_chunks
from vrray.data.rows import FILES, Row, Rows
from vrray.data.rows import KIND as ROWS
from vrray.evaluate.run import evaluate_tasks
from vrray.models.family import vision_tower
from vrray.models.loading import decoder_layers
from vrray.pruning import pruned
from vrray.region import place
from vrray.scores.forward import decode, own_batches, row_losses
from vrray.scores.measure import measure
from vrray.specs import SweepSpec
from vrray.store import Store
from vrray.sweep.prepare import Prepared, prepare
from vrray.train.desk import Setup
from vrray.train.workspace import Workspace

LEVELS = range(5)
_BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=64)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
        bench = Bench(*demo_workspace(Path(folder), options.rows))
        for _ in range(options.rounds + 1):  # the first round warms up
            bench.round()
        dist.destroy_process_group()
    print(f"{options.rounds} rounds, {options.rows} rows, {bench.depth} layers, {torch.get_num_threads()} threads\n")
    print(bench.report())


@dataclass
class Bench:
    workspace: Workspace
    prepared: Prepared
    rows: Sequence[Row]
    timing: Timing = field(default_factory=Timing)

    @property
    def depth(self) -> int:
        return len(decoder_layers(self.workspace.model))

    def round(self) -> None:
        space, rows = self.workspace, self.rows
        prompts = [Row(row.id, row.prompt, (False,) * len(row.prompt), row.images) for row in rows]
        self.timing.time("plain forward, prompts", lambda: plain_forward(space, prompts, _BATCH, head=False))
        self.timing.time("all cheap scores", lambda: measure(space, "states", rows, batch=_BATCH))
        self.timing.time("plain forward, rows and their losses", lambda: plain_forward(space, rows, _BATCH))
        self.timing.time("ablation losses of all layers", lambda: measure(space, "ablation", rows, batch=_BATCH))
        self.timing.time("gradient importance", lambda: measure(space, "gradient", rows[:8]))
        with inside(space.model.model, space.model.lm_head) as seconds:
            self.timing.time("levels 0 to 4, evaluated", lambda: _evaluate_levels(space, self.prepared))
        self.timing.add("their forward passes", sum(seconds))

    def report(self) -> str:
        aim = f"at most {0.6 * self.depth:.1f}, which is 0.6 L"
        ratios = self.timing.ratios(
            ("all cheap scores", "plain forward, prompts", "at most 1.3"),
            ("ablation losses of all layers", "plain forward, rows and their losses", aim),
            ("levels 0 to 4, evaluated", "their forward passes", "at most 1.1"),
        )
        return f"{self.timing.table()}\n\n{ratios}"


def demo_workspace(folder: Path, rows: int, examples: int = 16) -> tuple[Workspace, Prepared, Sequence[Row]]:
    """The demo LVLM with its features; a projector that was not trained costs the same."""
    store = Store(folder / "store")
    spec = SweepSpec.parse({"storage": store.uri, "examples": examples})
    prepared = prepare(spec, store, gpu=False, worker_memory=8 << 30)
    site, path = prepared.site, str(prepared.model_path)
    space = Workspace.set_up(Setup(store.uri, path, site.base, prepared.precision, template=prepared.template))
    config, processor = AutoConfig.from_pretrained(path), space.processor.image_processor
    compute_chunks(site.chunks, site.images, vision_tower(space.model), config, processor, store)
    space.use_cached(site.chunks)
    with store.open(ROWS, site.calibration_key, only=FILES) as rows_folder:
        return space, prepared, Rows(rows_folder)[:rows]


@torch.inference_mode()
def plain_forward(space: Workspace, rows: Sequence[Row], size: int, *, head: bool = True) -> None:
    for _, batch in own_batches(space, rows, size):
        hidden = decode(space.model, batch)
        if head:
            row_losses(space.model, batch, hidden)


def _evaluate_levels(space: Workspace, prepared: Prepared) -> None:
    """As a trial does it: layers leave in place, nothing is loaded again."""
    region = place("uniform", prepared.shape.depth)
    for level in LEVELS:
        with pruned(space.model, region.outside[-level:] if level else (), region):
            evaluate_tasks(space, prepared.site.select)


if __name__ == "__main__":
    main()
