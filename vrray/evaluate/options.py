"""The likelihood of options behind a prompt, in one pass over the prompt and the options' tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch

from vrray.evaluate.inputs import image_inputs, right_pad
from vrray.models.family import family_of, vocabulary_logits
from vrray.train.workspace import Workspace

_AT_ONCE = 256  # states whose logits over the whole vocabulary are in memory at a time


@dataclass(frozen=True)
class Choice:
    """Tokens of a prompt and of the options that may follow it, and the image that the prompt speaks of.

    Prompt and options are one row for the model: the last token of an option tells nothing and is left out, the others
    follow the prompt in position, and see the prompt and those of their own option.
    """

    prompt: Sequence[int]
    options: Sequence[Sequence[int]]
    image: str | None = None

    @property
    def branches(self) -> int:
        """Options that have tokens in the row."""
        return sum(len(option) > 1 for option in self.options)

    def ids(self) -> list[int]:
        return [*self.prompt, *(token for option in self.options for token in option[:-1])]

    def owners(self) -> list[int]:
        """For each token of the row 0 for the prompt, or the number of its option from 1."""
        numbered = enumerate(self.options, 1)
        return [0] * len(self.prompt) + [number for number, option in numbered for _ in option[:-1]]

    def positions(self) -> list[int]:
        begin = len(self.prompt)
        return [*range(begin), *(begin + place for option in self.options for place in range(len(option) - 1))]

    def told_at(self) -> list[int]:
        """For each token of each option, whose output tells it: 0 for the prompt's last token, the next ones from 1."""
        found, place = list[int](), 0
        for option in self.options:
            found += [0, *range(place + 1, place + len(option))]
            place += len(option) - 1
        return found


@torch.inference_mode()
def option_likelihoods(workspace: Workspace, choices: Sequence[Choice]) -> list[list[float]]:
    """The log-probability of each option of each choice."""
    branching = max(choice.branches for choice in choices) > 1
    if branching and not _may_branch(workspace.model, max(len(choice.prompt) for choice in choices)):
        alone = [replace(choice, options=[option]) for choice in choices for option in choice.options]
        single = iter(option_likelihoods(workspace, alone))
        return [[next(single)[0] for _ in choice.options] for choice in choices]
    ids, mask = right_pad([choice.ids() for choice in choices], workspace)
    inputs = {"attention_mask": mask}
    if branching:
        owners, _ = right_pad([choice.owners() for choice in choices], workspace)
        inputs["attention_mask"] = _branch_mask(owners, mask, workspace.model.dtype)
        inputs["position_ids"], _ = right_pad([choice.positions() for choice in choices], workspace)
    images = [choice.image for choice in choices if choice.image is not None]
    with _own_masks(workspace.model) if branching else nullcontext():
        hidden = workspace.model.model(
            input_ids=ids, **inputs, **image_inputs(workspace, ids, images), use_cache=False
        ).last_hidden_state
    telling = [hidden[row, len(choice.prompt) - 1 : len(choice.ids())] for row, choice in enumerate(choices)]
    begins = accumulate((len(states) for states in telling), initial=0)
    told_at = [begin + place for choice, begin in zip(choices, begins, strict=False) for place in choice.told_at()]
    options = [option for choice in choices for option in choice.options]
    found = _log_probabilities(workspace.model, torch.cat(telling), told_at, [t for option in options for t in option])
    each = iter(part.sum().item() for part in found.split([len(option) for option in options]))
    return [[next(each) for _ in choice.options] for choice in choices]


def _log_probabilities(model: Any, states: torch.Tensor, at: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
    """Of each token after the state with the index `at`, in float64 on the CPU; states are `[states, width]`."""
    places, following = (torch.tensor(values, device=states.device) for values in (at, tokens))
    found = torch.empty(len(places), dtype=torch.float64, device=states.device)
    for begin, some in zip(range(0, len(states), _AT_ONCE), states.split(_AT_ONCE), strict=True):
        here = (places >= begin) & (places < begin + len(some))
        log_probabilities = vocabulary_logits(model, some).log_softmax(-1)
        found[here] = log_probabilities[places[here] - begin, following[here]].double()
    return found.cpu()


def _may_branch(model: Any, longest: int) -> bool:
    """Whether one mask does for all layers, and it has no other parts than `_branch_mask` knows of."""
    window = getattr(model.config.text_config, "sliding_window", None)
    return not family_of(model.config).two_way_images and (window is None or longest < window)


def _branch_mask(owners: torch.Tensor, mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What attention scores get added, `[rows, 1, tokens, tokens]`; owners and padding mask are `[rows, tokens]`."""
    tokens = owners.shape[1]
    ours = (owners[:, None, :] == 0) | (owners[:, None, :] == owners[:, :, None])
    seen = ours & mask.bool()[:, None, :] & torch.ones(tokens, tokens, dtype=torch.bool, device=mask.device).tril()
    return torch.zeros(seen.shape, dtype=dtype, device=mask.device).masked_fill(~seen, torch.finfo(dtype).min)[:, None]


@contextmanager
def _own_masks(model: Any) -> Iterator[None]:
    """Flash attention takes no mask of one's own, so another kernel takes its place meanwhile."""
    config = model.config.text_config
    usual = config._attn_implementation
    if usual.startswith("flash"):
        config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        config._attn_implementation = usual
