"""The training loop: one region, one recipe, on a worker group that was set up before and goes on afterwards.

Shapes: R rows of a micro-batch, T tokens of its longest row, H hidden size, S supervised tokens, I images,
N tokens of an image, W width of the tower's features, V vocabulary.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vrray.data.batches import Batch, collate, global_batches, rank_share
from vrray.data.encode import Row
from vrray.errors import TrainingError
from vrray.models.loading import decoder_layers
from vrray.region import Region
from vrray.specs import Recipe
from vrray.train.engine import deepspeed_config, gather_weights, received_gradient, started_engine
from vrray.train.trainable import Trainable, choose_trainable, delta_name, frozen_as_buffers
from vrray.train.workspace import Workspace, forget_peak, peak_mib

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Training:
    """What is trained and how; together with the workspace's base this determines the weights."""

    rows: Sequence[Row]
    region: Region
    recipe: Recipe
    seed: int
    micro_batch: int
    resident: bool
    activation_checkpointing: bool = False


@dataclass
class Trained:
    """The trained tensors by delta name, and what was measured on the way (seconds, MiB, tokens)."""

    tensors: dict[str, torch.Tensor]
    metrics: dict[str, float]
    losses: list[float] = field(default_factory=list)


class SupervisedLoss(nn.Module):
    """Cross-entropy summed over a micro-batch's supervised tokens, times `scale`.

    The head sees supervised positions only. The projector runs on every rank in every step, also when no row of the
    micro-batch has an image, so that ranks never run different modules, neither forward nor backward.
    """

    def __init__(self, lvlm: nn.Module):
        super().__init__()
        self.lvlm = lvlm

    def forward(self, batch: Batch, scale: float) -> torch.Tensor:
        core: Any = self.lvlm.model
        projector = core.multi_modal_projector
        dtype = projector.linear_1.weight.dtype
        features_INW = batch.features.to(dtype)
        idle = len(features_INW) == 0
        if idle:
            features_INW = features_INW.new_zeros((1, *features_INW.shape[1:]))
        image_INH = projector(features_INW)
        images = None if idle else {"image": BaseModelOutputWithPooling(pooler_output=list(image_INH))}
        with _joined(core.language_model, image_INH) if idle else nullcontext():
            hidden_RTH = core(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                mm_encoder_outputs=images,
                use_cache=False,
            ).last_hidden_state
        hidden_SH = hidden_RTH.flatten(0, 1)[batch.positions]
        logits_SV = self.lvlm.lm_head(hidden_SH).float()  # type: ignore[operator]
        return nn.functional.cross_entropy(logits_SV, batch.targets, reduction="sum") * scale


