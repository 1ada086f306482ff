"""Running a sweep: trials, held-out scores, table and report."""

from __future__ import annotations

import json
import platform
import sys
import time
import uuid
from contextlib import suppress
from importlib.metadata import version
from typing import Any

import pyarrow as pa
import ray

from vrray.data.images import content_hashes
from vrray.data.ingest import with_embedded
from vrray.errors import BudgetError, TrainingError
from vrray.evaluate.asked import describe_group
from vrray.models.loading import load_processor
from vrray.plans import ORDERS, Ranking
from vrray.report import draw_figures, format_leaderboard, render_report
from vrray.scores.table import measurement_of
from vrray.specs import SweepSpec
from vrray.store import Store
from vrray.sweep.compare import choose
from vrray.sweep.jobs import VariantsJob
from vrray.sweep.leaks import FILE as LEAKS
from vrray.sweep.leaks import Leaks, sweep_leaks, training_of
from vrray.sweep.live import LiveState, published
from vrray.sweep.prepare import Prepared
from vrray.sweep.session import WEAK, Session, open_session
from vrray.sweep.shown import write_shown
from vrray.sweep.table import baselines, sweep_table
from vrray.sweep.trial import EVALUATION, Lacking, Measuring, evaluation_key, read_scores
from vrray.train.desk import follow
from vrray.upkeep.records import recorded


def run_sweep(spec: SweepSpec) -> None:
    """Run a sweep on the connected Ray cluster; whatever its store holds already is reused.

    Raises:
        BusyError: another driver is at this sweep.
        ClusterError: the cluster cannot hold one trial.
        TrainingError: the projector stage failed, or every trial did.
    """
    began = time.monotonic()
    live, run = LiveState(), f"sweep {spec.name!r}"
    with (
        published(Store(spec.storage), spec.name, live),
        open_session(spec, run=run, live=live) as session,
        recorded(session.store, f"sweeps/{spec.name}") as recording,
    ):
        session.expect_trials()
        leaks = sweep_leaks(session.store, session.prepared)
        session.progress.say(leaks.text())
        try:
            session = session.started()
            session.expect_trials()
            trials, unfinished = session.run_trials()
        except BudgetError as error:
            trials = session.trials
            unfinished = session.not_run(session.missing, str(error))
            unfinished[session.prepared.projector.key] = f"not run: {error}"
        sweep = (session.store, session.prepared, trials, unfinished)
        _score_held_out(session, sweep_table(*sweep, compared=False))
        table = sweep_table(*sweep)
        seconds = time.monotonic() - began
        _write(session.store, session.prepared, table, leaks, seconds)
        reasons = sorted(set(unfinished.values()))
        recording.to_be_continued = not all(
            reason.startswith("failed: ") or reason.endswith(WEAK) for reason in reasons
        )
        if reasons and not recording.to_be_continued and not choose(table):
            raise TrainingError(f"no trial finished: {'; '.join(reasons)}")
    print(f"report: {session.store.shown('sweeps', spec.name, 'report.md')} ({seconds:.0f} s)", flush=True)


def _score_held_out(session: Session, table: pa.Table) -> None:
    """Score the chosen variant and the baselines on the test split."""
    store, prepared, progress = session.store, session.prepared, session.progress
    chosen = choose(table)
    if not chosen:
        return
    wanted = sorted({(row["key"], tuple(row["removed_layers"])) for row in (*baselines(table), chosen)})
    missing = tuple(v for v in wanted if not store.has(EVALUATION, evaluation_key(*v, prepared.test, False)))
    if not missing:
        return
    progress.say(f"held-out test split: the chosen variant and the baselines ({len(missing)} to score)")
    job = VariantsJob(f"test-{uuid.uuid4().hex[:8]}", prepared.site, missing, prepared.test)
    try:
        for _ in follow(session.workers.desk, job):
            pass
    except TrainingError as error:
        progress.say(f"held-out scores failed, the table goes without them: {error}")


def _write(store: Store, prepared: Prepared, table: pa.Table, leaks: Leaks, seconds: float) -> None:
    folder = f"sweeps/{prepared.spec.name}"
    spec = prepared.spec
    context = describe_run(prepared) | {
        "tasks": f"{', '.join(spec.tasks)}; {spec.examples} examples of each task and split",
        "pruning": f"{', '.join(map(str, spec.prune))} layers by {', '.join(spec.rankings)}; {spec.protect} protected",
        "image leaks": f"{leaks.text()} (every pair is listed in {LEAKS})",
        "wall time": f"{seconds:.0f} s (what the store already held was reused)",
    }
    for name, data in draw_figures(table).items():
        store.write_bytes(f"{folder}/figures/{name}", data)
    asked = _asked(store, prepared)
    store.write_text(f"{folder}/report.md", render_report(table, context, asked))
    store.write_table(f"{folder}/{LEAKS}", leaks.pairs)
    about = {
        "context": context,
        "base": prepared.site.base,
        "template": prepared.template,
        "tasks": asked,
        "training": training_of(prepared).to_json(),
        "leaks": leaks.to_json(),
        "scores": _ranking_scores(store, prepared, table),
    }
    store.write_text(f"{folder}/sweep.json", json.dumps(about, indent=1))
    write_shown(store, prepared, table)
    store.write_table(f"{folder}/table.parquet", table)
    print(format_leaderboard(table, color=sys.stdout.isatty()), flush=True)


def _asked(store: Store, prepared: Prepared) -> list[dict[str, Any]]:
    """How each task was asked on the two splits."""
    groups = (*prepared.site.select, *prepared.test)
    images = with_embedded(store, prepared.site.images, prepared.site.embedded)
    names = {example.image for group in groups for example in group.examples if example.image}
    hashes, processor = content_hashes(images, sorted(names)), load_processor(prepared.model_path)
    return [describe_group(group, processor, prepared.template, hashes) for group in groups]


def _ranking_scores(store: Store, prepared: Prepared, table: pa.Table) -> dict[str, Any]:
    """By delta, the layer scores that its first ranking follows from, as far as there are any."""
    found = {}
    by = Ranking.parse(prepared.spec.rankings[0]).by
    for key in table["key"].unique().to_pylist() if by not in ORDERS else ():
        with suppress(Lacking):
            scores = read_scores(store, prepared.site, Measuring(key, measurement_of(by)))
            if by in scores:
                found[key] = scores[by].to_json()
    return found


def describe_run(prepared: Prepared) -> dict[str, str]:
    """What ran, where and with which versions, to be shown in a report."""
    spec = prepared.spec
    return {
        "model": spec.model,
        "data": f"{' '.join(spec.data)} ({prepared.rows} training rows)",
        "template": prepared.template,
        "precision": prepared.precision,
        "recipe": json.dumps(prepared.space.trial(prepared.space.configs()[0]).recipe.model_dump()),
        "seeds": ", ".join(map(str, spec.seeds)),
        "workers": f"{spec.workers} a trial, {spec.cpus_per_worker:g} CPUs each",
        "command": " ".join(sys.argv),
        **describe_machine("ray", "torch", "transformers", "deepspeed"),
    }


def describe_machine(*packages: str) -> dict[str, str]:
    """The connected cluster, and the versions of packages, to be shown in a report."""
    resources = ray.cluster_resources()
    return {
        "machine": f"{platform.machine()}, {resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs",
        "versions": ", ".join(f"{package} {version(package)}" for package in packages),
    }
