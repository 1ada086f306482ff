"""Training on other decoders than Llama's: a region trains, and everything else stays bit for bit what it was."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from ranks import run_ranks
from tiny import DEPTH, Ground, build_tiny, prepare_ground, text_config
from transformers import LlamaConfig, MistralConfig, Phi3Config, Qwen2Config

from vrray.models.loading import LAYERS
from vrray.region import place
from vrray.specs import Recipe
from vrray.train.execution import Execution
from vrray.train.loop import Training, train
from vrray.variant import Delta, applied

FAMILIES = {"llama": LlamaConfig, "phi3": Phi3Config, "qwen2": Qwen2Config, "mistral": MistralConfig}
REGION = place("1,4", DEPTH)
FULL = Recipe(
    mode="full", learning_rate=3e-3, projector_learning_rate=1e-2, global_batch=8, max_steps=3, precision="fp32"
)
LORA = FULL.model_copy(update={"mode": "lora", "lora_rank": 4, "lora_alpha": 16, "lora_dropout": 0.0})
PLAIN = Training((), REGION, FULL, seed=3, execution=Execution(micro_batch=4))
TRAININGS = {
    "full": PLAIN,
    "partitioned": replace(PLAIN, execution=Execution(micro_batch=4, resident=False)),
    "lora": replace(PLAIN, recipe=LORA),
}


@pytest.fixture(scope="module")
def grounds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ground]:
    found = {}
    for name, kind in FAMILIES.items():
        changes = {"pad_token_id": 0} if kind is Phi3Config else {}
        model = build_tiny(tmp_path_factory.mktemp(name), text=text_config(kind, **changes))
        found[name] = prepare_ground(tmp_path_factory.mktemp(f"{name}-ground"), model)
    return found


def in_all(grounds: dict[str, Ground]) -> dict[tuple[str, str], Any]:
    results = {}
    for family, ground in grounds.items():
        workspace = ground.workspace()
        before = {name: tensor.clone() for name, tensor in workspace.model.state_dict().items()}
        for name, training in TRAININGS.items():
            trained = train(workspace, replace(training, rows=ground.rows), lambda _: None)
            after = workspace.model.state_dict()
            untouched = all(torch.equal(after[key], tensor) for key, tensor in before.items())
            delta = Delta(trained.tensors, REGION, ground.base, "full")
            if training.recipe.mode == "lora":
                delta = Delta(trained.tensors, REGION, ground.base, "lora", LORA.lora_rank, LORA.lora_alpha)
            with applied(workspace.model, delta, ground.base):
                tuned = workspace.model.state_dict()
                moved = {key for key, tensor in before.items() if not torch.equal(tuned[key], tensor)}
            results[family, name] = (trained.losses, untouched, moved)
    return results


@pytest.fixture(scope="module")
def results(grounds: dict[str, Ground]) -> dict[tuple[str, str], Any]:
    return run_ranks(in_all, 2, grounds)[0]


@pytest.mark.parametrize("name", TRAININGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_trains_its_region_only(results: dict[tuple[str, str], Any], family: str, name: str) -> None:
    losses, untouched, moved = results[family, name]
    assert all(math.isfinite(loss) for loss in losses)
    assert untouched
    allowed = (f"{LAYERS}.1.", f"{LAYERS}.4.", "model.multi_modal_projector.")
    assert moved and all(key.startswith(allowed) for key in moved)
    assert {key.split(".")[3] for key in moved if key.startswith(LAYERS)} == {"1", "4"}
