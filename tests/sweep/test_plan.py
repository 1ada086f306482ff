"""What a sweep is about to do: trials and their keys, what is reused, what is refused. Ray is not started."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tiny import DEPTH, IMAGE_TOKENS, TOWER_WIDTH, Ground, draw_photos, tiny_records

from vrray.data import ingest_block
from vrray.data.records import write_records
from vrray.data.rows import Rows
from vrray.data.tasks import Example, Task, TaskExamples
from vrray.errors import ClusterError, DataError, PruningError, RegionError, SpecError
from vrray.job_specs import FinetuneSpec
from vrray.plans import Pruning
from vrray.region import place
from vrray.specs import Recipe, SweepSpec
from vrray.store import Store
from vrray.sweep.packs import PackChoice
from vrray.sweep.plan import estimated_seconds, plan_text, refuse_too_large
from vrray.sweep.prepare import FeaturePlan, Prepared, prepare
from vrray.sweep.trial import DELTA, evaluation_key, is_complete, trial_key
from vrray.train.execution import Execution
from vrray.train.launch import Capacity

GIB = 2**30
CAPACITY = Capacity(4, 0, ((4.0, 0.0, 16.0 * GIB),))
UNIFORM = place("uniform", DEPTH, 2)
ONE = PackChoice(1, "as asked")
SMALL = {"global_batch": 4, "max_steps": 3, "projector_steps": 2, "precision": "fp32"}


def key(**changes: Any) -> str:
    parts = {"site_base": "b", "rows": "r", "region": UNIFORM, "recipe": Recipe(), "seed": 0, "start": "s"}
    return trial_key(**(parts | changes))


def prepared(model: Path, store: Store, **options: Any) -> Prepared:
    few = {"layers": [2], "prune": [0, 1], "examples": 8}
    spec = SweepSpec.parse({"model": str(model), **few, **SMALL, **options})
    return prepare(spec, store, gpu=False, worker_memory=8 * GIB)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_equal_layers_share_a_key_however_they_were_chosen() -> None:
    assert key(region=place("0,3", DEPTH)) == key(region=UNIFORM) == key()
    assert key(region=place("bottom", DEPTH, 2)) == key(region=place("1,0", DEPTH))
    assert key(region=place("all", DEPTH)) == key(region=place("top", DEPTH, 1.0))
    random = place("random", DEPTH, 2, seed=5)
    assert key(region=random) == key(region=place(",".join(map(str, random)), DEPTH))


@pytest.mark.parametrize(
    "change",
    [
        {"site_base": "other"},
        {"rows": "other"},
        {"region": place("0,4", DEPTH)},
        {"seed": 1},
        {"start": "other"},
        {"start": None},
        *(
            {"recipe": Recipe(**{name: value})}
            for name, value in {
                "mode": "full",
                "learning_rate": 1e-4,
                "projector_learning_rate": 1e-4,
                "global_batch": 64,
                "epochs": 2.0,
                "max_steps": 9,
                "warmup_ratio": 0.1,
                "gradient_clip": 0.5,
                "weight_decay": 0.1,
                "max_length": 1024,
                "lora_rank": 64,
                "lora_alpha": 64,
                "lora_dropout": 0.0,
                "group_by_length": False,
                "precision": "fp32",
            }.items()
        ),
    ],
)
def test_whatever_determines_the_weights_changes_the_key(change: dict[str, Any]) -> None:
    assert key(**change) != key()


def test_an_evaluation_is_that_of_its_variant_and_questions() -> None:
    asked = TaskExamples(Task("t", "visual", "exact", ""), "select", (Example("1", "What?", "red", "a.png"),), 0.2)
    other_answer = replace(asked, examples=(replace(asked.examples[0], answer="blue"),))
    keys = [
        evaluation_key("d", (1,), [asked], False),
        evaluation_key("other", (1,), [asked], False),
        evaluation_key("d", (1, 2), [asked], False),
        evaluation_key("d", (1,), [other_answer], False),
        evaluation_key("d", (1,), [replace(asked, split="test")], False),
        evaluation_key("d", (1,), [asked, asked], False),
        evaluation_key("d", (1,), [asked], True),
    ]
    assert len(set(keys)) == len(keys)
    assert evaluation_key("d", [1], [replace(asked, floor=0.9)], False) == keys[0]


def test_a_grid_runs_every_distinct_training_once(tiny_model: Path, store: Store) -> None:
    plan = prepared(tiny_model, store, placements=["all", "uniform", "0,3"], layers=[2, 1.0], prune=[0], seeds=[0, 1])
    assert len(plan.space.points()) == 12
    regions = [(plan.space.trial(config).region.layers, config["seed"]) for config in plan.space.configs()]
    everything = tuple(range(DEPTH))
    assert sorted(regions) == [(everything, 0), (everything, 1), ((0, 3), 0), ((0, 3), 1)]
    assert {plan.space.trial(config).start for config in plan.space.configs()} == {plan.projector.key}


def test_a_random_search_draws_some_of_them(tiny_model: Path, store: Store) -> None:
    options = {"placements": ["uniform", "bottom", "top"], "learning_rates": [1e-4, 2e-4], "search": "random"}
    three, again = (prepared(tiny_model, store, trials=3, **options).space.configs() for _ in range(2))
    assert three == again
    assert len({str(config) for config in three}) == 3
    assert len(prepared(tiny_model, store, trials=20, **options).space.configs()) == 6


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"placements": ["uniform", "upper"]}, RegionError, "unknown placement 'upper'"),
        ({"layers": [7]}, RegionError, "layers=7 does not fit a decoder of 6 layers"),
        ({"prune": [5]}, PruningError, "cannot remove 5 layers: 4 of 6 may go"),
        ({"tasks": ["mmlu"]}, SpecError, "unknown task 'mmlu'; known are easy-vqa"),
    ],
)
def test_what_cannot_be_run_is_refused_at_once(
    tiny_model: Path, store: Store, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        prepared(tiny_model, store, **options)


def test_rows_are_encoded_once(tiny_model: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepared(tiny_model, store)
    monkeypatch.setattr(ingest_block, "encode_record", lambda *_, **__: pytest.fail("encoded again"))
    again = prepared(tiny_model, store)
    assert again == first
    with store.open("rows", first.site.calibration_key) as folder:
        rows = Rows(folder)
    assert (first.rows, first.longest) == (len(rows), max(len(row.ids) for row in rows)) == (12, first.longest)


def test_own_data_with_the_demos_tasks(tiny_model: Path, ground: Ground, store: Store, tmp_path: Path) -> None:
    write_records(tmp_path / "mine.jsonl", tiny_records(ground.photos, 4))
    photos = ground.images.roots[""]
    data = str(tmp_path / "mine.jsonl")
    plan = prepared(tiny_model, store, data=data, image_folder=str(photos), tasks=["easy-vqa", "capitals"])
    assert plan.site.images.roots[""] == str(photos)
    asked = [example.image for group in plan.site.select for example in group.examples if example.image]
    assert asked and all(image.startswith("demo:") for image in asked)
    held = {image for chunk in plan.site.chunks for image in chunk.images}
    with store.open("rows", plan.data.key) as folder:
        assert held >= {*(image for row in Rows(folder) for image in row.images), *asked}
    write_records(tmp_path / "texts.jsonl", tiny_records([], 4))
    with pytest.raises(DataError, match=r"none of the 4 records .* with an image"):
        prepared(tiny_model, store, data=str(tmp_path / "texts.jsonl"), tasks=["easy-vqa"])


def test_own_data_is_scored_on_rows_that_are_held_out(tiny_model: Path, store: Store, tmp_path: Path) -> None:
    names = draw_photos(tmp_path, 40)
    write_records(tmp_path / "mine.jsonl", tiny_records(names, 40))
    plan = prepared(tiny_model, store, data=str(tmp_path / "mine.jsonl"))  # the images lie beside it
    assert {group.task.name for group in plan.site.select} <= {"held-out", "held-out-text"}
    assert [group.task.metric for group in plan.site.select] == ["exact"] * len(plan.site.select)
    held = {example.image for group in (*plan.site.select, *plan.test) for example in group.examples if example.image}
    with store.open("rows", plan.data.key) as folder:
        trained = {image for row in Rows(folder) for image in row.images}
    assert held and trained and not held & trained
    assert {image for chunk in plan.site.chunks for image in chunk.images} >= held | trained
    text = plan_text(store, plan, [], CAPACITY, 1, ONE)
    assert "in held-out splits" in text and "a generated answer must match exactly" in text


def images_of(plan: Prepared) -> int:
    return len({image for chunk in plan.site.chunks for image in chunk.images})


def test_features_are_stored_where_they_fit_the_budget(tiny_model: Path, store: Store) -> None:
    plan = prepared(tiny_model, store)
    gib = images_of(plan) * IMAGE_TOKENS * TOWER_WIDTH * 2 / GIB
    assert plan.features == FeaturePlan(True, gib, f"{images_of(plan)} images take {gib:.2f} GiB, the budget is 50 GiB")
    fits, exceeds = (prepared(tiny_model, store, feature_budget=factor * gib) for factor in (1.01, 0.99))
    assert fits.features.cached and fits.site.chunks == plan.site.chunks
    assert not exceeds.features.cached and exceeds.site.chunks == ()
    assert exceeds.site.feature_shape == plan.site.feature_shape == (IMAGE_TOKENS, TOWER_WIDTH)
    assert exceeds.site.images.roots == plan.site.images.roots
    text = plan_text(store, exceeds, [], CAPACITY, 1, ONE)
    assert f"vision features: computed in every step ({exceeds.features.reason}); 0 images to compute" in text


def test_features_as_asked(tiny_model: Path, store: Store) -> None:
    kept = prepared(tiny_model, store, features="cache", feature_budget=0)
    live = prepared(tiny_model, store, features="live")
    assert kept.features.cached and kept.site.chunks
    assert not live.features.cached and not live.site.chunks
    assert kept.features.gib == live.features.gib > 0
    assert kept.features.reason == live.features.reason == f"as asked; {images_of(kept)} images take 0.00 GiB"
    assert [live.space.trial(point).key for point in live.space.points()] == [
        kept.space.trial(point).key for point in kept.space.points()
    ]


def test_features_follow_from_the_tower_alone(tiny_model: Path, store: Store, tmp_path: Path) -> None:
    other = shutil.copytree(tiny_model, tmp_path / "tuned")
    weights = load_file(other / "model.safetensors")
    name = next(name for name in weights if "layers.2.mlp.up_proj" in name)
    save_file(weights | {name: weights[name] + 1}, other / "model.safetensors", metadata={"format": "pt"})
    one, two = prepared(tiny_model, store), prepared(other, store)
    assert one.site.base != two.site.base
    assert one.site.chunks == two.site.chunks  # a tuned decoder finds the features of its base


def test_how_a_training_runs(tiny_model: Path, store: Store) -> None:
    options: dict[str, Any] = {
        "micro_batch": 3,
        "zero": 1,
        "activation_checkpointing": "all",
        "packing": True,
        "checkpoint_minutes": 2,
        "checkpoint_steps": 7,
        "max_skipped": 1,
        "compile": True,
    }
    plain, other = prepared(tiny_model, store), prepared(tiny_model, store, **options)
    assert plain.site.execution == Execution(micro_batch=8)
    assert other.site.execution == Execution(3, 1, True, DEPTH, True, 120.0, 7, 1, True)
    assert [other.space.trial(point).key for point in other.space.points()] == [
        plain.space.trial(point).key for point in plain.space.points()
    ]


def test_memory_decides_how_a_training_runs(tiny_model: Path, store: Store) -> None:
    spec = SweepSpec.parse({"model": str(tiny_model), "layers": [2], "prune": [0], "examples": 8, **SMALL})
    roomy, tight = (prepare(spec, store, gpu=False, worker_memory=room) for room in (8 * GIB, GIB // 4))
    assert (roomy.site.execution.resident, roomy.site.execution.recomputed) == (True, 0)
    assert (tight.site.execution.resident, tight.site.execution.recomputed) == (False, DEPTH)
    assert tight.choice.memory.total > GIB // 4
    assert "exceed the 0.2 GiB of a worker" in tight.choice.reason


def test_a_single_training_scores_nothing(tiny_model: Path, store: Store) -> None:
    spec = FinetuneSpec.parse({"model": str(tiny_model), "placement": "0,3", "learning_rate": 0.5, "seed": 4, **SMALL})
    plan = prepare(spec.as_sweep(), store, gpu=False, worker_memory=8 * GIB)
    (config,) = plan.space.configs()
    trial = plan.space.trial(config)
    assert (trial.region.layers, trial.recipe.learning_rate, trial.seed, trial.pruning) == (
        (0, 3),
        0.5,
        4,
        Pruning((), (1, 2, 4, 5)),
    )
    assert (plan.site.select, plan.test) == ((), ())
    sweep = prepared(tiny_model, store, placements=["0,3"], learning_rates=[0.5], seeds=[4])
    assert sweep.space.trial(sweep.space.configs()[0]).key == trial.key  # a sweep finds what a single training trained
    text = plan_text(store, plan, [trial], CAPACITY, 1, ONE)
    assert "0 complete in the store, 1 to train" in text
    assert "blind floor" not in text
    assert not is_complete(store, plan.site, trial)
    store.put(DELTA, trial.key, lambda folder: None)
    assert is_complete(store, plan.site, trial)
    assert not is_complete(store, sweep.site, sweep.space.trial(sweep.space.configs()[0]))


def test_the_plan_counts_what_is_left(tiny_model: Path, store: Store) -> None:
    plan = prepared(tiny_model, store, placements=["uniform", "bottom"], name="where")
    trials = [plan.space.trial(config) for config in plan.space.configs()]
    text = plan_text(store, plan, trials, CAPACITY, 2, ONE)
    assert "sweep 'where':" in text and "6 decoder layers" in text and "12 training rows" in text
    assert "trials: 2 (4 variants); 0 complete in the store, 2 to train" in text
    assert "workers: 2 a trial, 2 trial(s) at once on 4 CPUs and 0 GPUs; DeepSpeed ZeRO stage 3, fp32" in text
    assert "memory: frozen weights resident, 0 of 6 layers recompute activations (" in text
    assert "pack: one trial at a time on a worker group (as asked)" in text
    assert f"{plan.choice.memory.total / GIB:.1f} GiB fit into the 8.0 GiB of a worker" in text
    images = sum(len(chunk.images) for chunk in plan.site.chunks)
    assert f"vision features: computed once and stored ({plan.features.reason}); {images} images to compute" in text
    for group in plan.site.select:
        assert f"{group.task.name} {group.floor:.2f}" in text
    store.put(DELTA, trials[0].key, lambda folder: None)
    assert not is_complete(store, plan.site, trials[0])  # it is trained, but not evaluated
    assert "0 complete in the store, 1 to train" in plan_text(store, plan, trials, CAPACITY, 2, ONE)


def test_time_follows_from_the_measured_projector_stage(tiny_model: Path, store: Store) -> None:
    plan = prepared(tiny_model, store, placements=["uniform", "bottom"])
    trials = [plan.space.trial(config) for config in plan.space.configs()]
    assert estimated_seconds(store, plan, trials, 1) is None
    store.put(DELTA, plan.projector.key, lambda folder: None, {"flops_per_second": 1e4})
    whole = estimated_seconds(store, plan, trials, 1)
    assert whole is not None and whole > 0
    assert estimated_seconds(store, plan, trials, 2) == pytest.approx(whole / 2)
    assert estimated_seconds(store, plan, trials[:1], 1) == pytest.approx(whole / 2)
    store.put(DELTA, trials[0].key, lambda folder: None)
    left = estimated_seconds(store, plan, trials, 1)
    assert left is not None and left < whole
    assert estimated_seconds(store, plan, [], 1) == 0


def test_what_cannot_fit_is_refused_with_figures(tiny_model: Path, store: Store) -> None:
    plan = prepared(tiny_model, store)
    refuse_too_large(plan, CAPACITY)
    small = Capacity(2, 0, ((2.0, 0.0, 0.5 * GIB),))
    with pytest.raises(ClusterError, match=r"would need \d\.\d GiB .* can have 0\.2 GiB; use more --workers"):
        refuse_too_large(plan, small)


@pytest.mark.parametrize(
    ("nodes", "gpu", "at_once"),
    [
        (((4, 0, 8),), None, 2),
        (((2, 0, 8), (3, 0, 8)), None, 2),
        (((16, 4, 64),), None, 2),
        (((16, 4, 64),), False, 8),
        (((1, 0, 8), (1, 0, 8)), None, 1),
    ],
)
def test_trials_at_once(nodes: tuple[tuple[float, float, float], ...], gpu: bool | None, at_once: int) -> None:
    sized = tuple((cpus, gpus, memory * GIB) for cpus, gpus, memory in nodes)
    capacity = Capacity(sum(node[0] for node in nodes), sum(node[1] for node in nodes), sized)
    assert capacity.trials_at_once(SweepSpec.parse({"workers": 2, "gpu": gpu})) == at_once


def test_a_cluster_without_room_for_one_trial() -> None:
    with pytest.raises(
        ClusterError, match=r"needs 2 workers with 3 CPU each; the cluster has 4 CPUs .* room for 1\. L"
    ):
        CAPACITY.trials_at_once(SweepSpec.parse({"workers": 2, "cpus_per_worker": 3}))
    with pytest.raises(ClusterError, match="needs 2 workers with 1 CPU and 1 GPU each"):
        CAPACITY.trials_at_once(SweepSpec.parse({"workers": 2, "gpu": True}))


def test_scores_that_the_rows_do_not_give_are_refused_first(tiny_model: Path, store: Store) -> None:
    for options in ({"rankings": ["ablation-textual"]}, {"placements": ["by:ablation-textual"]}):
        with pytest.raises(SpecError, match="score ablation-textual needs calibration rows without images"):
            prepared(tiny_model, store, tasks=["easy-vqa"], **options)
    prepared(tiny_model, store, tasks=["easy-vqa"], prune=[0], rankings=["ablation-textual"])  # ranks nothing
    assert prepared(tiny_model, store, rankings=["ablation-textual"], placements=["by:angular"]).space.points() == []


def test_placements_by_score_come_with_the_scores(tiny_model: Path, store: Store) -> None:
    space = prepared(tiny_model, store, placements=["bottom", "by:bi", "by:bi,spread"], layers=[2]).space
    assert [point["placement"] for point in space.points()] == ["bottom"]
    assert space.placing_scores == ["bi"]
    space = replace(space, layer_scores={"bi": [0.0, 5.0, 4.0, 3.0, 2.0, 1.0]})
    regions = {name: region for name, region in space.named_regions()}
    assert {name: region.layers for name, region in regions.items()} == {
        "bottom": (0, 1),
        "by:bi": (1, 2),
        "by:bi,spread": (1, 3),
    }
    assert [region.name for region in regions.values()] == ["bottom-2", "by-bi-2", "by-bi-spread-2"]
    assert len(space.all_layers().region) == DEPTH
