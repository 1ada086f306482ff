"""What a region that one makes up would take: trained parameters, memory, time, and the command that trains it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dashboard.board import Board
from dashboard.markup import Markup, note, tag

if TYPE_CHECKING:
    from vrray.plan import Plan

_ROWS = re.compile(r" \(\d+ training rows\)$")
GIB = 2**30


@dataclass(frozen=True)
class Asked:
    """A made-up training: the model, the layers tuned, the workers and what each has."""

    model: str
    layers: tuple[int, ...]
    workers: int
    memory_gib: float


def plan_for(asked: Asked) -> Plan:
    """The plan of a training on GPUs; no weights are read.

    Raises:
        VrrayError: the model cannot be found, or the region does not fit it.
    """
    from vrray.plan import PlanSpec, make_plan  # takes torch and transformers along

    placement = ",".join(map(str, asked.layers))
    size = int(asked.memory_gib * GIB)
    return make_plan(
        PlanSpec.parse(dict(model=asked.model, workers=asked.workers, gpu_memory=size, placement=placement))
    )


def depth_of(model: str) -> int:
    """How many decoder layers a model has.

    Raises:
        ModelError: the model cannot be found.
    """
    from vrray.models.loading import model_config, shape_of

    return shape_of(model_config(model)).depth


def estimated_seconds(plan: Plan, board: Board | None) -> tuple[float, str] | None:
    """Seconds of the training with the data and steps of a sweep, and the variant whose measured time it follows.

    The time of the sweep's unpruned training with the nearest number of layers, times the ratio of the operations:
    twice the layers for the forward pass, as much for gradients of activations, and twice what trains (as in
    `vrray.sweep.plan`).
    """
    if board is None:
        return None
    wanted = len(plan.region)
    rows = [int(row) for row in board.ranked if not board.numbers["removed"][row] and board.numbers["tuned"][row]]
    rows = [row for row in rows if board.cells(row)["train_seconds"] and board.cells(row)["depth"] == plan.shape.depth]
    if not rows:
        return None
    nearest = board.cells(min(rows, key=lambda row: abs(board.numbers["tuned"][row] - wanted)))
    layers = 4 * plan.shape.layer * plan.shape.depth
    ratio = (layers + 2 * plan.trained) / (layers + 2 * nearest["trained_parameters"])
    return float(nearest["train_seconds"]) * ratio, str(nearest["variant"])


def command_for(asked: Asked, storage: str, context: Mapping[str, str]) -> str:
    """The `jobs/sweep.py` command that trains the region, with the data of a sweep where there is one."""
    words = ["python", "jobs/sweep.py", "--model", asked.model]
    if context.get("model") == asked.model and "data" in context:
        words += ["--data", *_ROWS.sub("", context["data"]).split(" ")]
    words += ["--placements", "all", ",".join(map(str, asked.layers)), "--workers", str(asked.workers)]
    return shlex.join([*words, "--storage", storage, "--name", "my-region"])


def plan_markup(plan: Plan, seconds: tuple[float, str] | None) -> Markup:
    """The plan in four figures and a table of the memory."""
    chosen, memory = plan.auto, plan.auto.memory
    fits = {"yes": "fits", "tight": "barely fits", "no": "does not fit"}[plan.fits(memory)]
    adapters = f"LoRA, rank {plan.recipe.lora_rank}" if plan.recipe.mode == "lora" else "full parameters"
    time = ("unknown", "run a sweep of this model once: its trainings are what the time is scaled from")
    if seconds is not None:
        time = (
            f"about {_duration(seconds[0])}",
            f"as measured for {seconds[1]}, scaled; on the machine of its sweep",
        )
    parts = ("frozen", "trained", "optimizer", "activations", "overhead")
    rows = [tag("tr", tag("td", name), tag("td", f"{getattr(memory, name) / GIB:.2f}")) for name in parts]
    head = tag("thead", tag("tr", tag("th", "memory of a worker", scope="col"), tag("th", "GiB", scope="col")))
    table = tag("div", tag("table", head, tag("tbody", *rows), cls="v-table"), cls="v-scroll")
    how = (
        f"ZeRO {chosen.zero}, frozen weights {'resident' if chosen.resident else 'partitioned'}, {chosen.recomputed} "
        f"of {plan.shape.depth} layers recomputed ({chosen.reason})"
    )
    share = f"{plan.trained / plan.shape.total:.2%} of {plan.shape.total / 1e6:,.1f} M; {adapters}"
    stats = tag(
        "dl",
        _stat(
            "Layers tuned", f"{len(plan.region)} of {plan.shape.depth}", f"{len(plan.region.outside)} may be removed"
        ),
        _stat("Trained parameters", f"{plan.trained / 1e6:,.1f} M", share),
        _stat("Memory of a worker", f"{memory.total / GIB:.2f} GiB", f"{fits} a GPU of {plan.available / GIB:.0f} GiB"),
        _stat("Time of a training", *time),
        cls="v-stats",
        style="margin:0",
    )
    basis = (
        f"{plan.workers} workers with a GPU each, {plan.recipe.precision}, {plan.micro_batch} rows of {plan.tokens} "
        f"tokens at once; {how}."
    )
    details = tag("details", tag("summary", "Where the memory goes"), tag("p", basis, cls="v-sub"), table, cls="v-fold")
    return tag("div", stats, details, cls="v-stack")


def no_layers() -> Markup:
    return note("No layer is picked", "Click layers above, or take a placement, to see what tuning them would take.")


def _stat(title: str, value: str, text: str) -> Markup:
    return tag("div", tag("dt", title), tag("dd", value, tag("small", text)), cls="v-stat")


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
