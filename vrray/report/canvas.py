"""What the figures share: size, colours, text, PNG. Agg objects only, so that threads can draw at the same time."""

import io
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DPI = 150
INK = "#222222"
MUTED = "#6b6b6b"
GRID = "#dddddd"
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)  # Okabe and Ito: told apart by colour-blind readers
MARKERS = "osD^vP"
BODY, SMALL, TITLE = 9.0, 8.0, 11.0


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that size in inches."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def message_figure(message: str) -> Figure:
    """A figure that says why there is nothing to draw."""
    figure = new_figure(7, 1.6)
    figure.text(0.5, 0.5, message, ha="center", va="center", fontsize=BODY, color=MUTED, parse_math=False)
    return figure


def to_png(figure: Figure) -> bytes:
    """The figure as PNG, without the metadata that would make equal figures differ."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def tidy(axes: Axes) -> None:
    """Leave of the frame only what is read off."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(labelsize=SMALL, colors=INK)
    axes.set_axisbelow(True)


def caption(figure: Figure, title: str, note: str) -> None:
    """The title above the figure, and beneath it what its marks mean."""
    figure.suptitle(title, fontsize=TITLE, color=INK, parse_math=False)
    figure.supxlabel(note, fontsize=SMALL, color=MUTED, parse_math=False)


def shorten(name: str, longest: int = 34) -> str:
    """The name, cut in its middle where it would crowd the figure: variants of a training differ at the end."""
    return name if len(name) <= longest else f"{name[: longest - 15]}…{name[-14:]}"


def style(index: int) -> tuple[str, str]:
    """Colour and marker of the n-th line; a repeated colour comes with another marker."""
    return PALETTE[index % len(PALETTE)], MARKERS[(index + index // len(PALETTE)) % len(MARKERS)]


def spread(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near the values, in their order, at least a gap apart, for labels that must not overlap.

    They stay within low and high, but pass beyond high where that many do not fit.
    """
    order = sorted(range(len(values)), key=lambda index: values[index])
    ascending = [values[index] for index in order]
    upward = _push_up(ascending, gap, low)
    downward = _push_down(ascending, gap, high)
    middle = [(up + down) / 2 for up, down in zip(upward, downward, strict=True)]
    placed = _push_up(_push_down(middle, gap, high), gap, low)
    return [place for _, place in sorted(zip(order, placed, strict=True))]


def _push_up(ascending: Sequence[float], gap: float, low: float) -> list[float]:
    placed: list[float] = []
    for value in ascending:
        placed.append(max(value, placed[-1] + gap if placed else low))
    return placed


def _push_down(ascending: Sequence[float], gap: float, high: float) -> list[float]:
    mirrored = _push_up([-value for value in reversed(ascending)], gap, -high)
    return [-value for value in reversed(mirrored)]
