"""What an evaluation found: scores of the stored answers, example records, a report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import pyarrow as pa

from vrray.data.encode import encode_prompt
from vrray.errors import DataError
from vrray.evaluate.benchmarks.question import Scored, Summary
from vrray.evaluate.questions import AskedTask, score_answers
from vrray.metrics import mean_interval
from vrray.models.loading import load_processor
from vrray.report.evaluation import format_results, render_evaluation
from vrray.sweep.answers import Answer, Variant, read_answers
from vrray.sweep.evaluation import Evaluation
from vrray.sweep.run import describe_machine

FOLDER = "evaluations"
_RESULTS = pa.schema(
    [("variant", pa.string()), ("task", pa.string()), ("n", pa.int64()), ("failed", pa.int64())]
    + [(name, pa.float64()) for name in ("score", "mean", "mean_low", "mean_high", "blind_score", "blind_mean")]
    + [("detail", pa.string())]
)
_EXAMPLES = pa.schema(
    [(name, pa.string()) for name in ("variant", "task", "id", "question", "image")]
    + [("answers", pa.list_(pa.string())), ("prediction", pa.string()), ("score", pa.float64())]
    + [("blind", pa.bool_()), ("problem", pa.string())]
)


def write_results(evaluation: Evaluation) -> None:
    """Score the answers in the store; write results, examples and report to the evaluation's folder."""
    rows: list[dict[str, Any]] = []
    examples: list[dict[str, Any]] = []
    for variant in evaluation.variants:
        for task in evaluation.tasks:
            row, found = _result(evaluation, variant, task)
            rows.append(row)
            examples += found
    store, folder = evaluation.store, f"{FOLDER}/{evaluation.spec.name}"
    context = _context(evaluation)
    asked = [_asked(evaluation, task) for task in evaluation.tasks]
    store.write_text(f"{folder}/report.md", render_evaluation(rows, asked, examples, context))
    store.write_table(f"{folder}/examples.parquet", pa.Table.from_pylist(list(examples), schema=_EXAMPLES))
    store.write_text(f"{folder}/evaluation.json", json.dumps({"context": context, "tasks": asked}, indent=1))
    store.write_table(f"{folder}/results.parquet", pa.Table.from_pylist(list(rows), schema=_RESULTS))
    print(format_results(rows))
    print(f"report: {store.location(folder, 'report.md')}", flush=True)


def _result(evaluation: Evaluation, variant: Variant, task: AskedTask) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A row of the results, and the example records behind it."""
    examples: list[dict[str, Any]] = []
    figures: dict[bool, tuple[Summary, tuple[Scored, ...], int]] = {}
    for blind in evaluation.passes(task):
        answers = _answers(evaluation, variant, task, blind=blind)
        scored, summary = score_answers(task, [answer.prediction for answer in answers])
        figures[blind] = summary, scored, sum(answer.prediction is None for answer in answers)
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
                "blind": blind,
                "problem": answer.problem,
            }
            for question, prompt, answer, row in zip(task.questions, task.prompts, answers, scored, strict=True)
        ]
    summary, scored, failed = figures[False]
    mean, low, high = mean_interval([[row.score for row in scored]])
    without = figures.get(True)
    return {
        "variant": variant.name,
        "task": task.name,
        "n": len(scored),
        "failed": failed,
        "score": summary.score,
        "mean": mean,
        "mean_low": low,
        "mean_high": high,
        "blind_score": without and without[0].score,
        "blind_mean": without and sum(row.score for row in without[1]) / len(without[1]),
        "detail": json.dumps(dict(summary.detail)),
    }, examples


def _answers(evaluation: Evaluation, variant: Variant, task: AskedTask, *, blind: bool) -> list[Answer]:
    """What the variant said to every question of a task."""
    answers = [Answer(None, task.problems.get(place)) for place in range(len(task.questions))]
    for part in evaluation.parts(variant, task, blind=blind):
        for place, answer in zip(part.places, read_answers(evaluation.store, part), strict=True):
            answers[place] = answer
    return answers


def _asked(evaluation: Evaluation, task: AskedTask) -> dict[str, Any]:
    """How a task was asked, so that it can be asked the same way again."""
    return {
        "task": task.name,
        "scoring": task.scoring,
        "questions": len(task.questions),
        "data": task.data_key,
        "decoding": f"greedy, at most {task.max_new_tokens} new tokens"
        if task.method == "generate"
        else "the option with the greatest sum of log-probabilities",
        "prompt": _first_prompt(evaluation, task),
    }


def _first_prompt(evaluation: Evaluation, task: AskedTask) -> str:
    """The task's first question as the model reads it; an image is one placeholder."""
    if task.method == "choose":
        return task.prompts[0]
    processor = load_processor(evaluation.path)
    question = task.questions[0]
    try:
        ids = encode_prompt(
            task.prompts[0], processor, 1, template=evaluation.template, with_image=question.image is not None
        )
    except DataError as error:
        return f"it cannot be asked: {error}"
    return str(processor.tokenizer.decode(ids))


def _context(evaluation: Evaluation) -> Mapping[str, str]:
    spec = evaluation.spec
    return {
        "model": f"{evaluation.model} (base {evaluation.base})",
        **({"sweep": f"{spec.sweep} in {evaluation.store.uri}"} if spec.sweep else {}),
        "template": evaluation.template,
        "precision": str(evaluation.precision),
        **({"engine": f"vllm {version('vllm')}"} if spec.engine == "vllm" else {}),
        "command": spec.command(),
        **describe_machine("vrray", "ray", "torch", "transformers"),
    }
