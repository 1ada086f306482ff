"""vrray: which decoder layers of a vision-language model to tune, and which can then be removed."""

import vrray.evaluate  # noqa: F401  (loaded later, the package would take the place of the function)
from vrray.api import (
    Evaluation,
    Scores,
    Sweep,
    evaluate,
    export,
    finetune,
    pretrain_projector,
    score_layers,
    tune_layers,
)
from vrray.errors import VrrayError
from vrray.region import PLACEMENTS, Region, place

__all__ = [
    "Evaluation",
    "PLACEMENTS",
    "Region",
    "Scores",
    "Sweep",
    "VrrayError",
    "evaluate",
    "export",
    "finetune",
    "place",
    "pretrain_projector",
    "score_layers",
    "tune_layers",
]
