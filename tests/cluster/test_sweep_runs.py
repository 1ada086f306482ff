"""Real sweeps on real Ray: in this process, on a head node, as a submitted job; interrupted, repeated, failing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
import torch
from safetensors.torch import load_file

import vrray
from tests.cluster.commands import OPTIONS, ROOT, flags, sweep_command
from tests.cluster.processes import RAY, Cluster, daemons
from vrray.store import Store
from vrray.upkeep.garbage import find_garbage, users
from vrray.upkeep.inventory import take_inventory

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all tests: what one trained, the next ones reuse."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def interrupted(storage: Path) -> tuple[int, str, float]:
    """A sweep that got Ctrl-C in its first trial: exit status, output, when its projector was committed."""
    process = subprocess.Popen(
        sweep_command(storage), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("trials: about"):
            process.send_signal(signal.SIGINT)
    status = process.wait(timeout=120)
    # On a slow machine the first trial's training may end while the driver does.
    committed = sorted(marker.stat().st_mtime for marker in storage.glob("delta/*/COMMITTED.json"))
    assert 1 <= len(committed) < 3
    return status, "".join(lines), committed[0]


@pytest.fixture(scope="module")
def sweep(ray_here: None, storage: Path, interrupted: tuple[int, str, float]) -> vrray.Sweep:
    return vrray.tune_layers(**OPTIONS, storage=str(storage))


def test_interrupt_ends_cleanly_and_keeps_finished_work(
    interrupted: tuple[int, str, float], sweep: vrray.Sweep, storage: Path
) -> None:
    status, output, committed = interrupted
    assert status == 130
    assert "the same command goes on from there" in output
    assert "Traceback" not in output
    assert "\r" not in output and "%|" not in output  # no progress bar in a log
    times = sorted(marker.stat().st_mtime for marker in storage.glob("delta/*/COMMITTED.json"))
    assert times[0] == committed and len(times) == 3


def test_table_has_a_row_a_variant(sweep: vrray.Sweep) -> None:
    rows = {row["variant"]: row for row in sweep.table.to_pylist()}
    assert set(rows) == {"uniform-2", "uniform-2-prune1", "top-2", "top-2-prune1", "untuned"}
    for row in rows.values():
        assert row["status"] == "complete"
        assert 0 <= row["score_visual_low"] <= row["score_visual"] <= row["score_visual_high"] <= 1
        assert 0 <= row["score_easy-vqa"] <= 1 and 0 <= row["blind_visual"] <= 1
        assert row["latency_ms_per_token"] > 0 and row["peak_mib"] > 0 and row["train_seconds"] > 0
        assert row["retention_visual"] is None  # no all-layer tuning in this sweep
    pruned = rows["top-2-prune1"]
    assert len(pruned["removed_layers"]) == 1 and not set(pruned["removed_layers"]) & set(pruned["tuned_layers"])
    assert pruned["parameters"] < rows["top-2"]["parameters"]
    assert pruned["key"] == rows["top-2"]["key"]
    assert rows["untuned"]["test_score_visual"] is not None
    assert rows[sweep.best()["variant"]]["test_score_visual"] is not None


def test_a_delta_holds_what_trained_and_nothing_else(sweep: vrray.Sweep, storage: Path) -> None:
    row = next(row for row in sweep.table.to_pylist() if row["variant"] == "top-2")
    (file,) = (storage / "delta" / row["key"]).glob("*/delta.safetensors")
    names = {re.sub(r"\.(\d+)\..*", r".\1", name) for name in load_file(file) if ".layers." in name}
    assert names == {f"model.language_model.layers.{index}" for index in row["tuned_layers"]}
    assert all(".layers." in name or "multi_modal_projector" in name for name in load_file(file))
    assert sum(tensor.numel() for tensor in load_file(file).values()) == row["trained_parameters"]


def test_tune_checkpoints_point_at_deltas(sweep: vrray.Sweep, storage: Path) -> None:
    pointers = [json.loads(path.read_text())["delta"] for path in storage.glob("ray/*/*/checkpoint_*/artefact.json")]
    keys = {row["key"] for row in sweep.table.to_pylist() if row["variant"] != "untuned"}
    assert {Path(pointer).name for pointer in pointers} == keys


def test_a_loaded_variant_generates(sweep: vrray.Sweep) -> None:
    model, processor = sweep.load("uniform-2-prune1")
    assert len(model.model.language_model.layers) == 29
    ids = processor.tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    cached, plain = (
        model.generate(input_ids=ids, max_new_tokens=4, do_sample=False, use_cache=use, pad_token_id=0)
        for use in (True, False)
    )
    assert torch.equal(cached, plain)


def test_report_and_figures_are_written(sweep: vrray.Sweep, tmp_path: Path) -> None:
    report = sweep.report(tmp_path / "report.md").read_text()
    assert "uniform-2-prune1" in report
    figures = re.findall(r"\((figures/[^)]+\.png)\)", report)
    assert len(figures) == 3 and all((tmp_path / figure).stat().st_size > 5_000 for figure in figures)


def test_a_repeated_sweep_starts_no_worker(sweep: vrray.Sweep, storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise AssertionError("a complete sweep must not start worker groups")

    monkeypatch.setattr("vrray.sweep.session.WorkerGroups.desk", property(refuse))
    again = vrray.tune_layers(**OPTIONS, storage=str(storage))
    assert again.table.equals(sweep.table)


def test_stage_1_alone_is_the_one_that_sweeps_start_from(sweep: vrray.Sweep, storage: Path) -> None:
    names = ("global_batch", "max_steps", "projector_steps")
    found = vrray.pretrain_projector(**{name: OPTIONS[name] for name in names}, storage=str(storage))
    (row,) = [row for row in sweep.table.to_pylist() if row["variant"] == "untuned"]
    assert (found["key"], found["layers"]) == (row["key"], [])
    assert found["loss"] > 0 and found["delta_bytes"] > 0


def test_placements_follow_scores_and_pruned_variants_are_healed(sweep: vrray.Sweep, storage: Path) -> None:
    placed = {"placements": ["by:gradient", "by:change,spread"], "rankings": ["deepest"], "heal_steps": 1}
    table = vrray.tune_layers(**{**OPTIONS, **placed, "name": "by-score"}, storage=str(storage)).table
    rows = {row["variant"]: row for row in table.to_pylist()}
    trials = ("by-gradient-2", "by-change-spread-2")
    assert set(rows) == {f"{trial}{end}" for trial in trials for end in ("", "-prune1", "-prune1-healed")} | {"untuned"}
    for trial in trials:
        pruned, healed = rows[f"{trial}-prune1"], rows[f"{trial}-prune1-healed"]
        assert (
            pruned["removed_layers"] == healed["removed_layers"] == [max(set(range(30)) - set(pruned["tuned_layers"]))]
        )
        assert (pruned["key"], pruned["healed"], healed["healed"]) == (rows[trial]["key"], False, True)
        assert healed["key"] != pruned["key"] and healed["score_visual"] is not None
    low, high = rows["by-change-spread-2"]["tuned_layers"]
    assert low < 15 <= high
    shared = {name: OPTIONS[name] for name in ("global_batch", "max_steps", "projector_steps", "calibration")}
    scores = vrray.score_layers(**shared, scores=["gradient", "angular"], storage=str(storage))
    assert sorted(scores.order("gradient")[:2]) == rows["by-gradient-2"]["tuned_layers"]
    assert scores.table.num_rows == 60 and min(scores.table["samples"].to_pylist()) == 4
    agreement = {(row["a"], row["b"]): row["rank_correlation"] for row in scores.correlations.to_pylist()}
    assert agreement["angular", "gradient"] == agreement["gradient", "angular"]
    folder = storage / "layer-scores" / "scores"
    assert (folder / "figures" / "layer_scores.png").stat().st_size > 5_000
    assert "rank correlation" in (folder / "report.md").read_text()


def test_a_failing_trial_is_marked_and_the_next_one_runs(sweep: vrray.Sweep, storage: Path) -> None:
    options = {**OPTIONS, "placements": ["bottom"], "learning_rates": [1e30, 1e-4], "prune": [0], "name": "failing"}
    table = vrray.tune_layers(**options, storage=str(storage)).table
    status = {row["learning_rate"]: row["status"] for row in table.to_pylist() if row["placement"] == "bottom"}
    assert status[1e-4] == "complete"
    reason = r"failed: .*(the loss is|gradients are) not finite in 1 steps in a row.*lower the learning rate.*"
    assert re.fullmatch(reason, status[1e30])


def test_optuna_and_asha_use_what_the_store_has(sweep: vrray.Sweep, storage: Path) -> None:
    options = {**OPTIONS, "search": "optuna", "trials": 2, "scheduler": "asha", "name": "optuna"}
    table = vrray.tune_layers(**options, storage=str(storage)).table
    keys = {row["key"] for row in sweep.table.to_pylist()}
    assert {row["key"] for row in table.to_pylist()} <= keys
    assert any(row["placement"] != "none" for row in table.to_pylist())


def test_nothing_that_a_run_uses_is_garbage(sweep: vrray.Sweep, storage: Path) -> None:
    names = ("global_batch", "max_steps", "projector_steps")
    shared = {**{name: OPTIONS[name] for name in names}, "storage": str(storage)}
    trained = vrray.finetune(**shared, placement="top", layers=2)
    vrray.score_layers(**shared, scores=["change"], of="all", calibration=4, name="of-all")
    store = Store(storage)
    inventory = take_inventory(store)
    states = {run.name: run.state for run in inventory.runs}
    runs = ("sweeps/shared", f"trainings/{trained['key']}", "layer-scores/of-all")
    assert [states[run] for run in runs] == ["finished"] * 3
    uses = {artefact.kind for artefact in inventory.artefacts if users(inventory, artefact)}
    assert uses >= {"rows", "features", "delta", "scores", "evaluation"}
    garbage = [item.name for item in find_garbage(store, inventory, 0.0)]
    assert [name for name in garbage if not name.startswith("ray/group-")] == []


def test_on_a_started_head_node_by_address(sweep: vrray.Sweep, storage: Path, cluster: Cluster) -> None:
    command = sweep_command(storage, prune=[0, 1, 2], placements=["top"], name="by-address")
    ran = subprocess.run(
        command,
        cwd=ROOT,
        env={**cluster.environment, "RAY_ADDRESS": "auto"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "1 complete" not in ran.stdout and "0 to train" in ran.stdout
    table = pq.read_table(storage / "sweeps" / "by-address" / "table.parquet").to_pylist()
    removed = {row["variant"]: row["removed_layers"] for row in table}
    assert set(removed["top-2-prune1"]) < set(removed["top-2-prune2"])


def test_as_a_submitted_job_with_token_authentication(sweep: vrray.Sweep, storage: Path, cluster: Cluster) -> None:
    options = {**OPTIONS, "storage": str(storage), "placements": ["bottom"], "prune": [0], "name": "submitted"}
    submit = [RAY, "job", "submit", "--address", cluster.jobs, "--working-dir", "."]
    ran = subprocess.run(
        [*submit, "--", sys.executable, "jobs/sweep.py", *flags(options)],
        cwd=ROOT,
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=420,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "succeeded" in ran.stdout
    variants = pq.read_table(storage / "sweeps" / "submitted" / "table.parquet")["variant"].to_pylist()
    assert set(variants) == {"bottom-2", "untuned"}
    refused = subprocess.run(
        [*submit[:3], "--address", cluster.jobs, "--", "true"],
        env={**cluster.environment, "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
    )
    assert refused.returncode != 0


def test_no_ray_process_is_left() -> None:
    """Runs last in this file: whatever the tests started has ended."""
    ray.shutdown()
    for _ in range(20):
        if not (left := daemons(os.environ["RAY_TMPDIR"])):
            return
        time.sleep(0.5)
    assert not left, f"pid {os.getpid()}: {left}"
