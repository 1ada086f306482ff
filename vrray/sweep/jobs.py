"""The jobs that a sweep leaves at the desk. Light to import: the work itself is imported where it is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vrray.data.chunks import FeatureChunk
from vrray.data.images import Images
from vrray.data.tasks import TaskExamples
from vrray.sweep.trial import Measuring, Site, Trial
from vrray.train.desk import Job, Report


@dataclass(frozen=True)
class FeaturesJob:
    """Vision features of some chunks, spread over the ranks."""

    key: str
    chunks: tuple[FeatureChunk, ...]
    images: Images
    embedded: tuple[str, ...]
    model_path: Path

    def run(self, workspace: Any, report: Report) -> None:
        from vrray.sweep.work import compute_features

        compute_features(workspace, self, report)


@dataclass(frozen=True)
class TrialJob:
    """One trial, all of it; whatever the store holds already is skipped."""

    site: Site
    trial: Trial

    @property
    def key(self) -> str:
        return self.trial.key

    def run(self, workspace: Any, report: Report) -> None:
        from vrray.sweep.work import run_trial

        run_trial(workspace, self, report)

    @property
    def room(self) -> int:
        return self.site.execution.pack if len(self.trial.region) and self.trial.recipe.mode == "lora" else 1

    def packs_with(self, other: Job) -> bool:
        """Trials of one sweep have their base, rows and start in common; only such are at one desk."""
        return (
            isinstance(other, TrialJob)
            and other.room > 1
            and (other.site.base, other.trial.rows, other.trial.start)
            == (self.site.base, self.trial.rows, self.trial.start)
            and self.trial.recipe.packs_with(other.trial.recipe)
        )

    def run_pack(self, workspace: Any, jobs: Sequence[TrialJob], reports: Sequence[Report]) -> dict[str, str]:
        from vrray.sweep.work import train_trials

        return train_trials(workspace, jobs, reports)


@dataclass(frozen=True)
class ScoresJob:
    """Layer scores of deltas, or of the base."""

    key: str
    site: Site
    works: tuple[Measuring, ...]

    def run(self, workspace: Any, report: Report) -> None:
        from vrray.sweep.work import measure_scores

        measure_scores(workspace, self, report)


@dataclass(frozen=True)
class VariantsJob:
    """Evaluates finished variants (delta key, removed layers) on other examples, one after the other."""

    key: str
    site: Site
    variants: tuple[tuple[str, tuple[int, ...]], ...]
    tasks: tuple[TaskExamples, ...]

    def run(self, workspace: Any, report: Report) -> None:
        from vrray.sweep.work import evaluate_variants

        evaluate_variants(workspace, self, report)
