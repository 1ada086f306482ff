"""The table of a sweep: a row a variant, everything read from the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from vrray.data.tasks import ABILITIES
from vrray.errors import PruningError
from vrray.plans import Plan
from vrray.store import Store
from vrray.sweep.compare import add_comparisons
from vrray.sweep.prepare import Prepared
from vrray.sweep.trial import DELTA, EVALUATION, Lacking, Trial, evaluation_key, healing, plans_of
from vrray.train.memory import trained_parameters

_MEASURED = ("train_seconds", "step_seconds", "peak_mib")
_INTERVAL = ("", "_low", "_high")
UNTUNED = "untuned"


def sweep_table(
    store: Store,
    prepared: Prepared,
    trials: Sequence[Trial],
    unfinished: Mapping[str, str],
    *,
    compared: bool = True,
) -> pa.Table:
    """Rows of all trials and of the untuned base (with the stage-1 projector).

    Args:
        unfinished: by key, the status of trials that are not complete.
        compared: fill in how the rows compare, for which every answer is read.
    """
    rows = [row for trial in (*trials, prepared.projector) for row in _rows(store, prepared, trial, unfinished)]
    rows = _distinct_names(rows)
    if compared:
        add_comparisons(store, prepared.site.select, rows)
    return pa.Table.from_pylist(rows, schema=_schema(prepared))


def baselines(table: pa.Table) -> list[dict[str, Any]]:
    """The untuned base and unpruned all-layer tuning, as far as the sweep has them."""
    return [
        row
        for row in table.to_pylist()
        if row["status"] == "complete" and row["placement"] in ("none", "all") and not row["removed_layers"]
    ]


def _rows(store: Store, prepared: Prepared, trial: Trial, unfinished: Mapping[str, str]) -> list[dict[str, Any]]:
    shared = {
        "placement": trial.region.placement,
        "tuned_layers": list(trial.region.layers),
        "depth": trial.region.depth,
        "split": "select",
        "trained_parameters": trained_parameters(prepared.shape, trial.region, trial.recipe),
        "key": trial.key,
        "seed": trial.seed,
        "learning_rate": trial.recipe.learning_rate,
        **_floors(prepared),
    }
    plans = _plans(store, prepared, trial)
    status = unfinished.get(trial.key, "failed: not run")
    if not plans:
        return [{**shared, "variant": trial_name(trial), "removed_layers": [], "status": status}]
    info = store.describe(DELTA, trial.key)
    shared |= {name: info[name] for name in _MEASURED}
    shared["blind_visual"] = _evaluation(store, prepared, trial.key, (), blind=True).get("score_visual")
    return [{"status": status} | {**shared, **_variant(store, prepared, trial, plan)} for plan in plans]


def _plans(store: Store, prepared: Prepared, trial: Trial) -> list[Plan]:
    """None where the trial stopped before they were known."""
    try:
        return plans_of(store, prepared.site, trial) if store.has(DELTA, trial.key) else []
    except (Lacking, PruningError):
        return []


def _variant(store: Store, prepared: Prepared, trial: Trial, plan: Plan) -> dict[str, Any]:
    of = healing(prepared.site, trial, plan.removed).key if plan.healed else trial.key
    measured = _evaluation(store, prepared, of, plan.removed, blind=False)
    row = {
        "variant": trial_name(trial) + _plan_name(trial, plan),
        "key": of,
        "ranking": plan.ranking,
        "healed": plan.healed,
        "removed_layers": list(plan.removed),
        **({"status": "complete"} if measured else {}),
        "parameters": measured.get("parameters"),
        "latency_ms_per_token": measured.get("latency_ms_per_token"),
        **{f"score_{task}": score for task, score in measured.get("tasks", {}).items()},
    }
    key = evaluation_key(of, plan.removed, prepared.test, False)
    held_out = store.describe(EVALUATION, key) if store.has(EVALUATION, key) else {}
    for ability in ABILITIES:
        for end in _INTERVAL:
            row[f"score_{ability}{end}"] = measured.get(f"score_{ability}{end}")
            row[f"test_score_{ability}{end}"] = held_out.get(f"score_{ability}{end}")
    return row


def _plan_name(trial: Trial, plan: Plan) -> str:
    """The first ranking goes without saying."""
    if not plan.removed:
        return ""
    by = "" if plan.ranking == trial.pruning.rankings[0].name else f"-{plan.ranking}"
    return f"-prune{len(plan.removed)}{by}{'-healed' if plan.healed else ''}"


def trial_name(trial: Trial) -> str:
    return trial.region.name if len(trial.region) else UNTUNED


def _evaluation(store: Store, prepared: Prepared, delta: str, plan: tuple[int, ...], *, blind: bool) -> dict[str, Any]:
    key = evaluation_key(delta, plan, prepared.site.select, blind)
    return store.describe(EVALUATION, key) if store.has(EVALUATION, key) else {}


def _floors(prepared: Prepared) -> dict[str, float | None]:
    floors: dict[str, float | None] = {}
    for ability in ABILITIES:
        values = [group.floor for group in prepared.site.select if group.task.ability == ability]
        floors[f"floor_{ability}"] = sum(values) / len(values) if values else None
    return floors


def _distinct_names(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Where trials differ in seed or learning rate only, their names say so."""
    by_name: dict[str, set[str]] = {}
    for row in rows:
        by_name.setdefault(row["variant"], set()).add(row["key"])
    for row in rows:
        if len(by_name[row["variant"]]) > 1:
            stem, separator, plan = row["variant"].partition("-prune")
            row["variant"] = f"{stem}-lr{row['learning_rate']:g}-seed{row['seed']}{separator}{plan}"
    return rows


def _schema(prepared: Prepared) -> pa.Schema:
    number, count, text, layers = pa.float64(), pa.int64(), pa.string(), pa.list_(pa.int32())
    fields = [("variant", text), ("placement", text), ("tuned_layers", layers), ("removed_layers", layers)]
    fields += [("ranking", text), ("healed", pa.bool_())]
    fields += [("depth", pa.int32()), ("status", text), ("split", text)]
    fields += [(f"score_{ability}{end}", number) for ability in ABILITIES for end in _INTERVAL]
    fields += [(f"retention_{ability}", number) for ability in ABILITIES]
    fields += [(f"difference_{ability}{end}", number) for ability in ABILITIES for end in _INTERVAL]
    fields += [(f"ties_best_{ability}", pa.bool_()) for ability in ABILITIES]
    fields += [("blind_visual", number), ("floor_visual", number), ("floor_textual", number)]
    fields += [(f"score_{group.task.name}", number) for group in prepared.site.select]
    fields += [(f"test_score_{ability}{end}", number) for ability in ABILITIES for end in _INTERVAL]
    fields += [("parameters", count), ("trained_parameters", count)]
    fields += [(name, number) for name in (*_MEASURED, "latency_ms_per_token", "learning_rate")]
    fields += [("seed", count), ("key", text)]
    return pa.schema(fields)
