"""Measuring layer scores on a worker group: ranks share the calibration rows, all get all results.

Rows are put into batches before the ranks share them, and every rank averages the rows' values in the rows' order, so
the scores do not depend on the number of workers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from vrray.data.rows import Row
from vrray.scores.ablation import ablation_losses
from vrray.scores.forward import decode, own_batches, tokens_of
from vrray.scores.gradient import gradient_watch
from vrray.scores.states import StateScores
from vrray.scores.table import MEASUREMENTS, Measurement
from vrray.train.workspace import Workspace

Samples = dict[str, NDArray[np.float64]]
"""The values of each score, `[samples, layers]`; scores that no sample has are left out."""


def measure(
    workspace: Workspace,
    measurement: Measurement,
    rows: Sequence[Row],
    *,
    batch: int = 8,
    recompute: bool = False,
) -> Samples:
    """The scores of one measurement (not `change`, which needs no rows), of the model as it stands.

    Args:
        rows: calibration rows. "states" reads their prompts only; "gradient" and "ablation" the loss of their answers.
        batch: rows at once; "gradient" always takes one.
        recompute: "gradient" keeps no activations within decoder layers.
    """
    found: Found
    if measurement == "gradient":
        found = _gradient(workspace, rows, recompute)
    else:
        found = {"states": _states, "ablation": _ablation}[measurement](workspace, rows, batch)
    everyone: list[dict[str, dict[int, NDArray[np.float64]]]] = [{}] * workspace.world
    dist.all_gather_object(everyone, found)
    samples: Samples = {}
    for name in MEASUREMENTS[measurement]:
        by_row = {number: values for part in everyone for number, values in part.get(name, {}).items()}
        table = [by_row[number] for number in sorted(by_row) if not np.isnan(by_row[number]).any()]
        if table:
            samples[name] = np.stack(table)
    return samples


Found = dict[str, dict[int, NDArray[np.float64]]]  # of each score, the layers' values by the row's number


@torch.inference_mode()
def _states(workspace: Workspace, rows: Sequence[Row], size: int) -> Found:
    prompts = [_prompt_of(workspace, row) for row in rows]
    found: Found = {}
    with StateScores(workspace.model) as scores:
        for numbers, batch in own_batches(workspace, prompts, size):
            scores.tokens = tokens_of(workspace, batch)
            decode(workspace.model, batch)
            for name, values in scores.rows.items():
                found.setdefault(name, {}).update(zip(numbers, values.pop().numpy(), strict=True))
    return found


def _prompt_of(workspace: Workspace, row: Row) -> Row:
    """What comes before a row's first answer, with the images that are there."""
    shown = row.prompt.count(workspace.model.config.image_token_id) // workspace.image_tokens
    return Row(row.id, row.prompt, (False,) * len(row.prompt), row.images[:shown])


def _gradient(workspace: Workspace, rows: Sequence[Row], recompute: bool) -> Found:
    found: dict[int, NDArray[np.float64]] = {}
    with gradient_watch(workspace.model, recompute=recompute) as importance:
        for (number,), batch in own_batches(workspace, rows, 1):
            found[number] = importance(batch).numpy()
    return {"gradient": found}


def _ablation(workspace: Workspace, rows: Sequence[Row], size: int) -> Found:
    found: Found = {"ablation-visual": {}, "ablation-textual": {}}
    for numbers, batch in own_batches(workspace, rows, size):
        _, rises = ablation_losses(workspace.model, batch)
        for number, values in zip(numbers, rises.cpu().numpy(), strict=True):
            found["ablation-visual" if rows[number].images else "ablation-textual"][number] = values
    return found
