"""Answers from a real Ray Serve deployment with the demo LVLM, through the client and through OpenAI's package."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import openai
import pytest
from PIL import Image, ImageDraw

pytest.importorskip("ray.serve", reason="needs ray[serve]", exc_type=ImportError)

import ray

from dashboard.answers import Answers, State, base_of, connect
from dashboard.conversation import Busy, Decoding, End, Event, Exchange, Piece, Refused
from dashboard.limits import Limits
from dashboard.openai_api import ApiServer
from dashboard.serving import Base, Scale, variant_id
from dashboard.uploads import png
from tests.dashboard.answering import SWEEP, SmallCatalogue, answering_store
from vrray.errors import ClusterError
from vrray.store import Store

pytestmark = pytest.mark.ray
LONG = Exchange("Tell me a very long story about the sea and a ship that is lost.")
LIMITS = Limits(session_at_once=8)


@pytest.fixture(scope="module")
def store(smol: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return answering_store(tmp_path_factory.mktemp("answers"), smol, "smol")


@pytest.fixture(scope="module")
def catalogue(store: Store) -> SmallCatalogue:
    image = Image.new("RGB", (96, 96), "white")
    ImageDraw.Draw(image).ellipse((20, 20, 76, 76), fill="red")
    return SmallCatalogue(store, image)


@pytest.fixture(scope="module")
def answers(store: Store) -> Iterator[Answers]:
    """One place and one that may wait, so that a third request meets a full queue; two variants stay in memory."""
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    connected = connect(store, scale=Scale(at_once=1, waiting=1, resident=2), limits=LIMITS)
    try:
        yield connected
    finally:
        connected.close()
        ray.shutdown()


@pytest.fixture(scope="module")
def base(store: Store, catalogue: SmallCatalogue) -> Base:
    return base_of(store, catalogue.context(SWEEP))


@pytest.fixture(scope="module")
def variants(catalogue: SmallCatalogue) -> dict[str, str]:
    return {row["variant"]: variant_id(row) for row in catalogue.table(SWEEP).to_pylist()}


async def ask(
    answers: Answers, base: Base, variant: str, *asked: Exchange, tokens: int = 12, session: str = "test"
) -> tuple[str, Event]:
    text = ""
    async for event in answers.ask(base, variant, asked, Decoding(tokens), session):
        if not isinstance(event, Piece):
            return text, event
        text += event.text
    raise AssertionError("the answer has no end")


async def is_free(answers: Answers, base: Base, variant: str) -> bool:
    """Whether the one place is free soon: an answer that goes on to its 400 tokens would keep it for many seconds."""
    begin = time.monotonic()
    await ask(answers, base, variant, Exchange("Hello"), tokens=1)
    return time.monotonic() - begin < 4


def test_variants_answer_about_an_image_and_more_of_them_than_stay_resident(
    answers: Answers, base: Base, catalogue: SmallCatalogue, variants: dict[str, str]
) -> None:
    assert answers.prepare(base) == State("loading", "loading smol ...")
    seen = Exchange("What do you see?", (png(catalogue.image(SWEEP, "0.png")),))

    async def rounds() -> list[list[tuple[str, Event]]]:
        names = ["untuned", "top-2", "top-2-prune1", "all"]
        return [[await ask(answers, base, variants[name], seen) for name in names] for _ in range(2)]

    first, second = asyncio.run(asyncio.wait_for(rounds(), 120))
    assert [text for text, _ in first] == [text for text, _ in second]  # coming back changes nothing
    assert len({text for text, _ in first}) >= 2
    for text, end in first:
        assert text.strip() and isinstance(end, End)
        assert end.tokens > 0 and end.prompt_tokens > 9 and end.first_s > 0


def test_an_answer_that_is_stopped_or_dropped_frees_the_replica(
    answers: Answers, base: Base, variants: dict[str, str]
) -> None:
    untuned, decoding = variants["untuned"], Decoding(400)

    async def stopped() -> list[Event]:
        events = []
        async for event in answers.ask(base, untuned, [LONG], decoding, "stopper"):
            if len(events) == 2:
                assert answers.stop("another") == 0
                assert answers.stop("stopper") == 1
            events.append(event)
        return events

    async def dropped() -> None:
        seen = asyncio.Event()

        async def follow() -> None:
            async for _ in answers.ask(base, untuned, [LONG], decoding, "dropper"):
                seen.set()

        task = asyncio.ensure_future(follow())
        await seen.wait()
        task.cancel()

    async def closed() -> None:
        async with aclosing(answers.ask(base, untuned, [LONG], decoding, "closer")) as events:
            await anext(events)

    async def each() -> list[Event]:
        events = await stopped()
        for leave in (dropped, closed):
            assert await is_free(answers, base, untuned)
            await leave()
        assert await is_free(answers, base, untuned)
        return events

    *_, end = events = asyncio.run(asyncio.wait_for(each(), 60))
    assert isinstance(end, End) and end.finish == "cancelled"
    assert len(events) < 10


def test_a_full_queue_says_busy_and_the_waiting_are_answered(
    answers: Answers, base: Base, variants: dict[str, str]
) -> None:
    async def crowd() -> list[object]:
        await answers.ready(base)
        asked = [ask(answers, base, variants["untuned"], LONG, tokens=40, session=f"s{n}") for n in range(6)]
        return list(await asyncio.gather(*asked, return_exceptions=True))

    results = asyncio.run(asyncio.wait_for(crowd(), 90))
    busy = [result for result in results if isinstance(result, Busy)]
    answered = [result for result in results if isinstance(result, tuple)]
    assert busy and "try again" in str(busy[0]) and "all 1 places" in str(busy[0])
    assert answered and {text for text, _ in answered} == {answered[0][0]}
    assert len(busy) + len(answered) == 6


def test_what_cannot_be_answered_is_said(answers: Answers, base: Base, variants: dict[str, str]) -> None:
    async def asked() -> list[Event]:
        unknown = await ask(answers, base, "0" * 19 + "e/", LONG)
        image_token = await ask(answers, base, variants["untuned"], Exchange("What is <image>?"))
        return [unknown[1], image_token[1]]

    unknown, image_token = asyncio.run(asyncio.wait_for(asked(), 60))
    assert isinstance(unknown, Refused) and "no complete artefact delta/" in unknown.message
    assert isinstance(image_token, Refused) and "stands for an image" in image_token.message


def test_a_base_that_cannot_be_loaded_or_held_is_a_message(store: Store, answers: Answers) -> None:
    lost = Base(store.uri, "no-such-model")
    with pytest.raises(ClusterError, match="'no-such-model' is neither a preset"):
        asyncio.run(asyncio.wait_for(answers.ready(lost), 60))
    assert answers.prepare(lost).kind == "failed"
    assert answers.retry(lost).kind == "loading"
    with pytest.raises(ClusterError, match="neither a preset"):
        asyncio.run(asyncio.wait_for(answers.ready(lost), 60))
    large = connect(store, scale=Scale(replicas=99))
    with pytest.raises(ClusterError, match=r"99 replicas need 99 CPUs, the Ray cluster has 2; lower --replicas"):
        asyncio.run(asyncio.wait_for(large.ready(Base(store.uri, "smol", "chat")), 30))


@pytest.fixture(scope="module")
def client(store: Store, catalogue: SmallCatalogue, answers: Answers) -> Iterator[openai.OpenAI]:
    server = ApiServer(store, catalogue, answers, host="127.0.0.1", port=0, token="secret")
    try:
        yield openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="secret", max_retries=0)
    finally:
        server.close()


def test_openai_lists_the_variants(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert names == [f"{SWEEP}/{name}" for name in ("top-2", "top-2-prune1", "all", "untuned")]


def test_openai_completes_about_an_image_as_the_deployment_does(
    client: openai.OpenAI, answers: Answers, base: Base, catalogue: SmallCatalogue, variants: dict[str, str]
) -> None:
    image = png(catalogue.image(SWEEP, "0.png"))
    url = "data:image/png;base64," + base64.b64encode(image).decode()
    parts = [{"type": "text", "text": "What do you see?"}, {"type": "image_url", "image_url": {"url": url}}]
    history = [{"role": "user", "content": parts}, {"role": "assistant", "content": "A circle."}]
    messages = [*history, {"role": "user", "content": "Which colour?"}]
    asked = Exchange("What do you see?", (image,), "A circle."), Exchange("Which colour?")
    expected, end = asyncio.run(ask(answers, base, variants["top-2"], *asked))
    assert isinstance(end, End)
    reply = client.chat.completions.create(model="top-2", messages=messages, max_tokens=12)
    assert reply.choices[0].message.content == expected
    assert reply.usage is not None and reply.usage.prompt_tokens == end.prompt_tokens
    assert reply.usage.completion_tokens == end.tokens and reply.choices[0].finish_reason == end.finish
    stream = client.chat.completions.create(
        model=f"{SWEEP}/top-2", messages=messages, max_tokens=12, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == expected and len(pieces) > 3
    assert chunks[-2].choices[0].finish_reason == end.finish
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == end.tokens


def test_openai_stream_that_is_closed_frees_the_replica(
    client: openai.OpenAI, answers: Answers, base: Base, variants: dict[str, str]
) -> None:
    messages = [{"role": "user", "content": LONG.question}]
    stream = client.chat.completions.create(model="untuned", messages=messages, max_tokens=400, stream=True)
    next(iter(stream))
    stream.close()
    assert asyncio.run(is_free(answers, base, variants["untuned"]))


def test_openai_errors_have_their_types(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    with pytest.raises(openai.NotFoundError, match="no model 'nobody'"):
        client.chat.completions.create(model="nobody", messages=messages)
    with pytest.raises(openai.BadRequestError, match="max new tokens is 99999"):
        client.chat.completions.create(model="untuned", messages=messages, max_tokens=99999)
    with pytest.raises(openai.AuthenticationError, match="Authorization: Bearer"):
        client.with_options(api_key="guess").chat.completions.create(model="untuned", messages=messages)
    image = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/secret.png"}}
    with pytest.raises(openai.BadRequestError, match="other addresses are not opened"):
        client.chat.completions.create(model="untuned", messages=[{"role": "user", "content": [image]}])
