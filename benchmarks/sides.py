"""The two sides of a training benchmark, each in processes of its own that stay up: vrray's workers, and the peer."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vrray.data.rows import Row
from vrray.region import Region
from vrray.specs import Recipe
from vrray.train.execution import Execution


@dataclass(frozen=True)
class Case:
    """One setting of a comparison; `peer` runs it on the other side."""

    name: str
    model: str
    region: Region
    recipe: Recipe
    execution: Execution
    lengthen: int = 1
    workers: int = 2
    peer: bool = False


class Processes:
    """Processes that run one function for each command, all at the same time; a context manager."""

    def __init__(self, count: int, work: Callable[[int, int, str, Connection], None], threads: int):
        self._folder = tempfile.TemporaryDirectory()
        context = multiprocessing.get_context("spawn")
        pipes = [context.Pipe() for _ in range(count)]
        self._ends = [here for here, _ in pipes]
        arguments = [(work, rank, count, self._folder.name, there, threads) for rank, (_, there) in enumerate(pipes)]
        self._processes = [context.Process(target=_keep_working, args=a, daemon=True) for a in arguments]
        for process in self._processes:
            process.start()

    def run(self, command: Any) -> Any:
        """What the first process answers.

        Raises:
            RuntimeError: a process failed; with its stack.
        """
        for end in self._ends:
            end.send(command)
        answers = [end.recv() for end in self._ends]
        for answer in answers:
            if isinstance(answer, str):
                raise RuntimeError(answer)
        return answers[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        self._folder.cleanup()


def ours(rank: int, world: int, folder: str, pipe: Connection) -> None:
    """One of vrray's workers: a gloo rank with a thread of its own."""
    import torch.distributed as dist

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    from vrray.train.loop import Training, train

    grounds: dict[tuple[str, str], Any] = {}
    while True:
        case, steps = pipe.recv()
        try:
            key = (case.model, case.recipe.precision)
            if key not in grounds:
                grounds[key] = _workspace(Path(case.model), f"{folder}/store", case.recipe.precision)
            workspace, rows = grounds[key]
            recipe = case.recipe.model_copy(update={"max_steps": steps})
            reports: list[dict[str, Any]] = []
            training = Training(lengthened(rows, case.lengthen), case.region, recipe, 0, case.execution)
            trained = train(workspace, training, reports.append)
            rates = [report["samples_per_second"] for report in reports if "step" in report]
            measured = {
                "seconds": [recipe.global_batch / rate for rate in rates],
                "losses": trained.losses,
                "bytes": sum(tensor.nbytes for tensor in trained.tensors.values()),
            }
            pipe.send({**trained.metrics, **measured})
        except Exception:
            pipe.send(traceback.format_exc())


def theirs(rank: int, world: int, folder: str, pipe: Connection) -> None:
    """The peer: one process."""
    from benchmarks.peer import train_peer

    while True:
        case, steps = pipe.recv()
        try:
            rows, images = demo_rows(Path(case.model))
            measured = train_peer(
                Path(case.model),
                lengthened(rows, case.lengthen),
                images,
                mode=case.recipe.mode,
                layers=case.region.layers,
                recipe=case.recipe,
                steps=steps,
                micro_batch=case.execution.micro_batch,
                threads=2,
            )
            pipe.send({**measured, "seconds": measured["step_seconds"]})
        except Exception:
            pipe.send(traceback.format_exc())


def demo_rows(model: Path) -> tuple[list[Row], dict[str, Path]]:
    """The first rows of the demo data for a model, and where their images are."""
    from vrray.data.demo import build_demo
    from vrray.data.encode import encode_records
    from vrray.data.records import read_records
    from vrray.home import vrray_home
    from vrray.models.loading import load_processor, model_shape

    demo = build_demo(vrray_home())
    rows = encode_records(read_records(demo.train)[:96], load_processor(model), model_shape(model).image_tokens)
    return rows, {name: demo.image_root / name for row in rows for name in row.images}


def lengthened(rows: Sequence[Row], times: int) -> list[Row]:
    """Rows with so many times their tokens: unsupervised text in front of the answer."""

    def longer(row: Row) -> Row:
        begin = row.supervised.index(True)
        filler = tuple(row.ids[begin - 1 : begin]) * (len(row.ids) * (times - 1))
        ids = row.ids[:begin] + filler + row.ids[begin:]
        return replace(
            row, ids=ids, supervised=row.supervised[:begin] + (False,) * len(filler) + row.supervised[begin:]
        )

    return [longer(row) for row in rows]


def _workspace(model: Path, store: str, precision: Any) -> Any:
    import torch.distributed as dist

    from vrray.data.chunks import plan_chunks
    from vrray.data.features import compute_chunks
    from vrray.data.images import Images, content_hashes
    from vrray.models.loading import base_identity, tower_identity
    from vrray.train.desk import Setup
    from vrray.train.workspace import Workspace

    rows, images = demo_rows(model)
    workspace = Workspace.set_up(Setup(store, str(model), base_identity(model), precision))
    names, (name, path) = list(images), next(iter(images.items()))
    photos = Images({"": path.parents[len(Path(name).parts) - 1]})
    chunks = plan_chunks(names, content_hashes(photos, names), tower_identity(model))
    if workspace.rank == 0:
        tower, processor = workspace.model.model.vision_tower, workspace.processor.image_processor
        compute_chunks(chunks, photos, tower, workspace.model.config, processor, workspace.store)
    dist.barrier()
    workspace.use_cached(chunks)
    return workspace, rows


def _keep_working(
    work: Callable[[int, int, str, Connection], None],
    rank: int,
    world: int,
    folder: str,
    pipe: Connection,
    threads: int,
) -> None:
    import torch

    torch.set_num_threads(threads)
    work(rank, world, folder, pipe)
