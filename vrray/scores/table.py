"""The layer scores there are, and what each gives: a value a layer. Light to import."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Measurement = Literal["states", "gradient", "ablation", "change"]

MEASUREMENTS: dict[Measurement, tuple[str, ...]] = {
    "states": ("angular", "bi", "multimodal-bi", "attention"),
    "gradient": ("gradient",),
    "ablation": ("ablation-visual", "ablation-textual"),
    "change": ("change",),
}
"""Which scores are measured together, in one pass over the calibration rows (`change` compares weights)."""

SCORES: dict[str, str] = {
    "angular": "angular distance between what enters and what leaves, at a prompt's last token",
    "bi": "Block Influence: 1 - cosine between what enters and what leaves, over all tokens",
    "multimodal-bi": "mean of the Block Influence over image tokens and of that over text tokens",
    "attention": "share of their attention that text tokens put on image tokens",
    "gradient": "sum of |weight x gradient| of the answers' loss",
    "ablation-visual": "rise of the loss of answers about images when the layer is skipped",
    "ablation-textual": "rise of the loss of answers without images when the layer is skipped",
    "change": "relative change of the linear weights by tuning",
}


@dataclass(frozen=True)
class LayerScores:
    """One score: a value a decoder layer, and its standard error over the calibration samples.

    A larger value is a layer that matters more. `samples` is 0, and the errors are too, where weights alone are
    compared.
    """

    name: str
    values: tuple[float, ...]
    standard_errors: tuple[float, ...]
    samples: int

    @classmethod
    def of_samples(cls, name: str, values_SL: NDArray[np.float64]) -> LayerScores:
        """Means over the samples, from a value for each sample and layer; one sample leaves the errors nan."""
        samples = len(values_SL)
        unknown = np.full(values_SL.shape[1], np.nan)
        errors = values_SL.std(0, ddof=1) / samples**0.5 if samples > 1 else unknown
        return cls(name, tuple(values_SL.mean(0).tolist()), tuple(errors.tolist()), samples)

    @classmethod
    def of_weights(cls, name: str, values: Sequence[float]) -> LayerScores:
        """What is known without any sample."""
        return cls(name, tuple(values), (0.0,) * len(values), 0)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "values": list(self.values),
            "standard_errors": list(self.standard_errors),
            "samples": self.samples,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> LayerScores:
        return cls(data["name"], tuple(data["values"]), tuple(data["standard_errors"]), data["samples"])


def measurement_of(score: str) -> Measurement:
    """The measurement that gives a score."""
    return next(measurement for measurement, names in MEASUREMENTS.items() if score in names)


def missing_score(score: str) -> str:
    """Why calibration rows may not give a score."""
    what = "without images" if score == "ablation-textual" else "with images"
    return f"score {score} needs calibration rows {what}, and the data has none among the first ones"


def least_important_first(values: Sequence[float], candidates: Iterable[int]) -> list[int]:
    """Candidate layers in the order in which to remove them; equal values go deepest first."""
    return sorted(candidates, key=lambda layer: (values[layer], -layer))


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's rank correlation, -1 to 1, ties at their mean rank; nan where one of both is constant."""
    ranks_a, ranks_b = _ranks(a), _ranks(b)
    spread = ranks_a.std() * ranks_b.std()
    if spread == 0:
        return float("nan")
    return float(((ranks_a - ranks_a.mean()) * (ranks_b - ranks_b.mean())).mean() / spread)


def rank_stability(values_SL: NDArray[np.float64], *, splits: int = 100, seed: int = 0) -> float:
    """How far a ranking depends on its calibration samples: the mean rank correlation between two random halves.

    1 is the same ranking whatever the samples; nan where there are fewer than two samples.
    """
    samples = len(values_SL)
    if samples < 2:
        return float("nan")
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(splits):
        order = generator.permutation(samples)
        half = samples // 2
        found.append(rank_correlation(values_SL[order[:half]].mean(0), values_SL[order[half:]].mean(0)))
    return float(np.mean(found))


def correlations(scores: Mapping[str, LayerScores]) -> dict[tuple[str, str], float]:
    """The rank correlation of every pair of scores."""
    return {(a, b): rank_correlation(scores[a].values, scores[b].values) for a in scores for b in scores}


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    _, inverse, counts = np.unique(array, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    mean_ranks: NDArray[np.float64] = (ends - (counts - 1) / 2)[inverse]
    return mean_ranks
