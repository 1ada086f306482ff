"""The Ray Serve deployment: a replica holds a base model once, and variants of it that share its weights."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import threading
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dashboard.conversation import Conversation, Decoding, Event, Piece, Refused
from vrray.errors import VrrayError
from vrray.store import Store

if TYPE_CHECKING:
    from ray import serve

    from dashboard.engine import Engine, Variant

DEPLOYMENT = "Answers"
LOG = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class Base:
    """What a deployment answers with: a store's deltas on one base.

    Attributes:
        store: URI of the store.
        model: the base, as a sweep names it.
        template: of conversations; None for the one that the base was trained with.
    """

    store: str
    model: str
    template: str | None = None

    @property
    def application(self) -> str:
        """The name of the Serve application that answers with it."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        return f"vrray-answers-{digest[:12]}"


@dataclass(frozen=True)
class Scale:
    """How much is served.

    Attributes:
        replicas: each has the base in memory.
        at_once: answers that a replica works on at the same time; on a CPU they share its cores.
        waiting: answers that may wait for a place, for all replicas together.
        resident: variants that a replica keeps; the one that was not asked for longest leaves first.
        cpus: of a replica.
        gpus: of a replica; None for one where the cluster has GPUs.
    """

    replicas: int = 1
    at_once: int = 4
    waiting: int = 100
    resident: int = 8
    cpus: float = 1.0
    gpus: float | None = None


def variant_id(row: Mapping[str, Any]) -> str:
    """What the deployment knows a row of a sweep's table by: its delta and the layers removed."""
    return f"{row['key']}/{'.'.join(map(str, row['removed_layers']))}"


def application(base: Base, scale: Scale, gpus: float) -> serve.Application:
    """The deployment, to be given to `serve.run`."""
    from ray import serve  # takes seconds to import, which the first page does not wait for

    replica = serve.deployment(
        name=DEPLOYMENT,
        num_replicas=scale.replicas,
        max_ongoing_requests=scale.at_once,
        max_queued_requests=scale.waiting,
        graceful_shutdown_timeout_s=5,
        max_constructor_retry_count=1,
        ray_actor_options={"num_cpus": scale.cpus, "num_gpus": gpus},
    )(_replica(scale.resident))
    return replica.bind(base, scale.at_once, gpus > 0)


def _replica(resident: int) -> type:
    """The class of replicas; how many variants one keeps is part of its definition."""
    from ray import serve

    class Replica:
        def __init__(self, base: Base, at_once: int, gpu: bool):
            self._pool = ThreadPoolExecutor(at_once, "answer")
            self._problem, self._engine = "", None
            try:
                self._engine = _load(base, gpu)
            except VrrayError as error:  # trying again would not help, and the page shows why
                self._problem = str(error)
            except Exception as error:
                LOG.exception("the base %s cannot be loaded", base.model)
                self._problem = f"base {base.model!r} cannot be loaded: {type(error).__name__}: {error}"

        async def problem(self) -> str:
            """Why the base could not be loaded; empty where it was."""
            return self._problem

        @serve.multiplexed(max_num_models_per_replica=resident)  # type: ignore[untyped-decorator]
        async def load(self, variant: str) -> Variant:
            key, _, removed = variant.partition("/")
            layers = tuple(int(layer) for layer in removed.split(".") if layer)
            return await asyncio.to_thread(_loaded(self._engine, self._problem).variant, key, layers)

        async def answer(self, asked: Conversation, decoding: Decoding) -> AsyncIterator[Event]:
            """The events of an answer; when nobody takes them any more, the generation ends at its next token."""
            loop, stop = asyncio.get_running_loop(), threading.Event()
            events: asyncio.Queue[Event] = asyncio.Queue()

            def work(variant: Variant) -> None:
                try:
                    for event in _loaded(self._engine, self._problem).answer(variant, asked, decoding, stop.is_set):
                        loop.call_soon_threadsafe(events.put_nowait, event)
                except Exception as error:
                    loop.call_soon_threadsafe(events.put_nowait, _refusal(error))

            try:
                variant = await self.load(serve.get_multiplexed_model_id())
            except Exception as error:
                yield _refusal(error)
                return
            loop.run_in_executor(self._pool, work, variant)
            try:
                event: Event = Piece("")
                while isinstance(event, Piece):
                    event = await events.get()
                    yield event
            finally:
                stop.set()

    return Replica


def _load(base: Base, gpu: bool) -> Engine:
    import torch

    from dashboard.engine import Engine

    return Engine(Store(base.store), base.model, base.template, torch.device("cuda" if gpu else "cpu"))


def _loaded(engine: Engine | None, problem: str) -> Engine:
    if engine is None:
        from vrray.errors import ModelError

        raise ModelError(problem)
    return engine


def _refusal(error: Exception) -> Refused:
    if isinstance(error, VrrayError):
        return Refused(str(error))
    LOG.error("an answer failed", exc_info=error)
    return Refused(f"the model failed while answering ({type(error).__name__}); the log of the Serve replica says more")
