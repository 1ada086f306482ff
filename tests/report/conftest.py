"""Synthetic sweeps: tables as the sweep writes them, with numbers that are easy to recognise."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

Cells = dict[str, Any]
MakeRow = Callable[..., Cells]
MakeTable = Callable[..., pa.Table]

DEPTH = 30
REGIONS = {
    "all": list(range(DEPTH)),
    "uniform": [0, 4, 8, 12, 17, 21, 25, 29],
    "bottom": list(range(8)),
    "top": list(range(22, 30)),
    "none": [],
}
TASKS = ("easy-vqa", "easy-vqa-yesno", "capitals", "continents")
SCORES = ("score_visual", "score_textual", "test_score_visual", "test_score_textual")
INTEGERS = ("parameters", "trained_parameters")
REALS = (
    *(f"{score}{end}" for score in SCORES for end in ("", "_low", "_high")),
    *(f"difference_{ability}{end}" for ability in ("visual", "textual") for end in ("", "_low", "_high")),
    *("retention_visual", "retention_textual", "blind_visual", "floor_visual", "floor_textual"),
    *(f"score_{task}" for task in TASKS),
    *("train_seconds", "step_seconds", "latency_ms_per_token", "peak_mib"),
)
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("variant", "placement", "status", "split", "key")),
        *((name, pa.list_(pa.int32())) for name in ("tuned_layers", "removed_layers")),
        ("depth", pa.int32()),
        *((name, pa.bool_()) for name in ("ties_best_visual", "ties_best_textual")),
        *((name, pa.int64()) for name in INTEGERS),
        *((name, pa.float64()) for name in REALS),
    ]
)


@pytest.fixture
def make_row() -> MakeRow:
    """A complete row with the given cells: `make_row("uniform-8", "uniform", visual=0.9, removed=[3])`."""
    return build_row


@pytest.fixture
def make_failed() -> MakeRow:
    """A failed row: `make_failed("top-8", "top", "out of memory")`."""
    return build_failed


@pytest.fixture
def make_table() -> MakeTable:
    """A table of rows: `make_table(row, row)`."""
    return build_table


@pytest.fixture(scope="session")
def sweep_table() -> pa.Table:
    """Five placements of a 30-layer decoder, the regions pruned by 0 to 4 layers, `all` and the best tested."""
    return build_sweep()


@pytest.fixture(scope="session")
def sweep_without_all() -> pa.Table:
    """The same sweep without `all`: no retention, no test scores."""
    return build_sweep(with_all=False)


def build_row(
    variant: str, placement: str, *, visual: float = 0.9, textual: float = 0.6, half: float = 0.02, **cells: Any
) -> Cells:
    tuned = cells.pop("tuned", REGIONS.get(placement, []))
    removed = cells.pop("removed", [])
    row: Cells = dict.fromkeys(SCHEMA.names)
    row |= {"variant": variant, "placement": placement, "tuned_layers": tuned, "removed_layers": removed}
    row |= {"depth": DEPTH, "status": "complete", "split": "select", "key": f"key-{variant}"}
    row |= _interval("score_visual", visual, half) | _interval("score_textual", textual, half)
    row |= {f"score_{task}": visual - 0.01 * place for place, task in enumerate(TASKS)}
    row |= {"blind_visual": 0.23, "floor_visual": 0.18, "floor_textual": 0.25}
    row |= {"parameters": (256 - 4 * len(removed)) * 10**6, "trained_parameters": len(tuned) * 10**6}
    row |= {"train_seconds": 300.0 + 12 * len(tuned), "step_seconds": 0.8, "peak_mib": 2048.0}
    row |= {"latency_ms_per_token": 21.0 - 0.6 * len(removed)}
    return row | cells


def build_failed(variant: str, placement: str, reason: str, **cells: Any) -> Cells:
    row: Cells = dict.fromkeys(SCHEMA.names)
    row |= {"variant": variant, "placement": placement, "status": f"failed: {reason}", "split": "select"}
    return row | {"tuned_layers": REGIONS.get(placement, []), "removed_layers": [], "depth": DEPTH} | cells


def build_table(*rows: Cells) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=SCHEMA)


def build_sweep(*, with_all: bool = True) -> pa.Table:
    visual = {"all": 0.931, "uniform": 0.922, "bottom": 0.871, "top": 0.803, "none": 0.312}
    textual = {"all": 0.585, "uniform": 0.621, "bottom": 0.597, "top": 0.634, "none": 0.655}
    loss = {"uniform": 0.006, "bottom": 0.018, "top": 0.031}
    removable = {"uniform": [22, 14, 6, 27], "bottom": [22, 14, 23, 27], "top": [14, 6, 15, 10]}
    rows = []
    for placement, region in REGIONS.items():
        name = placement if placement in ("all", "none") else f"{placement}-{len(region)}"
        for count in range(5 if placement in loss else 1):
            rows.append(
                build_row(
                    name if count == 0 else f"{name}-prune{count}",
                    placement,
                    visual=visual[placement] - loss.get(placement, 0) * count**1.4,
                    textual=textual[placement] - 0.008 * count,
                    removed=sorted(removable.get(placement, [])[:count]),
                    blind_visual=0.2 + 0.01 * len(placement),
                )
            )
            rows[-1]["ties_best_visual"] = rows[-1]["score_visual"] > 0.89
    if not with_all:
        return build_table(*[row for row in rows if row["placement"] != "all"])
    for row in rows:
        row["retention_visual"] = row["score_visual"] / visual["all"]
        row["retention_textual"] = row["score_textual"] / textual["all"]
        row |= _interval("difference_visual", row["score_visual"] - visual["all"], 0.011)
        if row["variant"] in ("all", "none", "uniform-8"):
            row |= _interval("test_score_visual", row["score_visual"] - 0.011, 0.021)
            row |= _interval("test_score_textual", row["score_textual"] - 0.012, 0.022)
    return build_table(*rows)


def _interval(name: str, value: float, half: float) -> Cells:
    return {name: value, f"{name}_low": value - half, f"{name}_high": value + half}
