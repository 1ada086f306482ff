"""Asking the deployment: it is started when first needed, requests are limited, and a request can be stopped."""

from __future__ import annotations

import asyncio
import logging
import shlex
import threading
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from dashboard.conversation import Busy, Conversation, Decoding, End, Event, Refused
from dashboard.limits import Gate, Limits
from dashboard.serving import Base, Scale, application
from vrray.errors import ClusterError, VrrayError
from vrray.store import Store

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class State:
    """Where the deployment of a base stands; `message` is for people."""

    kind: Literal["loading", "ready", "failed"]
    message: str


def connect(store: Store, *, scale: Scale | None = None, limits: Limits | None = None) -> Answers:
    """What pages and the endpoint get answers from. Returns at once: Ray and a model are started when first needed."""
    return Answers(store, scale or Scale(), limits or Limits())


def base_of(store: Store, context: Mapping[str, str]) -> Base:
    """The base that a sweep's variants stand on, with the template that they were trained with."""
    words = shlex.split(context.get("command", ""))
    given = words[words.index("--template") + 1] if "--template" in words[:-1] else "auto"
    template = context.get("template", given)
    return Base(store.uri, context["model"], None if template == "auto" else template)


class Answers:
    """Answers of variants; may be used from several threads and event loops."""

    def __init__(self, store: Store, scale: Scale, limits: Limits):
        self.limits = limits
        self._store, self._scale, self._gate = store, scale, Gate(limits)
        self._lock = threading.Lock()
        self._states: dict[Base, State] = {}
        self._handles: dict[Base, Any] = {}
        self._started: list[str] = []
        self._owns_ray = False
        self._stops: dict[str, set[asyncio.Event]] = {}
        self._starting = threading.Lock()
        # One thread that stays: the kernel ends Ray's processes together with the thread that has started them.
        self._starter = ThreadPoolExecutor(1, "vrray-serving")

    def prepare(self, base: Base) -> State:
        """Start the deployment of a base in the background, unless that was done; where it stands."""
        with self._lock:
            state = self._states.get(base)
            if state is not None:
                return state
            state = State("loading", f"loading {base.model} ...")
            self._states[base] = state
        self._starter.submit(self._start, base)
        return state

    def retry(self, base: Base) -> State:
        """`prepare`, anew where it has failed."""
        with self._lock:
            if (state := self._states.get(base)) is not None and state.kind == "failed":
                del self._states[base]
        return self.prepare(base)

    async def ready(self, base: Base) -> None:
        """Wait until a base is loaded.

        Raises:
            ModelError, ClusterError: it cannot be; the message says why.
        """
        while (state := self.prepare(base)).kind == "loading":
            await asyncio.sleep(0.2)
        if state.kind == "failed":
            raise ClusterError(state.message)

    async def ask(
        self, base: Base, variant: str, conversation: Conversation, decoding: Decoding, session: str
    ) -> AsyncGenerator[Event, None]:
        """The events of an answer, the last of which is an `End` or a `Refused`.

        Whoever closes this iterator, or whose task is cancelled, frees the replica at its next token.

        Args:
            variant: as `variant_id` gives it.
            session: whom the request counts for.

        Raises:
            DataError: the request does not fit the limits of a conversation.
            Busy: too much is asked at once; try again.
            ClusterError: the base cannot be served.
        """
        self.limits.check(conversation, decoding)
        with self._gate.admitted(session, decoding.max_new_tokens) as settle:
            await self.ready(base)
            stop = asyncio.Event()
            self._stops.setdefault(session, set()).add(stop)
            said = 0
            try:
                async for event in self._events(base, variant, conversation, decoding, stop):
                    said = event.tokens if isinstance(event, End) else said + 1
                    yield event
            finally:
                settle(said)
                stops = self._stops[session]
                stops.discard(stop)
                if not stops:
                    del self._stops[session]

    def stop(self, session: str) -> int:
        """End the answers of a session that are under way; how many there were. For the event loop that asks."""
        stops = list(self._stops.get(session, ()))
        for stop in stops:
            stop.set()
        return len(stops)

    def close(self) -> None:
        """End the deployments that were started here, and Ray where it was."""
        if self._states:
            self._end_serving()
        self._starter.shutdown(wait=False, cancel_futures=True)  # last, see above

    def _end_serving(self) -> None:
        import ray
        from ray import serve

        with self._starting:
            if not ray.is_initialized():
                return
            if self._owns_ray:
                serve.shutdown()
                ray.shutdown()
                return
            for name in self._started:
                serve.delete(name)

    async def _events(
        self, base: Base, variant: str, conversation: Conversation, decoding: Decoding, stop: asyncio.Event
    ) -> AsyncGenerator[Event, None]:
        import ray
        from ray.serve import exceptions

        handle = self._handles[base].options(stream=True, multiplexed_model_id=variant)
        response = handle.answer.remote(tuple(conversation), decoding)
        stopping = asyncio.ensure_future(stop.wait())
        coming: asyncio.Future[Event] | None = None
        tokens = 0
        try:
            while True:
                coming = asyncio.ensure_future(response.__anext__())
                await asyncio.wait((coming, stopping), return_when=asyncio.FIRST_COMPLETED)
                if stopping.done():
                    yield End("cancelled", 0, tokens, 0.0, 0.0)
                    return
                event = coming.result()
                tokens += 1
                yield event
                if isinstance(event, End | Refused):
                    return
        except exceptions.BackPressureError:
            places = self._scale.replicas * self._scale.at_once
            raise Busy(
                f"busy: all {places} places are taken and {self._scale.waiting} requests wait; try again in a moment"
            ) from None
        except StopAsyncIteration:
            raise ClusterError("the answer ended early: a replica was stopped; ask again") from None
        except (ray.exceptions.RayError, exceptions.RayServeException, CancelledError) as error:
            LOG.exception("an answer failed")
            raise ClusterError(f"the deployment does not answer ({type(error).__name__}); ask again") from error
        finally:
            stopping.cancel()
            if coming is not None:
                coming.add_done_callback(_look_at)  # what a cancelled request raises is no news
            with suppress(Exception):  # best effort: what has ended needs no cancelling
                response.cancel()

    def _start(self, base: Base) -> None:
        try:
            with self._starting:
                handle = self._deploy(base)
            problem = handle.problem.remote().result()
        except VrrayError as error:
            problem = str(error)
        except Exception as error:
            LOG.exception("the deployment cannot be started")
            problem = f"Ray Serve cannot start the deployment: {type(error).__name__}: {str(error).splitlines()[0]}"
        with self._lock:
            if problem:
                self._states[base] = State("failed", problem)
            else:
                self._handles[base] = handle
                self._states[base] = State("ready", f"{base.model} is loaded")
        if problem:
            self._forget(base)

    def _deploy(self, base: Base) -> Any:
        import ray
        from ray import serve
        from ray.serve.schema import LoggingConfig

        if not ray.is_initialized():
            ray.init(logging_level=logging.WARNING, log_to_driver=False)
            self._owns_ray = True
        gpus = self._gpus(ray.cluster_resources())
        serve.start(proxy_location="Disabled")  # the endpoint has its own door, see openai_api.py
        name = base.application
        found = serve.status().applications.get(name)
        if found is not None and found.status == "RUNNING":
            return serve.get_app_handle(name)
        self._started.append(name)
        quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
        return serve.run(application(base, self._scale, gpus), name=name, route_prefix=None, logging_config=quiet)

    def _gpus(self, cluster: Mapping[str, float]) -> float:
        """GPUs of a replica.

        Raises:
            ClusterError: the cluster cannot hold the replicas.
        """
        scale, found = self._scale, {"CPU": cluster.get("CPU", 0.0), "GPU": cluster.get("GPU", 0.0)}
        gpus = scale.gpus if scale.gpus is not None else min(1.0, found["GPU"])
        for kind, each in (("CPU", scale.cpus), ("GPU", gpus)):
            if each * scale.replicas > found[kind]:
                raise ClusterError(
                    f"{scale.replicas} replicas need {each * scale.replicas:g} {kind}s, the Ray cluster has "
                    f"{found[kind]:g}; lower --replicas"
                )
        return gpus

    def _forget(self, base: Base) -> None:
        """Take a deployment away whose base could not be loaded, so that it can be tried again."""
        from ray import serve

        with self._starting, suppress(Exception):
            serve.delete(base.application)


def _look_at(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()
