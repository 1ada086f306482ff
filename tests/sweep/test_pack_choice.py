"""How many LoRA trials share a worker group: what is chosen, why, and what is refused. Ray is not started."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from test_plan import GIB, prepared, store

from vrray.errors import ClusterError
from vrray.store import Store
from vrray.sweep.packs import PackChoice, choose_pack, with_pack
from vrray.sweep.prepare import Prepared

__all__ = ["store"]  # a fixture

LORA = {"mode": "lora", "placements": ["uniform", "bottom", "top"], "seeds": [0, 1]}


def pack_of(plan: Prepared, groups: int = 1, gib: float = 8, gpu: bool = False, missing: int = 6) -> PackChoice:
    trials = [plan.space.trial(config) for config in plan.space.configs()]
    return choose_pack(plan, trials[:missing], groups, int(gib * GIB), gpu)


def test_a_pack_is_as_large_as_is_worth_it(tiny_model: Path, store: Store) -> None:
    plan = prepared(tiny_model, store, **LORA)
    assert len(plan.space.configs()) == 6
    on_cpu, on_gpu = (pack_of(plan, gpu=gpu) for gpu in (False, True))
    assert (on_cpu.trials, on_gpu.trials) == (4, 6)
    assert on_cpu.reason == "0.9 GiB of a worker's 8.0; no more than 4 are worth it"
    assert on_gpu.reason.endswith("6 to run on 1 group(s)")
    assert [pack_of(plan, groups, gpu=True).trials for groups in (2, 3, 4, 6)] == [3, 2, 2, 1]
    assert pack_of(plan, missing=1) == PackChoice(1, "1 to run on 1 group(s)")


def test_a_pack_is_as_large_as_fits(tiny_model: Path, store: Store) -> None:
    plan = prepared(tiny_model, store, **LORA)
    plan = replace(plan, shape=replace(plan.shape, hidden=2**13))  # some GiB of activations in all
    sizes = [pack_of(plan, gib=eighths / 8, gpu=True) for eighths in range(8, 64)]
    counts = [choice.trials for choice in sizes]
    assert counts == sorted(counts) and set(counts) == {1, 2, 3, 4, 5, 6}
    assert sizes[0].reason.startswith("two would need") and sizes[0].reason.endswith("a worker has 1.0")
    assert sizes[counts.index(3)].reason.endswith("one more would not")
    asked = replace(plan, spec=plan.spec.model_copy(update={"pack": 3}))
    assert pack_of(asked, gib=19).reason.startswith("as asked")
    with pytest.raises(ClusterError, match=r"--pack 3 would need .* GiB a worker .* smaller --pack"):
        pack_of(asked, gib=1)


def test_what_cannot_be_packed(tiny_model: Path, store: Store) -> None:
    full = prepared(tiny_model, store, mode="full", placements=LORA["placements"])
    assert pack_of(full) == PackChoice(1, "trials tune full parameters, which differ; use mode lora")
    partitioned = prepared(tiny_model, store, **LORA)
    partitioned = replace(partitioned, choice=replace(partitioned.choice, resident=False))
    assert pack_of(partitioned).trials == 1 and "partitioned" in pack_of(partitioned).reason
    with pytest.raises(ClusterError, match="--pack 2 is not possible: frozen weights have to be partitioned"):
        pack_of(replace(partitioned, spec=partitioned.spec.model_copy(update={"pack": 2})))
    assert pack_of(prepared(tiny_model, store, pack=1, **LORA)) == PackChoice(1, "as asked")


def test_a_search_is_packed_for_what_it_may_propose(tiny_model: Path, store: Store) -> None:
    plan = prepared(tiny_model, store, **LORA, search="optuna", trials=3)
    assert choose_pack(plan, None, 1, 8 * GIB, True).trials == 3
    placed = prepared(tiny_model, store, **LORA | {"placements": ["by:angular", "top"]})
    assert choose_pack(placed, None, 1, 8 * GIB, True).trials == 4


def test_packing_changes_no_key(tiny_model: Path, store: Store) -> None:
    plan = prepared(tiny_model, store, **LORA)
    packed = with_pack(plan, PackChoice(4, ""))
    assert packed.site.execution.pack == 4
    keys = [[p.space.trial(config).key for config in p.space.configs()] for p in (plan, packed)]
    other = prepared(tiny_model, store, **LORA, pack=2)
    assert keys[0] == keys[1] == [other.space.trial(config).key for config in other.space.configs()]
