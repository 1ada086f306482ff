"""vrray: which decoder layers of a vision-language model to tune, and which can then be removed."""

from vrray.api import Sweep, finetune, pretrain_projector, tune_layers
from vrray.errors import VrrayError
from vrray.region import PLACEMENTS, Region, place

__all__ = ["PLACEMENTS", "Region", "Sweep", "VrrayError", "finetune", "place", "pretrain_projector", "tune_layers"]
