"""Training several LoRA regions at the same time on one resident base: a micro-batch holds rows of each.

Each trial has the batches, the loss, the optimizer and the schedule that it has alone (`vrray.train.loop`), so its
weights differ by rounding. What trains is small, so it is whole on every rank, without DeepSpeed, and only gradients
are summed over the ranks. A trial that ends or is stopped leaves the pack, and the others go on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist

from vrray.data.batches import Batch, collate
from vrray.data.schedule import Schedule, Step, prefetched
from vrray.errors import TrainingError
from vrray.specs import PACK_SHARES
from vrray.train.checkpoint import Checkpoints
from vrray.train.desk import Cancelled, Paused, Report
from vrray.train.dryrun import fitting_micro_batch, is_out_of_memory, largest_divisor, out_of_memory
from vrray.train.execution import RUNG, RUNG_SCORE
from vrray.train.loop import (
    Trained,
    Training,
    answer_likelihood,
    checkpoint_due,
    resumed,
    training_mode,
)
from vrray.train.measure import Meter, Totals
from vrray.train.optimizer import TrialOptimizer
from vrray.train.packed import Adapted, PackedLoss, packed
from vrray.train.skips import SkipGuard
from vrray.train.trainable import delta_name, tower_aside
from vrray.train.workspace import Workspace, forget_peak

log = logging.getLogger(__name__)


def train_pack(
    workspace: Workspace,
    trainings: Sequence[Training],
    reports: Sequence[Report],
    checkpoints_of: Sequence[str | None],
) -> list[Trained | TrainingError | None]:
    """Train regions on the same rows, on every rank of the group; the base stays as it is.

    Args:
        reports, checkpoints_of: for each training, what `train` takes.

    Returns:
        For each training what `train` returns; the error that ended it; or None where nobody wants it any more.

    Raises:
        TrainingError: the recipes do not go together, or not even one row of each fits into memory.
    """
    first = trainings[0]
    if not all(first.recipe.packs_with(training.recipe) for training in trainings):
        raise TrainingError(f"trials in one pack must be LoRA with the same {', '.join(PACK_SHARES[1:])}")
    forget_peak(workspace.device)
    with ExitStack() as stack:
        members = [_Member.begin(workspace, *given) for given in zip(trainings, reports, strict=True)]
        stack.enter_context(tower_aside(workspace.model))
        module = stack.enter_context(packed(workspace.model, [member.own for member in members], first.recipe))
        tuned = sorted({layer for training in trainings for layer in training.region})
        stack.enter_context(training_mode(workspace.model, tuned, first.execution))
        pack = _Pack(workspace, module, members, _fitting(workspace, module, members))
        for member, key in zip(members, checkpoints_of, strict=True):
            checkpoints = None
            if key is not None:
                layout = {"packed": True, "precision": first.recipe.precision}
                ours = Checkpoints(workspace.store, key, workspace.rank, 1, layout)
                checkpoints = stack.enter_context(ours)
            member.start(workspace, pack.micro_batch, checkpoints)
        torch.manual_seed(first.seed * 1_000 + workspace.rank)  # dropout differs between ranks
        _say_what_trains(workspace, members)
        try:
            pack.all_steps()
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise out_of_memory(workspace, pack.micro_batch, trials=len(members)) from error
            raise
    return [member.outcome(pack.micro_batch, len(members)) for member in members]


@dataclass
class _Member:
    """One training of a pack.

    Attributes:
        done: steps.
        left: it was stopped, paused or has failed.
        fresh: no step was taken yet in this run.
        norm, applied: of the last step: of its gradients, and whether they were finite.
    """

    training: Training
    own: Adapted
    meter: Meter
    guard: SkipGuard
    report: Report
    steps: int
    done: int = 0
    left: bool = False
    paused: bool = False
    fresh: bool = True
    norm: float = 0.0
    applied: bool = True
    failure: TrainingError | None = None
    checkpoints: Checkpoints | None = None
    saved_at: float = field(default_factory=time.monotonic)
    schedule: Schedule = field(init=False)
    optimizer: TrialOptimizer = field(init=False)

    @classmethod
    def begin(cls, workspace: Workspace, training: Training, report: Report) -> _Member:
        recipe, steps = training.recipe, training.recipe.steps(len(training.rows))
        own = Adapted.begin(workspace.model, training.region, recipe, training.seed * 1_000)
        meter = Meter(workspace.device, workspace.world, steps, own.flops_per_token)

        def say(text: str) -> None:
            report({"say": text})

        guard = SkipGuard(training.execution.max_skipped, steps, recipe.learning_rate, say)
        return cls(training, own, meter, guard, report, steps)

    def start(self, workspace: Workspace, micro_batch: int, checkpoints: Checkpoints | None) -> None:
        """Go on from the newest checkpoint, or begin."""
        recipe, parts = self.training.recipe, self.own.trainable
        order = (recipe.global_batch, self.steps, self.training.seed, recipe.group_by_length)
        self.schedule = Schedule(self.training.rows, *order, workspace.rank, workspace.world, micro_batch)
        self.checkpoints = checkpoints
        saved = None if checkpoints is None else checkpoints.newest()
        for name, tensor in saved.weights.items() if saved else ():
            self.own.parameters[name].data.copy_(tensor)
        region = [self.own.parameters[name] for layer in parts.region.values() for name in layer]
        projector = [self.own.parameters[name] for name in parts.projector]
        self.optimizer = TrialOptimizer(region, projector, recipe, self.steps)
        if saved is not None:
            self.done = saved.step
            self.tell({"say": resumed(self.optimizer, self.meter, saved, self.steps)})

    @property
    def active(self) -> bool:
        return not self.left and self.done < self.steps

    def at_rung(self, world: int) -> bool:
        return not self.left and self.done in self.training.execution.rungs and len(self.training.asked) >= world

    def tell(self, metrics: dict[str, Any]) -> None:
        """Report; the trial leaves where the answer is that nobody wants it any more, or that it is to pause."""
        try:
            self.report(metrics)
        except Cancelled:
            self.left = True
        except Paused:
            self.left = self.paused = self.done < self.steps  # else the delta is there as soon as a checkpoint would be

    def update(self, step: Step, losses: torch.Tensor) -> None:
        """Take an optimizer step with the gradients of its rows.

        Args:
            losses: of this rank's micro-batches.
        """
        self.optimizer.collect()
        try:
            if self.fresh:
                self._check_gradients(images=any(row.images for row in step.rows))
            self.norm, self.applied = self.optimizer.step()
            self.fresh, self.done = False, self.done + 1
            if self.applied:
                self.guard.passed()
            else:
                self.guard.skipped(self.done, step, list(losses))
        except TrainingError as error:
            self.failure, self.left = error, True
        except Cancelled:
            self.left = True
        except Paused:
            self.left = self.paused = True

    def measure(self, loss: float, measured: Totals) -> None:
        """Note the step just taken, and report it."""
        if not self.left:
            measured = replace(measured, skipped=int(not self.applied))
            self.meter.take(loss, measured)
            self.tell(self.meter.of_step(measured, self.optimizer.rates, self.norm))

    def save_when_due(self) -> None:
        """Write a checkpoint; the same on every rank, so rank 0 alone calls it."""
        execution, skipped = self.training.execution, self.meter.totals.skipped
        due = self.paused or (self.active and checkpoint_due(execution, self.done, self.saved_at))
        if self.checkpoints is None or not due:
            return
        self.saved_at = time.monotonic()
        if self.done > skipped:
            about = {"meter": self.meter.state(), "applied": self.done - skipped}
            self.checkpoints.save(self.done, self.optimizer, self._weights(), about)

    def outcome(self, micro_batch: int, trials: int) -> Trained | TrainingError | None:
        if self.left:
            return self.failure
        tensors = {delta_name(name): tensor for name, tensor in self._weights().items()}
        metrics = {**self.meter.of_training(), "micro_batch": float(micro_batch), "pack": float(trials)}
        return Trained(tensors, metrics, self.meter.losses)

    def _weights(self) -> dict[str, torch.Tensor]:
        return {name: self.own.parameters[name].detach().to("cpu", copy=True) for name in self.own.trainable.names}

    def _check_gradients(self, *, images: bool) -> None:
        """Every layer of the region got one, and the projector, unless the batch is of text rows alone."""
        masters = zip(self.own.trainable.names, self.optimizer.masters, strict=True)
        received = {name for name, master in masters if master.grad is not None and master.grad.any()}
        parts = {f"layer {index}": names for index, names in self.own.trainable.region.items()}
        for part, names in (parts | ({"projector": self.own.trainable.projector} if images else {})).items():
            if received.isdisjoint(names):
                raise TrainingError(f"{part} should train but received no gradient in the first step")


@dataclass
class _Pack:
    workspace: Workspace
    module: PackedLoss
    members: list[_Member]
    micro_batch: int

    @property
    def active(self) -> list[int]:
        return [number for number, member in enumerate(self.members) if member.active]

    def all_steps(self) -> None:
        self.module.train()
        while numbers := self.active:
            self.module.choose(numbers)
            group = [self.members[number] for number in numbers]
            with closing(prefetched(self._collate, self._parts(group))) as micro_batches:
                for steps in self._steps(group):
                    self._step(group, steps, micro_batches)
                    self._score_answers(numbers)
                    if self.active != numbers:
                        break

    def _steps(self, group: Sequence[_Member]) -> Iterator[tuple[Step, ...]]:
        """The next steps of all members, until the first of them is through."""
        return zip(*(member.schedule.steps(member.done) for member in group), strict=False)

    def _parts(self, group: Sequence[_Member]) -> Iterator[tuple[Any, ...]]:
        """The micro-batches of these steps, each member's beside the others'."""
        for steps in self._steps(group):
            yield from zip(*(step.micro_batches for step in steps), strict=True)

    def _collate(self, parts: Sequence[Any]) -> Batch:
        work, rows = self.workspace, [row for part in parts for row in part]
        return collate(rows, work.features, work.padding_id, work.device)

    def _step(self, group: list[_Member], steps: tuple[Step, ...], micro_batches: Iterator[Batch]) -> None:
        """One optimizer step of every member."""
        began, waited, slots = time.perf_counter(), 0.0, 0
        device = self.workspace.device
        scale = torch.tensor([1 / step.supervised_tokens for step in steps], device=device)
        parts: list[torch.Tensor] = []
        for _ in steps[0].micro_batches:
            asked = time.perf_counter()
            batch = next(micro_batches)
            waited += time.perf_counter() - asked
            slots += batch.input_ids.numel() // len(group)
            losses = self.module(batch, scale)
            losses.sum().backward()
            parts.append(losses.detach())
        if any(member.fresh for member in group):
            self._check_frozen()
        own = torch.stack(parts, dim=1)  # [members, micro-batches]
        sums = torch.cat([own.double().sum(1), torch.tensor([slots], dtype=torch.float64, device=device)])
        dist.all_reduce(sums)
        *totals, slots = sums.tolist()
        for member, step, losses in zip(group, steps, own, strict=True):
            member.update(step, losses)
        seconds = time.perf_counter() - began
        for member, step, loss in zip(group, steps, totals, strict=True):
            counts = (len(step.rows), step.tokens, step.supervised_tokens, int(slots))
            member.measure(loss, Totals(seconds, *counts, waited))
            if self.workspace.rank == 0:
                member.save_when_due()

    def _score_answers(self, numbers: Sequence[int]) -> None:
        """At a rung, one member after the other: they need not reach it at the same time."""
        due = [number for number in numbers if self.members[number].at_rung(self.workspace.world)]
        for number in due:
            member = self.members[number]
            self.module.choose([number])
            score = answer_likelihood(self.workspace, self.module, member.training.asked, self.micro_batch)
            member.tell({RUNG: member.done, RUNG_SCORE: score})
        if due:
            self.module.choose(numbers)

    def _check_frozen(self) -> None:
        for name, parameter in self.workspace.model.named_parameters():
            if parameter.requires_grad or parameter.grad is not None:
                raise TrainingError(f"{name} is frozen but received a gradient")


def _fitting(workspace: Workspace, module: PackedLoss, members: Sequence[_Member]) -> int:
    """The largest micro-batch of one trial that fits as often as there are trials."""
    training = members[0].training
    share = training.recipe.global_batch // workspace.world
    trained = sum(parameter.numel() for member in members for parameter in member.own.parameters.values())

    def say(text: str) -> None:
        for member in members:
            member.tell({"say": text})

    module.choose(range(len(members)))
    return fitting_micro_batch(
        workspace,
        module,
        training.rows,
        largest_divisor(share, training.execution.micro_batch),
        share,
        packing=False,
        reserve=12 * trained,  # float32 weights and two moments
        say=say,
        trials=len(members),
    )


def _say_what_trains(workspace: Workspace, members: Sequence[_Member]) -> None:
    if workspace.rank:
        return
    trained = sum(parameter.numel() for member in members for parameter in member.own.parameters.values())
    log.info(
        "%d trials train together (lora, %.2fM parameters in all): decoder layers %s",
        len(members),
        trained / 1e6,
        " | ".join(str(list(member.training.region)) for member in members),
    )
