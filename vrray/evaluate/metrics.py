"""How the answers to questions of one's own are scored: one of a few metrics, each from 0 to 1."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from vrray.evaluate.benchmarks.choices import stated_option
from vrray.evaluate.benchmarks.diagrams import relaxed_accuracy
from vrray.evaluate.benchmarks.texts import document_anls, is_among, text_vqa_accuracy
from vrray.metrics import exact_match, normalize_answer

CHOICE_LETTERS = ("A", "B", "C", "D")
_CONSENSUS = 4  # answers from which on VQA accuracy counts agreement: an answer needs three others that say the same
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _exact(prediction: str, answers: Sequence[str]) -> float:
    return float(any(exact_match(prediction, answer) for answer in answers))


def _contains(prediction: str, answers: Sequence[str]) -> float:
    """Whether a reference stands in the prediction, as whole words."""
    text = prediction.casefold()
    patterns = (rf"(?<!\w){re.escape(normalize_answer(answer))}(?!\w)" for answer in answers)
    return float(any(re.search(pattern, text) for pattern in patterns))


def _vqa(prediction: str, answers: Sequence[str]) -> float:
    if len(answers) < _CONSENSUS:
        return is_among(prediction, answers)
    return text_vqa_accuracy(prediction, answers)


def _relaxed(prediction: str, answers: Sequence[str]) -> float:
    return max(relaxed_accuracy(prediction, answer) for answer in answers)


def _choice(prediction: str, answers: Sequence[str]) -> float:
    return float(stated_option(prediction) in answers)


def _f1(prediction: str, answers: Sequence[str]) -> float:
    return max(token_f1(prediction, answer) for answer in answers)


def token_f1(prediction: str, answer: str) -> float:
    """F1 over words without case, punctuation and articles (Rajpurkar et al. 2016, section 6.1)."""
    predicted, expected = _words(prediction), _words(answer)
    shared = sum((Counter(predicted) & Counter(expected)).values())
    if not predicted or not expected:
        return float(predicted == expected)
    return 2 * shared / (len(predicted) + len(expected))


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


METRICS: Mapping[str, Callable[[str, Sequence[str]], float]] = {
    "exact": _exact,
    "contains": _contains,
    "vqa": _vqa,
    "anls": document_anls,
    "relaxed": _relaxed,
    "choice": _choice,
    "f1": _f1,
}
"""The score of a prediction against its reference answers; of several references the best one counts."""
