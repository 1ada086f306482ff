"""Several LoRA trials on one frozen base: their rows go through it together, each trial's adapters act on its own.

Shapes: K trials in a micro-batch, R rows of each, T tokens of the longest row, N = R * T, I inputs and O outputs of a
linear layer, r rank, S supervised tokens. The rows of a trial lie one behind the other, in the order of the trials.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vrray.data.batches import Batch
from vrray.models.family import family_of, project_with
from vrray.region import Region
from vrray.specs import Recipe
from vrray.train.loss import supervised_logits
from vrray.train.measure import flops_per_token
from vrray.train.trainable import Trainable, choose_trainable, delta_name


@dataclass(frozen=True)
class Adapted:
    """What trains in one trial: its adapters and its projector, apart from the base.

    Attributes:
        parameters: by the names that they have in a model which trains alone.
        trainable: these names, by part.
        projector: the module that holds the projector's parameters.
        flops_per_token: of the trial alone.
    """

    parameters: dict[str, nn.Parameter]
    trainable: Trainable
    projector: nn.Module
    flops_per_token: float

    @classmethod
    def begin(cls, model: Any, region: Region, recipe: Recipe, seed: int) -> Adapted:
        """The weights that the trial begins with when it trains alone: on every rank those of rank 0."""
        torch.manual_seed(seed)
        with choose_trainable(model, region, recipe) as trainable:
            adapters = [name for layer in trainable.region.values() for name in layer]
            parameters = {name: nn.Parameter(model.get_parameter(name).detach().clone()) for name in adapters}
            flops = flops_per_token(model, trainable)
        path = family_of(model.config).projector
        projector = copy.deepcopy(model.get_submodule(path)).requires_grad_(True)
        parameters |= {f"{path}.{name}": parameter for name, parameter in projector.named_parameters()}
        return cls(parameters, trainable, projector, flops)

    def pairs(self) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
        """The adapters A `[r, I]` and B `[O, r]` by the path of their linear layer."""
        named = {delta_name(name): parameter for name, parameter in self.parameters.items()}
        paths = [name.removesuffix(".lora_A") for name in named if name.endswith(".lora_A")]
        return {path: (named[f"{path}.lora_A"], named[f"{path}.lora_B"]) for path in paths}


class PackedLinear(nn.Module):
    """A frozen linear layer with the adapters of those trials that tune it.

    Args:
        pairs: by trial.
    """

    def __init__(self, base: nn.Linear, pairs: Mapping[int, tuple[nn.Parameter, nn.Parameter]], recipe: Recipe):
        super().__init__()
        self.base = base
        self._pairs = dict(pairs)
        self._scaling = recipe.lora_alpha / recipe.lora_rank
        self._dropout = recipe.lora_dropout
        self._trials = 0
        self._places: list[int] = []
        self._index = torch.empty(0)
        self._factors: list[tuple[nn.Parameter, nn.Parameter]] = []

    def choose(self, trials: Sequence[int]) -> None:
        """The trials whose rows come next, in their order."""
        self._trials = len(trials)
        self._places = [place for place, trial in enumerate(trials) if trial in self._pairs]
        self._index = torch.tensor(self._places, device=self.base.weight.device)
        self._factors = [self._pairs[trials[place]] for place in self._places]

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """`[K * R, T, I]` to `[K * R, T, O]`."""
        output: torch.Tensor = self.base(rows)
        if not self._factors:
            return output
        input_KNI = rows.reshape(self._trials, -1, rows.shape[-1])
        # Where every trial tunes the layer, as all of them do where regions are equal, nothing has to be picked out.
        own_kNI = input_KNI if len(self._places) == self._trials else input_KNI.index_select(0, self._index)
        a_krI, b_kOr = (torch.stack(factors) for factors in zip(*self._factors, strict=True))
        low_kNr = nn.functional.dropout(own_kNI, self._dropout, self.training) @ a_krI.transpose(1, 2)
        update_kNO = (low_kNr * self._scaling) @ b_kOr.transpose(1, 2)
        output_KNO = output.reshape(self._trials, -1, output.shape[-1])
        return output_KNO.index_add(0, self._index, update_kNO).view_as(output)


class PackedLoss(nn.Module):
    """The training losses of the trials in a micro-batch: each trial's as `SupervisedLoss` gives it alone."""

    def __init__(self, lvlm: nn.Module, members: Sequence[Adapted], layers: Sequence[PackedLinear]):
        super().__init__()
        self.lvlm = lvlm
        self.own = nn.ModuleList(nn.ParameterList(member.parameters.values()) for member in members)
        self._family = family_of(lvlm.config)
        self._members = members
        self._layers = layers
        self._chosen: list[Adapted] = []

    def choose(self, trials: Sequence[int]) -> None:
        """The trials whose rows come next, in their order."""
        self._chosen = [self._members[trial] for trial in trials]
        for layer in self._layers:
            layer.choose(trials)

    def forward(self, batch: Batch, scale: torch.Tensor | float) -> torch.Tensor:
        """`[K]`: the cross-entropy summed over each trial's supervised tokens, times its scale.

        Args:
            batch: equally many rows of each trial.
            scale: `[K]`, or one for all.
        """
        trials = len(self._chosen)
        rows = len(batch.images) // trials
        counts = [sum(batch.images[place * rows : (place + 1) * rows]) for place in range(trials)]
        parts = zip(self._chosen, batch.features.split(counts), strict=True)
        image_INH = torch.cat([project_with(self._family, member.projector, part) for member, part in parts])
        logits_SV = supervised_logits(self.lvlm, batch, image_INH)
        losses_S = nn.functional.cross_entropy(logits_SV, batch.targets, reduction="none")
        trial_S = batch.positions // (batch.input_ids.numel() // trials)
        return losses_S.new_zeros(trials).index_add(0, trial_S, losses_S) * scale


@contextmanager
def packed(model: Any, members: Sequence[Adapted], recipe: Recipe) -> Iterator[PackedLoss]:
    """The loss of a model with the adapters of all members beside its linear layers; on leaving, they are gone.

    Args:
        recipe: says rank, alpha and dropout, which are the same for all members.
    """
    pairs: dict[str, dict[int, tuple[nn.Parameter, nn.Parameter]]] = {}
    for trial, member in enumerate(members):
        for path, pair in member.pairs().items():
            pairs.setdefault(path, {})[trial] = pair
    layers = {path: PackedLinear(model.get_submodule(path), own, recipe) for path, own in pairs.items()}
    for path, layer in layers.items():
        model.set_submodule(path, layer)
    try:
        yield PackedLoss(model, members, list(layers.values()))
    finally:
        for path, layer in layers.items():
            model.set_submodule(path, layer.base)
