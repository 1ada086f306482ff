"""Generated conversations in the proportions of LLaVA-665K, and photos for them.

Of the records, 55 % are a short question about a photo, 39 % several turns about one, 6 % a long conversation without.
There is a photo for every two records.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SEED = 0
_SHORT, _TEXT_ONLY = 0.55, 0.06
_RECORDS_PER_IMAGE = 2
_PHOTOS, _SIZE = 200, (336, 252)
_FOLDER_IMAGES = 10_000  # as many as a folder of COCO's or Visual Genome's does well with
_DRAWN = 1 << 19
_WORD = re.compile(r"\w[a-z]{2,}")


def words_of(tokenizer: Any) -> list[str]:
    """Words that a tokenizer knows, the frequent ones first: lower-case words that begin with its sign for a space."""
    by_id = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    return [token[1:] for token, _ in by_id if token[0] in "Ġ▁" and _WORD.fullmatch(token)]


def write_conversations(path: Path, count: int, words: Sequence[str], seed: int = SEED) -> list[str]:
    """Write a JSON list of records in LLaVA's format; the names of their images."""
    draw, text = random.Random(seed), Text(words, seed)
    images = max(1, count // _RECORDS_PER_IMAGE)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            file.write("[" if number == 0 else ",\n")
            name = _image_name(draw.randrange(images))
            file.write(json.dumps(_record(number, name, draw, text)))
        file.write("]\n")
    return [_image_name(number) for number in range(images)]


def draw_photos(folder: Path, names: Sequence[str], seed: int = SEED) -> None:
    """JPEG files of 336 x 252 pixels under all names; there are 200 different ones, the others are links to them."""
    generator = np.random.default_rng(seed)
    (folder / "drawn").mkdir(parents=True)
    drawn = [folder / "drawn" / f"{number}.jpg" for number in range(min(_PHOTOS, len(names)))]
    for path in drawn:
        coarse = Image.fromarray(generator.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize(_SIZE)
        noise = generator.integers(-12, 13, (_SIZE[1], _SIZE[0], 3))
        pixels = np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path, quality=85)
    for parent in {Path(name).parent for name in names}:
        (folder / parent).mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        os.link(drawn[number % len(drawn)], folder / name)


class Text:
    """Sentences of words by Zipf's law. Every tenth one is two run together, for real text has words that are split."""

    def __init__(self, words: Sequence[str], seed: int):
        self._draw = random.Random(seed + 1)
        weights = list(accumulate(1 / (rank + 10) for rank in range(len(words))))
        drawn = self._draw.choices(words, cum_weights=weights, k=2 * _DRAWN)
        pairs = zip(drawn[:_DRAWN], drawn[_DRAWN:], strict=True)
        self._drawn = [first + second if place % 10 == 9 else first for place, (first, second) in enumerate(pairs)]

    def sentence(self, count: int, end: str) -> str:
        begin = self._draw.randrange(_DRAWN - count)
        return " ".join(self._drawn[begin : begin + count]).capitalize() + end

    def paragraphs(self, count: int) -> str:
        """So many words, in sentences of 6 to 24."""
        sentences: list[str] = []
        while count > 0:
            length = min(count, self._draw.randint(6, 24))
            sentences.append(self.sentence(length, ".\n\n" if self._draw.random() < 0.1 else "."))
            count -= length
        return " ".join(sentences)


def _record(number: int, image: str, draw: random.Random, text: Text) -> dict[str, Any]:
    kind = draw.random()
    if kind < _SHORT:
        question = f"{text.sentence(draw.randint(5, 12), '?')}\nAnswer the question using a single word or phrase."
        turns = [(question, text.sentence(draw.randint(1, 3), ""))]
    elif kind < 1 - _TEXT_ONLY:
        turns = [_turn(draw, text, 45) for _ in range(draw.randint(2, 9))]
    else:
        turns = [_turn(draw, text, 190) for _ in range(draw.randint(2, 6))]
    messages = [
        {"from": role, "value": said} for turn in turns for role, said in zip(("human", "gpt"), turn, strict=True)
    ]
    if kind >= 1 - _TEXT_ONLY:
        return {"id": f"text-{number}", "conversations": messages}
    messages[0]["value"] = f"<image>\n{messages[0]['value']}"
    return {"id": f"{number:09}", "image": image, "conversations": messages}


def _turn(draw: random.Random, text: Text, words: int) -> tuple[str, str]:
    """A question, and an answer of so many words on average."""
    return text.sentence(draw.randint(6, 18), "?"), text.paragraphs(1 + round(draw.expovariate(1 / words)))


def _image_name(number: int) -> str:
    return f"photos/{number // _FOLDER_IMAGES:03}/{number:012}.jpg"
