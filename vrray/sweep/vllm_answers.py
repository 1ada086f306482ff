"""Answers that vLLM generates, through `ray.data.llm`: an engine on every GPU, which share a variant's questions.

vLLM reads model directories, so a variant of a sweep is exported first. Answers are kept like those of worker groups, a
part an artefact, under keys that name the engine.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from vrray.data.encode import encode_prompt
from vrray.data.tasks import Example
from vrray.errors import ClusterError, DataError, SpecError, TrainingError
from vrray.exporting.run import export
from vrray.exporting.spec import ExportSpec
from vrray.models.loading import load_processor
from vrray.sweep.answers import Answer, Part, Variant, put_answers
from vrray.sweep.evaluation import Evaluation
from vrray.sweep.vllm_rows import Request, reply

_TOWERS = ("clip_vision_model", "siglip_vision_model")
_DTYPES = {"bf16": "bfloat16", "fp32": "float32"}


def check_available(*, gpu: bool) -> None:
    """Refuse what is known before an evaluation is prepared.

    Raises:
        SpecError: vLLM is not installed.
        ClusterError: there are no GPUs.
    """
    if find_spec("vllm") is None:
        raise SpecError(
            "--engine vllm: vLLM is not installed; install the extra vllm on every node: pip install 'vrray[vllm]'"
        )
    if not gpu:
        raise ClusterError("--engine vllm needs GPUs, and none may be used here; leave --engine away, or add GPUs")


def check_servable(evaluation: Evaluation) -> None:
    """Refuse what vLLM cannot load, or would ask otherwise than vrray does.

    Raises:
        SpecError: the model is not a LLaVA with a CLIP or SigLIP tower, or the store is no folder.
    """
    config = AutoConfig.from_pretrained(evaluation.path, trust_remote_code=False)
    tower = config.vision_config.model_type
    if config.model_type != "llava" or tower not in _TOWERS:
        raise SpecError(
            f"--engine vllm: {evaluation.model} is {config.model_type!r} with the vision tower {tower!r}; only LLaVA "
            f"with one of {', '.join(_TOWERS)} is asked there as it is here; leave --engine away"
        )
    if any(variant.delta is not None for variant in evaluation.variants) and not evaluation.store.is_local:
        raise SpecError(
            "--engine vllm reads variants from a folder that every node sees, and --storage "
            f"{evaluation.store.shown()} is none; export them with `vrray export` and give their folder to --model"
        )


def answer_with_vllm(evaluation: Evaluation, parts: Sequence[Part], engines: int) -> None:
    """Generate and store the answers to parts, a variant after the other.

    Args:
        engines: how many engines answer at the same time at most, with a GPU each.

    Raises:
        TrainingError: vLLM failed.
    """
    for variant, each in groupby(parts, key=lambda part: part.variant):
        with _directory(evaluation, variant) as folder:
            _answer(evaluation, folder, list(each), engines)


@contextmanager
def _directory(evaluation: Evaluation, variant: Variant) -> Iterator[Path]:
    """A variant as a model directory, which is gone again afterwards where it had to be written."""
    if variant.delta is None:
        yield evaluation.path
        return
    with tempfile.TemporaryDirectory(prefix=".vllm-", dir=evaluation.store.uri) as scratch:
        named = {"storage": evaluation.store.uri, "sweep": evaluation.spec.sweep, "variant": variant.name}
        yield export(ExportSpec.parse({**named, "out": Path(scratch) / variant.name, "merge_lora": True}))


def _answer(evaluation: Evaluation, folder: Path, parts: Sequence[Part], engines: int) -> None:
    import ray
    from ray.data import llm

    prompts = _Prompts.of(evaluation)
    rows: list[dict[str, Any]] = []
    answers: list[dict[int, Answer]] = []
    for number, part in enumerate(parts):
        problems = {}
        for place, example in enumerate(part.examples):
            try:
                ids = prompts.encode(example, part)
            except DataError as error:
                problems[place] = Answer(None, str(error))
                continue
            image = None if part.blind else example.image
            row = {"part": number, "place": place, "tokenized_prompt": ids, "image": image or ""}
            rows.append({**row, "max_tokens": part.max_new_tokens})
        answers.append(problems)
        if len(problems) == len(part.examples):
            put_answers(evaluation.store, part, _in_order(problems))
    if not rows:
        return
    config = llm.vLLMEngineProcessorConfig(
        model_source=str(folder),
        engine_kwargs={"dtype": _DTYPES[evaluation.precision], "limit_mm_per_prompt": {"image": 1}},
        concurrency=engines,
        batch_size=evaluation.spec.batch,
        # Prompts are token ids already, and vLLM gives texts.
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
        log_engine_metrics=False,
    )
    processor = llm.build_processor(config, preprocess=Request(evaluation.images), postprocess=reply)
    try:
        for said in processor(ray.data.from_items(rows)).iter_rows():
            part, found = parts[said["part"]], answers[said["part"]]
            found[said["place"]] = Answer(said["text"].strip())
            if len(found) == len(part.examples):
                put_answers(evaluation.store, part, _in_order(found))
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1]  # what stands above is where in Ray it happened
        raise TrainingError(f"vLLM could not answer with {folder.name}: {reason}") from error


@dataclass(frozen=True)
class _Prompts:
    """Questions to token ids, with one for an image: vLLM repeats it for each of the image's positions."""

    processor: Any
    template: str
    image_tokens: int
    most: int | None

    @classmethod
    def of(cls, evaluation: Evaluation) -> _Prompts:
        config = AutoConfig.from_pretrained(evaluation.path, trust_remote_code=False)
        most = getattr(config.text_config, "max_position_embeddings", None)
        return cls(load_processor(evaluation.path), evaluation.template, evaluation.shape.image_tokens, most)

    def encode(self, example: Example, part: Part) -> list[int]:
        with_image = example.image is not None and not part.blind
        ids = encode_prompt(example.question, self.processor, 1, template=self.template, with_image=with_image)
        length = len(ids) + (self.image_tokens - 1 if with_image else 0)
        if self.most is not None and length + part.max_new_tokens > self.most:
            raise DataError(
                f"its prompt has {length} tokens and the answer up to {part.max_new_tokens}; "
                f"the model reads {self.most}"
            )
        return ids


def _in_order(answers: dict[int, Answer]) -> list[Answer]:
    return [answers[place] for place in range(len(answers))]
