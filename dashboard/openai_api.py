"""An endpoint that speaks OpenAI's chat completions, so that other clients can talk to a variant.

It asks the same deployment as the pages, through the same limits. It opens no address and no file that a request names.
"""

from __future__ import annotations

import json
import logging
import secrets
import socket
import threading
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import ValidationError

from dashboard.answers import Answers, base_of
from dashboard.catalogue import Catalogue
from dashboard.conversation import Busy, End, Event, Piece
from dashboard.openai_reply import Reply
from dashboard.openai_types import ApiError, ChatRequest, conversation_of, decoding_of
from dashboard.serving import Base, variant_id
from vrray.errors import ClusterError, DataError, SpecError, VrrayError
from vrray.store import Store

MAX_BODY = 32 << 20
LOOPBACK = ("127.0.0.1", "localhost", "::1")
LOG = logging.getLogger(__name__)


def check_token(host: str, token: str | None) -> None:
    """
    Raises:
        SpecError: the endpoint would be open to other machines without a token.
    """
    if host not in LOOPBACK and not token:
        raise SpecError(f"--host {host}: other machines could use the endpoint; give a token with --api-token")


@dataclass(frozen=True)
class Served:
    """A variant as the endpoint names it."""

    name: str
    base: Base
    variant: str


def served_models(store: Store, catalogue: Catalogue) -> dict[str, Served]:
    """The finished variants of all sweeps that can be read, as `SWEEP/VARIANT`."""
    found = {}
    for sweep in catalogue.sweeps():
        try:
            base, rows = base_of(store, catalogue.context(sweep)), catalogue.table(sweep).to_pylist()
        except (VrrayError, KeyError):
            LOG.warning("sweep %s cannot be read, its variants are not served", sweep)
            continue
        for row in rows:
            if row["status"] == "complete":
                name = f"{sweep}/{row['variant']}"
                found[name] = Served(name, base, variant_id(row))
    return found


def find_model(models: dict[str, Served], name: str) -> Served:
    """A model by its name, or by its variant's alone where that is in one sweep only.

    Raises:
        ApiError: there is none, or there are several.
    """
    if name in models:
        return models[name]
    matches = [served for served in models.values() if served.name.partition("/")[2] == name]
    if len(matches) == 1:
        return matches[0]
    if matches:
        names = ", ".join(served.name for served in matches)
        raise ApiError(404, f"several sweeps have a variant {name!r}: name one of {names}", "model", "model_not_found")
    raise ApiError(404, f"there is no model {name!r}; GET /v1/models lists them", "model", "model_not_found")


def build_api(store: Store, catalogue: Catalogue, answers: Answers, *, token: str | None, local: bool) -> FastAPI:
    """The application.

    Args:
        token: what `Authorization: Bearer` must hold; None for no check.
        local: it is bound to this machine only, so that a request must have been sent to a local name: a web page
            that had its own name point here would be refused.
    """
    api = FastAPI(title="vrray", docs_url=None, redoc_url=None, openapi_url=None)
    api.exception_handler(ApiError)(_as_json)
    api.exception_handler(404)(lambda request, error: _error(404, "there is no such address; see /v1/models"))
    api.exception_handler(405)(lambda request, error: _error(405, "this address takes another method"))
    api.exception_handler(500)(lambda request, error: _error(500, "the endpoint failed; its log says more"))

    def admit(request: Request) -> None:
        if local and _host_of(request) not in LOOPBACK:
            raise ApiError(403, "the endpoint answers requests to 127.0.0.1 and localhost alone")
        if token is not None:
            given = request.headers.get("authorization", "").removeprefix("Bearer ")
            if not secrets.compare_digest(given.encode("latin-1"), token.encode()):
                raise ApiError(
                    401, "the token is missing or wrong: send Authorization: Bearer TOKEN", code="invalid_api_key"
                )

    @api.get("/v1/models")
    def models(request: Request) -> Response:
        admit(request)
        names = served_models(store, catalogue)
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "vrray"} for name in names]
        return JSONResponse({"object": "list", "data": data})

    @api.post("/v1/chat/completions")
    async def complete(request: Request) -> Response:
        admit(request)
        asked = await _read(request)
        served = find_model(await _in_thread(served_models, store, catalogue), asked.model)
        conversation = await _in_thread(conversation_of, asked)
        session = f"api:{request.client.host if request.client else ''}"
        events = answers.ask(served.base, served.variant, conversation, decoding_of(asked, answers.limits), session)
        reply = Reply(f"chatcmpl-{uuid.uuid4().hex}", served.name, int(time.time()))
        if not asked.stream:
            return JSONResponse(await reply.whole(_checked(events), request))
        started = _checked(events)
        first = await anext(started)  # what is refused at once gets a status of its own
        usage = bool(asked.stream_options and asked.stream_options.include_usage)
        return StreamingResponse(reply.chunks(first, started, usage), media_type="text/event-stream")

    return api


class ApiServer:
    """The application on a port, in a thread of its own.

    Raises:
        SpecError: another host is bound without a token, or the port is taken.
    """

    def __init__(
        self, store: Store, catalogue: Catalogue, answers: Answers, *, host: str, port: int, token: str | None = None
    ):
        check_token(host, token)
        api = build_api(store, catalogue, answers, token=token, local=host in LOOPBACK)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host, port), family=family)
        except OSError as error:
            raise SpecError(f"--api-port {port}: {host} cannot be bound ({error.strerror}); choose another") from None
        self.port: int = self._socket.getsockname()[1]
        self._server = uvicorn.Server(uvicorn.Config(api, log_level="warning", access_log=False, limit_concurrency=256))
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), name="vrray-api", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the server; answers under way are cut off after 2 s."""
        self._server.should_exit = True
        self._thread.join(2)
        self._server.force_exit = True
        self._thread.join(5)
        self._socket.close()


async def _read(request: Request) -> ChatRequest:
    """
    Raises:
        ApiError: the body is too large, not JSON, or not a request that can be answered.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise ApiError(415, "send the request as application/json")  # which no web page can without being asked first
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY:
            raise ApiError(413, f"the request has more than {MAX_BODY >> 20} MiB; send smaller images")
    try:
        return ChatRequest.model_validate(json.loads(bytes(body)))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ApiError(400, f"{where or 'request'}: {first['msg']}", where or None) from None
    except (ValueError, RecursionError):
        raise ApiError(400, "the request is not JSON") from None


async def _checked(events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
    """The events, refusals and errors as `ApiError`."""
    try:
        async with aclosing(events):
            async for event in events:
                if not isinstance(event, Piece | End):
                    raise ApiError(400, event.message)
                yield event
    except Busy as error:
        raise ApiError(429, str(error), code="rate_limit_exceeded") from None
    except DataError as error:
        raise ApiError(400, str(error)) from None
    except ClusterError as error:
        raise ApiError(503, str(error)) from None
    except ApiError:
        raise
    except Exception as error:
        LOG.exception("an answer failed")
        raise ApiError(500, "the endpoint failed; its log says more") from error


async def _in_thread(function: Any, *arguments: Any) -> Any:
    """A function that reads files or decodes images, off the event loop; `DataError` as `ApiError`."""
    import asyncio

    try:
        return await asyncio.to_thread(function, *arguments)
    except DataError as error:
        raise ApiError(400, str(error), "messages") from None


def _host_of(request: Request) -> str:
    host = request.headers.get("host", "")
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


async def _as_json(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), error.status)


def _error(status: int, message: str) -> Response:
    return JSONResponse(ApiError(status, message).body(), status)
