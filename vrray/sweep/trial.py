"""Trials, their keys, and what of them the store holds already. Light to import, since every Tune trial does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from vrray.data.chunks import FeatureChunk
from vrray.data.images import Images
from vrray.data.tasks import MAX_NEW_TOKENS, TaskExamples
from vrray.errors import PruningError
from vrray.plans import ORDERS, UNPRUNED, Plan, Pruning, Ranking, fixed_order
from vrray.region import Region
from vrray.scores.table import LayerScores, Measurement, least_important_first, measurement_of, missing_score
from vrray.specs import Recipe
from vrray.store import Store, content_key
from vrray.train.execution import Execution

DELTA, SCORES, EVALUATION = "delta", "scores", "evaluation"
SAMPLES = "samples.npz"  # in the artefact of layer scores: the values of each score, [samples, layers]


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
    precision: Literal["bf16", "fp32"] = "bf16"

    def for_one(self) -> Site:
        """Where one trial is only trained, by itself."""
        return replace(self, select=(), execution=replace(self.execution, pack=1))


@dataclass(frozen=True)
class Trial:
    """One training and the pruning plans that are evaluated on it. `rows` and `start` are keys in the store.

    `removed` layers (numbered as in the base) are gone before the training: it heals a pruned variant.
    """

    key: str
    region: Region
    recipe: Recipe
    seed: int
    rows: str
    start: str | None
    pruning: Pruning = UNPRUNED
    removed: tuple[int, ...] = ()


@dataclass(frozen=True)
class Measuring:
    """Layer scores that are still to be measured on a delta, with some layers gone."""

    delta: str | None
    measurement: Measurement
    removed: tuple[int, ...] = ()


@dataclass(frozen=True)
class Evaluating:
    """A variant of a delta that is still to be evaluated on the select split."""

    delta: str
    removed: tuple[int, ...]
    blind: bool = False


Work = Trial | Measuring | Evaluating
"""A training, a measurement or an evaluation."""


class Lacking(Exception):
    """Something that the store does not hold yet."""

    def __init__(self, work: Work):
        super().__init__(work)
        self.work = work


def trial_key(
    site_base: str,
    rows: str,
    region: Region,
    recipe: Recipe,
    seed: int,
    start: str | None,
    removed: Sequence[int] = (),
) -> str:
    """The key of a delta: a hash of exactly what determines its weights."""
    determines: dict[str, Any] = {
        "format": 2,
        "base": site_base,
        "rows": rows,
        "layers": list(region.layers),
        "recipe": recipe.model_dump(),
        "seed": seed,
        "start": start,
    }
    return content_key(determines | ({"removed": list(removed)} if removed else {}))


def healing(site: Site, trial: Trial, removed: tuple[int, ...]) -> Trial:
    """The short training of a trial's region after some layers have gone."""
    recipe = trial.recipe.model_copy(update={"max_steps": trial.pruning.heal_steps})
    key = trial_key(site.base, trial.rows, trial.region, recipe, trial.seed, trial.key, removed)
    return replace(trial, key=key, recipe=recipe, start=trial.key, removed=removed, pruning=UNPRUNED)


def evaluation_key(delta: str, removed: Sequence[int], tasks: Sequence[TaskExamples], blind: bool) -> str:
    """The key of an evaluation: the variant, and every question with its answer."""
    return content_key(
        {
            "format": 2,
            "delta": delta,
            "removed": list(removed),
            "tasks": _asked(tasks),
            "blind": blind,
            "max_new_tokens": MAX_NEW_TOKENS,
        }
    )


def scores_key(site: Site, work: Measuring) -> str:
    """The key of layer scores: the model, and what it reads."""
    determines: dict[str, Any] = {
        "format": 2,
        "base": site.base,
        "delta": work.delta,
        "removed": list(work.removed),
        "measurement": work.measurement,
    }
    if work.measurement != "change":
        determines |= {"rows": site.calibration_key, "samples": site.calibration, "precision": site.precision}
    if work.measurement == "ablation":
        determines["texts"] = _asked([group for group in site.select if group.task.ability == "textual"])
    return content_key(determines)


def read_scores(store: Store, site: Site, work: Measuring) -> dict[str, LayerScores]:
    """The scores of a measurement, by name.

    Raises:
        Lacking: they are not in the store.
    """
    key = scores_key(site, work)
    if not store.has(SCORES, key):
        raise Lacking(work)
    about = store.describe(SCORES, key)["scores"]
    return {name: LayerScores.from_json(values) for name, values in about.items()}


