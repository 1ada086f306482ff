"""Time per training step on the demo model, settings side by side in one run: two gloo workers, one thread each.

python benchmarks/training.py [--rounds 5] [--steps 3]

Every round trains a few steps in each setting, so that a change of the machine's speed meets all of them alike.
Prints a Markdown table: median seconds a step, its range over the rounds, and the ratio to the first setting.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

from vrray.data.chunks import plan_chunks
from vrray.data.demo import build_demo
from vrray.data.encode import encode_records
from vrray.data.features import compute_chunks
from vrray.data.records import read_records
from vrray.home import vrray_home
from vrray.models.loading import base_identity, resolve_model
from vrray.region import place
from vrray.specs import SMOL_RECIPE
from vrray.train import engine, loop
from vrray.train.workspace import Workspace

WORKERS = 2
# Name, placement, precision, frozen weights resident, reduce-scatter instead of all-reduce.
SETTINGS = [
    ("region (25 %), as the sweep trains it", "uniform", "fp32", True, False),
    ("all layers", "all", "fp32", True, False),
    ("region, frozen weights partitioned too", "uniform", "fp32", False, False),
    ("region, gradients reduced and scattered", "uniform", "fp32", True, True),
    ("region, bf16", "uniform", "bf16", True, False),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    resolve_model("smol"), build_demo(vrray_home())
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(  # type: ignore[attr-defined]
            _worker, args=(folder, options.rounds, options.steps), nprocs=WORKERS
        )


def _worker(rank: int, folder: str, rounds: int, steps: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORKERS)}
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORKERS)
    workspaces = {precision: _workspace(folder, precision) for precision in ("fp32", "bf16")}
    demo = build_demo(vrray_home())
    records = read_records(demo.train)[:96]
    first = workspaces["fp32"]
    rows = encode_records(records, first.processor, first.image_tokens)
    seconds: dict[str, list[float]] = {name: [] for name, *_ in SETTINGS}
    for _ in range(rounds):
        for name, placement, precision, resident, scatter in SETTINGS:
            _choose_reduction(scatter)
            recipe = SMOL_RECIPE.model_copy(update={"precision": precision, "max_steps": steps})
            training = loop.Training(rows, place(placement, 30, 0.25), recipe, 0, 8, resident)
            seconds[name].append(loop.train(workspaces[precision], training, lambda _: None).metrics["step_seconds"])
    if rank == 0:
        _print(seconds)


def _workspace(folder: str, precision: Any) -> Workspace:
    path = resolve_model("smol")
    base = base_identity(path)
    workspace = Workspace.set_up(f"{folder}/store", str(path), base, precision)
    demo = build_demo(vrray_home())
    names = [record.image for record in read_records(demo.train)[:96] if record.image]
    roots = {"": demo.image_root}
    chunks = plan_chunks(names, roots, base)
    if dist.get_rank() == 0:
        model = workspace.model
        images = workspace.processor.image_processor
        compute_chunks(chunks, roots, model.model.vision_tower, model.config, images, workspace.store)
    dist.barrier()
    workspace.use_features(chunks)
    return workspace


_configured = engine.deepspeed_config


def _choose_reduction(scatter: bool) -> None:
    def configured(*arguments: Any, **named: Any) -> dict[str, Any]:
        config = _configured(*arguments, **named)
        config["zero_optimization"]["reduce_scatter"] = scatter
        return config

    loop.deepspeed_config = configured  # type: ignore[attr-defined]


def _print(seconds: dict[str, list[float]]) -> None:
    baseline = seconds[SETTINGS[0][0]]
    print("| setting | s/step, median | range | ratio to the first, median | range |\n| --- | --- | --- | --- | --- |")
    for name, values in seconds.items():
        ratios = [value / other for value, other in zip(values, baseline, strict=True)]
        print(
            f"| {name} | {statistics.median(values):.2f} | {min(values):.2f}-{max(values):.2f} "
            f"| {statistics.median(ratios):.2f} | {min(ratios):.2f}-{max(ratios):.2f} |"
        )


if __name__ == "__main__":
    main()
