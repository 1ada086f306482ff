"""`vrray plan`: figures from a model's configuration alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny import DEPTH, IMAGE_TOKENS, TOWER_WIDTH

from vrray.cli import main
from vrray.errors import SpecError
from vrray.models import presets
from vrray.models.loading import model_shape
from vrray.plan import PlanSpec, make_plan, parse_bytes
from vrray.region import place
from vrray.train.memory import choose_memory, estimate_memory

GIB = 2**30


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    status = main(["plan", *(str(argument) for argument in arguments)])
    captured = capsys.readouterr()
    assert (status, captured.err) == (0, "")
    return captured.out


def planned(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    return json.loads(run(capsys, "--json", *arguments))


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["plan", *(str(argument) for argument in arguments)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("80GiB", 80 * GIB),
        ("80gib", 80 * GIB),
        ("80 GiB", 80 * GIB),
        ("80GB", 80 * 10**9),
        ("24GiB", 24 * GIB),
        ("0.5TiB", 512 * GIB),
        ("512MiB", GIB // 2),
        ("85899345920", 80 * GIB),
        ("85899345920B", 80 * GIB),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "80 gigs", "-80GiB", "80G iB", "8e10", "nan", "0", "0.1B", "80GiB each"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(SpecError, match=r"^--gpu-memory '.*' is no size; write one such as 80GiB, 24GB, or a number"):
        parse_bytes(text)


@pytest.mark.parametrize("preset", presets(), ids=lambda preset: preset.name)
def test_a_preset_is_planned_with_the_papers_region_and_recipe(preset: Any, capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, "--model", preset.name, "--workers", 8, "--gpu-memory", "80GiB")
    assert found["region"] == preset.region.to_json()
    assert found["recipe"] == preset.recipe.model_copy(update={"precision": "bf16"}).model_dump()
    assert found["worker_bytes"] == 80 * GIB


@pytest.mark.parametrize(
    ("model", "trained"),
    [
        # rank * (inputs + outputs) of every linear layer of the region, and the projector
        ("llava-1.5-7b", 8 * 128 * (4 * 8192 + 3 * 15_104) + 20_979_712),
        ("llava-1.5-13b", 9 * 128 * (4 * 10_240 + 3 * 18_944) + 31_467_520),
        ("bunny-llama3-8b", 8 * 128 * (2 * 8192 + 2 * 5120 + 3 * 18_432) + 21_504_000),
        ("bunny-phi3-4b", 8 * 128 * (12_288 + 6144 + 19_456 + 11_264) + 12_982_272),  # fused projections
    ],
)
def test_what_trains(model: str, trained: int, capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, "--model", model)
    assert found["trained_parameters"] == trained
    assert found["delta_bytes"] == 2 * trained
    assert planned(capsys, "--model", model, "--precision", "fp32")["delta_bytes"] == 4 * trained


def test_full_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, "--model", "llava-1.5-7b", "--mode", "full", "--placement", "bottom", "--layers", "2")
    assert found["region"]["layers"] == [0, 1]
    assert found["trained_parameters"] == 2 * 202_383_360 + 20_979_712
    assert (found["recipe"]["mode"], found["recipe"]["learning_rate"]) == ("full", 2e-5)


@pytest.mark.parametrize(
    ("flags", "layers"),
    [
        (["--layers", "0.25"], place("uniform", 40, 0.25)),
        (["--layers", "1"], place("uniform", 40, 1)),
        (["--layers", "1.0"], place("all", 40)),
        (["--placement", "top"], place("top", 40, 0.25)),
        (["--placement", "3,1,7"], place("3,1,7", 40)),
    ],
)
def test_a_region_that_is_asked_for(flags: list[str], layers: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert planned(capsys, "--model", "llava-1.5-13b", *flags)["region"]["layers"] == list(layers)


def test_features(capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, "--model", "llava-1.5-13b", "--image-count", 665_000)
    assert found["feature_bytes_per_1000_images"] == 1000 * 576 * 1024 * 2
    assert found["feature_bytes"] == 665 * found["feature_bytes_per_1000_images"]
    assert planned(capsys, "--model", "llava-1.5-13b")["feature_bytes"] is None


def test_thirteen_billion_on_eight_large_gpus() -> None:
    plan = make_plan(PlanSpec(model="llava-1.5-13b", workers=8, gpu_memory=80 * GIB))
    fits = {(c.zero, c.resident, c.recomputed): plan.fits(c.memory) for c in plan.choices}
    assert fits == {
        (zero, resident, recomputed): "yes" if recomputed else "no"
        for zero, resident in ((0, True), (1, True), (2, True), (3, True), (3, False))
        for recomputed in (0, 40)
    }
    assert (plan.auto.zero, plan.auto.resident) == (3, True)
    assert 0 < plan.auto.recomputed < 40
    assert "fit into the 80.0 GiB of a worker" in plan.auto.reason


def test_thirteen_billion_do_not_fit_into_small_gpus() -> None:
    plan = make_plan(PlanSpec(model="llava-1.5-13b", workers=8, gpu_memory=24 * GIB, micro_batch=1))
    assert {plan.fits(choice.memory) for choice in plan.choices} == {"no"}  # 24.9 GiB of weights in bf16
    assert "exceed the 24.0 GiB of a worker" in plan.auto.reason


def test_what_barely_fits_is_said() -> None:
    roomy = make_plan(PlanSpec(model="llava-1.5-7b", micro_batch=1, tokens=512))
    exact = make_plan(PlanSpec(model="llava-1.5-7b", micro_batch=1, tokens=512, gpu_memory=roomy.auto.memory.total))
    assert (roomy.fits(roomy.auto.memory), exact.fits(roomy.auto.memory)) == ("yes", "tight")
    assert exact.auto.recomputed > roomy.auto.recomputed == 0


def test_the_figures_are_those_of_a_run(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--workers", 4, "--tokens", 50, "--micro-batch", 3, "--mode", "full", "--gpu-memory", "2GiB"]
    found = planned(capsys, "--model", tiny_model, "--layers", 2, *flags)
    recipe = make_plan(PlanSpec(model=str(tiny_model), mode="full")).recipe
    shape, region = model_shape(tiny_model), place("uniform", DEPTH, 2)

    def estimate(zero: int, resident: bool, recomputed: int) -> Any:
        sizes = {"workers": 4, "micro_batch": 3, "tokens": 50, "gpu": True}
        return estimate_memory(
            shape,
            region,
            recipe,
            **sizes,
            zero=zero,
            resident=resident,
            recomputed=recomputed,  # type: ignore[arg-type]
        )

    assert [(c["zero"], c["frozen"], c["recomputed"]) for c in found["choices"]] == [
        (zero, frozen, recomputed)
        for zero, frozen in ((0, "resident"), (1, "resident"), (2, "resident"), (3, "resident"), (3, "partitioned"))
        for recomputed in (0, DEPTH)
    ]
    for choice in found["choices"]:
        memory = estimate(choice["zero"], choice["frozen"] == "resident", choice["recomputed"])
        assert choice["bytes"] == vars(memory) | {"total": memory.total}
        assert choice["fits"] == "yes"
    auto = choose_memory("auto", "auto", "auto", DEPTH, 2 * GIB, estimate)
    assert found["auto"]["bytes"]["total"] == auto.memory.total
    assert found["auto"]["reason"] == auto.reason
    assert found["feature_bytes_per_1000_images"] == 1000 * IMAGE_TOKENS * TOWER_WIDTH * 2


def test_no_weights_are_needed(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(tiny_model / "config.json", tmp_path / "config.json")
    assert planned(capsys, "--model", tmp_path)["parameters"] == planned(capsys, "--model", tiny_model)["parameters"]


def test_a_micro_batch_is_no_larger_than_a_workers_share(capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, "--model", "llava-1.5-7b", "--workers", 64, "--micro-batch", 8)
    assert (found["micro_batch"], found["recipe"]["global_batch"]) == (2, 128)
    assert planned(capsys, "--model", "llava-1.5-7b", "--workers", 6, "--global-batch", 96)["micro_batch"] == 8


def test_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "--model", "llava-1.5-13b", "--image-count", 665_000)
    lines = text.splitlines()
    assert "  decoder        13,015.9M  40 layers of 317.2M" in lines
    assert "region: uniform-9, 9 of 40 layers: 0 4 8 13 17 22 26 31 35" in lines
    assert any(line.startswith("trains (lora, rank 128): 144.1M parameters, 1.08% of all") for line in lines)
    header = next(number for number, line in enumerate(lines) if line.split()[:2] == ["ZeRO", "frozen"])
    table = lines[header : header + 11]
    assert len({line.index(" resident") for line in table[1:9]}) == 1
    assert [line.split()[0] for line in table[1:]] == [*"0011223333"]
    assert all(line.split()[-1] in ("yes", "no") for line in table[1:])
    assert any("partitioned 29.26 (before and after the training)" in line for line in lines)
    assert any(line.startswith("auto takes: ZeRO 3, frozen weights resident, ") for line in lines)
    assert "artefact: 274.9 MiB a training (bf16)" in lines
    assert "stored vision features: 1.10 GiB for 1,000 images, 730.59 GiB for 665,000" in lines


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "llava-1.5-7b", "--gpu-memory", "80 gigs"], "--gpu-memory '80 gigs' is no size"),
        (["--model", "llava-1.5-7b", "--workers", "3"], "global_batch 128 is not a multiple of workers 3"),
        (["--model", "llava-1.5-7b", "--workers", "0"], "option workers: "),
        (["--model", "llava-1.5-7b", "--tokens", "many"], "option tokens: "),
        (["--model", "llava-1.5-7b", "--micro-batch", "0"], "option micro_batch: "),
        (["--model", "llava-1.5-7b", "--layers", "33"], "layers=33 does not fit a decoder of 32 layers"),
        (["--model", "llava-1.5-7b", "--layers", "some"], "option layers: "),
        (["--model", "llava-1.5-7b", "--placement", "botom"], "unknown placement 'botom'"),
        (["--model", "llava-2"], "model 'llava-2' is neither a preset (bunny-llama3-8b, "),
    ],
)
def test_wrong_options(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"error: {message}" in refused(capsys, *flags)
