"""The training loop: one region, one recipe, on a worker group that was set up before and goes on afterwards."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint

from vrray.data.batches import Batch, collate
from vrray.data.rows import Row
from vrray.data.schedule import Schedule, Step, prefetched
from vrray.errors import TrainingError
from vrray.models.family import family_of
from vrray.models.loading import decoder_layers
from vrray.region import Region
from vrray.specs import Recipe
from vrray.train.checkpoint import Checkpoints, Saved, restore
from vrray.train.desk import Paused, Report
from vrray.train.dryrun import fitting_micro_batch, is_out_of_memory, largest_divisor, out_of_memory
from vrray.train.engine import GradientWatch, advance_schedule, gather_weights, started_engine
from vrray.train.execution import RUNG, RUNG_SCORE, Execution
from vrray.train.loss import SupervisedLoss
from vrray.train.measure import Meter, Totals, flops_per_token
from vrray.train.skips import SkipGuard
from vrray.train.trainable import Trainable, choose_trainable, delta_name, frozen_as_buffers, tower_aside
from vrray.train.workspace import Workspace, forget_peak

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Training:
    """What is trained and how; with the workspace's base, `rows` to `seed` determine the weights.

    `asked` are rows whose answers are scored at the rungs of `execution`; they are not trained on.
    """

    rows: Sequence[Row]
    region: Region
    recipe: Recipe
    seed: int
    execution: Execution
    asked: Sequence[Row] = ()


@dataclass
class Trained:
    """The trained tensors by delta name, and what was measured on the way (seconds, MiB, tokens)."""

    tensors: dict[str, torch.Tensor]
    metrics: dict[str, float]
    losses: list[float]


def train(workspace: Workspace, training: Training, report: Report, checkpoints_of: str | None = None) -> Trained:
    """Train on every rank of the group; the base of the workspace is afterwards as it was before.

    The loss is the mean over the supervised tokens of the whole global batch, so it does not depend on the number
    of workers or on accumulation.

    Args:
        report: called with the metrics of every step, and with `{"say": text}` for what the user should know.
        checkpoints_of: the key in the workspace's store under which checkpoints are kept, and from which a training
            that was interrupted goes on; None for none.

    Raises:
        Paused: the report of a step raised it; where checkpoints are kept, there is one of that step.
        TrainingError: a part of the region got no gradient, memory does not suffice, the loss was not finite in too
            many steps in a row, or the model's rows cannot be packed.
    """
    recipe, execution = training.recipe, training.execution
    if execution.packing and family_of(workspace.model.config).two_way_images:
        raise TrainingError(
            f"{workspace.model.config.model_type} lets the positions of an image attend to each other in both "
            "directions, which its masks for packed rows get wrong; leave --packing away"
        )

    def say(text: str) -> None:
        report({"say": text})

    forget_peak(workspace.device)
    torch.manual_seed(training.seed * 1_000 + workspace.rank)  # dropout differs between ranks
    with ExitStack() as stack:
        trainable = stack.enter_context(choose_trainable(workspace.model, training.region, recipe))
        say_what_trains(workspace, training, trainable)
        stack.enter_context(tower_aside(workspace.model))
        stack.enter_context(training_mode(workspace.model, training.region.layers, execution))
        module = SupervisedLoss(workspace.model)
        parameters = dict(workspace.model.named_parameters())
        steps = recipe.steps(len(training.rows))
        meter = Meter(workspace.device, workspace.world, steps, flops_per_token(workspace.model, trainable))
        stack.enter_context(frozen_as_buffers(workspace.model, execution.resident))
        schedule = _schedule(workspace, training, module, steps, trainable, say)
        execution = replace(execution, micro_batch=schedule.micro_batch)
        layout = {"zero": execution.zero, "resident": execution.resident, "precision": recipe.precision}
        checkpoints, saved = None, None
        if checkpoints_of is not None:
            ours = Checkpoints(workspace.store, checkpoints_of, workspace.rank, workspace.world, layout)
            checkpoints = stack.enter_context(ours)
            saved = checkpoints.newest()
        accumulation = recipe.global_batch // workspace.world // schedule.micro_batch
        settings = (recipe, execution, accumulation, steps)
        engine = stack.enter_context(
            started_engine(module, parameters, trainable, *settings, saved.weights if saved else None)
        )
        guard = SkipGuard(execution.max_skipped, steps, recipe.learning_rate, say)
        work = (workspace, engine, parameters, trainable, execution, schedule)
        run = _Run(*work, meter, checkpoints, guard, training.asked)
        try:
            run.all_steps(report, saved)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise out_of_memory(workspace, schedule.micro_batch) from error
            raise
        weights = gather_weights(parameters, trainable.names)
    tensors = {delta_name(name): tensor for name, tensor in weights.items()}
    return Trained(tensors, {**meter.of_training(), "micro_batch": float(schedule.micro_batch)}, meter.losses)


@dataclass
class _Run:
    workspace: Workspace
    engine: Any
    parameters: dict[str, nn.Parameter]
    trainable: Trainable
    execution: Execution
    schedule: Schedule
    meter: Meter
    checkpoints: Checkpoints | None
    guard: SkipGuard
    asked: Sequence[Row]
    saved_at: float = field(default_factory=time.monotonic)

    def all_steps(self, report: Report, saved: Saved | None) -> None:
        begin = 0 if saved is None else saved.step
        if saved is not None:
            report({"say": resumed(self.engine, self.meter, saved, self.schedule.count)})
        parts = (part for step in self.schedule.steps(begin) for part in step.micro_batches)
        micro_batches = prefetched(self._collate, parts)
        self.engine.train()
        for number, step in enumerate(self.schedule.steps(begin), start=begin + 1):
            loss, measured, due = self._step(number, step, micro_batches, first=number == begin + 1)
            self.meter.take(loss, measured)
            norm = self.engine.get_global_grad_norm()
            rates = [float(rate) for rate in self.engine.get_lr()]
            last = number == self.schedule.count
            try:
                report(self.meter.of_step(measured, rates, math.nan if norm is None else float(norm)))
            except Paused:
                if last:
                    break  # the delta is there as soon as a checkpoint would be
                self._save(number)
                raise
            if due and not last:
                self._save(number)
            if number in self.execution.rungs and len(self.asked) >= self.workspace.world:
                size = self.schedule.micro_batch
                report({RUNG: number, RUNG_SCORE: answer_likelihood(self.workspace, self.engine, self.asked, size)})

    def _step(
        self, number: int, step: Step, micro_batches: Iterator[Batch], *, first: bool
    ) -> tuple[float, Totals, bool]:
        """One optimizer step: its loss, what was measured, and whether a checkpoint is due."""
        began, waited, slots = time.perf_counter(), 0.0, 0
        accumulation, world = len(step.micro_batches), self.workspace.world
        watch = self._watch(images=any(row.images for row in step.rows)) if first else None
        # DeepSpeed divides by the accumulation steps and averages over the ranks; undo both, then take the mean.
        scale = accumulation * world / step.supervised_tokens
        losses: list[torch.Tensor] = []
        for place in range(accumulation):
            asked = time.perf_counter()
            batch = next(micro_batches)
            waited += time.perf_counter() - asked
            slots += batch.input_ids.numel()
            loss = self.engine(batch, scale)
            self.engine.backward(loss)
            losses.append(loss.detach() / (accumulation * world))
            if watch is not None and place == accumulation - 1:
                self._check_gradients(watch)
            self.engine.step()
        due = self.workspace.rank == 0 and checkpoint_due(self.execution, number, self.saved_at)
        total, slots, due = self._summed(torch.stack(losses).sum(), slots, due)
        applied = self.engine.was_step_applied()
        if applied:
            self.guard.passed()
        else:
            self.guard.skipped(number, step, losses)
        seconds = time.perf_counter() - began
        counts = (len(step.rows), step.tokens, step.supervised_tokens, slots)
        return total, Totals(seconds, *counts, waited, int(not applied)), due

    def _summed(self, loss: torch.Tensor, slots: int, due: bool) -> tuple[float, int, bool]:
        """The loss, the positions computed, and whether a checkpoint is due, summed over the ranks at once."""
        own = torch.tensor([slots, due], dtype=torch.float64, device=self.workspace.device)
        sums = torch.cat([loss.double().view(1), own])
        dist.all_reduce(sums)
        return float(sums[0]), int(sums[1]), bool(sums[2])

    def _collate(self, rows: Sequence[Row]) -> Batch:
        work = self.workspace
        return collate(rows, work.features, work.padding_id, work.device, packing=self.execution.packing)

    def _watch(self, *, images: bool) -> GradientWatch:
        """Watches every layer of the region, and the projector; a batch of text rows alone does not move that."""
        parts = {f"layer {index}": names for index, names in self.trainable.region.items()}
        return GradientWatch(self.parameters, parts | ({"projector": self.trainable.projector} if images else {}))

    def _check_gradients(self, watch: GradientWatch) -> None:
        for part, received in watch.received().items():
            if not received:
                raise TrainingError(f"{part} should train but received no gradient in the first step")
        trained = set(self.trainable.names)
        for name, parameter in self.workspace.model.named_parameters():
            if name not in trained and (parameter.requires_grad or parameter.grad is not None):
                raise TrainingError(f"{name} is frozen but received a gradient in the first step")

    def _save(self, number: int) -> None:
        self.saved_at = time.monotonic()
        applied = number - self.meter.totals.skipped
        if self.checkpoints is None or not applied:
            return  # without an applied step nothing has changed yet, and there are no moments
        weights = gather_weights(self.parameters, self.trainable.names)
        self.checkpoints.save(number, self.engine, weights, {"meter": self.meter.state(), "applied": applied})


@torch.no_grad()
def answer_likelihood(workspace: Workspace, module: Any, asked: Sequence[Row], size: int) -> float:
    """The mean probability of the tokens of the asked answers, a geometric mean.

    Every rank takes equally many rows, `size` at once, and calls the module, a loss, equally often.
    """
    rank, world = workspace.rank, workspace.world
    rows = asked[: len(asked) // world * world][rank::world]
    sums = torch.zeros(2, dtype=torch.float64, device=workspace.device)
    module.eval()
    for start in range(0, len(rows), size):
        batch = collate(rows[start : start + size], workspace.features, workspace.padding_id, workspace.device)
        sums += torch.stack([module(batch, 1.0).double().sum(), sums.new_tensor(len(batch.targets))])
    module.train()
    dist.all_reduce(sums)
    return math.exp(-float(sums[0] / sums[1]))


def resumed(engine: Any, meter: Meter, saved: Saved, steps: int) -> str:
    """Set what has an optimizer and a schedule, and a meter, to a checkpoint: what there is to say about it."""
    meter.resume(saved.about["meter"])
    advance_schedule(engine, saved.about["applied"])
    if saved.shard is not None:
        restore(engine, saved.shard)
    how = "" if saved.shard else "; the workers or their layout changed, so the optimizer starts afresh"
    return f"goes on from the checkpoint after step {saved.step} of {steps}{how}"


def checkpoint_due(execution: Execution, number: int, saved_at: float) -> bool:
    every = execution.checkpoint_steps
    elapsed = time.monotonic() - saved_at
    return elapsed >= execution.checkpoint_seconds or (every is not None and number % every == 0)


def _schedule(
    workspace: Workspace,
    training: Training,
    module: SupervisedLoss,
    steps: int,
    trainable: Trainable,
    say: Callable[[str], None],
) -> Schedule:
    """The steps, with the largest micro-batch that fits."""
    recipe, execution = training.recipe, training.execution
    share = recipe.global_batch // workspace.world
    trained = sum(workspace.model.get_parameter(name).numel() for name in trainable.names)
    reserve = 12 * trained // (workspace.world if execution.zero else 1)  # float32 weights and two moments
    most = largest_divisor(share, execution.micro_batch)
    fitting = fitting_micro_batch(
        workspace, module, training.rows, most, share, packing=execution.packing, reserve=reserve, say=say
    )
    order = (recipe.global_batch, steps, training.seed, recipe.group_by_length)
    return Schedule(training.rows, *order, workspace.rank, workspace.world, fitting)


@contextmanager
def training_mode(model: Any, tuned: Collection[int], execution: Execution) -> Iterator[None]:
    """Training mode, some layers recomputed or compiled where asked; on leaving, evaluation mode as before."""
    layers = list(decoder_layers(model))
    # A tuned layer keeps more for its backward pass than a frozen one.
    order = [*tuned, *(index for index in range(len(layers)) if index not in tuned)]
    recomputed: list[Any] = [layers[index] for index in order[: execution.recomputed]]
    for layer in recomputed:
        # Set on the layers alone: the model's own switch also hooks the embedding, which draws frozen lower layers
        # into autograd.
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        layer.gradient_checkpointing = True
    for layer in layers if execution.compile else ():
        layer.compile()
    model.train()
    try:
        yield
    finally:
        for layer in recomputed:
            layer.gradient_checkpointing = False
        for layer in layers:
            layer._compiled_call_impl = None
        model.eval()


def say_what_trains(workspace: Workspace, training: Training, trainable: Trainable) -> None:
    if workspace.rank:
        return
    sizes = {name: parameter.numel() for name, parameter in workspace.model.named_parameters()}
    region = sum(sizes[name] for layer in trainable.region.values() for name in layer)
    projector = sum(sizes[name] for name in trainable.projector)
    log.info(
        "trains (%s): decoder layers %s (%.2fM parameters) and the projector (%.2fM); frozen, %s: the other %.2fM; "
        "ZeRO stage %d",
        training.recipe.mode,
        list(training.region.layers) or "none",
        region / 1e6,
        projector / 1e6,
        "resident" if training.execution.resident else "partitioned",
        (sum(sizes.values()) - region - projector) / 1e6,
        training.execution.zero,
    )
