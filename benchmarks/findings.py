"""Region tuning with protected pruning against all-layer tuning with unprotected pruning, from finished sweeps.

python jobs/sweep.py --placements all uniform --prune 0 1 2 3 4 --seeds 0 1 2 --examples 64 --name region
python jobs/sweep.py --placements uniform --prune 0 1 2 3 4 --seeds 0 1 2 --examples 64 --name free --protect none
python -m benchmarks.findings [--storage runs] [--seeds 0 1 2] [--examples 64] [--figure FILE]

Prints Markdown: for every number of removed layers the mean score over the seeds, and the difference to all-layer
tuning, with 95 % intervals of a bootstrap that draws seeds and, within each task, examples anew; all variants answered
the same examples, so differences are paired.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vrray.data.tasks import Ability
from vrray.evaluate.records import read_records
from vrray.report.canvas import BODY, GRID, caption, new_figure, style, tidy, to_png
from vrray.specs import SweepSpec
from vrray.store import Store
from vrray.sweep.prepare import Prepared, prepare
from vrray.sweep.trial import EVALUATION, evaluation_key, plans_of

LEVELS = (0, 1, 2, 3, 4)
RESAMPLES = 2000
ABILITIES: tuple[Ability, ...] = ("visual", "textual")
Scores = NDArray[np.float64]  # [seeds, examples]


@dataclass(frozen=True)
class Side:
    """What is compared: a placement, and which layers its pruning spares."""

    name: str
    placement: str
    protect: Literal["region", "none"]


SIDES = (
    Side("all layers tuned, any layer removed", "all", "region"),
    Side("region tuned, spared by pruning", "uniform", "region"),
    Side("region tuned, any layer removed", "uniform", "none"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", default="runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--figure", type=Path, help="also draw the scores into this PNG")
    options = parser.parse_args()
    store = Store(options.storage)
    found = {side: _records(side, store, options.seeds, options.examples) for side in SIDES}
    for ability in ABILITIES:
        print(_table(ability, found))
    if options.figure is not None:
        options.figure.write_bytes(_figure(found))


Found = Mapping[Side, Mapping[int, Mapping[Ability, Mapping[str, Scores]]]]


def _records(
    side: Side, store: Store, seeds: Sequence[int], examples: int
) -> dict[int, dict[Ability, dict[str, Scores]]]:
    """The scores of every example, by removed layers, ability and task."""
    options = {"placements": [side.placement], "seeds": list(seeds), "examples": examples, "protect": side.protect}
    spec = SweepSpec.parse({**options, "prune": list(LEVELS), "storage": store.uri})
    # A sweep of several placements uses the first seed for stage 1, as this one does.
    prepared = prepare(spec, store, gpu=False, worker_memory=64 << 30)
    by_level: dict[int, dict[Ability, dict[str, list[list[float]]]]] = {}
    for config in prepared.space.configs():
        trial = prepared.space.trial(config)
        for plan in plans_of(store, prepared.site, trial):
            level = by_level.setdefault(len(plan.removed), {ability: {} for ability in ABILITIES})
            for task, scores in _by_task(store, prepared, trial.key, plan.removed).items():
                level[_ability(prepared, task)].setdefault(task, []).append(scores)
    return {
        level: {ability: {task: np.array(rows) for task, rows in tasks.items()} for ability, tasks in both.items()}
        for level, both in by_level.items()
    }


def _by_task(store: Store, prepared: Prepared, delta: str, removed: tuple[int, ...]) -> dict[str, list[float]]:
    key = evaluation_key(delta, removed, prepared.site.select, False)
    with store.open(EVALUATION, key) as folder:
        records = read_records(folder)
    scores: dict[str, list[float]] = {}
    for record in records:
        scores.setdefault(record.task, []).append(record.score)
    return scores


def _ability(prepared: Prepared, task: str) -> Ability:
    return next(group.task.ability for group in prepared.site.select if group.task.name == task)


def _table(ability: Ability, found: Found) -> str:
    lines = [f"### {ability.capitalize()} score, {_named(found, ability)}", ""]
    lines.append("| removed | " + " | ".join(side.name for side in SIDES) + " | difference, spared region - all |")
    lines.append("| --- |" + " --- |" * (len(SIDES) + 1))
    for level in LEVELS:
        cells = [_interval(_draws([found[side][level][ability]])) for side in SIDES]
        drawn = _draws([found[SIDES[1]][level][ability], found[SIDES[0]][level][ability]])
        lines.append(f"| {level} | {' | '.join(cells)} | {_interval(drawn, signed=True)} |")
    return "\n".join([*lines, ""])


def _named(found: Found, ability: Ability) -> str:
    tasks = found[SIDES[0]][0][ability]
    return ", ".join(f"{name} ({scores.shape[1]} examples)" for name, scores in tasks.items())


def _draws(sides: Sequence[Mapping[str, Scores]]) -> tuple[float, Scores]:
    """The mean over tasks, examples and seeds, or the difference of two, and bootstrap draws of it."""
    generator = np.random.default_rng(0)
    seeds = len(next(iter(sides[0].values())))

    def value(chosen: NDArray[np.int64], examples: Mapping[str, NDArray[np.int64]]) -> float:
        means = [
            np.mean([scores[np.ix_(chosen, examples[task])].mean() for task, scores in side.items()]) for side in sides
        ]
        return float(means[0] - means[1] if len(means) > 1 else means[0])

    whole = value(np.arange(seeds), {task: np.arange(scores.shape[1]) for task, scores in sides[0].items()})

    def drawn() -> float:
        chosen = generator.integers(0, seeds, size=seeds)
        counts = {task: scores.shape[1] for task, scores in sides[0].items()}
        return value(chosen, {task: generator.integers(0, n, size=n) for task, n in counts.items()})

    return whole, np.array([drawn() for _ in range(RESAMPLES)])


def _interval(drawn: tuple[float, Scores], *, signed: bool = False) -> str:
    low, high = np.quantile(drawn[1], [0.025, 0.975])
    form = "+.2f" if signed else ".2f"
    return f"{drawn[0]:{form}} ({low:{form}} to {high:{form}})"


def _figure(found: Found) -> bytes:
    figure = new_figure(9, 3.8)
    for axes, ability in zip(figure.subplots(1, 2), ABILITIES, strict=True):
        tidy(axes)
        for index, side in enumerate(SIDES):
            color, marker = style(index)
            drawn = [_draws([found[side][level][ability]]) for level in LEVELS]
            low, high = np.transpose([np.quantile(draws, [0.025, 0.975]) for _, draws in drawn])
            axes.plot(LEVELS, [mean for mean, _ in drawn], color=color, marker=marker, label=side.name)
            axes.fill_between(LEVELS, low, high, color=color, alpha=0.13, linewidth=0)
        axes.set_xticks(LEVELS)
        axes.set_xlabel("decoder layers removed", fontsize=BODY)
        axes.set_ylabel(f"{ability} score", fontsize=BODY)
        axes.set_ylim(0, 1)
        axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.legend(fontsize=BODY - 1, frameon=False)
    caption(figure, "Region tuning and pruning on the demo", "Means over seeds; bands: 95 % bootstrap intervals.")
    return to_png(figure)


if __name__ == "__main__":
    main()
