"""Tasks of a model that is evaluated by itself: their questions, how these are asked, and how answers are scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from vrray.data.tasks import MAX_NEW_TOKENS, Example, Split
from vrray.evaluate.benchmarks.question import LETTERS, Benchmark, Question, Scored, Summary, mean_summary
from vrray.evaluate.benchmarks.registry import find_benchmark
from vrray.evaluate.metrics import METRICS
from vrray.store import content_key

Method = Literal["generate", "choose", "continue"]
"""Greedy generation; the likeliest of some replies; the likeliest continuation of the question as bare text."""

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
_YES_OR_NO = "Please answer yes or no."
_SELF_EXPLAINING = ("bbh",)  # its questions say how they are to be answered
_YES_NO = ("mme", "pope", "hallusionbench")  # their questions are answered so
_WITHOUT_IMAGES = ("scienceqa", "hallusionbench", "mmlu", "bbh", "ceval", "cmmlu")  # some questions, or all of them


@dataclass(frozen=True)
class AskedTask:
    """A task as it is asked and scored.

    Attributes:
        scoring: the name of a benchmark, or of a metric (`vrray.evaluate.metrics.METRICS`).
        official: whether it is a benchmark's.
        prompts: what the model reads for each question, before its conversation template.
        images: the folder that image names start from; None for a task without images.
        needs_images: whether a question without an image lacks it.
        replies: what is chosen from, where the method is to choose; the letters of a question's own options otherwise.
        split: what the figures are good for: choosing between variants, or reporting (DESIGN 9).
        unusable: why images that came inside the benchmark's files cannot be used, by name.
        image_hashes: of the images that can be used, by name; those of a visual task that are absent cannot.
        problems: why questions cannot be asked, by their place.
    """

    name: str
    scoring: str
    official: bool
    questions: tuple[Question, ...]
    prompts: tuple[str, ...]
    images: str | None
    method: Method = "generate"
    max_new_tokens: int = MAX_NEW_TOKENS
    needs_images: bool = False
    replies: tuple[str, ...] = ()
    split: Split = "test"
    unusable: dict[str, str] = field(default_factory=dict, hash=False)
    image_hashes: dict[str, str] = field(default_factory=dict, hash=False)
    problems: dict[int, str] = field(default_factory=dict, hash=False)

    @property
    def is_visual(self) -> bool:
        return any(question.image is not None for question in self.questions)

    @property
    def data_key(self) -> str:
        """A hash of all questions with their answers and the contents of their images."""
        asked = [
            [q.id, prompt, list(q.answers), list(q.options), self.image_hashes.get(q.image or "")]
            for q, prompt in zip(self.questions, self.prompts, strict=True)
        ]
        return content_key({"scoring": self.scoring, "questions": asked})

    def image_name(self, question: Question) -> str | None:
        """An image's name among those of all tasks."""
        return None if question.image is None else f"{self.name}:{question.image}"

    def example(self, place: int) -> Example:
        """One question as a model is asked it."""
        question = self.questions[place]
        return Example(
            id=question.id,
            question=self.prompts[place],
            answer=question.answers[0],
            image=self.image_name(question),
            options=self._options(question),
        )

    def _options(self, question: Question) -> tuple[str, ...]:
        if self.method == "choose":
            return self.replies or tuple(LETTERS[: len(question.options)])
        return question.options if self.method == "continue" else ()


def benchmark_prompt(benchmark: Benchmark, question: Question, instruction: str | None) -> str:
    """A question with its options and what it should be answered with, as LLaVA's evaluation scripts ask.

    Args:
        instruction: what stands behind the question ("": nothing); None for the one that fits the question.
    """
    lines = [question.question, *(f"{letter}. {text}" for letter, text in zip(LETTERS, question.options, strict=False))]
    return with_instruction("\n".join(lines), _instruction(benchmark, question) if instruction is None else instruction)


def needs_images(benchmark: Benchmark) -> bool:
    """Whether every question of a benchmark is about an image."""
    return benchmark.name not in _WITHOUT_IMAGES


def replies_to(benchmark: Benchmark) -> tuple[str, ...]:
    """What a benchmark's questions without options can be answered with; nothing where anything is an answer."""
    return ("Yes", "No") if benchmark.name in _YES_NO else ()


def with_instruction(text: str, instruction: str) -> str:
    return f"{text}\n{instruction}" if instruction else text


def _instruction(benchmark: Benchmark, question: Question) -> str:
    if benchmark.name in _SELF_EXPLAINING or question.question.rstrip().endswith(_YES_OR_NO):
        return ""
    return LETTER if question.options else SHORT


def score_answers(task: AskedTask, predictions: Sequence[str | None]) -> tuple[tuple[Scored, ...], Summary]:
    """Every question with its score, and the task's figures; a question without a prediction scores 0."""
    pairs = list(zip(task.questions, predictions, strict=True))
    if task.official:
        benchmark = find_benchmark(task.scoring)
        scored = tuple(
            Scored(q, None, 0.0) if text is None else Scored(q, benchmark.clean(q, text), benchmark.score_text(q, text))
            for q, text in pairs
        )
        return scored, benchmark.summarise(scored)
    metric = METRICS[task.scoring]
    scored = tuple(Scored(q, text, 0.0 if text is None else metric(text, q.answers)) for q, text in pairs)
    return scored, mean_summary(scored)
