"""Stores as a sweep leaves them, with made-up numbers: what the dashboard's tests and timings read."""

from __future__ import annotations

import json
import math
import random
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vrray.region import place
from vrray.report.rows import COLUMNS
from vrray.store import Store

TIES = {f"score_{ability}": f"ties_best_{ability}" for ability in ("visual", "textual")}
ENDS = (("", 0.0), ("_low", -0.04), ("_high", 0.04))
DEPTH = 12
TASKS = ("shapes", "capitals")
PLACEMENTS = ("all", "uniform", "bottom", "top")
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


def write_sweep(folder: Path, name: str = "demo", *, removed: int = 4, seeds: int = 1) -> Store:
    """A finished sweep: placements x layers removed x seeds, its examples and images, its report; and layer scores."""
    store = Store(folder)
    rows = [
        row
        for seed in range(seeds)
        for placement in PLACEMENTS
        for row in _variants(placement, seed, removed, distinct=seeds > 1)
    ]
    rows.append(_row("untuned", "none", (), (), 0, 0.21))
    rows.append(_row("random-3-seed7", "random", place("random", DEPTH, 3, 7).layers, (), 7, None))
    top = next(row for row in rows if row["placement"] == "all")
    for row in rows:
        for ability in ("visual", "textual"):
            score = row[f"score_{ability}"]
            row[f"retention_{ability}"] = None if score is None else score / top[f"score_{ability}"]
            if score is not None and row is not top:
                row |= {f"difference_{ability}{end}": score - top[f"score_{ability}"] + shift for end, shift in ENDS}
    write_table(store, name, rows)
    _write_examples(store, name, rows, folder / "pictures")
    _write_scores(store)
    return store


def write_large(folder: Path, variants: int = 10_000, name: str = "large") -> Store:
    """A sweep with so many variants and nothing else: what sorting and filtering are timed on."""
    store, chance = Store(folder), random.Random(1)
    rows: list[dict[str, Any]] = []
    while len(rows) < variants:
        seed = len(rows)
        placement = chance.choice(("uniform", "bottom", "top", "random"))
        region = place(placement, 32, chance.choice((4, 8, 16)), seed)
        gone = tuple(sorted(chance.sample(region.outside, chance.randrange(0, 9))))
        row = _row(f"{region.name}-run{seed}", placement, region.layers, gone, seed, 0.5 + 0.4 * chance.random(), 32)
        row |= {"retention_visual": row["score_visual"] / 0.9, "retention_textual": row["score_textual"] / 0.7}
        rows.append(row)
    write_table(store, name, rows)
    return store


def write_table(store: Store, name: str, rows: list[dict[str, Any]]) -> None:
    """Table, sweep.json, report and a figure of these rows."""
    scores = {
        row["key"]: {"name": "angular", "values": layer_values(row["seed"]), "standard_errors": [0.01] * DEPTH}
        | {"samples": 48}
        for row in rows
        if row["depth"] == DEPTH and not row["removed_layers"]
    }
    context = {"model": "smol", "data": "demo (640 training rows)", "seeds": "0", "tasks": ", ".join(TASKS)}
    context["command"] = f"jobs/sweep.py --name {name}"
    about = {"context": context, "base": "0123456789abcdef", "scores": scores}
    store.write_text(f"sweeps/{name}/sweep.json", json.dumps(about))
    store.write_text(f"sweeps/{name}/report.md", "# Report\n")
    store.write_bytes(f"sweeps/{name}/figures/layer_map.png", b"not looked at")
    store.write_table(f"sweeps/{name}/table.parquet", pa.Table.from_pylist(_tie(rows), schema=_schema()))


def write_live(store: Store, name: str, live: dict[str, Any]) -> None:
    store.write_text(f"sweeps/{name}/live.json", json.dumps(live))


def live_state(now: float, step: int = 5, ended: str | None = None) -> dict[str, Any]:
    """A sweep of three trials: one trains, one waits, one has failed with a message that holds markup."""
    trial: dict[str, Any] = {
        "evaluated": [],
        "message": None,
        "seconds_left": None,
        "losses": [],
        "step": 0,
        "steps": 20,
    }
    losses = [[number, round(5 * math.exp(-number / 8), 3)] for number in range(1, step + 1)]
    trains = {
        "key": "a",
        "name": "uniform-3",
        "state": "training",
        "step": step,
        "losses": losses,
        "seconds_left": 30.0,
    }
    failed = {"key": "c", "name": "top-3", "state": "failed", "message": f"OutOfMemory {HOSTILE}"}
    trials = [trial | trains, trial | {"key": "b", "name": "bottom-3", "state": "waiting"}, trial | failed]
    return {"format": 1, "began": now - 60, "updated": now, "ended": ended, "trials": trials, "lines": ["stage 1"]}


def layer_values(seed: int) -> list[float]:
    chance = random.Random(seed)
    return [round(0.1 + 0.3 * abs(layer - DEPTH / 2) / DEPTH + 0.05 * chance.random(), 4) for layer in range(DEPTH)]


def _variants(placement: str, seed: int, removed: int, *, distinct: bool) -> list[dict[str, Any]]:
    region = place(placement, DEPTH, 3, seed)
    outside = region.outside or tuple(range(DEPTH))
    start = {"all": 0.80, "uniform": 0.78, "bottom": 0.70, "top": 0.66}[placement]
    rows = []
    for count in range(removed + 1):
        gone = tuple(sorted(outside[::-1][:count]))
        stem = region.name + (f"-seed{seed}" if distinct else "")
        name = stem + (f"-prune{count}" if count else "")
        score = start - 0.012 * count**1.5 - 0.001 * seed
        rows.append(_row(name, placement, region.layers, gone, seed, score, key=f"key-{stem}"))
    return rows


