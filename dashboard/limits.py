"""How much may be asked: of one session, and of all together. Light to import."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from dashboard.conversation import Busy, Conversation, Decoding
from vrray.errors import DataError

WINDOW_S = 60.0


@dataclass(frozen=True)
class Limits:
    """Requests and new tokens are counted over the last 60 s; an answer counts the tokens that it may have, and when
    it has ended those that it had.

    Attributes:
        session_at_once, session_requests, session_tokens: of one session (a page, or an address at the endpoint).
        total_at_once, total_requests, total_tokens: of all sessions together.
        new_tokens: of one answer.
        question_characters, exchanges, images: of one conversation's longest question, its length, and its images.
    """

    session_at_once: int = 4
    session_requests: int = 60
    session_tokens: int = 20_000
    total_at_once: int = 256
    total_requests: int = 1_200
    total_tokens: int = 200_000
    new_tokens: int = 1_024
    question_characters: int = 8_000
    exchanges: int = 32
    images: int = 8

    def check(self, conversation: Conversation, decoding: Decoding) -> None:
        """
        Raises:
            DataError: the conversation or the answer would be too long, or a setting is out of its range.
        """
        if not conversation or not conversation[-1].question.strip():
            raise DataError("the question is empty; write one")
        if len(conversation) > self.exchanges:
            raise DataError(f"a conversation has at most {self.exchanges} questions; begin a new one")
        if (longest := max(len(exchange.question) for exchange in conversation)) > self.question_characters:
            raise DataError(f"a question has {longest} characters; at most {self.question_characters} are taken")
        if (images := sum(len(exchange.images) for exchange in conversation)) > self.images:
            raise DataError(f"the conversation has {images} images, at most {self.images} are taken; begin a new one")
        if not 1 <= decoding.max_new_tokens <= self.new_tokens:
            raise DataError(f"max new tokens is {decoding.max_new_tokens}; give 1 to {self.new_tokens}")
        if not 0 <= decoding.temperature <= 2 or not 0 < decoding.top_p <= 1:
            raise DataError(
                f"temperature {decoding.temperature} and top-p {decoding.top_p} do not fit; give 0 to 2, and a top-p "
                "above 0 up to 1"
            )
        if not 0 <= decoding.seed < 2**63:
            raise DataError(f"seed {decoding.seed} does not fit; give 0 or more, below 2**63")


@dataclass
class _Use:
    at_once: int = 0
    recent: deque[list[float]] = field(default_factory=deque)  # [time, tokens] of each request

    def forget(self, before: float) -> None:
        while self.recent and self.recent[0][0] < before:
            self.recent.popleft()

    def tokens(self) -> float:
        return sum(tokens for _, tokens in self.recent)


class Gate:
    """Admits requests within limits; may be used from several threads."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic):
        self.limits = limits
        self._clock, self._lock = clock, threading.Lock()
        self._total, self._sessions = _Use(), dict[str, _Use]()

    @contextmanager
    def admitted(self, session: str, tokens: int) -> Iterator[Callable[[int], None]]:
        """Counts a request while inside; yields what is called with the tokens that the answer really had.

        Raises:
            Busy: a limit is reached; says which and when to try again.
        """
        entry = [self._clock(), float(tokens)]
        with self._lock:
            own = self._admit(session, entry)
        try:
            yield lambda used: entry.__setitem__(1, float(used))
        finally:
            with self._lock:
                own.at_once -= 1
                self._total.at_once -= 1

    def _admit(self, session: str, entry: list[float]) -> _Use:
        now, limits = entry[0], self.limits
        for name, use in list(self._sessions.items()):
            use.forget(now - WINDOW_S)
            if not use.recent and not use.at_once:
                del self._sessions[name]
        self._total.forget(now - WINDOW_S)
        own = self._sessions.get(session, _Use())
        checks = [
            (own, "you have", limits.session_at_once, limits.session_requests, limits.session_tokens),
            (self._total, "everybody together has", limits.total_at_once, limits.total_requests, limits.total_tokens),
        ]
        for use, who, at_once, requests, tokens in checks:
            if use.at_once >= at_once:
                raise Busy(f"busy: {who} {use.at_once} answers under way, at most {at_once} at once; try again soon")
            if len(use.recent) >= requests or use.tokens() + entry[1] > tokens:
                wait = math.ceil(use.recent[0][0] + WINDOW_S - now) if use.recent else WINDOW_S
                raise Busy(
                    f"busy: {who} asked {len(use.recent)} questions and taken {use.tokens():.0f} tokens in the last "
                    f"minute, at most {requests} and {tokens} are allowed; try again in {wait:.0f} s"
                )
        self._sessions[session] = own
        for use in (own, self._total):
            use.at_once += 1
            use.recent.append(entry)
        return own
