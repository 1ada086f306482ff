"""Layer scores without a sweep around them: of a model as it is, after stage 1, or after a training."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa

from vrray.errors import SpecError
from vrray.job_specs import ScoreSpec
from vrray.report.scores_plot import draw_scores
from vrray.report.scores_report import format_scores, render_scores
from vrray.scores.table import LayerScores, correlations, measurement_of, missing_score, rank_stability
from vrray.store import Store
from vrray.sweep.jobs import TrialJob
from vrray.sweep.run import describe_run
from vrray.sweep.session import Session, open_session
from vrray.sweep.trial import DELTA, SAMPLES, SCORES, Measuring, read_scores, scores_key
from vrray.train.desk import follow
from vrray.upkeep.records import recorded

FOLDER = "layer-scores"
_BARE = ("model", "projector")


def run_scores(spec: ScoreSpec) -> None:
    """Measure layer scores on the connected Ray cluster; write their table, correlations, figure and report.

    Raises:
        SpecError: what is to be scored is not there, or the data does not give a score.
        ClusterError: the cluster cannot hold a worker group.
        TrainingError: a training or a measurement failed.
    """
    of = spec.scored
    by_key = of not in _BARE and Store(spec.storage).has(DELTA, of)
    trains = of not in _BARE and not by_key
    if trains and re.fullmatch("[0-9a-f]{16,}", of):
        raise SpecError(
            f"of {of}: {Store(spec.storage).shown()} has no delta of that key; set storage to where it was trained"
        )
    if "change" in spec.wanted and not (trains or by_key):
        raise SpecError(
            f"score change compares a tuned model with its base; set of to a placement such as all, not {of}"
        )
    sweep = spec.as_sweep(of) if trains else spec.as_sweep()
    with open_session(sweep, train=trains) as session, recorded(session.store, f"{FOLDER}/{spec.name}"):
        session, delta = _ready(session, of, trains=trains)
        works = list(dict.fromkeys(Measuring(delta, measurement_of(score)) for score in spec.wanted))
        session.measure(works)
        found, stability = _read(session, works)
        for score in spec.wanted:
            if score not in found and spec.scores is not None:
                raise SpecError(f"{missing_score(score)}; leave {score} out of scores, or raise calibration")
            if score not in found:
                session.progress.say(f"left out: {missing_score(score)}")
        scores = {name: found[name] for name in spec.wanted if name in found}
        _write(spec, session, scores, {name: stability[name] for name in scores})


def _ready(session: Session, of: str, *, trains: bool) -> tuple[Session, str | None]:
    """The key of the delta that is scored, trained if it is not there; None for the model as it is."""
    if trains:
        session = session.started()
        (trial,) = session.trials
        for report in follow(session.workers.desk, TrialJob(session.prepared.site.for_one(), trial)):
            session.progress.update(trial.region.name, report)
        return session, trial.key
    if of == "projector":
        session.pretrain()
        return session, session.prepared.projector.key
    session.compute_features()
    return session, None if of == "model" else of


def _read(session: Session, works: Iterable[Measuring]) -> tuple[dict[str, LayerScores], dict[str, float]]:
    """Scores and the stability of their rankings, by name."""
    site, store = session.prepared.site, session.store
    scores: dict[str, LayerScores] = {}
    stability: dict[str, float] = {}
    for work in works:
        scores |= read_scores(store, site, work)
        with store.open(SCORES, scores_key(site, work)) as folder, np.load(folder / SAMPLES) as samples:
            stability |= {name: rank_stability(samples[name]) for name in samples.files}
    return scores, {name: stability.get(name, math.nan) for name in scores}


def _write(
    spec: ScoreSpec, session: Session, scores: Mapping[str, LayerScores], stability: Mapping[str, float]
) -> None:
    store, folder = session.store, f"{FOLDER}/{spec.name}"
    between = correlations(scores) | {(name, name): value for name, value in stability.items()}
    context = describe_run(session.prepared)
    context["scored"] = spec.scored
    store.write_bytes(f"{folder}/figures/layer_scores.png", draw_scores(scores))
    store.write_text(f"{folder}/report.md", render_scores(scores, between, context))
    store.write_table(f"{folder}/correlations.parquet", _correlation_table(between))
    store.write_table(f"{folder}/scores.parquet", _score_table(scores))
    session.progress.say(format_scores(scores, between))
    session.progress.say(f"report: {store.shown(folder, 'report.md')}")


def _score_table(scores: Mapping[str, LayerScores]) -> pa.Table:
    rows = [
        {"score": name, "layer": layer, "value": value, "standard_error": error, "samples": each.samples}
        for name, each in scores.items()
        for layer, (value, error) in enumerate(zip(each.values, each.standard_errors, strict=True))
    ]
    fields = [("score", pa.string()), ("layer", pa.int32()), ("value", pa.float64()), ("standard_error", pa.float64())]
    return pa.Table.from_pylist(rows, schema=pa.schema([*fields, ("samples", pa.int64())]))


def _correlation_table(between: Mapping[tuple[str, str], float]) -> pa.Table:
    rows = [
        {"a": a, "b": b, "rank_correlation": None if math.isnan(value) else value} for (a, b), value in between.items()
    ]
    return pa.Table.from_pylist(
        rows, schema=pa.schema([("a", pa.string()), ("b", pa.string()), ("rank_correlation", pa.float64())])
    )
