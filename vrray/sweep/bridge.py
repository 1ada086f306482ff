"""The bridge between Ray Tune and the worker groups: a Tune trial that follows its job and hands on its reports.

Ray's documented pattern starts a Ray Train run inside each Tune trial: processes start anew for every trial, only
rank 0's metrics arrive, `Result.checkpoint` stays empty, and a driver that returns while its last report is queued
blocks for ever. Here a trial leaves a job at the desk, drains its reports to the end, and fills `Result.checkpoint`
with a small checkpoint that points at the delta in the store.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune

from vrray.errors import TrainingError
from vrray.store import Store
from vrray.sweep.jobs import TrialJob
from vrray.sweep.space import Space
from vrray.sweep.trial import DELTA, EVALUATION, Site, evaluation_key, is_complete, main_score
from vrray.train.desk import follow

DRIVER_MEMORY = 64 << 20


def point_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The point of the search space that Tune's configuration holds."""
    point: dict[str, Any] = config["point"]
    return point


def tune_trial(config: dict[str, Any], space: Space, site: Site, store_uri: str, desk: Any) -> None:
    """One Tune trial: its metrics are the latest of each name that the workers reported; at the end it is `finished`,
    with a `score` where there are tasks, `paused` where the run's budget was spent, or `failed` with the reason.

    A failure is reported, not raised: Tune repeats what raises, for it takes that for a lost driver.
    """
    trial, store = space.trial(point_of(config)), Store(store_uri)
    seen: dict[str, Any] = {"trial": trial.region.name, "key": trial.key}
    if not is_complete(store, site, trial):
        try:
            for report in follow(desk, TrialJob(site, trial)):
                tune.report({**seen, **report})
                seen.update({name: value for name, value in report.items() if name != "say"})  # said once
        except TrainingError as error:
            tune.report({**seen, "failed": str(error)})
            return
        if not is_complete(store, site, trial):
            tune.report({**seen, "paused": True})
            return
    seen["finished"] = True
    if site.select:
        about = store.describe(EVALUATION, evaluation_key(trial.key, (), site.select, False))
        seen["score"] = main_score(about)
    with tempfile.TemporaryDirectory(prefix="vrray-") as folder:
        Path(folder, "artefact.json").write_text(json.dumps({"delta": store.shown(DELTA, trial.key)}))
        tune.report(seen, checkpoint=tune.Checkpoint.from_directory(folder))
