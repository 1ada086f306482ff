"""Answers through `ray.data.llm`: all of it but vLLM, in whose place plain transformers reads the exported variants.

vLLM itself needs GPUs. What stands for it takes what Ray's stage takes and does with the prompts what vLLM does.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from ray.data import llm
from tiny import DEPTH, IMAGE_TOKENS, TOWER_WIDTH, draw_photos

from vrray.evaluate.answer import generate_answers
from vrray.job_specs import EvaluateSpec
from vrray.models.loading import base_identity, load_model, load_processor
from vrray.region import place
from vrray.specs import Recipe
from vrray.store import Store
from vrray.sweep.answers import ANSWERS, read_answers
from vrray.sweep.evaluation import Evaluation, prepare_evaluation
from vrray.sweep.vllm_answers import answer_with_vllm
from vrray.train.trainable import choose_trainable, delta_name
from vrray.train.workspace import Workspace
from vrray.variant import DELTA, Delta, load_variant

pytestmark = pytest.mark.ray

REMOVED = (1, 4)


@pytest.fixture
def evaluation(tiny_model: Path, tmp_path: Path) -> Evaluation:
    """A sweep of one variant, and seven questions: about photos, without one, and one that is too long."""
    store, model = Store(tmp_path / "store"), load_model(tiny_model)
    region, generator = place("0,2", DEPTH), torch.Generator().manual_seed(3)
    with choose_trainable(model, region, Recipe(mode="full")) as trainable:
        shapes = {delta_name(name): model.get_parameter(name).shape for name in trainable.names}
    tensors = {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}
    delta = Delta(tensors, region, base_identity(tiny_model), "full", 0, 0)
    store.put(DELTA, "k1", delta.save)
    row = {
        "variant": "tuned-prune2",
        "placement": "top",
        "seed": 0,
        "status": "complete",
        "key": "k1",
        "removed_layers": list(REMOVED),
    }
    store.write_table("sweeps/where/table.parquet", pa.Table.from_pylist([row]))
    store.write_text("sweeps/where/sweep.json", json.dumps({"context": {"model": str(tiny_model)}}))
    (tmp_path / "photos").mkdir()
    texts = ["Which colour?", "Which colour has the big circle?", "Is it small? " * 3, "What is it?", "Which?"]
    names = draw_photos(tmp_path / "photos", len(texts))
    asked: list[tuple[str, dict[str, str]]] = [
        (f"<image>\n{text}", {"image": name}) for text, name in zip(texts, names, strict=True)
    ]
    asked += [("What is it?", {}), ("no " * 300, {})]
    records = [
        {"conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "red"}], **fields}
        for text, fields in asked
    ]
    (tmp_path / "mine.json").write_text(json.dumps(records))
    (tmp_path / "tasks.yaml").write_text(
        "{name: mine, data: mine.json, images: photos, metric: exact, max_new_tokens: 6}"
    )
    options = {"sweep": "where", "storage": store.uri, "precision": "fp32", "engine": "vllm", "batch": 2}
    return prepare_evaluation(EvaluateSpec.parse({**options, "tasks": [str(tmp_path / "tasks.yaml")]}), gpu=False)


def stand_in(image_tokens: int) -> Any:
    """A stage that answers as vLLM would; a local class, so that it travels to the workers by value."""
    from ray.llm._internal.batch.stages.base import StatefulStageUDF
    from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

    class Engine(StatefulStageUDF):  # type: ignore[misc]
        def __init__(
            self, data_column: str, expected_input_keys: list[str], model: str, engine_kwargs: dict[str, Any], **_: Any
        ) -> None:
            super().__init__(data_column, expected_input_keys)
            assert engine_kwargs["dtype"] == "float32"
            self.model = AutoModelForImageTextToText.from_pretrained(model).eval()
            self.tokenizer = AutoTokenizer.from_pretrained(model)
            self.image_processor = AutoImageProcessor.from_pretrained(model, backend="pil")

        async def udf(self, batch: list[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
            for row in batch:
                assert row["sampling_params"] == {"temperature": 0.0, "max_tokens": 6}
                image_id, ids, pixels = self.model.config.image_token_index, [], {}
                for token in row["tokenized_prompt"]:
                    ids += [int(token)] * (image_tokens if token == image_id else 1)
                if row["multimodal_data"] is not None:
                    image = row["multimodal_data"]["image"]
                    pixels = self.image_processor([image], return_tensors="pt")
                out = self.model.generate(input_ids=torch.tensor([ids]), **pixels, max_new_tokens=6, do_sample=False)[
                    0, len(ids) :
                ]
                text = self.tokenizer.decode(out, skip_special_tokens=True)
                yield {self.IDX_IN_BATCH_COLUMN: row[self.IDX_IN_BATCH_COLUMN], "generated_text": text}

    return Engine


def own_answers(evaluation: Evaluation, *, blind: bool) -> list[str]:
    """What vrray's own engine says to the questions that can be asked."""
    model = load_variant(evaluation.store, "k1", REMOVED, evaluation.path, evaluation.base)
    processor, device = load_processor(evaluation.path), torch.device("cpu")
    workspace = Workspace(evaluation.store, model, processor, evaluation.base, device, rank=0, world=1)
    workspace.use_live(evaluation.images, (IMAGE_TOKENS, TOWER_WIDTH))
    (part,) = evaluation.parts(evaluation.variants[0], evaluation.tasks[0], blind=blind)
    try:
        texts = generate_answers(workspace, part.examples[:-1], blind=blind, batch=4, max_new_tokens=6)
    finally:
        workspace.features.close()
    return [reply.text.strip() for reply in texts]


def test_answers_are_those_of_the_own_engine(
    ray_here: None, evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, engine = llm.build_processor, stand_in(IMAGE_TOKENS)

    def without_vllm(*arguments: Any, **options: Any) -> Any:
        processor = build(*arguments, **options)
        assert processor.list_stage_names() == ["vLLMEngineStage"]
        stage = processor.get_stage_by_name("vLLMEngineStage")
        stage.fn = engine
        assert stage.map_batches_kwargs.pop("num_gpus") == 1
        return processor

    monkeypatch.setattr(llm, "build_processor", without_vllm)
    parts = evaluation.all_parts()
    assert [part.blind for part in parts] == [False, True]
    answer_with_vllm(evaluation, parts, 1)
    for part in parts:
        *answers, long = read_answers(evaluation.store, part)
        assert [answer.prediction for answer in answers] == own_answers(evaluation, blind=part.blind)
        assert len({answer.prediction for answer in answers}) > 3
        assert long.prediction is None
        assert "the model reads 256" in str(long.problem)
    assert {path.name for path in Path(evaluation.store.uri).iterdir()} == {ANSWERS, DELTA, "sweeps"}
