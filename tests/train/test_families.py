"""Training on other decoders than Llama's, and on other families than LLaVA's.

A region trains and everything else stays bit for bit what it was; layers outside it are scored and removed; the pruned
variant is saved and, in another process, answers as before, with a cache and without.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from tiny import DEPTH, Ground, build_family, build_tiny, prepare_ground, text_config
from transformers import LlamaConfig, MistralConfig, Phi3Config, Qwen2Config

from vrray.models.family import FAMILIES, family_of, project_features
from vrray.models.loading import decoder_layers, load_model
from vrray.pruning import pruned
from vrray.region import place
from vrray.scores.measure import measure
from vrray.scores.table import LayerScores, least_important_first
from vrray.specs import Recipe
from vrray.train.execution import Execution
from vrray.train.loop import Training, train
from vrray.train.workspace import Workspace
from vrray.variant import Delta, applied

DECODERS = {"llama": LlamaConfig, "phi3": Phi3Config, "qwen2": Qwen2Config, "mistral": MistralConfig}
OTHERS = [name for name in FAMILIES if name != "llava"]
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
NEW_TOKENS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@pytest.fixture(scope="module")
def grounds(folder: Path) -> dict[str, Ground]:
    found = {}
    for name in [*DECODERS, *OTHERS]:
        (folder / name / "model").mkdir(parents=True)
        if name in OTHERS:
            model = build_family(folder / name / "model", name)
        else:
            changes = {"pad_token_id": 0} if name == "phi3" else {}
            model = build_tiny(folder / name / "model", text=text_config(DECODERS[name], **changes))
        found[name] = prepare_ground(folder / name, model)
    return found


def in_all(grounds: dict[str, Ground], folder: Path) -> dict[tuple[str, str], Any]:
    results: dict[tuple[str, str], Any] = {}
    for family, ground in grounds.items():
        workspace = ground.workspace()
        before = {name: tensor.clone() for name, tensor in workspace.model.state_dict().items()}
        for name, training in TRAININGS.items():
            trained = train(workspace, replace(training, rows=ground.rows), lambda _: None)
            after = workspace.model.state_dict()
            untouched = all(torch.equal(after[key], tensor) for key, tensor in before.items())
            lora = {"mode": "lora", "lora_rank": LORA.lora_rank, "lora_alpha": LORA.lora_alpha}
            kind = lora if training.recipe.mode == "lora" else {"mode": "full"}
            delta = saved_and_loaded(
                Delta(trained.tensors, REGION, ground.base, **kind), folder / family / name, workspace
            )
            with applied(workspace.model, delta, ground.base):
                tuned = workspace.model.state_dict()
                moved = {key for key, tensor in before.items() if not torch.equal(tuned[key], tensor)}
                if name == "lora":
                    scores = LayerScores.of_samples("bi", measure(workspace, "states", ground.rows)["bi"])
                    results[family, "pruned"] = prune_and_save(workspace, ground, scores, folder / family / "pruned")
            results[family, name] = (trained.losses, untouched, moved)
        restored = workspace.model.state_dict()
        assert all(torch.equal(restored[key], tensor) for key, tensor in before.items())
    return results


def saved_and_loaded(delta: Delta, folder: Path, workspace: Workspace) -> Delta:
    own = folder / str(workspace.rank)
    own.mkdir(parents=True)
    delta.save(own)
    return Delta.load(own)


def prune_and_save(workspace: Workspace, ground: Ground, scores: LayerScores, folder: Path) -> Any:
    """Remove two layers; what the model says then, and what it was asked. Rank 0 saves it."""
    removed = tuple(sorted(least_important_first(scores.values, REGION.outside)[:2]))
    whole = len(decoder_layers(workspace.model))
    with pruned(workspace.model, removed, REGION):
        features = workspace.features.stack(ground.photos[:2])
        asked = [row.prompt for row in ground.rows[:2]]
        answers = answer(workspace.model, asked, features, use_cache=True)
        if workspace.rank == 0:
            workspace.model.save_pretrained(folder)
    assert len(decoder_layers(workspace.model)) == whole
    return scores, removed, asked, features, answers


def answer(model: Any, prompts: list[tuple[int, ...]], features: torch.Tensor, *, use_cache: bool) -> tuple[Any, Any]:
    """Greedy tokens behind prompts with an image each, and the logits that they were chosen by."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    family = family_of(model.config)
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            mm_encoder_outputs=family.encoded(project_features(model, features)),
            **family.token_inputs(model.config, ids),
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=False,
            use_cache=use_cache,
            output_logits=True,
            return_dict_in_generate=True,
        )
    return output.sequences[:, longest:].tolist(), torch.stack(output.logits).numpy()


def in_a_fresh_process(folder: Path, asked: dict[str, Any]) -> dict[tuple[str, bool], Any]:
    return {
        (family, use_cache): answer(load_model(folder / family / "pruned"), *questions, use_cache=use_cache)
        for family, questions in asked.items()
        for use_cache in (True, False)
    }


@pytest.fixture(scope="module")
def results(grounds: dict[str, Ground], folder: Path) -> dict[tuple[str, str], Any]:
    return run_ranks(in_all, 2, grounds, folder)[0]


@pytest.fixture(scope="module")
def reloaded(results: dict[tuple[str, str], Any], grounds: dict[str, Ground], folder: Path) -> dict[Any, Any]:
    asked = {family: results[family, "pruned"][2:4] for family in grounds}
    return run_ranks(in_a_fresh_process, 1, folder, asked)[0]


@pytest.mark.parametrize("name", TRAININGS)
@pytest.mark.parametrize("family", [*DECODERS, *OTHERS])
def test_a_family_trains_its_region_only(results: dict[tuple[str, str], Any], family: str, name: str) -> None:
    losses, untouched, moved = results[family, name]
    assert all(math.isfinite(loss) for loss in losses)
    assert untouched
    paths = FAMILIES[family if family in FAMILIES else "llava"]
    region = {f"{paths.layers}.{layer}." for layer in REGION}
    assert all(key.startswith((*region, f"{paths.projector}.")) for key in moved)
    for part in (*region, f"{paths.projector}."):
        assert any(key.startswith(part) for key in moved), part


@pytest.mark.parametrize("family", [*DECODERS, *OTHERS])
def test_partitioned_weights_train_as_whole_ones(results: dict[tuple[str, str], Any], family: str) -> None:
    assert results[family, "partitioned"][0] == pytest.approx(results[family, "full"][0], rel=1e-4)


@pytest.mark.parametrize("family", [*DECODERS, *OTHERS])
def test_layers_are_scored_and_removed_outside_the_region(results: dict[tuple[str, str], Any], family: str) -> None:
    scores, removed, *_ = results[family, "pruned"]
    assert scores.samples == 24 and all(0 < value < 1 for value in scores.values)
    outside = sorted(REGION.outside, key=lambda layer: scores.values[layer])
    assert set(removed) == set(outside[:2])


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("family", [*DECODERS, *OTHERS])
def test_a_pruned_variant_answers_alike_in_a_fresh_process(
    results: dict[tuple[str, str], Any], reloaded: dict[Any, Any], family: str, use_cache: bool
) -> None:
    expected, logits = results[family, "pruned"][4]
    found, other = reloaded[family, use_cache]
    assert found == expected
    assert other == pytest.approx(logits, abs=1e-3)
