"""Numbers and names as the report writes them; what was not measured is a dash."""

import re
from collections.abc import Collection, Iterable, Sequence

from vrray.report.rows import Score

DASH = "-"


def format_number(value: float | None, digits: int = 3) -> str:
    """A number with that many decimals and thousands separated."""
    return DASH if value is None else f"{value:,.{digits}f}"


def format_percent(fraction: float | None) -> str:
    """A fraction as a percentage with one decimal, without the sign %."""
    return DASH if fraction is None else f"{100 * fraction:.1f}"


def format_score(score: Score | None) -> str:
    """A score and half the width of its interval: "0.931 ±0.018"."""
    if score is None:
        return DASH
    half = score.half_width
    return format_number(score.value) if half is None else f"{score.value:.3f} ±{half:.3f}"


def format_interval(score: Score | None) -> str:
    """A score and its interval: "0.931 (0.912 to 0.948)"."""
    if score is None:
        return DASH
    if score.low is None or score.high is None:
        return format_number(score.value)
    return f"{score.value:.3f} ({score.low:.3f} to {score.high:.3f})"


def format_difference(difference: Score | None) -> str:
    """A difference and its interval with their signs: "-0.021 (-0.045 to +0.003)"."""
    if difference is None:
        return DASH
    if difference.low is None or difference.high is None:
        return f"{difference.value:+.3f}"
    return f"{difference.value:+.3f} ({difference.low:+.3f} to {difference.high:+.3f})"


def format_span(values: Iterable[float | None]) -> str:
    """The one value, or the smallest and the largest: "0.180" or "0.180 to 0.250"."""
    shown = sorted({format_number(value) for value in values if value is not None}, key=float)
    if not shown:
        return DASH
    return shown[0] if len(shown) == 1 else f"{shown[0]} to {shown[-1]}"


def format_millions(count: int | None) -> str:
    """A count in millions, with one decimal below a thousand million."""
    return DASH if count is None else format_number(count / 1e6, 1 if count < 1e9 else 0)


def format_duration(seconds: float | None) -> str:
    """A time in the two largest units that it needs: "45.3s", "12m05s", "1h04m"."""
    if seconds is None:
        return DASH
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    return f"{minutes // 60:,}h{minutes % 60:02d}m"


def format_layers(layers: Iterable[int]) -> str:
    """Layer numbers with runs folded: "2,5-7"."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs) or DASH


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is, on one line, also in the cell of a table."""
    return re.sub(r"([\\`*\[\]<>|]|\b_|_\b)", r"\\\1", " ".join(text.split()))


def format_code(name: str) -> str:
    """A name as Markdown code, on one line, also in the cell of a table."""
    inner = " ".join(name.replace("`", "'").split())
    return "`" + inner.replace("|", "\\|") + "`"


def format_table(header: Sequence[str], rows: Iterable[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """A Markdown table; columns of numbers are set right, which are all but those in `left` (of two columns: none)."""
    text_only = len(header) == 2
    rule = [":---" if text_only or place in left else "---:" for place in range(len(header))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def format_text_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of texts: every column is set left."""
    return format_table(header, rows, left=range(len(header)))