def plans_of(store: Store, site: Site, trial: Trial) -> list[Plan]:
    """The plans of a trial: nested ones of each ranking, and the unpruned variant first.

    Raises:
        Lacking: a score or an evaluation that they follow from is not in the store.
    """
    pruning = trial.pruning
    plans = [Plan(None, ())]
    for ranking in pruning.rankings:
        order = _Order(store, site, trial, ranking)
        counts = {*pruning.counts, *(n for share in pruning.kept for n in _probed(store, site, trial, order, share))}
        for count in sorted(counts - {0}):
            plans.append(Plan(ranking.name, order.first(count)))
    healed = [replace(plan, healed=True) for plan in plans[1:] if pruning.heal_steps]
    return plans + healed


def next_work(store: Store, site: Site, trial: Trial) -> Work | None:
    """What of a trial is to be done next; None when all of it is in the store."""
    if not store.has(DELTA, trial.key):
        return trial
    if not site.select:
        return None
    try:
        for plan in plans_of(store, site, trial):
            of = trial
            if plan.healed:
                of = healing(site, trial, plan.removed)
                if not store.has(DELTA, of.key):
                    return of
            _score(store, site, Evaluating(of.key, plan.removed))
        _score(store, site, Evaluating(trial.key, (), blind=True))
    except Lacking as lacking:
        return lacking.work
    return None


def is_complete(store: Store, site: Site, trial: Trial) -> bool:
    """Whether the trial's delta and all evaluations of its plans are in the store."""
    return next_work(store, site, trial) is None


class Remembering(Store):
    """A store for the time of one trial: what was found complete is not looked up again.

    `next_work` goes through all plans anew after each piece of work; so a piece costs one look, however many plans.
    """

    def __init__(self, store: Store):
        super().__init__(store.uri)
        self._complete: set[tuple[str, str]] = set()
        self._described: dict[tuple[str, str], dict[str, Any]] = {}

    def has(self, kind: str, key: str) -> bool:
        if (kind, key) not in self._complete and super().has(kind, key):
            self._complete.add((kind, key))
        return (kind, key) in self._complete

    def describe(self, kind: str, key: str) -> dict[str, Any]:
        if (kind, key) not in self._described:
            self._described[kind, key] = super().describe(kind, key)
        return self._described[kind, key]


class _Order:
    """The layers in the order in which a ranking removes them, found as far as it is asked for."""

    def __init__(self, store: Store, site: Site, trial: Trial, ranking: Ranking):
        self._store, self._site, self._trial, self._ranking = store, site, trial, ranking
        candidates = trial.pruning.candidates
        self._found = fixed_order(ranking.by, candidates, trial.seed) if ranking.by in ORDERS else []

    @property
    def available(self) -> int:
        return min(len(self._trial.pruning.candidates), self._trial.region.depth - 1)

    def first(self, count: int) -> tuple[int, ...]:
        """The layers that go, ascending."""
        while len(self._found) < count:
            gone = tuple(sorted(self._found)) if self._ranking.iterative else ()
            order = least_important_first(self._values(gone), set(self._trial.pruning.candidates) - set(gone))
            self._found = [*self._found, order[0]] if self._ranking.iterative else order
        return tuple(sorted(self._found[:count]))

    def _values(self, gone: tuple[int, ...]) -> list[float]:
        """By number in the base."""
        by = self._ranking.by
        found = read_scores(self._store, self._site, Measuring(self._trial.key, measurement_of(by), gone))
        if by not in found:
            raise PruningError(f"ranking {by}: {missing_score(by)}")
        left = [layer for layer in range(self._trial.region.depth) if layer not in gone]
        values = [0.0] * self._trial.region.depth
        for layer, value in zip(left, found[by].values, strict=True):
            values[layer] = value
        return values


def _probed(store: Store, site: Site, trial: Trial, order: _Order, share: float) -> list[int]:
    """The counts that a search by halving looks at, for the most layers that leave a share of the unpruned score.

    It takes for granted that the score falls with the number of layers, as it does but for noise.
    """
    least = share * _score(store, site, Evaluating(trial.key, ()))
    if not least > 0:
        return []  # nothing is right, so there is nothing to keep
    enough, too_many, probed = 0, order.available + 1, []
    while too_many - enough > 1:
        count = (enough + too_many) // 2
        probed.append(count)
        if _score(store, site, Evaluating(trial.key, order.first(count))) >= least:
            enough = count
        else:
            too_many = count
    return probed


def _score(store: Store, site: Site, work: Evaluating) -> float:
    key = evaluation_key(work.delta, work.removed, site.select, work.blind)
    if not store.has(EVALUATION, key):
        raise Lacking(work)
    if work.blind:
        return 0.0
    return main_score(store.describe(EVALUATION, key))


def main_score(evaluation: dict[str, Any]) -> float:
    """The visual score of an evaluation; without a visual task the textual one."""
    visual = evaluation["score_visual"]
    return float(visual if visual is not None else evaluation["score_textual"])


def _asked(tasks: Sequence[TaskExamples]) -> list[Any]:
    return [[group.task.name, group.split, group.content] for group in tasks]
