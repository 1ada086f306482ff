"""vrray: which decoder layers of a vision-language model to tune, and which can then be removed."""

from vrray.api import Scores, Sweep, export, finetune, pretrain_projector, score_layers, tune_layers
from vrray.errors import VrrayError
from vrray.region import PLACEMENTS, Region, place

__all__ = [
    "PLACEMENTS",
    "Region",
    "Scores",
    "Sweep",
    "VrrayError",
    "export",
    "finetune",
    "place",
    "pretrain_projector",
    "score_layers",
    "tune_layers",
]
