"""Examples of tasks as rows: the question, and its right answer supervised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vrray.data.encode import encode_prompt
from vrray.data.rows import Row
from vrray.data.tasks import Ability, TaskExamples


def example_rows(
    tasks: Sequence[TaskExamples], ability: Ability, processor: Any, image_tokens: int, template: str
) -> list[Row]:
    """A row for each example of the tasks of an ability.

    Questions with options are read as they are, as when their options are compared; others in the template.
    """
    tokenizer, rows = processor.tokenizer, []
    for group in tasks:
        if group.task.ability != ability:
            continue
        for example in group.examples:
            images = (example.image,) if example.image is not None else ()
            if group.task.metric == "choice":
                prompt = tokenizer(example.question, add_special_tokens=False)["input_ids"]
                text = f" {example.answer}"
            else:
                prompt = encode_prompt(
                    example.question, processor, image_tokens, template=template, with_image=bool(images)
                )
                text = example.answer
            answer = tokenizer(text, add_special_tokens=False)["input_ids"]
            supervised = (False,) * len(prompt) + (True,) * len(answer)
            rows.append(Row(example.id, (*prompt, *answer), supervised, images))
    return rows
