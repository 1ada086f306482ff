"""Seconds of alternating pieces of work, and their tables: medians over the rounds, ratios taken round by round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


class Timing:
    """Seconds by name, one each round; the first round warms up and is left out of the tables."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def time(self, name: str, work: Callable[[], T]) -> T:
        began = time.perf_counter()
        result = work()
        self.add(name, time.perf_counter() - began)
        return result

    def add(self, name: str, seconds: float) -> None:
        self.seconds.setdefault(name, []).append(seconds)

    def table(self) -> str:
        lines = ["| what | s | range |", "| --- | --- | --- |"]
        for name, all_seconds in self.seconds.items():
            lines.append(f"| {name} | {_median_and_range(all_seconds[1:])} |")
        return "\n".join(lines)

    def ratios(self, *pairs: tuple[str, str, str]) -> str:
        """A table of ratios of two names, with what is aimed at."""
        lines = ["| ratio | median | range | aim |", "| --- | --- | --- | --- |"]
        for above, below, aim in pairs:
            found = [x / y for x, y in zip(self.seconds[above][1:], self.seconds[below][1:], strict=True)]
            lines.append(f"| {above} / {below} | {_median_and_range(found)} | {aim} |")
        return "\n".join(lines)


@contextmanager
def inside(*modules: Any) -> Iterator[list[float]]:
    """The seconds of every forward pass of some modules, of which none is inside another."""
    seconds: list[float] = []
    began: list[float] = []
    handles = []
    for module in modules:
        handles.append(module.register_forward_pre_hook(lambda *_: began.append(time.perf_counter())))
        handles.append(module.register_forward_hook(lambda *_: seconds.append(time.perf_counter() - began.pop())))
    try:
        yield seconds
    finally:
        for handle in handles:
            handle.remove()


def _median_and_range(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} | {min(values):.2f}-{max(values):.2f}"
