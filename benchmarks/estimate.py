"""What a large sweep takes on paper: time, storage and traffic, from the model's configuration and some assumptions.

python -m benchmarks.estimate [--trials 500] [--gpus 64] [--fraction 1.0] ...

Prints the assumptions and the Markdown tables of docs/scale.md. Nothing is run and no weights are read.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

from vrray.models.loading import ModelShape
from vrray.plan import PlanSpec, make_plan
from vrray.train.memory import delta_bytes, trained_parameters

_CHECKPOINTS = 2  # of a training that the store keeps (vrray/train/checkpoint.py)
_STATE = 12  # bytes of a trained parameter in a checkpoint: float32 weight and two moments
_WEIGHT = 2  # and its bf16 weight by name


@dataclass(frozen=True)
class Assumptions:
    """What the estimate takes for granted; `docs/scale.md` says where each comes from.

    Attributes:
        workers: GPUs of one training.
        rows, images: of the data; `with_image` is the share of rows that have one.
        text: tokens of a row besides its image.
        fraction: share of the rows that a trial trains on.
        plans: variants of a trial, the unpruned one among them.
        questions: that each variant answers; `answer_share` is the speed of answering, of that of training.
        peak, utilisation: FLOP/s of a GPU, and the share of it that training reaches.
        checkpoint_minutes: between two checkpoints of a training.
        store_bandwidth: bytes/s that the store takes and gives, all nodes together.
    """

    model: str = "llava-1.5-13b"
    trials: int = 500
    layers: float = 0.25
    gpus: int = 64
    workers: int = 8
    rows: int = 665_000
    images: int = 350_000
    with_image: float = 0.94
    text: int = 260
    fraction: float = 1.0
    plans: int = 5
    questions: int = 1_000
    answer_share: float = 0.25
    peak: float = 312e12
    utilisation: float = 0.25
    checkpoint_minutes: float = 10.0
    store_bandwidth: float = 5e9

    @property
    def groups(self) -> int:
        """Trainings at once."""
        return self.gpus // self.workers

    @property
    def group_speed(self) -> float:
        """FLOP/s of one training."""
        return self.workers * self.peak * self.utilisation


@dataclass(frozen=True)
class Estimate:
    """One sweep; times in s, sizes in bytes, rates in bytes/s.

    Attributes:
        train, evaluate: of one trial on its group.
        sweep: of all, with every group busy all the time.
        delta, deltas: artefacts of one and of all trainings.
        checkpoint: one of one training; `kept` of all that run, `checkpoint_rate` what they write.
        features: of all images; `feature_rate` what the groups read of them where they are stored.
        tower: the vision tower's share of a training's arithmetic where features are computed live.
        base: the model as every worker loads it; `loading` until all have it, at the store's bandwidth.
        memory, recomputed: of a GPU, and decoder layers that recompute, as `auto` chooses.
    """

    train: float
    evaluate: float
    sweep: float
    delta: int
    deltas: int
    checkpoint: int
    kept: int
    checkpoint_rate: float
    features: int
    feature_rate: float
    tower: float
    base: int
    loading: float
    memory: int
    recomputed: int


def estimate(given: Assumptions, mode: Literal["full", "lora"]) -> Estimate:
    plan = make_plan(
        PlanSpec(model=given.model, workers=given.workers, placement="uniform", layers=given.layers, mode=mode)
    )
    shape, rows = plan.shape, given.fraction * given.rows
    tokens = given.with_image * shape.image_tokens + given.text
    decoder = shape.layer * shape.depth
    train = rows * tokens * (4 * decoder + 2 * plan.trained) / given.group_speed
    answers = (given.plans + 1) * given.questions  # the unpruned variant answers without images too
    evaluate = answers * tokens * 2 * decoder / (given.answer_share * given.group_speed)
    delta, base = delta_bytes(shape, plan.region, plan.recipe), 2 * shape.total
    checkpoint = (_STATE + _WEIGHT) * plan.trained
    return Estimate(
        train=train,
        evaluate=evaluate,
        sweep=given.trials * (train + evaluate) / given.groups,
        delta=delta,
        deltas=given.trials * delta,
        checkpoint=checkpoint,
        kept=_CHECKPOINTS * checkpoint * given.groups,
        checkpoint_rate=given.groups * checkpoint / (60 * given.checkpoint_minutes),
        features=plan.features(given.images),
        feature_rate=given.groups * rows * given.with_image * shape.feature_bytes / train,
        tower=given.with_image * _tower_flops(shape) / (tokens * (4 * decoder + 2 * plan.trained)),
        base=base,
        loading=given.gpus * base / given.store_bandwidth,
        memory=plan.auto.memory.total,
        recomputed=plan.auto.recomputed,
    )


def all_layers_hours(given: Assumptions) -> float:
    """Hours of one full training of all layers on one group: to be held against published ones."""
    plan = make_plan(PlanSpec(model=given.model, workers=given.workers, placement="all", mode="full"))
    tokens = given.rows * (given.with_image * plan.shape.image_tokens + given.text)
    trained = trained_parameters(plan.shape, plan.region, plan.recipe)
    return tokens * (4 * plan.shape.layer * plan.shape.depth + 2 * trained) / given.group_speed / 3600


def _tower_flops(shape: ModelShape) -> float:
    """Of one image: forward alone, a multiply and an add a parameter and position, the class token among them."""
    return 2.0 * shape.tower * (shape.image_tokens + 1)


def markdown(found: Sequence[tuple[str, Estimate]]) -> str:
    """A column for each estimate."""
    lines = [f"| | {' | '.join(name for name, _ in found)} |", f"| --- |{' ---: |' * len(found)}"]
    for name, show in (
        ("one training, on its group", lambda e: f"{e.train / 3600:.1f} h"),
        ("its evaluations", lambda e: f"{e.evaluate / 60:.0f} min"),
        ("the sweep", lambda e: f"{e.sweep / 86400:.1f} days"),
        ("memory of a GPU, layers recomputed", lambda e: f"{e.memory / 2**30:.0f} GiB, {e.recomputed}"),
        ("artefact of a training", lambda e: f"{e.delta / 1e9:.2f} GB"),
        ("artefacts of the sweep", lambda e: f"{e.deltas / 1e12:.2f} TB"),
        ("a checkpoint", lambda e: f"{e.checkpoint / 1e9:.1f} GB"),
        ("checkpoints kept at a time", lambda e: f"{e.kept / 1e9:.0f} GB"),
        ("checkpoints, written", lambda e: f"{e.checkpoint_rate / 1e6:.0f} MB/s"),
        ("features, if they were stored", lambda e: f"{e.features / 1e9:.0f} GB"),
        ("features, then read", lambda e: f"{e.feature_rate / 1e6:.0f} MB/s"),
        ("the tower's share, as features are live", lambda e: f"{100 * e.tower:.1f} %"),
        ("the base, on each worker", lambda e: f"{e.base / 1e9:.1f} GB"),
        ("all workers load it", lambda e: f"{e.loading / 60:.0f} min"),
    ):
        lines.append(f"| {name} | {' | '.join(show(each) for _, each in found)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in fields(Assumptions):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    given = Assumptions(**vars(parser.parse_args()))
    for field in fields(given):
        print(f"{field.name} {getattr(given, field.name):{'' if isinstance(field.default, str) else ',g'}}")
    print(f"all layers, full: {all_layers_hours(given):.1f} h on {given.workers} GPUs\n")
    print(table(given))


def table(given: Assumptions) -> str:
    return markdown([(f"region, {mode}", estimate(given, mode)) for mode in ("full", "lora")])


if __name__ == "__main__":
    main()
