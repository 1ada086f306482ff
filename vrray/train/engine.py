"""DeepSpeed for one training: its configuration, its start, reading trained weights back, and its end.

CPU and GPU differ in configuration only: gloo and fp32 or bf16 here, NCCL, bf16 and overlapped communication there.
"""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers import get_cosine_schedule_with_warmup

from vrray.specs import Recipe
from vrray.train.trainable import Trainable

_PERSISTENT = 10**12  # more parameters than any model has: every one stays gathered
_DEEPSPEED_DEFAULT_PERSISTENCE = 100_000
_LARGEST_BUCKET = 200_000_000


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


def deepspeed_config(
    recipe: Recipe, micro_batch: int, accumulation: int, *, trained: int, keep_gathered: bool
) -> dict[str, Any]:
    """The configuration of ZeRO stage 3.

    Args:
        trained: how many parameters train; the buffer that gradients are reduced in is no larger.
        keep_gathered: trained weights stay whole on each worker between steps; gradients and optimizer are sharded
            either way.
    """
    on_gpu = torch.cuda.is_available()
    return {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": recipe.gradient_clip,
        "bf16": {"enabled": recipe.precision == "bf16"},
        "zero_optimization": {
            "stage": 3,
            "overlap_comm": on_gpu,
            "contiguous_gradients": True,
            # gloo reduces a whole bucket over twice as fast as it reduces and scatters it (docs/benchmarks.md).
            "reduce_scatter": on_gpu,
            "reduce_bucket_size": min(trained, _LARGEST_BUCKET),
            "memory_efficient_linear": False,
            "stage3_param_persistence_threshold": _PERSISTENT if keep_gathered else _DEEPSPEED_DEFAULT_PERSISTENCE,
            "stage3_model_persistence_threshold": _PERSISTENT,
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


@contextmanager
def started_engine(
    module: nn.Module,
    parameters: dict[str, nn.Parameter],
    trainable: Trainable,
    recipe: Recipe,
    config: dict[str, Any],
    steps: int,
) -> Iterator[Any]:
    """A DeepSpeed engine over `module`; on leaving, its hooks are gone and every weight is what it was before."""
    originals = {parameters[name]: parameters[name].detach().to("cpu", copy=True) for name in trainable.names}
    deepspeed = import_deepspeed()
    groups: list[dict[str, Any]] = [
        {"params": [parameters[name] for layer in trainable.region.values() for name in layer]},
        {"params": [parameters[name] for name in trainable.projector], "lr": recipe.projector_learning_rate},
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, round(recipe.warmup_ratio * steps), steps)
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, lr_scheduler=schedule, config=config)
    try:
        yield engine
    finally:
        _end(engine, module, originals)


def gather_weights(parameters: dict[str, nn.Parameter], names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Trained weights, whole, on the CPU of every rank; gathered one tensor at a time."""
    deepspeed = import_deepspeed()
    weights = {}
    for name in names:
        with deepspeed.zero.GatheredParameters([parameters[name]]):
            weights[name] = parameters[name].detach().to("cpu", copy=True)
    return weights


def received_gradient(parameters: dict[str, nn.Parameter], parts: Sequence[tuple[str, ...]]) -> list[bool]:
    """For each group of parameter names, whether a backward pass gave any of them a gradient that is not zero.

    Each rank looks at its own shard of the reduced gradients; all ranks must call it and get the same answer.
    """
    import_deepspeed()
    from deepspeed.utils import safe_get_local_grad

    def seen(name: str) -> bool:
        shard = safe_get_local_grad(parameters[name])
        return shard is not None and bool(shard.any())

    device = next(iter(parameters.values())).device
    flags = torch.tensor([float(any(seen(name) for name in names)) for names in parts], device=device)
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return [bool(flag) for flag in flags]


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


def _empty(engine: Any, partitioned: list[nn.Parameter]) -> None:
    """Free what a destroyed engine still holds: hooks inside autograd keep it reachable for ever."""
    zero, engine.optimizer, engine.lr_scheduler = engine.optimizer, None, None
    zero.optimizer.state.clear()
    zero.optimizer.param_groups.clear()
    zero.__dict__.clear()
    for parameter in partitioned:
        parameter.__dict__.clear()
        parameter.data = parameter.data.new_empty(0)
        parameter.grad = None
    gc.collect()
