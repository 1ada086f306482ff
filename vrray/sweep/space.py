"""The points of a sweep's search space, and the trial of each. Light to import, since every Tune trial does."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from vrray.plans import Ranking, plan_pruning
from vrray.region import Region, by_score, place
from vrray.specs import SweepSpec
from vrray.sweep.trial import Trial, trial_key


@dataclass(frozen=True)
class Space:
    """What can be trained: a point is a placement, a number of layers, a learning rate and a seed.

    Attributes:
        depth, parameters, layer: decoder layers; parameters of the model and of one decoder layer.
        base, rows, start: the base's identity, and the keys of the training rows and of the stage-1 delta.
        layer_scores: the values of the layer scores that placements may follow, as far as they are known.
    """

    spec: SweepSpec
    precision: Literal["bf16", "fp32"]
    depth: int
    parameters: int
    layer: int
    base: str
    rows: str
    start: str
    layer_scores: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def learning_rates(self) -> list[float | None]:
        """None is the recipe's."""
        return [*self.spec.learning_rates] if self.spec.learning_rates else [None]

    @property
    def placing_scores(self) -> list[str]:
        """The layer scores that placements follow."""
        named = [by_score(placement) for placement in self.spec.placements]
        return list(dict.fromkeys(by[0] for by in named if by))

    def trial(self, point: Mapping[str, Any]) -> Trial:
        """The trial of one point; its placement may be one that the options do not name.

        Raises:
            RegionError, PruningError: the point has no region, or none yet, or too little to prune.
        """
        spec = self.spec
        region = place(point["placement"], self.depth, point["layers"], point["seed"], self.layer_scores)
        rate = point["learning_rate"] or spec.recipe().learning_rate
        recipe = spec.recipe().model_copy(update={"learning_rate": rate, "precision": self.precision})
        key = trial_key(self.base, self.rows, region, recipe, point["seed"], self.start)
        pruning = plan_pruning(
            spec.prune,
            [Ranking.parse(text) for text in spec.rankings],
            region,
            protect=spec.protect,
            heal_steps=spec.heal_steps,
            total=self.parameters,
            layer=self.layer,
        )
        return Trial(key, region, recipe, point["seed"], self.rows, self.start, pruning)

    def all_layers(self) -> Trial:
        """The training of all layers with the first learning rate and seed: what `scores_of` "all" means."""
        first = {"layers": self.depth, "learning_rate": self.learning_rates[0], "seed": self.spec.seeds[0]}
        return self.trial({"placement": "all", **first})

    def points(self) -> list[dict[str, Any]]:
        """All points that the options name; without those whose layer score is not there yet."""
        spec = self.spec
        known = [name for name in spec.placements if (by := by_score(name)) is None or by[0] in self.layer_scores]
        product = itertools.product(known, spec.layers, self.learning_rates, spec.seeds)
        return [dict(zip(("placement", "layers", "learning_rate", "seed"), values, strict=True)) for values in product]

    def configs(self) -> list[dict[str, Any]]:
        """The points that a grid or a random search runs, without those that would train the same weights twice."""
        distinct = list({self.trial(point).key: point for point in reversed(self.points())}.values())[::-1]
        if self.spec.search == "random":
            wanted = min(self.spec.most_trials, len(distinct))
            chosen = random.Random(self.spec.seeds[0]).sample(range(len(distinct)), wanted)
            return [distinct[index] for index in sorted(chosen)]
        return distinct

    def named_regions(self) -> list[tuple[str, Region]]:
        """The placements with their regions, for each number of layers."""
        points = [point for point in self.points() if point["seed"] == self.spec.seeds[0]]
        return [(point["placement"], self.trial(point).region) for point in points]
