"""Sentences that the report draws from the table: the answer, and the floor and ceiling of the scores."""

from collections.abc import Sequence
from itertools import takewhile

from vrray.report.rows import Row, Score, find_ceiling, name_split, rank, ties_best, unpruned
from vrray.report.text import (
    format_code,
    format_interval,
    format_layers,
    format_millions,
    format_percent,
    format_score,
    format_span,
)

QUARTER = 0.25  # the share of the layers that the paper finds enough (arXiv 2412.12785)


def state_findings(rows: Sequence[Row]) -> list[str]:
    """The answer in Markdown: the best variant, what the best region of about a quarter keeps, what pruning costs."""
    ranked = [row for row in rank(rows) if row.visual is not None]
    if not ranked:
        return ["No variant has a visual score, so this sweep has no answer yet."]
    region = _pick_region(ranked)
    sentences = [_state_best(ranked)]
    if region is not None:
        sentences.append(_state_region(region, ranked))
    return [*sentences, _state_pruning(region, ranked)]


def state_floor(rows: Sequence[Row]) -> str:
    """What a guess from the question alone scores, and the variants without the image; a span where values differ."""
    visual = format_span(row.floor_visual for row in rows)
    textual = format_span(row.floor_textual for row in rows)
    blind = format_span(row.blind for row in rows)
    return f"Floor: question-only guess {visual} visual, {textual} textual. Blind (without the image): {blind}."


def state_ceiling(rows: Sequence[Row]) -> str:
    """What tuning all layers scores, where the sweep has it."""
    ceiling = find_ceiling(rows)
    if ceiling is None:
        return "Ceiling: unknown, the sweep has no complete variant with all layers tuned."
    textual = "" if ceiling.textual is None else f", {format_score(ceiling.textual)} textual"
    return f"Ceiling: full tuning ({ceiling.variant}) {format_score(ceiling.visual)} visual{textual}."


def _state_best(ranked: Sequence[Row]) -> str:
    best = ranked[0]
    ties = sum(ties_best(row, ranked) for row in ranked)
    removed = f"{len(best.removed)} removed" if best.removed else "none removed"
    text = (
        f"Best visual score on the {format_code(name_split(ranked))} split: {format_code(best.variant)} with "
        f"{format_interval(best.visual)}, {len(best.tuned)} of {best.depth} layers tuned, {removed}"
    )
    if len(ranked) == 1:
        return f"{text}; it is the only variant with a score."
    if best.visual is None or best.visual.half_width is None:
        return f"{text}; without intervals, how certain that is cannot be said."
    if not ties:
        return f"{text}; every other variant scores less, beyond the paired 95 % interval of the difference."
    return f"{text}; {ties} of the {len(ranked) - 1} other variants cannot be told from it on these examples."


def _pick_region(ranked: Sequence[Row]) -> Row | None:
    """The best unpruned variant among those that tune nearest to a quarter of the layers, but not all and not none."""
    partial = [row for row in unpruned(ranked) if 0 < len(row.tuned) < row.depth]
    return min(partial, key=_distance, default=None)


def _distance(row: Row) -> float:
    return round(abs(len(row.tuned) / row.depth - QUARTER), 9)


def _state_region(region: Row, ranked: Sequence[Row]) -> str:
    size = f"{len(region.tuned)} of {region.depth} layers ({100 * len(region.tuned) / region.depth:.0f} %)"
    alike = [row for row in unpruned(ranked) if (len(row.tuned), row.depth) == (len(region.tuned), region.depth)]
    name = format_code(region.variant)
    opening = f"{name} tunes {size} and" if len(alike) == 1 else f"Of the {len(alike)} regions that tune {size}, {name}"
    kept = [
        f"{format_percent(retention)} % of the {kind}"
        for kind, retention in (("visual", region.retention_visual), ("textual", region.retention_textual))
        if retention is not None
    ]
    if not kept:
        best = "scores" if len(alike) == 1 else "scores best, with"
        return f"{opening} {best} {format_interval(region.visual)}; without `all`, what it keeps is unknown."
    best = "keeps" if len(alike) == 1 else "scores best: it keeps"
    return f"{opening} {best} {' and '.join(kept)} score of tuning all layers."


def _state_pruning(region: Row | None, ranked: Sequence[Row]) -> str:
    trainings = ([region] if region else []) + unpruned(ranked)
    base, pruned = next(((row, found) for row in trainings if (found := _pruned(row, ranked))), (None, []))
    if base is None:
        return "No variant has both its unpruned and its pruned score, so the cost of pruning is unknown."
    most = pruned[-1]
    return (
        f"Removing {_count_layers(len(most.removed))} ({format_layers(most.removed)}) from {format_code(base.variant)} "
        f"changes its visual score by {_points(base.visual, most.visual)} percentage points, to "
        f"{format_interval(most.visual)}{_state_savings(base, most)}{_state_harmless(base, pruned)}."
    )


def _pruned(base: Row, ranked: Sequence[Row]) -> list[Row]:
    """The pruned variants of the same training, by layers removed."""
    pruned = [row for row in ranked if row.trial == base.variant and row.removed]
    return sorted(pruned, key=lambda row: len(row.removed))


def _points(before: Score | None, after: Score | None) -> str:
    assert before is not None and after is not None, "ranked rows have a visual score"
    return f"{100 * (after.value - before.value):+.1f}"


def _state_savings(base: Row, most: Row) -> str:
    savings = ""
    if base.parameters and most.parameters:
        savings += f", its parameters from {format_millions(base.parameters)} M to {format_millions(most.parameters)} M"
    if base.latency and most.latency:
        savings += f", its latency from {base.latency:.1f} to {most.latency:.1f} ms per token"
    return savings


def _state_harmless(base: Row, pruned: Sequence[Row]) -> str:
    """How far one can prune before the intervals part."""
    if any(row.visual is None or row.visual.half_width is None for row in (base, *pruned)):
        return ""
    alike = list(takewhile(lambda row: row.visual and base.visual and row.visual.overlaps(base.visual), pruned))
    if not alike:
        least = _count_layers(len(pruned[0].removed))
        return f"; already with {least} removed, its interval no longer overlaps the unpruned one"
    if len(alike) == len(pruned):
        return "; its interval still overlaps the unpruned one"
    return f"; with up to {_count_layers(len(alike[-1].removed))} removed, its interval still overlaps the unpruned one"


def _count_layers(count: int) -> str:
    return f"{count} layer" if count == 1 else f"{count} layers"
