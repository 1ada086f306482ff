"""How tasks were asked, as the reports say it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tiny import Ground

from vrray.data.tasks import Example, Metric, Task, TaskExamples
from vrray.evaluate.asked import describe_group
from vrray.models.loading import load_processor
from vrray.report.asked import asked_section


def group_of(metric: Metric, image: str | None = "a.png") -> TaskExamples:
    options = ("red", "blue") if metric == "choice" else ()
    example = Example("1", "Which colour?", "red", image, options)
    return TaskExamples(Task("colours", "visual", metric, ""), "select", (example,), 0.2)


@pytest.mark.parametrize(
    ("metric", "decoding", "shown"),
    [("exact", "greedy", "<image>"), ("likelihood", "mean probability", "<image>"), ("choice", "option", "Which")],
)
def test_prompt_and_decoding_are_those_of_the_metric(ground: Ground, metric: Metric, decoding: str, shown: str) -> None:
    about = describe_group(group_of(metric), load_processor(ground.model), "chat", {"a.png": "0" * 16})
    assert decoding in about["decoding"]
    assert shown in about["prompt"]
    assert "Which colour?" in about["prompt"]
    assert (about["task"], about["scoring"], about["questions"], about["split"]) == ("colours", metric, 1, "select")


def test_data_are_known_by_questions_answers_and_images(ground: Ground) -> None:
    processor, group = load_processor(ground.model), group_of("exact")
    (example,) = group.examples
    others = [replace(example, answer="blue"), replace(example, question="What?"), replace(example, id="2")]
    keys = {describe_group(replace(group, examples=(e,)), processor, "chat", {})["data"] for e in (example, *others)}
    keys.add(describe_group(group, processor, "chat", {"a.png": "0" * 16})["data"])
    assert len(keys) == 5


def test_a_text_that_cannot_be_asked_is_said(ground: Ground) -> None:
    group = group_of("exact", image=None)
    marked = replace(group, examples=(replace(group.examples[0], question="What is <image>?"),))
    assert "it cannot be asked" in describe_group(marked, load_processor(ground.model), "chat", {})["prompt"]


def test_a_task_of_two_splits_is_shown_with_one_prompt() -> None:
    task = {"task": "pope", "scoring": "pope", "questions": 3, "decoding": "greedy", "data": "abc", "prompt": "Why?"}
    text = "\n\n".join(asked_section([{**task, "split": "select"}, {**task, "split": "test", "prompt": "How?"}]))
    assert text.count("`pope` | `pope` | 3") == 2
    assert "```\nWhy?\n```" in text
    assert "How?" not in text
    assert asked_section([]) == []
