"""DeepSpeed for one training: its configuration, its start, what it holds, reading weights back, and its end.

CPU and GPU differ in configuration only: gloo and fp32 or bf16 here, NCCL, bf16 and overlapped communication there.
"""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from vrray.models.loading import decoder_layers
from vrray.specs import Recipe
from vrray.train.execution import Execution
from vrray.train.loss import SupervisedLoss
from vrray.train.optimizer import ClippedAdamW, adamw, cosine_schedule
from vrray.train.trainable import Trainable

_PERSISTENT = 10**12  # more parameters than any model has: every one stays gathered
_DEEPSPEED_DEFAULT_PERSISTENCE = 100_000
_LARGEST_BUCKET = 200_000_000
# Where each of DeepSpeed's optimizers keeps the float32 weights that this rank updates.
_MASTERS = ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition")


def import_deepspeed() -> Any:
    """DeepSpeed, imported for this machine's device and without building any native op at start."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed
    from deepspeed import ops

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if not torch.cuda.is_available():
        # The shared-memory collective is compiled at first use (45 s and a compiler); gloo does without it.
        ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def deepspeed_config(recipe: Recipe, execution: Execution, accumulation: int, trained: int) -> dict[str, Any]:
    """DeepSpeed's configuration.

    Args:
        execution: its micro-batch is the one that is used.
        trained: how many parameters train; the buffer that gradients are reduced in is no larger.
    """
    on_gpu = torch.cuda.is_available()
    # Resident: weights stay whole on each worker between steps. Gradients and optimizer are sharded either way.
    persistence = _PERSISTENT if execution.resident else _DEEPSPEED_DEFAULT_PERSISTENCE
    return {
        "train_micro_batch_size_per_gpu": execution.micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": 0.0 if _steps_itself(recipe, execution.zero) else recipe.gradient_clip,
        "bf16": {"enabled": recipe.precision == "bf16", "check_grad_overflow": True},
        "zero_optimization": {
            "stage": execution.zero,
            "overlap_comm": on_gpu,
            "contiguous_gradients": True,
            # gloo reduces a whole bucket over twice as fast as it reduces and scatters it (docs/benchmarks.md).
            "reduce_scatter": on_gpu,
            "reduce_bucket_size": min(trained, _LARGEST_BUCKET),
            "memory_efficient_linear": False,
            "stage3_param_persistence_threshold": persistence,
            "stage3_model_persistence_threshold": _PERSISTENT,
            # What stays gathered is never released, and looking for its next use takes up to 20 s in the second step.
            **({"stage3_max_reuse_distance": 0} if execution.resident else {}),
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


@contextmanager
def started_engine(
    module: SupervisedLoss,
    parameters: dict[str, nn.Parameter],
    trainable: Trainable,
    recipe: Recipe,
    execution: Execution,
    accumulation: int,
    steps: int,
    weights: Mapping[str, torch.Tensor] | None = None,
) -> Iterator[Any]:
    """A DeepSpeed engine over `module`; on leaving, its hooks are gone and every weight is what it was before.

    Args:
        weights: what the trained parameters start from, where that is not what they hold.
    """
    originals = {parameters[name]: parameters[name].detach().to("cpu", copy=True) for name in trainable.names}
    for name, tensor in (weights or {}).items():
        parameters[name].data.copy_(tensor)
    deepspeed = import_deepspeed()
    kind = ClippedAdamW if _steps_itself(recipe, execution.zero) else torch.optim.AdamW
    region = [parameters[name] for layer in trainable.region.values() for name in layer]
    optimizer = adamw(kind, region, [parameters[name] for name in trainable.projector], recipe)
    if isinstance(optimizer, ClippedAdamW):
        optimizer.clip = recipe.gradient_clip
    schedule = cosine_schedule(optimizer, recipe, steps)
    config = deepspeed_config(recipe, execution, accumulation, sum(p.numel() for p in originals))
    # ZeRO-3 hooks into a decoder layer as a whole, not into each of its modules.
    layers = list({type(layer) for layer in decoder_layers(module.lvlm)})
    deepspeed.utils.set_z3_leaf_modules(module, layers)
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, lr_scheduler=schedule, config=config)
    inner_optimizer(engine).state.clear()  # some stages take a step on zeros to make room, which Adam would count
    try:
        yield engine
    finally:
        deepspeed.utils.unset_z3_leaf_modules(module, layers)
        _end(engine, module, originals)


def inner_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The AdamW that DeepSpeed wraps."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def master_weights(engine: Any) -> list[torch.Tensor]:
    """The float32 weights that this rank updates, flat where they are sharded; the keys of `inner_optimizer.state`."""
    zero = engine.optimizer
    for name in _MASTERS:
        if hasattr(zero, name):
            return list(getattr(zero, name))
    if hasattr(zero, "fp32_groups"):
        return [parameter for group in zero.fp32_groups for parameter in group]
    return [parameter for group in zero.param_groups for parameter in group["params"]]


def advance_schedule(engine: Any, applied: int) -> None:
    """Set the learning rates to what they are after so many applied steps."""
    schedule, groups = engine.lr_scheduler, inner_optimizer(engine).param_groups
    schedule.last_epoch = applied
    schedule._last_lr = [
        base * factor(applied) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    ]
    for group, rate in zip(groups, schedule._last_lr, strict=True):
        group["lr"] = rate


def gather_weights(parameters: dict[str, nn.Parameter], names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Trained weights, whole, on the CPU of every rank; gathered one tensor at a time."""
    deepspeed = import_deepspeed()
    weights = {}
    for name in names:
        parameter = parameters[name]
        with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            weights[name] = parameter.detach().to("cpu", copy=True)
    return weights


