"""`vrray store ls | verify | gc`: what they print, as tables or as one JSON object."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table
from tqdm import tqdm

from vrray.errors import SpecError, StoreError
from vrray.store import Store
from vrray.upkeep.garbage import find_garbage, remove_garbage, users
from vrray.upkeep.inventory import THREADS, Artefact, Inventory, take_inventory


def list_store(storage: str, kind: str | None, *, as_json: bool) -> None:
    """Print what a store holds: its kinds and runs, or the artefacts of one kind.

    Raises:
        SpecError: there is none of that kind.
    """
    inventory = take_inventory(Store(storage))
    if kind is None:
        found = {"kinds": _kinds(inventory), "runs": _runs(inventory)}
    else:
        artefacts = [each for each in inventory.artefacts if each.kind == kind and each.marker is not None]
        if not artefacts:
            known = ", ".join(row["kind"] for row in _kinds(inventory)) or "nothing"
            raise SpecError(f"--kind {kind}: the store has none; it has {known}")
        found = {"artefacts": [_artefact(inventory, each) for each in artefacts]}
    if as_json:
        print(json.dumps(found))
        return
    for rows in found.values():
        _print(rows)
    if not any(found.values()):
        print(f"{storage} holds nothing")


def verify_store(storage: str, *, repair: bool, as_json: bool) -> None:
    """Check every file of every artefact by size and hash, and print what is damaged.

    Args:
        repair: let what is damaged count no longer, so that the next run rebuilds it.

    Raises:
        StoreError: something is damaged, and was not repaired.
    """
    store = Store(storage)
    artefacts = [each for each in take_inventory(store).artefacts if each.marker is not None]
    rows = []
    bar = tqdm(total=sum(each.bytes for each in artefacts), unit="B", unit_scale=True, desc="checked", disable=None)
    with bar, ThreadPoolExecutor(THREADS) as pool:
        checks = pool.map(lambda each: store.damage(each.kind, each.key), artefacts)
        for artefact, damage in zip(artefacts, checks, strict=True):
            bar.update(artefact.bytes)
            if damage is None:
                continue
            if repair:
                store.retract(artefact.kind, artefact.key, damage.attempt)
            rows.append({"kind": artefact.kind, "key": artefact.key, "file": damage.file, "found": damage.found})
    if as_json:
        print(json.dumps({"artefacts": len(artefacts), "damaged": rows, "repaired": repair}))
    else:
        _print(rows)
        size = decimal(sum(each.bytes for each in artefacts))
        print(f"{len(artefacts)} artefacts, {size}: {len(rows)} damaged")
    if rows and repair:
        print("what is damaged counts no longer; the next run that needs it rebuilds it", file=sys.stderr)
    elif rows:
        raise StoreError(f"{len(rows)} artefacts are damaged; with --repair the next run that needs them rebuilds them")


def collect_garbage(storage: str, older_than: float, *, delete: bool, as_json: bool) -> None:
    """Print what no run uses and has not changed for so many hours; remove it where asked to.

    Raises:
        SpecError: the age is negative.
        StoreError: what a run uses is not known.
    """
    if older_than < 0:
        raise SpecError(f"--older-than is a number of hours from 0 on, not {older_than:g}")
    store = Store(storage)
    inventory = take_inventory(store)
    garbage = find_garbage(store, inventory, older_than)
    if delete:
        garbage = remove_garbage(store, garbage)
    if as_json:
        unfinished = [record.run for record in inventory.unfinished]
        print(json.dumps({"deleted": delete, "unfinished": unfinished, "garbage": [asdict(item) for item in garbage]}))
        return
    for record in inventory.unfinished:
        print(
            f"{record.run} is unfinished: what was written since {_shown('began', record.began)} stays, until it is "
            "finished or its folder is deleted"
        )
    _print([asdict(item) for item in garbage])
    size = decimal(sum(item.bytes for item in garbage))
    said = f"{'removed' if delete else '--delete removes'}: {len(garbage)}, {size}"
    print(said if garbage else f"nothing to remove is older than {older_than:g} h")


def _kinds(inventory: Inventory) -> list[dict[str, Any]]:
    kinds: dict[str, list[Artefact]] = {}
    for artefact in inventory.artefacts:
        kinds.setdefault(artefact.kind, []).append(artefact)
    return [
        {
            "kind": kind,
            "artefacts": sum(each.marker is not None for each in found),
            "bytes": sum(each.bytes for each in found),
            "unfinished": sum(each.marker is None for each in found),
        }
        for kind, found in kinds.items()
    ]


def _runs(inventory: Inventory) -> list[dict[str, Any]]:
    used: dict[str, list[Artefact]] = {run.name: [] for run in inventory.runs}
    for artefact in inventory.artefacts:
        for name in users(inventory, artefact):
            used[name].append(artefact)
    return [
        {
            "run": run.name,
            "state": run.state,
            "artefacts": len(used[run.name]),
            "bytes": sum(each.bytes for each in used[run.name]),
            "began": run.record.began if run.record else None,
        }
        for run in inventory.runs
    ]


def _artefact(inventory: Inventory, artefact: Artefact) -> dict[str, Any]:
    assert artefact.marker is not None
    changed, used_by = artefact.marker.changed, users(inventory, artefact)
    return {"key": artefact.key, "bytes": artefact.bytes, "changed": changed, "used by": used_by}


def _print(rows: Sequence[dict[str, Any]]) -> None:
    """Print rows as a table, numbers to the right; nothing where there are none."""
    if not rows:
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, value in rows[0].items():
        table.add_column(name, justify="right" if isinstance(value, int) else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(_shown(name, value)) for name, value in row.items()))
    # A file or a pipe gets whole lines.
    Console(width=None if sys.stdout.isatty() else 1000).print(table)


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name == "bytes":
        return decimal(value)
    if isinstance(value, float):
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(value))
    return ", ".join(value) or "-" if isinstance(value, list) else str(value)
