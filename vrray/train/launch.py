"""Ray Train for one worker function: the trainer, and whether the cluster can hold it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
import ray
from ray import train
from ray.train.torch import TorchConfig, TorchTrainer

from vrray.errors import ClusterError
from vrray.specs import RunSpec
from vrray.train.desk import error_line


@dataclass(frozen=True)
class Capacity:
    """What the cluster has: CPUs and GPUs in all, and for each node (CPUs, GPUs, bytes of memory)."""

    cpus: float
    gpus: float
    nodes: tuple[tuple[float, float, float], ...]

    @classmethod
    def of_cluster(cls) -> Capacity:
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        nodes = tuple((n.get("CPU", 0.0), n.get("GPU", 0.0), n.get("memory", 0.0)) for n in alive)
        return cls(sum(node[0] for node in nodes), sum(node[1] for node in nodes), nodes)

    def uses_gpus(self, spec: RunSpec) -> bool:
        return self.gpus > 0 if spec.gpu is None else spec.gpu

    def trials_at_once(self, spec: RunSpec, worker_bytes: int = 1) -> int:
        """How many trials' workers the cluster holds at the same time; drivers take no CPU.

        Args:
            worker_bytes: memory that a worker needs on its node (not counted where workers have a GPU each).

        Raises:
            ClusterError: not even one.
        """
        gpu, seats = self.uses_gpus(spec), self.seats(spec, worker_bytes)
        if seats < spec.workers:
            each = f"{spec.cpus_per_worker:g} CPU" + (" and 1 GPU" if gpu else "")
            raise ClusterError(
                f"one trial needs {spec.workers} workers with {each} each; the cluster has {self.cpus:g} CPUs and "
                f"{self.gpus:g} GPUs on {len(self.nodes)} nodes, room for {seats}. "
                f"Lower --workers or --cpus-per-worker, or add nodes."
            )
        return seats // spec.workers

    def seats(self, spec: RunSpec, worker_bytes: int = 1) -> int:
        """How many workers the cluster holds at the same time."""
        gpu = self.uses_gpus(spec)
        return sum(
            int(min(cpus // spec.cpus_per_worker, gpus if gpu else memory // max(1, worker_bytes)))
            for cpus, gpus, memory in self.nodes
        )

    def worker_memory(self, spec: RunSpec) -> int:
        """Bytes for one worker: a GPU's memory, or a node's share where the most workers sit on one node."""
        if self.uses_gpus(spec):
            return int(ray.get(ray.remote(num_gpus=1, num_cpus=0)(_gpu_memory).remote()))
        shares = [
            memory / min(spec.workers, cpus // spec.cpus_per_worker)
            for cpus, _, memory in self.nodes
            if cpus >= spec.cpus_per_worker
        ]
        return int(min(shares)) if shares else 0


def make_trainer(
    worker: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    spec: RunSpec,
    *,
    gpu: bool,
    name: str,
    storage: str,
) -> TorchTrainer:
    """A trainer of `spec.workers` workers: NCCL on GPUs, gloo on CPUs; Ray does not retry failures."""
    return TorchTrainer(
        worker,
        train_loop_config=config,
        torch_config=_ByNodeAddress(backend="nccl" if gpu else "gloo"),
        scaling_config=train.ScalingConfig(
            num_workers=spec.workers, use_gpu=gpu, resources_per_worker=_worker_resources(spec, gpu)
        ),
        run_config=train.RunConfig(
            name=name,
            storage_path=storage,
            failure_config=train.FailureConfig(max_failures=0, controller_failure_limit=1),
        ),
    )


def use_node_address() -> None:
    """Have gloo listen where Ray reaches this node; `GLOO_SOCKET_IFNAME` goes before.

    By itself gloo listens at the address of the host's name, which many systems have as 127.0.1.1: then workers on
    several nodes do not find each other.
    """
    address = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if address in {each.address for each in addresses}:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


class _ByNodeAddressBackend(TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(use_node_address)
        super().on_start(worker_group, backend_config)


class _ByNodeAddress(TorchConfig):
    """Ray's set-up of torch.distributed, with addresses that other nodes reach."""

    @property
    def backend_cls(self) -> type:
        return _ByNodeAddressBackend


def failure_reason(error: BaseException) -> str:
    """The first line that tells why a run failed: the worker's own message where there is one."""
    workers = getattr(error, "worker_failures", None)
    cause: BaseException = next(iter(workers.values())) if workers else error
    while getattr(cause, "cause", None) is not None or cause.__cause__ is not None:
        inner = getattr(cause, "cause", None) or cause.__cause__
        if not isinstance(inner, BaseException):
            break
        cause = inner
    return error_line(cause)


def _worker_resources(spec: RunSpec, gpu: bool) -> dict[str, float]:
    return {"CPU": spec.cpus_per_worker, **({"GPU": 1.0} if gpu else {})}


def _gpu_memory() -> int:
    import torch

    return int(torch.cuda.mem_get_info()[1])
