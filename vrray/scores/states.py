"""Scores that follow from one plain forward pass: angular distance, Block Influence, and attention on images.

Hooks compare what enters a layer with what leaves it while both are there; no hidden state outlives its layer.

Shapes: B rows, T tokens of the longest row, L layers, H hidden size, Q text tokens of a row, K heads, D head size.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vrray.models.family import family_of
from vrray.models.loading import decoder_layers

_MOST = 1 << 24  # attention weights that are held at once, in float32


@dataclass(frozen=True)
class Tokens:
    """What the tokens of a batch are; each `[B, T]` and boolean. Special tokens are neither text nor image.

    Attributes:
        present: not padding.
        text: of the prompt's words.
        image: stands for a part of an image.
    """

    present: torch.Tensor
    text: torch.Tensor
    image: torch.Tensor

    @cached_property
    def kinds(self) -> torch.Tensor:
        """`[3, B, T]`, float: text and image tokens together, text tokens, image tokens."""
        return torch.stack([self.text | self.image, self.text, self.image]).float()

    @cached_property
    def asking(self) -> tuple[torch.Tensor, torch.Tensor]:
        """`[B, Q]`: the places of each row's text tokens, and which of these places there are."""
        counts = self.text.sum(1)
        places = self.text.long().argsort(dim=1, descending=True, stable=True)[:, : max(1, int(counts.max()))]
        return places, torch.arange(places.shape[1], device=places.device) < counts.unsqueeze(1)


class StateScores:
    """Observes a model's decoder layers while it reads batches; use as a context manager around forward passes.

    `tokens` is set before every pass. `rows` then has, for each score, `[B, L]` of every batch; nan where a score needs
    image and text and a row has no such tokens.

    - "angular": `arccos(cos(h_l, h_l+1)) / pi` at the last token of a row, h_l entering and h_l+1 leaving layer l.
    - "bi": 1 - the mean of `cos(h_l, h_l+1)` over a row's text and image tokens (Men et al. 2024). As in the original
      code, what leaves the last layer has passed the final norm.
    - "multimodal-bi": the mean of the two that one gets over image tokens only and over text tokens only.
    - "attention": the share of attention that goes to image tokens, over text tokens and heads. It is computed anew
      for the text tokens alone, whatever kernel computes the attention itself.
    """

    def __init__(self, model: nn.Module):
        family = family_of(model.config)
        self._layers = decoder_layers(model)
        self._norm = model.get_submodule(f"{family.decoder}.norm")
        self._attention = str(model.config.text_config._attn_implementation)  # type: ignore[union-attr]
        self._of_module = {id(layer.self_attn): index for index, layer in enumerate(self._layers)}
        self._stack = ExitStack()
        self._left: tuple[torch.Tensor, torch.Tensor] | None = None  # what left the last layer, and its squared length
        self._found: dict[str, list[torch.Tensor]] = {}
        self.tokens: Tokens | None = None
        self.rows: dict[str, list[torch.Tensor]] = {
            name: [] for name in ("angular", "bi", "multimodal-bi", "attention")
        }

    def __enter__(self) -> StateScores:
        for index, layer in enumerate(self._layers):
            handle = layer.register_forward_hook(self._compare(index), with_kwargs=True)
            self._stack.callback(handle.remove)
        self._stack.enter_context(_attention_watched(self._attention, self._watch))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _compare(self, index: int) -> Callable[..., None]:
        last = index == len(self._layers) - 1

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            entering = args[0] if args else kwargs["hidden_states"]
            leaving = output[0] if isinstance(output, tuple) else output
            tokens = self.tokens
            assert tokens is not None, "tokens is set before every pass"
            cosine_BT = self._cosine(entering, leaving)
            ends = _last_token(tokens.present)
            self._add("angular", _angle(cosine_BT.gather(1, ends).squeeze(1)))
            if last:
                cosine_BT = _cosine(entering, self._norm(leaving))
            both, text, image = _influence(cosine_BT, tokens.kinds)
            self._add("bi", both)
            self._add("multimodal-bi", (text + image) / 2)
            if last:
                self._end_batch()

        return hook

    def _cosine(self, entering: torch.Tensor, leaving: torch.Tensor) -> torch.Tensor:
        """What entered a layer has just left the one before, and its length is known."""
        known = self._left is not None and self._left[0] is entering
        square = self._left[1] if self._left is not None and known else _square(entering)
        self._left = (leaving, _square(leaving))
        return _cosine(entering, leaving, square, self._left[1])

    def _watch(
        self, module: nn.Module, query: torch.Tensor, key: torch.Tensor, mask: Any, settings: dict[str, Any]
    ) -> None:
        if id(module) not in self._of_module:  # a vision tower attends, too
            return
        tokens = self.tokens
        assert tokens is not None
        self._add("attention", _share_on_images(module, query, key, mask, settings, tokens))

    def _add(self, name: str, values_B: torch.Tensor) -> None:
        self._found.setdefault(name, []).append(values_B)

    def _end_batch(self) -> None:
        for name, layers in self._found.items():
            self.rows[name].append(torch.stack(layers, dim=1).double().cpu())
        self._found, self.tokens, self._left = {}, None, None