@contextmanager
def _joined(decoder: nn.Module, image_INH: torch.Tensor) -> Iterator[None]:
    """Add zero times the projector's output to what enters the decoder, where features would have been filled in.

    Gradients then run down through every decoder layer to the projector, as they do on ranks that have images. The
    embedding's own output must stay without a gradient: else it would be gathered in this rank's backward pass only.
    """
    zero = 0.0 * image_INH.sum()

    def add_zero(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "inputs_embeds": kwargs["inputs_embeds"] + zero}

    handle = decoder.register_forward_pre_hook(add_zero, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def train(
    workspace: Workspace, training: Training, report: Callable[[dict[str, float]], None], report_every: int = 10
) -> Trained:
    """Train on every rank of the group; the base of the workspace is afterwards as it was before.

    The loss is the mean over the supervised tokens of the whole global batch, so it does not depend on the number
    of workers or on accumulation.

    Raises:
        TrainingError: a part of the region got no gradient, something frozen did, or the loss is not finite.
    """
    recipe, world = training.recipe, workspace.world
    share = recipe.global_batch // world
    micro_batch = next(size for size in range(min(training.micro_batch, share), 0, -1) if share % size == 0)
    steps = recipe.steps(len(training.rows))
    forget_peak(workspace.device)
    torch.manual_seed(training.seed * 1_000 + workspace.rank)  # dropout differs between ranks
    with (
        choose_trainable(workspace.model, training.region, recipe) as trainable,
        _training_mode(workspace.model, training.activation_checkpointing),
    ):
        _say_what_trains(workspace, training, trainable)
        module = SupervisedLoss(workspace.model)
        parameters = dict(workspace.model.named_parameters())
        flops = _flops_per_token(workspace.model, trainable)
        with frozen_as_buffers(workspace.model, training.resident):
            trained = sum(parameters[name].numel() for name in trainable.names)
            config = deepspeed_config(
                recipe, micro_batch, share // micro_batch, trained=trained, keep_gathered=training.resident
            )
            with started_engine(module, parameters, trainable, recipe, config, steps) as engine:
                run = _Run(workspace, training, engine, parameters, trainable, micro_batch, steps, flops)
                metrics, losses = run.all_steps(report, report_every)
                weights = gather_weights(parameters, trainable.names)
    return Trained({delta_name(name): tensor for name, tensor in weights.items()}, metrics, losses)


@dataclass
class _Run:
    workspace: Workspace
    training: Training
    engine: Any
    parameters: dict[str, nn.Parameter]
    trainable: Trainable
    micro_batch: int
    steps: int
    flops_per_token: float

    def all_steps(
        self, report: Callable[[dict[str, float]], None], report_every: int
    ) -> tuple[dict[str, float], list[float]]:
        rows, recipe = self.training.rows, self.training.recipe
        lengths = [len(row.ids) for row in rows]
        losses: list[float] = []
        seconds: list[float] = []
        tokens, all_tokens = 0, 0
        self.engine.train()
        for step, batch in enumerate(global_batches(len(rows), recipe.global_batch, self.steps, self.training.seed)):
            began = time.perf_counter()
            supervised = sum(rows[row].supervised_tokens for row in batch)
            mine = rank_share(batch, lengths, self.workspace.rank, self.workspace.world)
            expected = self._parts(images=any(rows[row].image is not None for row in batch)) if step == 0 else None
            losses.append(self._step([rows[row] for row in mine], supervised, expected))
            seconds.append(time.perf_counter() - began)
            tokens += supervised
            all_tokens += sum(lengths[row] for row in batch)
            if (step + 1) % report_every == 0 or step + 1 == self.steps:
                report(self._metrics(losses, seconds, tokens, all_tokens))
        return self._metrics(losses, seconds, tokens, all_tokens), losses

    def _step(self, mine: Sequence[Row], supervised: int, expected: dict[str, tuple[str, ...]] | None) -> float:
        """One optimizer step; `expected` are the parts of the model that must get a gradient, where that is checked."""
        micro = [mine[start : start + self.micro_batch] for start in range(0, len(mine), self.micro_batch)]
        # DeepSpeed divides by the accumulation steps and averages over the ranks; undo both, then take the mean.
        scale = len(micro) * self.workspace.world / supervised
        total = torch.zeros((), device=self.workspace.device)
        for rows in micro:
            batch = collate(rows, self.workspace.features, self.workspace.padding_id, self.workspace.device)
            loss = self.engine(batch, scale)
            self.engine.backward(loss)
            total += loss.detach() / (len(micro) * self.workspace.world)
            if expected is not None and rows is micro[-1]:
                self._check_gradients(expected)
            self.engine.step()
        dist.all_reduce(total)
        value = float(total)
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss became {value}; lower the learning rate ({self.training.recipe.learning_rate})"
            )
        return value

    def _parts(self, *, images: bool) -> dict[str, tuple[str, ...]]:
        """Parameters by part; a batch of text rows alone does not move the projector."""
        layers = {f"layer {index}": names for index, names in self.trainable.region.items()}
        return layers | ({"projector": self.trainable.projector} if images else {})

    def _check_gradients(self, parts: dict[str, tuple[str, ...]]) -> None:
        received = received_gradient(self.parameters, list(parts.values()))
        for part, flag in zip(parts, received, strict=True):
            if not flag:
                raise TrainingError(f"{part} should train but received no gradient in the first step")
        trained = set(self.trainable.names)
        for name, parameter in self.workspace.model.named_parameters():
            if name not in trained and (parameter.requires_grad or parameter.grad is not None):
                raise TrainingError(f"{name} is frozen but received a gradient in the first step")

    def _metrics(
        self, losses: Sequence[float], seconds: Sequence[float], tokens: int, all_tokens: int
    ) -> dict[str, float]:
        recent = losses[-10:]
        timed = sorted(seconds[1:] or seconds)
        elapsed = sum(seconds)
        return {
            "step": float(len(losses)),
            "steps": float(self.steps),
            "loss": sum(recent) / len(recent),
            "learning_rate": float(self.engine.get_lr()[0]),
            "step_seconds": timed[len(timed) // 2],
            "train_seconds": elapsed,
            "samples_per_second": self.training.recipe.global_batch * len(losses) / elapsed,
            "supervised_tokens_per_second": tokens / elapsed,
            "peak_mib": peak_mib(self.workspace.device),
            "flops_per_second": self.flops_per_token * all_tokens / elapsed,
        }


def _flops_per_token(model: nn.Module, trainable: Trainable) -> float:
    """Forward and backward through the decoder layers for every token, plus the gradients of what trains."""
    layers = sum(parameter.numel() for layer in decoder_layers(model) for parameter in layer.parameters())
    return 4.0 * layers + 2.0 * sum(model.get_parameter(name).numel() for name in trainable.names)


@contextmanager
def _training_mode(model: Any, activation_checkpointing: bool) -> Iterator[None]:
    """Training mode, activations recomputed where asked; on leaving, evaluation mode as before."""
    if activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.disable_input_require_grads()
    model.train()
    try:
        yield
    finally:
        if activation_checkpointing:
            model.gradient_checkpointing_disable()
        model.eval()


def _say_what_trains(workspace: Workspace, training: Training, trainable: Trainable) -> None:
    if workspace.rank:
        return
    sizes = {name: parameter.numel() for name, parameter in workspace.model.named_parameters()}
    region = sum(sizes[name] for layer in trainable.region.values() for name in layer)
    projector = sum(sizes[name] for name in trainable.projector)
    log.info(
        "trains (%s): decoder layers %s (%.2fM parameters) and the projector (%.2fM); frozen, %s: the other %.2fM",
        training.recipe.mode,
        list(training.region.layers) or "none",
        region / 1e6,
        projector / 1e6,
        "resident" if training.resident else "partitioned",
        (sum(sizes.values()) - region - projector) / 1e6,
    )
