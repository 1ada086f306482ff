"""What is asked and what comes back: plain values that travel between page, endpoint and replica."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vrray.errors import VrrayError


class Busy(VrrayError):
    """Too much is asked at once; the same request can succeed later."""


@dataclass(frozen=True)
class Exchange:
    """A question, the files of its images, and its answer (empty where it is the one that is asked for)."""

    question: str
    images: tuple[bytes, ...] = ()
    answer: str = ""


Conversation = Sequence[Exchange]


@dataclass(frozen=True)
class Decoding:
    """How an answer's tokens are chosen: temperature 0 takes the likeliest; the seed decides otherwise."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Piece:
    """Text that an answer goes on with."""

    text: str


@dataclass(frozen=True)
class End:
    """The last event of an answer.

    Attributes:
        finish: "stop" (the model ended it), "length" (`max_new_tokens` were said) or "cancelled".
        prompt_tokens: positions that the prompt took in the decoder, those of images included.
        tokens: tokens said, without the one that ends the answer.
        first_s: seconds in the replica until the first token, prompt and image included.
        decode_s: seconds from the first token to the last.
    """

    finish: str
    prompt_tokens: int
    tokens: int
    first_s: float
    decode_s: float

    @property
    def tokens_per_s(self) -> float | None:
        """None for less than two tokens."""
        return (self.tokens - 1) / self.decode_s if self.tokens > 1 and self.decode_s > 0 else None


@dataclass(frozen=True)
class Refused:
    """Instead of an answer: why there is none, and what to change."""

    message: str


Event = Piece | End | Refused
