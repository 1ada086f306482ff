"""Answering questions, against the plain loop of the original scripts, and against the model alone, in one run.

python -m benchmarks.evaluation [--rounds 5] [--examples 40]

One process of all cores, the demo LVLM, the visual questions of the demo's select split, at most 6 tokens an answer.
The plain loop opens the image, runs the tower and calls `model.generate`, one question at a time. Prints Markdown:
medians over the rounds with their range, and ratios taken round by round.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from PIL import Image
from transformers import AutoConfig

from benchmarks.scores import demo_workspace, plain_forward
from benchmarks.timing import Timing, inside
from vrray.data.encode import encode_prompt
from vrray.data.features import compute_chunks
from vrray.data.rows import Row
from vrray.data.tasks import MAX_NEW_TOKENS, Example
from vrray.evaluate.answer import choose_options, generate_answers
from vrray.evaluate.run import evaluate_tasks, latency_ms_per_token
from vrray.models.family import vision_tower
from vrray.store import Store
from vrray.sweep.prepare import Prepared
from vrray.train.workspace import Workspace

_BATCH = 32
_OPTIONS = ("A", "B", "C", "D")
_LONG_OPTIONS = ("a red circle", "the capital of a country", "an animal with four legs", "something to eat")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--examples", type=int, default=40, help="of each task")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
        space, prepared, _ = demo_workspace(Path(folder), 1, options.examples)
        bench = Bench(space, prepared)
        for _ in range(options.rounds + 1):  # the first round warms up
            bench.round(Path(folder))
        dist.destroy_process_group()
    print(f"{options.rounds} rounds, {len(bench.examples)} questions, {torch.get_num_threads()} threads\n")
    print(bench.report())


@dataclass
class Bench:
    space: Workspace
    prepared: Prepared
    timing: Timing = field(default_factory=Timing)
    disagreed: int = 0

    @property
    def examples(self) -> list[Example]:
        visual = [group for group in self.prepared.site.select if group.task.ability == "visual"]
        return [example for group in visual for example in group.examples]

    def round(self, folder: Path) -> None:
        space, examples = self.space, self.examples
        plain = self.timing.time(
            "plain loop, one question at a time", lambda: _plain_loop(space, self.prepared, examples)
        )
        with inside(space.model) as seconds:
            ours = self.timing.time("vrray, batches of 32", partial(_answers, space, examples))
        self.timing.add("of that in the model", sum(seconds))
        self.disagreed = sum(a != b for a, b in zip(plain, ours, strict=True))
        self.timing.time("its features, once for all variants", lambda: _features(space, self.prepared, folder))
        for name, options in (("4 letters", _OPTIONS), ("4 options of 3 to 6 tokens", _LONG_OPTIONS)):
            asked = [replace(example, options=options) for example in examples]
            rows = sorted((_row(space, example) for example in asked), key=lambda row: len(row.ids))
            forward = partial(plain_forward, space, rows, _BATCH, head=False)
            self.timing.time(f"forward pass, {name} behind each question", forward)
            choose = partial(choose_options, space, asked, batch=_BATCH, reply=True)
            self.timing.time(f"likelihood of {name}", choose)
        self.timing.time("all of one variant", lambda: _evaluate(space, self.prepared))

    def report(self) -> str:
        ratios = self.timing.ratios(
            ("plain loop, one question at a time", "vrray, batches of 32", ""),
            ("of that in the model", "vrray, batches of 32", "at least 0.85"),
            *(
                (f"likelihood of {name}", f"forward pass, {name} behind each question", "at most 1.3")
                for name in ("4 letters", "4 options of 3 to 6 tokens")
            ),
        )
        differing = f"{self.disagreed} answers of the plain loop differ (rounding in {self.prepared.precision})."
        return f"{self.timing.table()}\n\n{ratios}\n\n{differing}"


@torch.inference_mode()
def _plain_loop(space: Workspace, prepared: Prepared, examples: list[Example]) -> list[str]:
    answers = []
    for example in examples:
        assert example.image is not None
        with Image.open(io.BytesIO(prepared.site.images.read(example.image))) as image:
            pixels = space.processor.image_processor(images=image.convert("RGB"), return_tensors="pt")["pixel_values"]
        ids = torch.tensor([_prompt(space, example)])
        output = space.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=pixels.to(space.model.dtype),
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
            pad_token_id=space.padding_id,
        )
        answers.append(str(space.processor.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)))
    return answers


def _answers(space: Workspace, examples: list[Example]) -> list[str]:
    return [reply.text for reply in generate_answers(space, examples, blind=False, batch=_BATCH)]


def _features(space: Workspace, prepared: Prepared, folder: Path) -> None:
    """Features of the questions' images, into a store that holds none."""
    site, names = prepared.site, {example.image for group in prepared.site.select for example in group.examples}
    chunks = [chunk for chunk in site.chunks if not names.isdisjoint(chunk.images)]
    config = AutoConfig.from_pretrained(prepared.model_path)
    with tempfile.TemporaryDirectory(dir=folder) as fresh:
        compute_chunks(
            chunks, site.images, vision_tower(space.model), config, space.processor.image_processor, Store(fresh)
        )


def _evaluate(space: Workspace, prepared: Prepared) -> None:
    """What a sweep does for an unpruned variant: all tasks, then without images, and the time of a token."""
    evaluate_tasks(space, prepared.site.select)
    evaluate_tasks(space, prepared.site.select, blind=True)
    latency_ms_per_token(space)


def _prompt(space: Workspace, example: Example) -> list[int]:
    return encode_prompt(
        example.question, space.processor, space.image_tokens, template=space.template, with_image=True
    )


def _row(space: Workspace, example: Example) -> Row:
    """A question with all of its options behind it."""
    tokenizer = space.processor.tokenizer
    options = [token for text in example.options for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
    ids = (*_prompt(space, example), *options)
    assert example.image is not None
    return Row(example.id, ids, (False,) * len(ids), (example.image,))


if __name__ == "__main__":
    main()
