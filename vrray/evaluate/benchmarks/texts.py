"""Comparing answers as texts: edit distance, ANLS, and the VQA normalisations with their accuracy."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from vrray.evaluate.benchmarks.vqa_words import ARTICLES, CONTRACTIONS, NUMBERS

ANLS_THRESHOLD = 0.5

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_PERIODS = int(re.UNICODE)  # the scripts pass this flag where `re.sub` takes a count, so later periods stay


def edit_distance(first: str, second: str) -> int:
    """Levenshtein distance: insertions, deletions and substitutions of characters."""
    if len(first) < len(second):
        first, second = second, first
    previous = list(range(len(second) + 1))
    for row, left in enumerate(first, start=1):
        current = [row]
        for column, right in enumerate(second, start=1):
            change = previous[column - 1] + (left != right)
            current.append(min(previous[column] + 1, current[column - 1] + 1, change))
        previous = current
    return previous[-1]


def document_anls(prediction: str, answers: Sequence[str]) -> float:
    """ANLS of DocVQA and InfographicVQA (Biten et al. 2019, as their evaluation script computes it).

    Texts are compared in lower case with single spaces, but the distance is divided by the length of the raw texts.
    """
    similarity = 1 - min(_document_distance(prediction, answer) for answer in answers)
    return similarity if similarity >= ANLS_THRESHOLD else 0.0


def _document_distance(prediction: str, answer: str) -> float:
    length = max(len(answer.upper()), len(prediction.upper()))
    distance = edit_distance(" ".join(prediction.lower().split()), " ".join(answer.lower().split()))
    return distance / length if length else 0.0


def scene_text_anls(prediction: str, answers: Sequence[str]) -> float:
    """ANLS of ST-VQA (Biten et al. 2019) as M4C's evaluator computes it: of lower-case, stripped texts."""
    return max(_scene_text_similarity(prediction.lower().strip(), answer.lower().strip()) for answer in answers)


def _scene_text_similarity(prediction: str, answer: str) -> float:
    length = max(len(prediction), len(answer))
    similarity = 1 - edit_distance(prediction, answer) / length if length else 1.0
    return similarity if similarity >= ANLS_THRESHOLD else 0.0


def normalize_vqa(text: str) -> str:
    """What TextVQA's evaluator compares (M4C's `EvalAIAnswerProcessor`), for predictions and references alike."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = text.strip().replace("\n", " ").replace("\t", " ").strip()
    return replace_words(strip_punctuation(text))


def normalize_vqa_prediction(text: str) -> str:
    """What the official VQA evaluation (`vqaEval.py`) makes of a prediction."""
    text = text.replace("\n", " ").replace("\t", " ").strip()
    return replace_words(strip_punctuation(text))


def strip_punctuation(text: str) -> str:
    """Punctuation of the VQA evaluation: away beside a space or in a text with a number such as 1,000, else a space."""
    stripped = text
    everywhere = _COMMA_IN_NUMBER.search(text) is not None
    for sign in filter(text.__contains__, _PUNCTUATION):
        beside_space = f"{sign} " in text or f" {sign}" in text
        stripped = stripped.replace(sign, "" if everywhere or beside_space else " ")
    return _PERIOD.sub("", stripped, count=_PERIODS)


def replace_words(text: str) -> str:
    """Words of the VQA evaluation: lower case, numbers to ten as digits, no articles, contractions with apostrophes."""
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def consensus(prediction: str, answers: Sequence[str]) -> float:
    """VQA accuracy (Antol et al. 2015): min(1, matches / 3), averaged over all sets that leave one answer out."""
    matches = [answer == prediction for answer in answers]
    total = sum(matches)
    return sum(min(1.0, (total - match) / 3) for match in matches) / len(matches)


def text_vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """TextVQA's accuracy: `consensus` of texts that `normalize_vqa` has normalised."""
    return consensus(normalize_vqa(prediction), [normalize_vqa(answer) for answer in answers])


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """VQAv2's accuracy as `vqaEval.py` computes it.

    The prediction is normalised; the references, which were normalised when they were collected, only lose
    punctuation, and only where they differ.
    """
    clean: Callable[[str], str] = strip_punctuation if len(set(answers)) > 1 else str
    return consensus(normalize_vqa_prediction(prediction), [clean(answer) for answer in answers])


def is_among(prediction: str, answers: Sequence[str]) -> float:
    """ST-VQA's accuracy in M4C: whether the normalised prediction is one of the normalised references."""
    return float(normalize_vqa(prediction) in {normalize_vqa(answer) for answer in answers})
