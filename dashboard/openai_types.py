"""OpenAI's chat completion request, as far as the endpoint takes it. What it cannot do is refused, not ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dashboard.conversation import Conversation, Decoding, Exchange
from dashboard.limits import Limits
from dashboard.uploads import image_of_url

_KINDS = {401: "authentication_error", 403: "permission_error", 404: "invalid_request_error", 429: "rate_limit_error"}
# Fields that would change the answer, with the values that ask for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "stop": (None, []),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
}


class ApiError(Exception):
    """A request that is not answered, in OpenAI's form."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        kind = _KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore")


class TextPart(_Part):
    type: Literal["text"]
    text: str


class ImageUrl(_Part):
    url: str


class ImagePart(_Part):
    type: Literal["image_url"]
    image_url: ImageUrl


class Message(_Part):
    role: Literal["user", "assistant"]
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]

    @model_validator(mode="before")
    @classmethod
    def _no_system(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("role") in ("system", "developer"):
            raise ValueError("variants are trained without system messages; put the text into the first question")
        return data


class StreamOptions(_Part):
    include_usage: bool = False


class ChatRequest(_Part):
    model: str
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: Any) -> Any:
        for name, neutral in _NEUTRAL.items():
            if isinstance(data, dict) and data.get(name) not in neutral:
                raise ValueError(f"{name} is not supported; leave it out")
        return data


def conversation_of(request: ChatRequest) -> Conversation:
    """The exchanges of a request: questions and answers in turn, beginning and ending with a question.

    Raises:
        ApiError: the messages are in another order, or an answer holds an image.
        DataError: an image is refused.
    """
    exchanges: list[Exchange] = []
    for number, message in enumerate(request.messages):
        if message.role != ("user", "assistant")[number % 2]:
            raise ApiError(400, f"messages.{number}: user and assistant must take turns, user first", "messages")
        text, images = _content(message)
        if message.role == "user":
            exchanges.append(Exchange(text, images))
        elif images:
            raise ApiError(400, f"messages.{number}: an assistant's message holds an image", "messages")
        else:
            exchanges[-1] = Exchange(exchanges[-1].question, exchanges[-1].images, text)
    if request.messages[-1].role != "user":
        raise ApiError(400, "the last message must be the user's", "messages")
    return exchanges


def decoding_of(request: ChatRequest, limits: Limits) -> Decoding:
    """Without a temperature the likeliest token is taken, as in the evaluation."""
    most = request.max_completion_tokens or request.max_tokens or min(256, limits.new_tokens)
    return Decoding(most, request.temperature, request.top_p, request.seed or 0)


def _content(message: Message) -> tuple[str, tuple[bytes, ...]]:
    if isinstance(message.content, str):
        return message.content, ()
    texts = [part.text for part in message.content if isinstance(part, TextPart)]
    images = [image_of_url(part.image_url.url) for part in message.content if isinstance(part, ImagePart)]
    return "\n".join(texts), tuple(images)
