"""Metrics of tasks of one's own, with scores worked out by hand."""

from __future__ import annotations

import pytest

from vrray.evaluate.metrics import METRICS


@pytest.mark.parametrize(
    ("metric", "prediction", "answers", "score"),
    [
        ("exact", " Red. ", ["blue", "red"], 1),
        ("exact", "a red one", ["red"], 0),
        ("contains", "It is a Red one.", ["red"], 1),
        ("contains", "I know", ["no"], 0),  # whole words alone
        ("contains", "it costs $3.50 (net)", ["$3.50"], 1),
        ("vqa", "The two", ["2"], 1),  # one reference: the same once both are normalised
        ("vqa", "three", ["2"], 0),
        ("vqa", "red", ["red"] * 2 + ["blue"] * 8, 0.6),  # of 10 sets of 9, 8 have two and 2 have one: (8*2+2*1)/3/10
        ("anls", "hallo", ["hello"], 0.8),
        ("anls", "x", ["hello"], 0),  # a similarity below one half
        ("relaxed", "104", ["100"], 1),
        ("relaxed", "106", ["100", "Yes"], 0),
        ("relaxed", "yes", ["100", "Yes"], 1),
        ("choice", "B. a cat", ["B"], 1),
        ("choice", "The answer is C", ["B"], 0),
        ("choice", "no idea", ["A"], 0),
        ("f1", "The small red circle", ["a red circle"], 0.8),  # 2 shared of 3 and 2 words: 2 * 2 / 5
        ("f1", "square", ["circle", "a square!"], 1),
        ("f1", "", ["circle"], 0),
    ],
)
def test_scores_by_hand(metric: str, prediction: str, answers: list[str], score: float) -> None:
    assert METRICS[metric](prediction, answers) == pytest.approx(score)