def _row(
    name: str,
    placement: str,
    tuned: tuple[int, ...],
    gone: tuple[int, ...],
    seed: int,
    score: float | None,
    depth: int = DEPTH,
    key: str | None = None,
) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(_schema().names)
    row |= {"variant": name, "placement": placement, "tuned_layers": list(tuned), "removed_layers": list(gone)}
    row |= {"depth": depth, "split": "select", "key": key or f"key-{name}", "seed": seed, "learning_rate": 3e-4}
    row |= {"floor_visual": 0.17, "floor_textual": 0.25, "healed": False, "trained_parameters": len(tuned) * 3_500_000}
    if score is None:
        return row | {"status": f"failed: {HOSTILE}"}
    for ability, value in (("visual", score), ("textual", 0.9 * score)):
        row |= {f"score_{ability}": value, f"score_{ability}_low": value - 0.03, f"score_{ability}_high": value + 0.03}
    row |= {f"score_{task}": score for task in TASKS}
    row |= {"status": "complete", "blind_visual": 0.2, "train_seconds": 40.0 + len(tuned), "step_seconds": 0.5}
    row |= {"parameters": 140_000_000 - 3_500_000 * len(gone), "latency_ms_per_token": 30.0 - 0.9 * len(gone)}
    return row | {"peak_mib": 2000.0}


def _tie(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Marks the rows whose interval overlaps that of the best, whatever a paired bootstrap would say."""
    for score, ties in TIES.items():
        tuned = [row for row in rows if row.get(score) is not None and row["placement"] != "none"]
        best = max(tuned, key=lambda row: row[score], default=None)
        for row in rows:
            told = best is not None and row.get(score) is not None and row.get(f"{score}_high") is not None
            row[ties] = bool(told and best and row[f"{score}_high"] >= best[f"{score}_low"])
    return rows


def _schema() -> pa.Schema:
    lists, texts = ("tuned_layers", "removed_layers"), ("variant", "placement", "status", "split", "key")
    whole = ("depth", "parameters", "trained_parameters", "seed")
    kinds = dict.fromkeys(texts, pa.string()) | dict.fromkeys(lists, pa.list_(pa.int32()))
    kinds |= dict.fromkeys(whole, pa.int64())
    kinds |= dict.fromkeys(TIES.values(), pa.bool_())
    names = [*COLUMNS, *(f"score_{task}" for task in TASKS), "seed", "learning_rate"]
    fields = [(name, kinds.get(name, pa.float64())) for name in names]
    return pa.schema([*fields, ("ranking", pa.string()), ("healed", pa.bool_())])


def _write_examples(store: Store, sweep: str, rows: list[dict[str, Any]], pictures: Path) -> None:
    """Ten questions of each task; a variant with n layers removed gets the first n of a task wrong."""
    pictures.mkdir(parents=True, exist_ok=True)
    questions: list[dict[str, Any]] = []
    for number in range(10):
        Image.new("RGB", (64, 48), (25 * number, 90, 200)).save(pictures / f"shape{number}.png")
        shape = {"question": f"Which shape is number {number}?", "answer": "circle", "image": f"shape{number}.png"}
        capital = {"question": f"What is the capital of country {number}?", "answer": "Paris", "image": None}
        questions.append({"task": "shapes", "ability": "visual", "metric": "exact", "options": [], **shape})
        options = ["Paris", "Rome"]
        asked = {"task": "capitals", "ability": "textual", "metric": "choice", "options": options}
        questions.append(asked | capital)
        for question in questions[-2:]:
            question |= {"split": "select", "example": f"{question['task']}/{number:02}"}
    evaluations = []
    for row in rows:
        if row["status"] != "complete":
            continue
        key, wrong = f"evaluation-{row['variant']}", len(row["removed_layers"])
        store.put("evaluation", key, partial(_records, questions=questions, wrong=wrong))
        evaluations.append({"variant": row["variant"], "split": "select", "evaluation": key})
    folder = f"sweeps/{sweep}"
    store.write_table(f"{folder}/questions.parquet", pa.Table.from_pylist(questions))
    store.write_table(f"{folder}/evaluations.parquet", pa.Table.from_pylist(evaluations))
    store.write_text(f"{folder}/images.json", json.dumps({"roots": {"": pictures.as_uri()}, "embedded": []}))


def _records(scratch: Path, questions: list[dict[str, Any]], wrong: int) -> None:
    records = []
    for question in questions:
        right = int(question["example"].rpartition("/")[2]) >= wrong
        records.append(
            {name: question[name] for name in ("task", "split", "example")}
            | {"prediction": question["answer"] if right else HOSTILE, "score": float(right), "blind": False}
        )
    pq.write_table(pa.Table.from_pylist(records), scratch / "examples.parquet")


def _write_scores(store: Store) -> None:
    """Two measured scores, and how far they agree."""
    rows = [
        {"score": name, "layer": layer, "value": value, "standard_error": 0.01, "samples": 48}
        for seed, name in enumerate(("angular", "bi"))
        for layer, value in enumerate(layer_values(seed))
    ]
    pairs = [
        {"a": a, "b": b, "rank_correlation": 1.0 if a == b else 0.4}
        for a in ("angular", "bi")
        for b in ("angular", "bi")
    ]
    store.write_table("layer-scores/scores/scores.parquet", pa.Table.from_pylist(rows))
    store.write_table("layer-scores/scores/correlations.parquet", pa.Table.from_pylist(pairs))
