"""Trials, their keys, and what of them the store holds already. Light to import, since every Tune trial does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vrray.data.chunks import FeatureChunk
from vrray.data.images import Images
from vrray.data.tasks import MAX_NEW_TOKENS, TaskExamples
from vrray.region import Region
from vrray.specs import Recipe
from vrray.store import Store, content_key
from vrray.train.execution import Execution

DELTA, SCORES, EVALUATION = "delta", "scores", "evaluation"


@dataclass(frozen=True)
class Site:
    """What all trials of a sweep share: the base, where features come from, the examples, how trainings run.

    `chunks` are the cached features; without any, features are computed live from `images` and the images that came
    embedded with the rows of the keys in `embedded`, and have `feature_shape` (tokens, width).
    """

    base: str
    chunks: tuple[FeatureChunk, ...]
    images: Images
    embedded: tuple[str, ...]
    feature_shape: tuple[int, int]
    select: tuple[TaskExamples, ...]
    calibration_key: str
    calibration: int
    execution: Execution


@dataclass(frozen=True)
class Trial:
    """One training and the pruning plans that are evaluated on it. `rows` and `start` are keys in the store."""

    key: str
    region: Region
    recipe: Recipe
    seed: int
    rows: str
    start: str | None
    counts: tuple[int, ...]


def trial_key(site_base: str, rows: str, region: Region, recipe: Recipe, seed: int, start: str | None) -> str:
    """The key of a delta: a hash of exactly what determines its weights."""
    return content_key(
        {
            "format": 2,
            "base": site_base,
            "rows": rows,
            "layers": list(region.layers),
            "recipe": recipe.model_dump(),
            "seed": seed,
            "start": start,
        }
    )


def evaluation_key(delta: str, removed: Sequence[int], tasks: Sequence[TaskExamples], blind: bool) -> str:
    """The key of an evaluation: the variant, and every question with its answer."""
    asked = [
        [group.task.name, group.split, content_key({"examples": [vars(example) for example in group.examples]})]
        for group in tasks
    ]
    return content_key(
        {
            "format": 1,
            "delta": delta,
            "removed": list(removed),
            "tasks": asked,
            "blind": blind,
            "max_new_tokens": MAX_NEW_TOKENS,
        }
    )


def scores_key(delta: str, calibration_key: str, calibration: int) -> str:
    return content_key({"format": 1, "delta": delta, "rows": calibration_key, "samples": calibration})


def plans_of(store: Store, site: Site, trial: Trial) -> list[tuple[int, ...]] | None:
    """The layers removed by each plan of a trial, once its layer scores are there."""
    from vrray.pruning import nested_plans
    from vrray.scores import LayerScores

    if trial.counts == (0,):
        return [()]
    key = scores_key(trial.key, site.calibration_key, site.calibration)
    if not store.has(SCORES, key):
        return None
    return nested_plans(LayerScores.from_json(store.describe(SCORES, key)), trial.region, trial.counts)


def is_complete(store: Store, site: Site, trial: Trial) -> bool:
    """Whether the trial's delta and all evaluations of its plans are in the store."""
    plans = plans_of(store, site, trial)
    if plans is None or not store.has(DELTA, trial.key):
        return False
    if not site.select:
        return True
    wanted = [(plan, False) for plan in plans] + [((), True)]
    return all(store.has(EVALUATION, evaluation_key(trial.key, plan, site.select, blind)) for plan, blind in wanted)
