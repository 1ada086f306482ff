"""The endpoint's door: tokens, hosts, sizes, shapes of requests. Answers are scripted; tests/cluster has real ones."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

pytest.importorskip("ray.serve", reason="needs ray[serve]", exc_type=ImportError)

from dashboard.conversation import Busy, Conversation, Decoding, End, Event, Piece, Refused
from dashboard.limits import Limits
from dashboard.openai_api import MAX_BODY, ApiServer
from dashboard.serving import Base
from tests.dashboard.answering import SmallCatalogue, answering_store
from vrray.errors import ClusterError, SpecError
from vrray.store import Store


class Scripted:
    limits = Limits()
    closed = 0

    async def ask(
        self, base: Base, variant: str, conversation: Conversation, decoding: Decoding, session: str
    ) -> AsyncGenerator[Event, None]:
        question = conversation[-1].question
        self.limits.check(conversation, decoding)
        if question == "busy":
            raise Busy("busy: try again in a moment")
        if question == "down":
            raise ClusterError("the deployment does not answer")
        if question == "crash":
            raise RuntimeError("secret detail")
        yield Piece(f"{variant} {decoding.max_new_tokens} {len(conversation)} ")
        if question == "late":
            yield Refused("the model failed while answering")
            return
        try:
            while question == "forever":
                await asyncio.sleep(0.02)
                yield Piece("on ")
        finally:
            Scripted.closed += 1
        yield End("stop", 7, 3, 0.1, 0.2)


@pytest.fixture(scope="module")
def site(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, SmallCatalogue]:
    store = answering_store(tmp_path_factory.mktemp("api"), tiny_model, str(tiny_model))
    return store, SmallCatalogue(store, Image.new("RGB", (8, 8)))


@pytest.fixture(scope="module")
def client(site: tuple[Store, SmallCatalogue]) -> Iterator[httpx.Client]:
    server = ApiServer(*site, Scripted(), host="127.0.0.1", port=0)  # type: ignore[arg-type]
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=20) as client:
        yield client
    server.close()


def ask(client: httpx.Client, text: Any = "hello", **changes: Any) -> httpx.Response:
    body = {"model": "top-2", "messages": [{"role": "user", "content": text}], **changes}
    return client.post("/v1/chat/completions", json=body)


def refusal(response: httpx.Response) -> str:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "Traceback" not in response.text and "secret" not in response.text
    return str(error["message"])


def test_an_answer_has_text_and_usage(client: httpx.Client) -> None:
    reply = ask(client, max_completion_tokens=9).json()
    assert reply["choices"][0]["message"]["content"].split() == ["00000000000000000002/", "9", "1"]
    assert reply["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    assert reply["model"] == "places/top-2"


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        ({"model": "places/broken"}, 404, "no model"),
        ({"model": "../places/top-2"}, 404, "no model"),
        ({"model": 3}, 400, "model"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, 400, "without system messages"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "take turns"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}, 400, "last message"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, 400, "messages"),
        ({"messages": [{"role": "user", "content": ""}]}, 400, "empty"),
        ({"n": 2}, 400, "n is not supported"),
        ({"tools": [{}]}, 400, "tools is not supported"),
        ({"stop": ["x"]}, 400, "stop is not supported"),
        ({"temperature": 9}, 400, "temperature 9"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"max_tokens": 10**9}, 400, "max new tokens"),
        ({"seed": -1}, 400, "seed"),
    ],
)
def test_what_is_asked_wrongly_is_said(client: httpx.Client, changes: Any, status: int, message: str) -> None:
    response = ask(client, **changes)
    assert response.status_code == status and message in refusal(response)


def test_failures_have_their_status_and_no_trace(client: httpx.Client) -> None:
    for text, status in (("busy", 429), ("down", 503), ("crash", 500), ("late", 400)):
        response = ask(client, text)
        assert response.status_code == status, text
        assert refusal(response)
    assert ask(client, "busy", stream=True).status_code == 429
    late = ask(client, "late", stream=True).text.split("\n\n")
    assert json.loads(late[-3].removeprefix("data: "))["error"]["message"] == "the model failed while answering"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'"' * 9, b"[" * 100_000])
def test_bodies_that_are_no_request_are_refused(client: httpx.Client, body: bytes) -> None:
    response = client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400 and refusal(response)


def test_large_bodies_are_cut_off_also_without_a_length(client: httpx.Client) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range((MAX_BODY >> 20) + 2):
            yield b" " * (1 << 20)

    response = client.post("/v1/chat/completions", content=chunks(), headers={"content-type": "application/json"})
    assert response.status_code == 413 and "MiB" in refusal(response)


def test_web_pages_cannot_use_the_endpoint(client: httpx.Client) -> None:
    """A form needs no permission but is no JSON, and a name of one's own that points here is not a local one."""
    plain = client.post("/v1/chat/completions", content=b"{}", headers={"content-type": "text/plain"})
    assert plain.status_code == 415
    assert client.get("/v1/models", headers={"host": "evil.example"}).status_code == 403
    preflight = client.options("/v1/chat/completions", headers={"origin": "http://evil.example"})
    assert "access-control-allow-origin" not in preflight.headers


def test_unknown_addresses_and_paths_have_openai_errors(client: httpx.Client) -> None:
    for path in ("/", "/v1/files", "/../../etc/passwd", "/docs", "/openapi.json", "/v1/models/%2e%2e%2fx"):
        response = client.get(path)
        assert response.status_code == 404 and refusal(response)


def test_a_client_that_goes_ends_its_answer(client: httpx.Client) -> None:
    before = Scripted.closed
    body = {"model": "top-2", "messages": [{"role": "user", "content": "forever"}]}
    with client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
        next(response.iter_lines())
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/chat/completions", json=body, timeout=0.5)
    for _ in range(100):
        if Scripted.closed == before + 2:
            break
        client.get("/v1/models")
    assert Scripted.closed == before + 2


def test_a_token_is_demanded_of_everybody(site: tuple[Store, SmallCatalogue]) -> None:
    with pytest.raises(SpecError, match=r"--host 0\.0\.0\.0: .* give a token with --api-token"):
        ApiServer(*site, Scripted(), host="0.0.0.0", port=0)  # type: ignore[arg-type]
    server = ApiServer(*site, Scripted(), host="0.0.0.0", port=0, token="secrét")  # type: ignore[arg-type]
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}") as client:
            for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secr"}):
                assert client.get("/v1/models", headers=headers).status_code == 401
                assert client.post("/v1/chat/completions", headers=headers, json={}).status_code == 401
            good = {"authorization": "Bearer secrét".encode()}
            assert client.get("/v1/models", headers=good).status_code == 200  # type: ignore[arg-type]
    finally:
        server.close()


def test_a_port_that_is_taken_is_said(site: tuple[Store, SmallCatalogue]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SpecError, match=f"--api-port {port}"):
            ApiServer(*site, Scripted(), host="127.0.0.1", port=port)  # type: ignore[arg-type]