def angular_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`arccos(cosine of a and b) / pi` over the last dimension, in float32."""
    return _angle(_cosine(a, b))


def block_influence(a: torch.Tensor, b: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """`[B]`: 1 - the mean cosine of a and b `[B, T, H]` over the chosen tokens `[B, T]`, in float32.

    Tokens whose state is zero have no direction and are left out.
    """
    return _influence(_cosine(a, b), chosen.float())


def _cosine(
    a: torch.Tensor, b: torch.Tensor, square_a: torch.Tensor | None = None, square_b: torch.Tensor | None = None
) -> torch.Tensor:
    """Over the last dimension; nan where one of both is zero."""
    square_a = _square(a) if square_a is None else square_a
    square_b = _square(b) if square_b is None else square_b
    return torch.linalg.vecdot(a.float(), b.float()) / (square_a * square_b).sqrt()


def _square(a: torch.Tensor) -> torch.Tensor:
    a = a.float()
    return torch.linalg.vecdot(a, a)


def _angle(cosine: torch.Tensor) -> torch.Tensor:
    return torch.arccos(cosine.clamp(-1, 1)) / math.pi


def _last_token(present: torch.Tensor) -> torch.Tensor:
    """`[B, 1]`: the place of the last token that is not padding, on whichever side the padding is."""
    places = torch.arange(present.shape[1], device=present.device)
    return (places * present).argmax(1, keepdim=True)


def _influence(cosine_BT: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """1 - the mean over the chosen tokens `[..., B, T]` (1 or 0) that have a direction; nan where there are none."""
    counted = chosen * ~cosine_BT.isnan()
    return 1 - (counted * cosine_BT.nan_to_num()).sum(-1) / counted.sum(-1)


@contextmanager
def _attention_watched(implementation: str, watch: Callable[..., None]) -> Iterator[None]:
    """Call `watch` with the queries and keys of every attention, which is then computed as it always is."""
    before = ALL_ATTENTION_FUNCTIONS._local_mapping.get(implementation)
    compute = ALL_ATTENTION_FUNCTIONS.get(implementation)

    def watched(
        module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **settings: Any
    ) -> Any:
        watch(module, query, key, mask, settings)
        # Each model has its own eager attention, which is in no table.
        own = compute or sys.modules[type(module).__module__].eager_attention_forward
        return own(module, query, key, value, mask, **settings)

    ALL_ATTENTION_FUNCTIONS[implementation] = watched
    try:
        yield
    finally:
        if before is None:
            del ALL_ATTENTION_FUNCTIONS[implementation]
        else:
            ALL_ATTENTION_FUNCTIONS[implementation] = before


def _share_on_images(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, mask: Any, settings: dict[str, Any], tokens: Tokens
) -> torch.Tensor:
    """`[B]`: the mean over heads and text tokens; nan where a row has no text or no image.

    As many rows at once as keep the K x Q x T numbers of each within bounds.
    """
    rows, heads, length = query.shape[:3]
    size = max(1, _MOST // (heads * tokens.asking[0].shape[1] * length))
    parts = [slice(start, start + size) for start in range(0, rows, size)]
    return torch.cat([_share_of_rows(query, key, mask, settings, tokens, part) for part in parts])


def _share_of_rows(
    query: torch.Tensor, key: torch.Tensor, mask: Any, settings: dict[str, Any], tokens: Tokens, rows: slice
) -> torch.Tensor:
    places_BQ, there_BQ = (each[rows] for each in tokens.asking)
    asking = query[rows].gather(2, places_BQ[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[3]))
    asking = asking.unflatten(1, (key.shape[1], -1))  # heads that share their keys side by side
    scale = settings.get("scaling") or query.shape[-1] ** -0.5
    logits = (asking @ key[rows].transpose(2, 3).unsqueeze(2)).float() * scale
    logits.masked_fill_(~_allowed(mask, places_BQ, tokens, settings, rows)[:, None, None], -math.inf)
    shares_BQ = (logits.softmax(-1) * tokens.image[rows, None, None, None]).sum(-1).mean((1, 2))
    seen = tokens.image[rows].any(1)
    total_B = torch.where(there_BQ, shares_BQ.nan_to_num(), 0).sum(1)
    return torch.where(seen, total_B / there_BQ.sum(1), math.nan)


def _allowed(mask: Any, places_BQ: torch.Tensor, tokens: Tokens, settings: dict[str, Any], rows: slice) -> torch.Tensor:
    """Boolean `[B, Q, T]`: which tokens each text token may attend to."""
    if isinstance(mask, torch.Tensor) and mask.dim() == 4:  # [1 or B, 1, T, T], of which True or 0 may be seen
        of_rows = (mask[rows] if len(mask) > 1 else mask.expand(len(places_BQ), -1, -1, -1))[:, 0]
        of_rows = of_rows.gather(1, places_BQ.unsqueeze(2).expand(-1, -1, of_rows.shape[2]))
        return of_rows if of_rows.dtype == torch.bool else of_rows == 0
    # A kernel without a mask is causal by itself, and flash attention takes away the padding before.
    back = places_BQ.unsqueeze(2) - torch.arange(tokens.present.shape[1], device=places_BQ.device)
    allowed = (back >= 0) & tokens.present[rows].unsqueeze(1)
    window = settings.get("sliding_window")
    return allowed & (back < window) if window else allowed
