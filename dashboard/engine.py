"""A base model and its variants in one process: every tensor that is frozen lies in memory once."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakValueDictionary

import torch

from dashboard.conversation import Conversation, Decoding, End, Event, Piece
from dashboard.prompts import conversation_prompt
from vrray.data.decode import open_image
from vrray.data.features import tower_features
from vrray.data.templates import TEMPLATES
from vrray.errors import DataError, ModelError
from vrray.models.family import family_of, project_features, vision_tower, vocabulary_logits
from vrray.models.loading import base_identity, conversation, load_model, load_processor, model_shape, resolve_model
from vrray.pruning import remove_layers
from vrray.region import Region
from vrray.store import Store
from vrray.sweep.prepare import resolve_precision
from vrray.variant import apply_delta, load_delta, share_tensors

_KEPT_FEATURES = 32  # images whose features are kept, so that variants asked about one image run the tower once


@dataclass(eq=False)
class Tuned:
    """The base with one delta on it, no layer removed."""

    model: Any
    region: Region


@dataclass(eq=False)
class Variant:
    """A model that answers. It keeps what it shares with other variants of its delta."""

    model: Any
    tuned: Tuned


class Engine:
    """The base model, from which variants are made; `variant` and `answer` may run in several threads.

    Args:
        store: where the deltas are.
        model: the base, as a sweep names it.
        template: of conversations; None for the one that the base was trained with.
        precision: "auto" is what sweeps take on such a device.

    Raises:
        ModelError: the base cannot be found or loaded.
    """

    def __init__(
        self,
        store: Store,
        model: str,
        template: str | None,
        device: torch.device,
        precision: Literal["auto", "bf16", "fp32"] = "auto",
    ):
        path = resolve_model(model)
        precision = resolve_precision(precision, device.type == "cuda")
        self.template = template or conversation(model, path)
        self.processor = load_processor(path)
        self._store, self._device, self._base = store, device, base_identity(path)
        self._image_tokens = model_shape(path).image_tokens
        self._whole = load_model(path, torch.bfloat16 if precision == "bf16" else torch.float32).to(device)
        self._tuned: WeakValueDictionary[str, Tuned] = WeakValueDictionary()
        self._features: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._making, self._looking = threading.Lock(), threading.Lock()

    def variant(self, key: str, removed: tuple[int, ...]) -> Variant:
        """The base with a delta, without some layers; what the delta does not change is shared.

        Raises:
            StoreError: there is no complete delta under the key.
            ModelError: it belongs to another base.
            PruningError: the layers are not there.
        """
        with self._making:
            tuned = self._tuned.get(key)
            if tuned is None:
                delta = load_delta(self._store, key)
                tuned = Tuned(share_tensors(self._whole), delta.region)
                apply_delta(tuned.model, delta, self._base)
                self._tuned[key] = tuned
            model = share_tensors(tuned.model)
        # What may go was settled with the plan: a sweep may have pruned inside its region on purpose.
        remove_layers(model, removed, tuned.region, protect=False)
        return Variant(model, tuned)

    def answer(
        self, variant: Variant, asked: Conversation, decoding: Decoding, stopped: Callable[[], bool]
    ) -> Iterator[Event]:
        """The pieces of an answer as they are found, then its end.

        Args:
            stopped: asked before each token; a true answer ends the generation.

        Raises:
            DataError: the conversation does not fit the template or what the model reads, or an image is damaged.
        """
        start = time.perf_counter()
        with self._looking:  # a tokenizer is not for several threads
            prompt = conversation_prompt(asked, self.processor, self._image_tokens, template=self.template)
        self._check_length(len(prompt), decoding, variant)
        ids = torch.tensor([prompt], device=self._device)
        images = [image for exchange in asked for image in exchange.images]
        tokens = _Tokens(variant.model, ids, self._image_inputs(variant, ids, images), decoding)
        first = last = start
        said: list[int] = []
        shown, finish, ends = "", "length", self._ends()
        while len(said) < decoding.max_new_tokens:
            if stopped():
                finish = "cancelled"
                break
            token = tokens.following()
            if token in ends:
                finish = "stop"
                break
            last = time.perf_counter()
            first = first if said else last
            said.append(token)
            text = self.processor.tokenizer.decode(said, skip_special_tokens=True)
            if not text.endswith("\ufffd") and len(text) > len(shown):  # else a character lacks bytes
                yield Piece(text[len(shown) :])
                shown = text
        rest = self.processor.tokenizer.decode(said, skip_special_tokens=True)[len(shown) :]
        if rest:
            yield Piece(rest)
        yield End(finish, len(prompt), len(said), first - start, last - first)

    def _check_length(self, prompt: int, decoding: Decoding, variant: Variant) -> None:
        most = getattr(variant.model.config.text_config, "max_position_embeddings", None)
        if most is not None and prompt + decoding.max_new_tokens > most:
            raise DataError(
                f"the conversation has {prompt} tokens and the answer up to {decoding.max_new_tokens}; the model reads "
                f"{most}: begin a new conversation, or allow fewer new tokens"
            )

    def _ends(self) -> set[int]:
        ids = self._whole.generation_config.eos_token_id
        ends = {ids} if isinstance(ids, int) else set(ids or ())
        mark = getattr(TEMPLATES.get(self.template), "end", None)
        return ends | ({int(self.processor.tokenizer.convert_tokens_to_ids(mark))} if mark else set())

    @torch.inference_mode()
    def _image_inputs(self, variant: Variant, ids: torch.Tensor, images: list[bytes]) -> dict[str, Any]:
        """What the model takes besides ids `[1, tokens]`, for images in the order of the prompt."""
        if not images:
            return {}
        family = family_of(variant.model.config)
        features_INW = torch.stack([self._features_of(image) for image in images])
        encoded = family.encoded(project_features(variant.model, features_INW))
        return {"mm_encoder_outputs": encoded, **family.token_inputs(variant.model.config, ids)}

    def _features_of(self, image: bytes) -> torch.Tensor:
        """`[tokens, width]` in float16, as trainings get them."""
        digest = hashlib.sha256(image).hexdigest()
        with self._looking:
            if digest not in self._features:
                tower, pixels = vision_tower(self._whole), open_image(image, "of the question")
                found = tower_features(tower, self._whole.config, self.processor.image_processor, [pixels])
                self._features[digest] = found[0].half()
            self._features.move_to_end(digest)
            while len(self._features) > _KEPT_FEATURES:
                self._features.popitem(last=False)
            return self._features[digest]


class _Tokens:
    """The next token of a prompt `[1, tokens]`, again and again, with a cache and a random generator of its own."""

    def __init__(self, model: Any, ids: torch.Tensor, images: dict[str, Any], decoding: Decoding):
        self._model, self._decoding = model, decoding
        self._input: dict[str, Any] = {"input_ids": ids, **images}
        self._cache: Any = None
        self._random = torch.Generator(ids.device).manual_seed(decoding.seed)

    @torch.inference_mode()
    def following(self) -> int:
        output = self._model.model(**self._input, past_key_values=self._cache, use_cache=True)
        self._cache = output.past_key_values
        token = pick(vocabulary_logits(self._model, output.last_hidden_state[:, -1])[0], self._decoding, self._random)
        self._input = {"input_ids": torch.tensor([[token]], device=output.last_hidden_state.device)}
        return token


def pick(logits: torch.Tensor, decoding: Decoding, random: torch.Generator) -> int:
    """A token by logits `[vocabulary]`: the likeliest at temperature 0, else drawn from the nucleus.

    The nucleus holds the likeliest tokens whose probabilities reach `top_p` (Holtzman et al. 2020).

    Raises:
        ModelError: the logits are not numbers.
    """
    if not bool(torch.isfinite(logits.max())):
        raise ModelError("the model gives no finite logits; its weights are damaged, or it needs fp32")
    if decoding.temperature <= 0:
        return int(logits.argmax())
    probabilities, order = torch.softmax(logits / decoding.temperature, dim=-1).sort(descending=True)
    before = probabilities.cumsum(0) - probabilities
    probabilities[before >= decoding.top_p] = 0
    probabilities[0] = max(float(probabilities[0]), 1e-9)  # something is left whatever top_p is
    return int(order[torch.multinomial(probabilities, 1, generator=random)])
