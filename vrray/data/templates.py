"""The prompts of the original LLaVA, Bunny and Visual-Region code: token ids of a conversation, and what is learned."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Protocol

from vrray.data.records import IMAGE_PLACEHOLDER, Turn
from vrray.errors import DataError

IMAGE = -200  # stands for one image in token ids, before it is expanded

_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_USER, _ASSISTANT = "USER", "ASSISTANT"
Span = tuple[int, int]


@dataclass(frozen=True)
class Encoded:
    """A conversation in tokens: `ids` with `IMAGE` for each image, and which of them are supervised.

    `problem` says why none is, where the text itself is the reason.
    """

    ids: list[int]
    supervised: list[bool]
    problem: str = ""


class Template(Protocol):
    """How conversations and questions become tokens."""

    @property
    def name(self) -> str: ...

    def encode(self, turns: Sequence[Turn], tokenizer: Any) -> Encoded:
        """A conversation, images as `<image>` in the user's texts.

        Raises:
            DataError: the template or the tokenizer cannot be used for it.
        """
        ...

    def prompt(self, question: str, tokenizer: Any, images: int) -> list[int]:
        """A question about so many images, up to where the answer begins; `question` has no `<image>`.

        Raises:
            DataError: as `encode`.
        """
        ...


@dataclass(frozen=True)
class Dialogue:
    """A system text, then rounds of `USER: question` and `ASSISTANT: answer`, in the manner of Vicuna v1.

    What is supervised of a round: everything behind `ASSISTANT:`, to the end token. As in the originals, which find the
    answers by cutting the text at the end token and at `ASSISTANT: `, a record whose text has these elsewhere has
    nothing supervised, nor has one whose last answer is empty; an empty answer before is passed over.

    Attributes:
        separator: what follows the system text and each question.
        end: what follows each answer; one token.
        one_image: a message keeps one of its images; otherwise several stay where they are written. A single image
            comes first in its message either way.
    """

    name: str
    separator: str
    end: str
    one_image: bool

    def encode(self, turns: Sequence[Turn], tokenizer: Any) -> Encoded:
        text, answers = self.render(turns)
        ids, spans = _tokenize(text, answers, tokenizer)
        end_id = tokenizer.convert_tokens_to_ids(self.end)
        if any(ids[end - 1] != end_id for _, end in spans):
            raise DataError(
                f"template {self.name!r} ends answers with {self.end!r}, which is no token of this model; "
                "use the template 'chat', or the one that the model was made with"
            )
        problem = self._problem(text, turns)
        return Encoded(ids, answer_mask(len(ids), () if problem else spans), problem)

    def prompt(self, question: str, tokenizer: Any, images: int) -> list[int]:
        asked = _said(_USER, f"{IMAGE_PLACEHOLDER}\n" * images + question, self.separator)
        return _tokenize(f"{_SYSTEM}{self.separator}{asked}{_ASSISTANT}:", (), tokenizer)[0]

    def render(self, turns: Sequence[Turn]) -> tuple[str, list[Span]]:
        """The text of a conversation, and where its answers are: from behind `ASSISTANT:` to behind the end token."""
        text, answers = _SYSTEM + self.separator, []
        for turn in turns:
            text += _said(_USER, self._images_first(turn.user), self.separator)
            begin = len(text) + len(_ASSISTANT) + 1
            text += _said(_ASSISTANT, turn.assistant, self.end)
            if turn.assistant:
                answers.append((begin, len(text)))
        return text, answers

    def _images_first(self, text: str) -> str:
        images = text.count(IMAGE_PLACEHOLDER)
        if images == 1 or (images and self.one_image):
            return f"{IMAGE_PLACEHOLDER}\n{text.replace(IMAGE_PLACEHOLDER, '').strip()}".strip()
        return text

    def _problem(self, text: str, turns: Sequence[Turn]) -> str:
        if not turns[-1].assistant:
            return "the last answer is empty"
        mark = f"{self.separator}{_ASSISTANT}: "
        *rounds, rest = text.split(self.end)
        if rest or any(part.count(mark) != 1 for part in rounds):
            return f"template {self.name!r} finds answers by {mark!r} and {self.end!r}, which the texts hold as well"
        return ""


@dataclass(frozen=True)
class Plain:
    """Image, caption, line break, without words around them: what the originals train a projector on."""

    name: str = "plain"

    def encode(self, turns: Sequence[Turn], tokenizer: Any) -> Encoded:
        if len(turns) != 1 or IMAGE_PLACEHOLDER not in turns[0].user:
            raise DataError(
                f"template {self.name!r} takes one caption of an image, this conversation has {len(turns)} answers and "
                f"{turns[0].user.count(IMAGE_PLACEHOLDER)} images in its first message"
            )
        ids, _ = _tokenize(f"{IMAGE_PLACEHOLDER}{turns[0].assistant}\n", (), tokenizer)
        return Encoded(ids, answer_mask(len(ids), [(ids.index(IMAGE) + 1, len(ids))]))

    def prompt(self, question: str, tokenizer: Any, images: int) -> list[int]:
        raise _asks_nothing(self.name)


@dataclass(frozen=True)
class Caption:
    """Start token, images, the first answer, end token: `plain` for a decoder that attends badly without a start token.

    A chat model's tokenizer often puts none in front of a text. This is what the demo's projector is trained on.
    """

    name: str = "caption"

    def encode(self, turns: Sequence[Turn], tokenizer: Any) -> Encoded:
        images = sum(turn.user.count(IMAGE_PLACEHOLDER) for turn in turns)
        start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        caption = tokenizer(turns[0].assistant, add_special_tokens=False)["input_ids"]
        ids = [*start, *[IMAGE] * images, *caption, tokenizer.eos_token_id]
        return Encoded(ids, answer_mask(len(ids), [(len(start) + images, len(ids))]))

    def prompt(self, question: str, tokenizer: Any, images: int) -> list[int]:
        raise _asks_nothing(self.name)


_ALL: tuple[Template, ...] = (
    Dialogue("llama", separator="", end="<|end_of_text|>", one_image=False),
    Dialogue("llama-bunny", separator=" ", end="<|end_of_text|>", one_image=True),
    Dialogue("phi3", separator=" ", end="<|endoftext|>", one_image=False),
    Dialogue("bunny", separator=" ", end="<|endoftext|>", one_image=False),
    Dialogue("vicuna_v1", separator=" ", end="</s>", one_image=True),
    Plain(),
    Caption(),
)
TEMPLATES: Mapping[str, Template] = {template.name: template for template in _ALL}


def tokenize(texts: Sequence[str], tokenizer: Any, *, add_special_tokens: bool) -> list[Any]:
    """The `tokenizers.Encoding` of each text.

    Raises:
        DataError: the tokenizer does not say which characters its tokens come from.
    """
    if not tokenizer.is_fast:
        raise DataError(f"{type(tokenizer).__name__} gives no offsets; save the model with its fast tokenizer")
    encodings: list[Any] = tokenizer(
        list(texts),
        add_special_tokens=add_special_tokens,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    ).encodings
    return encodings


def token_span(offsets: Sequence[Span], begin: int, end: int) -> Span:
    """The tokens that hold some of the characters from `begin` to `end`; `offsets` are the characters of each token."""
    # A tokenizer may leave white space out of offsets, so a character need not belong to a token.
    first = bisect_right(offsets, begin, key=itemgetter(1))
    return first, bisect_left(offsets, end, key=itemgetter(0))


def _tokenize(text: str, spans: Sequence[Span], tokenizer: Any) -> tuple[list[int], list[Span]]:
    """Token ids with `IMAGE` for each placeholder, and spans of characters (none across an image) as spans of tokens.

    The text between two images is tokenised on its own, without the start token: so do the originals.
    """
    pieces = text.split(IMAGE_PLACEHOLDER)
    encodings = tokenize(pieces, tokenizer, add_special_tokens=True)
    start = int(encodings[0].ids[:1] == [tokenizer.bos_token_id])
    ids: list[int] = encodings[0].ids[:start]
    token_spans: list[Span] = []
    waiting, begin = list(reversed(spans)), 0
    for number, (piece, encoding) in enumerate(zip(pieces, encodings, strict=True)):
        if number:
            ids.append(IMAGE)
        shift, end = len(ids) - start, begin + len(piece)
        ids += encoding.ids[start:]
        if waiting and waiting[-1][0] < end:
            offsets = encoding.offsets
            while waiting and waiting[-1][0] < end:
                first, last = token_span(offsets, *(place - begin for place in waiting.pop()))
                token_spans.append((first + shift, last + shift))
        begin = end + len(IMAGE_PLACEHOLDER)
    return ids, token_spans


def _said(role: str, text: str, after: str) -> str:
    return f"{role}: {text}{after}" if text else f"{role}:"


def answer_mask(length: int, spans: Sequence[Span]) -> list[bool]:
    mask = [False] * length
    for begin, end in spans:
        mask[begin:end] = [True] * (end - begin)
    return mask


def _asks_nothing(name: str) -> DataError:
    return DataError(f"template {name!r} is for captions and asks no question; use another one to get answers")
