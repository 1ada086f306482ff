"""What an evaluation found: scores of the stored answers, example records, a report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import pyarrow as pa

from vrray.evaluate.asked import shown_decoding, shown_prompt
from vrray.evaluate.benchmarks.question import Summary
from vrray.evaluate.questions import AskedTask, score_answers
from vrray.metrics import interval, resampled_means
from vrray.models.loading import load_processor
from vrray.report.evaluation import format_results, render_evaluation
from vrray.sweep.answers import Answer, Variant, read_answers
from vrray.sweep.evaluation import Evaluation
from vrray.sweep.run import describe_machine

FOLDER = "evaluations"
_RESULTS = pa.schema(
    [("variant", pa.string()), ("task", pa.string()), ("n", pa.int64()), ("failed", pa.int64())]
    + [(name, pa.float64()) for name in ("score", "mean", "mean_low", "mean_high", "blind_score", "blind_mean")]
    + [(name, pa.float64()) for name in ("retention", "difference", "difference_low", "difference_high")]
    + [("ties_best", pa.bool_()), ("detail", pa.string())]
)
_EXAMPLES = pa.schema(
    [(name, pa.string()) for name in ("variant", "task", "id", "question", "image")]
    + [("answers", pa.list_(pa.string())), ("prediction", pa.string()), ("score", pa.float64())]
    + [("latency_ms", pa.float64()), ("blind", pa.bool_()), ("problem", pa.string())]
)


def write_results(evaluation: Evaluation) -> None:
    """Score the answers in the store; write results, examples and report to the evaluation's folder."""
    rows: list[dict[str, Any]] = []
    examples: list[dict[str, Any]] = []
    for task in evaluation.tasks:
        found = {variant.name: _score(evaluation, variant, task) for variant in evaluation.variants}
        rows += _results(evaluation, task, found)
        examples += [example for each in found.values() for example in each.examples]
    order = {variant.name: place for place, variant in enumerate(evaluation.variants)}
    rows.sort(key=lambda row: order[row["variant"]])
    store, folder = evaluation.store, f"{FOLDER}/{evaluation.spec.name}"
    context = _context(evaluation)
    asked = [_asked(evaluation, task) for task in evaluation.tasks]
    store.write_text(f"{folder}/report.md", render_evaluation(rows, asked, examples, context))
    store.write_table(f"{folder}/examples.parquet", pa.Table.from_pylist(list(examples), schema=_EXAMPLES))
    store.write_text(f"{folder}/evaluation.json", json.dumps({"context": context, "tasks": asked}, indent=1))
    store.write_table(f"{folder}/results.parquet", pa.Table.from_pylist(list(rows), schema=_RESULTS))
    print(format_results(rows))
    print(f"report: {store.shown(folder, 'report.md')}", flush=True)


@dataclass(frozen=True)
class _Scores:
    """What a variant scored on a task: the figures, and without images (None: not asked), and every question."""

    summary: Summary
    blind: Summary | None
    scores: tuple[float, ...]
    blind_scores: tuple[float, ...]
    failed: int
    examples: tuple[dict[str, Any], ...]

    @property
    def mean(self) -> float:
        return sum(self.scores) / len(self.scores)


def _score(evaluation: Evaluation, variant: Variant, task: AskedTask) -> _Scores:
    examples: list[dict[str, Any]] = []
    figures: dict[bool, tuple[Summary, tuple[float, ...], int]] = {}
    for blind in evaluation.passes(task):
        answers = _answers(evaluation, variant, task, blind=blind)
        scored, summary = score_answers(task, [answer.prediction for answer in answers])
        failed = sum(answer.prediction is None for answer in answers)
        figures[blind] = summary, tuple(row.score for row in scored), failed
        examples += [
            {
                "variant": variant.name,
                "task": task.name,
                "id": question.id,
                "question": prompt,
                "image": question.image,
                "answers": list(question.answers),
                "prediction": answer.prediction,
                "score": row.score,
                "latency_ms": answer.latency_ms,
                "blind": blind,
                "problem": answer.problem,
            }
            for question, prompt, answer, row in zip(task.questions, task.prompts, answers, scored, strict=True)
        ]
    summary, scores, failed = figures[False]
    without, blind_scores, _ = figures.get(True, (None, (), 0))
    return _Scores(summary, without, scores, blind_scores, failed, tuple(examples))


def _results(evaluation: Evaluation, task: AskedTask, found: Mapping[str, _Scores]) -> list[dict[str, Any]]:
    """Rows of the results, with how the variants compare: the same questions are resampled alike."""
    resampled = {name: resampled_means([each.scores]) for name, each in found.items()}
    best = max(found, key=lambda name: found[name].mean)
    rows = []
    for name, each in found.items():
        low, high = interval(resampled[name])
        row = {
            "variant": name,
            "task": task.name,
            "n": len(each.scores),
            "failed": each.failed,
            "score": each.summary.score,
            "mean": each.mean,
            "mean_low": low,
            "mean_high": high,
            "blind_score": each.blind and each.blind.score,
            "blind_mean": each.blind and sum(each.blind_scores) / len(each.blind_scores),
            "detail": json.dumps(dict(each.summary.detail)),
            **dict.fromkeys(("retention", "difference", "difference_low", "difference_high", "ties_best")),
        }
        if (ceiling := evaluation.ceilings.get(name)) is not None:
            low, high = interval(resampled[name] - resampled[ceiling])
            top = found[ceiling].mean
            row |= {"retention": each.mean / top if top else None, "difference": each.mean - top}
            row |= {"difference_low": low, "difference_high": high}
        if evaluation.is_choosing(task):
            low, high = interval(resampled[name] - resampled[best])
            row["ties_best"] = low <= 0 <= high
        rows.append(row)
    return rows


def _answers(evaluation: Evaluation, variant: Variant, task: AskedTask, *, blind: bool) -> list[Answer]:
    """What the variant said to every question of a task."""
    answers = [Answer(None, task.problems.get(place)) for place in range(len(task.questions))]
    for part in evaluation.parts(variant, task, blind=blind):
        for place, answer in zip(part.places, read_answers(evaluation.store, part), strict=True):
            answers[place] = answer
    return answers


def _asked(evaluation: Evaluation, task: AskedTask) -> dict[str, Any]:
    """How a task was asked, so that it can be asked the same way again."""
    processor, first = load_processor(evaluation.path), task.questions[0].image is not None
    return {
        "task": task.name,
        "scoring": task.scoring,
        "questions": len(task.questions),
        "data": task.data_key,
        "decoding": shown_decoding(task.method, task.max_new_tokens),
        "split": task.split,
        "chosen_on_test": evaluation.is_choosing(task) and task.split == "test",
        "prompt": shown_prompt(task.prompts[0], task.method, processor, evaluation.template, with_image=first),
    }


def _context(evaluation: Evaluation) -> Mapping[str, str]:
    spec = evaluation.spec
    return {
        "model": f"{evaluation.model} (base {evaluation.base})",
        **({"sweep": f"{spec.sweep} in {evaluation.store.shown()}"} if spec.sweep else {}),
        "image leaks": evaluation.leaks_text(),
        "template": evaluation.template,
        "precision": str(evaluation.precision),
        **({"engine": f"vllm {version('vllm')}"} if spec.engine == "vllm" else {}),
        "command": spec.command(),
        **describe_machine("vrray", "ray", "torch", "transformers"),
    }
