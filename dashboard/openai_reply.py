"""Answers in OpenAI's two forms: one object, or server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from dashboard.conversation import End, Event, Piece
from dashboard.openai_types import ApiError


@dataclass(frozen=True)
class Reply:
    """A completion in OpenAI's two forms."""

    id: str
    model: str
    created: int

    async def whole(self, events: AsyncGenerator[Event, None], request: Request) -> dict[str, Any]:
        text, end = "", None
        async with aclosing(events):
            async for event in events:
                if isinstance(event, Piece):
                    text += event.text
                elif isinstance(event, End):
                    end = event
                if await request.is_disconnected():
                    raise ApiError(499, "the client has gone")
        assert end is not None
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "finish_reason": end.finish,
            "logprobs": None,
        }
        return {**self._head("chat.completion"), "choices": [choice], "usage": _usage(end)}

    async def chunks(self, first: Event, rest: AsyncGenerator[Event, None], usage: bool) -> AsyncIterator[str]:
        """Server-sent events; an error that comes late is the last of them."""
        async with aclosing(rest):
            yield self._chunk({"role": "assistant", "content": ""})
            try:
                event: Event | None = first
                while event is not None:
                    if isinstance(event, Piece):
                        yield self._chunk({"content": event.text})
                    elif isinstance(event, End):
                        yield self._chunk({}, event.finish)
                        if usage:
                            yield _sse({**self._head("chat.completion.chunk"), "choices": [], "usage": _usage(event)})
                    event = await anext(rest, None)
            except ApiError as error:
                yield _sse(error.body())
            yield "data: [DONE]\n\n"

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _chunk(self, delta: dict[str, str], finish: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return _sse({**self._head("chat.completion.chunk"), "choices": [choice]})


def _usage(end: End) -> dict[str, int]:
    prompt, said = end.prompt_tokens, end.tokens
    return {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said}


def _sse(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"
