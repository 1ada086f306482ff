"""Evaluations with `engine=vllm`: what is refused, what goes to vLLM, and the keys of its answers."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny import build_family, draw_photos

from vrray.errors import ClusterError, SpecError
from vrray.job_specs import EvaluateSpec
from vrray.store import Store
from vrray.sweep import evaluating, vllm_answers
from vrray.sweep.answers import Part, Variant
from vrray.sweep.evaluation import Evaluation, prepare_evaluation
from vrray.train.launch import Capacity


@pytest.fixture
def options(tiny_model: Path, tmp_path: Path) -> dict[str, Any]:
    """A task of two photos, asked of the tiny model through vLLM."""
    (tmp_path / "photos").mkdir()
    records = [
        {"image": name, "conversations": [{"from": "human", "value": "<image>\nWhich?"}, {"from": "gpt", "value": "a"}]}
        for name in draw_photos(tmp_path / "photos", 2)
    ]
    (tmp_path / "mine.json").write_text(json.dumps(records))
    (tmp_path / "tasks.yaml").write_text("{name: mine, data: mine.json, images: photos, metric: exact}")
    named = {"model": str(tiny_model), "tasks": [str(tmp_path / "tasks.yaml")], "storage": str(tmp_path / "store")}
    return {**named, "precision": "fp32", "engine": "vllm"}


def prepare(options: dict[str, Any]) -> Evaluation:
    return prepare_evaluation(EvaluateSpec.parse(options), gpu=False)


def pretend_installed(monkeypatch: pytest.MonkeyPatch, *, installed: bool) -> None:
    def found(name: str) -> object:
        return (object() if installed else None) if name == "vllm" else find_spec(name)

    monkeypatch.setattr(vllm_answers, "find_spec", found)


def test_without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_installed(monkeypatch, installed=False)
    with pytest.raises(
        SpecError, match=r"vLLM is not installed; install the extra vllm .* pip install 'vrray\[vllm\]'"
    ):
        vllm_answers.check_available(gpu=True)


def test_without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_installed(monkeypatch, installed=True)
    with pytest.raises(ClusterError, match="--engine vllm needs GPUs"):
        vllm_answers.check_available(gpu=False)
    vllm_answers.check_available(gpu=True)


def test_nothing_is_prepared_without_vllm(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_installed(monkeypatch, installed=False)
    monkeypatch.setattr(Capacity, "of_cluster", lambda: Capacity(4.0, 2.0, ((4.0, 2.0, 1e9),)))
    with pytest.raises(SpecError, match="vLLM is not installed"):
        evaluating.run_evaluation(EvaluateSpec.parse({**options, "model": "absent"}))


def test_models_that_vllm_would_ask_otherwise(options: dict[str, Any], tmp_path: Path) -> None:
    vllm_answers.check_servable(prepare(options))
    other = {**options, "model": str(build_family(tmp_path / "idefics3", "idefics3"))}
    with pytest.raises(SpecError, match=r"is 'idefics3' with the vision tower .*; only LLaVA with one of clip"):
        vllm_answers.check_servable(prepare(other))


def test_the_demo_is_refused(options: dict[str, Any], smol: Path) -> None:
    with pytest.raises(SpecError, match=r"smol is 'llava' with the vision tower 'efficientnet_lite'"):
        vllm_answers.check_servable(prepare({**options, "model": "smol"}))


def test_variants_need_a_folder(options: dict[str, Any], s3_folder: str) -> None:
    remote = replace(prepare(options), store=Store(s3_folder))
    vllm_answers.check_servable(remote)
    with pytest.raises(SpecError, match=r"reads variants from a folder that every node sees, and --storage .* is none"):
        vllm_answers.check_servable(replace(remote, variants=(Variant("all", "k1"),)))


def test_keys_name_the_engine(options: dict[str, Any]) -> None:
    chosen = {**options, "tasks": [*options["tasks"], "capitals"], "limit": 2}
    own, other = prepare({**chosen, "engine": "vrray"}).all_parts(), prepare(chosen).all_parts()
    assert [(part.method, part.blind) for part in own] == [("generate", False), ("generate", True), ("continue", False)]
    assert [one.key == two.key for one, two in zip(own, other, strict=True)] == [False, False, True]


def test_choices_among_options_stay_with_the_worker_groups(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, list[Part]] = {}

    class Groups:
        def __init__(self, *_: Any, **__: Any) -> None: ...
        def __enter__(self) -> SimpleNamespace:
            return SimpleNamespace(desk=None)

        def __exit__(self, *_: Any) -> None: ...

    pretend_installed(monkeypatch, installed=True)
    monkeypatch.setattr(Capacity, "of_cluster", lambda: Capacity(4.0, 3.0, ((4.0, 3.0, 1e9),)))
    monkeypatch.setattr(
        evaluating, "answer_with_vllm", lambda _, parts, engines: asked.update({f"{engines} engines": list(parts)})
    )
    monkeypatch.setattr(evaluating, "WorkerGroups", Groups)
    monkeypatch.setattr(evaluating, "_answer", lambda _, parts, *__: asked.update({"groups": list(parts)}))
    monkeypatch.setattr(evaluating, "write_results", lambda _: None)
    evaluating.run_evaluation(EvaluateSpec.parse({**options, "tasks": [*options["tasks"], "capitals"], "limit": 2}))
    found = {name: [(part.task, part.blind) for part in parts] for name, parts in asked.items()}
    assert found == {"3 engines": [("mine", False), ("mine", True)], "groups": [("capitals", False)]}
