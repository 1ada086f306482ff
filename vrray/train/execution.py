"""How a training is carried out. Light to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RUNG, RUNG_SCORE = "rung", "rung_score"  # reported on the way: a step, and the score of the answers after it


@dataclass(frozen=True)
class Execution:
    """Settings that change a training's weights by rounding at most.

    Attributes:
        micro_batch: rows a worker takes at once, at most.
        zero: ZeRO stage, 0 to 3.
        resident: frozen weights whole on each worker; else partitioned with ZeRO stage 3.
        recomputed: how many decoder layers recompute their activations in the backward pass; the tuned ones, which
            would keep the most, come first.
        packing: rows of a micro-batch one behind the other in one sequence, instead of padded.
        checkpoint_seconds, checkpoint_steps: a checkpoint is due after either.
        max_skipped: steps in a row that may be skipped because the loss is not finite.
        compile: torch.compile each decoder layer.
        pack: how many LoRA trials share a worker group and its base at the same time, at most.
        rungs: the steps after which a training says how well it answers, so that weak ones can be stopped.
    """

    micro_batch: int
    zero: Literal[0, 1, 2, 3] = 3
    resident: bool = True
    recomputed: int = 0
    packing: bool = False
    checkpoint_seconds: float = 600.0
    checkpoint_steps: int | None = None
    max_skipped: int = 5
    compile: bool = False
    pack: int = 1
    rungs: tuple[int, ...] = ()
