"""Numbers and names as the report writes them."""

import pytest

from vrray.report.rows import Score
from vrray.report.text import (
    escape_markdown,
    format_code,
    format_duration,
    format_interval,
    format_layers,
    format_millions,
    format_score,
    format_span,
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.04, "0.0s"),
        (45.26, "45.3s"),
        (59.99, "1m00s"),
        (725, "12m05s"),
        (3599.7, "1h00m"),
        (3870, "1h04m"),
    ],
)
def test_duration(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(("layers", "text"), [((), "-"), ((7,), "7"), ((7, 2, 6, 5), "2,5-7"), ((0, 1, 29), "0-1,29")])
def test_layers(layers, text):
    assert format_layers(layers) == text


def test_scores():
    assert format_score(Score(0.9314, 0.9, 0.96)) == "0.931 ±0.030"
    assert format_interval(Score(0.9314, 0.9, 0.96)) == "0.931 (0.900 to 0.960)"
    assert format_score(Score(0.9314)) == format_interval(Score(0.9314)) == "0.931"
    assert format_score(None) == "-"


def test_span_and_millions():
    assert format_span([0.25, None, 0.18]) == "0.180 to 0.250"
    assert format_span([0.18, 0.18]) == "0.180"
    assert format_span([None]) == "-"
    assert (format_millions(256_480_000), format_millions(7_063_000_000)) == ("256.5", "7,063")


def test_markdown_is_escaped():
    assert escape_markdown("a|b\n<c> *d* _e_ f_g [h] `i` \\") == r"a\|b \<c\> \*d\* \_e\_ f_g \[h\] \`i\` \\"
    assert format_code("a|`b`\nc") == r"`a\|'b' c`"