class GradientWatch:
    """Notes which parameters get a gradient that is not zero, on any rank, while it is watching."""

    def __init__(self, parameters: dict[str, nn.Parameter], parts: Mapping[str, Sequence[str]]):
        self._parts = parts
        self._seen: dict[str, torch.Tensor] = {}
        self._device = next(iter(parameters.values())).device
        self._handles = [parameters[name].register_hook(self._note(name)) for names in parts.values() for name in names]

    def received(self) -> dict[str, bool]:
        """By part, whether any of its parameters got one; stops watching. All ranks must call it."""
        for handle in self._handles:
            handle.remove()
        flags = torch.tensor(
            [float(any(bool(self._seen.get(name, False)) for name in names)) for names in self._parts.values()],
            device=self._device,
        )
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return {part: bool(flag) for part, flag in zip(self._parts, flags, strict=True)}

    def _note(self, name: str) -> Any:
        def hook(gradient: torch.Tensor) -> None:
            self._seen[name] = gradient.any() | self._seen.get(name, torch.zeros((), device=gradient.device)).bool()

        return hook


def _steps_itself(recipe: Recipe, zero: int) -> bool:
    return zero == 0 and recipe.precision == "fp32"


def _end(engine: Any, module: nn.Module, originals: dict[nn.Parameter, torch.Tensor]) -> None:
    deepspeed = import_deepspeed()
    fresh: dict[nn.Parameter, nn.Parameter] = {}  # a tied parameter stays one
    for parameter in module.parameters():
        if parameter in originals:
            fresh[parameter] = nn.Parameter(originals[parameter].to(parameter.device), requires_grad=False)
        elif hasattr(parameter, "ds_id"):
            with deepspeed.zero.GatheredParameters([parameter]):
                fresh[parameter] = nn.Parameter(parameter.detach().clone(), requires_grad=False)
    engine.destroy()
    for owner in module.modules():
        owner._parameters = {
            name: fresh.get(value, value) if value is not None else None
            for name, value in dict(owner._parameters).items()
        }
    _empty(engine, list(fresh))


def _empty(engine: Any, trained: list[nn.Parameter]) -> None:
    """Free what a destroyed engine still holds: hooks inside autograd keep it reachable for ever."""
    inner, zero = inner_optimizer(engine), engine.optimizer
    engine.optimizer, engine.lr_scheduler = None, None
    inner.state.clear()
    inner.param_groups.clear()
    zero.__dict__.clear()
    for parameter in trained:
        parameter.__dict__.clear()
        parameter.data = parameter.data.new_empty(0)
        parameter.grad = None
    gc.collect()
