"""What one run may take, and when it has taken it."""

from __future__ import annotations

from dataclasses import dataclass

_UNITS = (("h", 3600.0), ("m", 60.0), ("s", 1.0))


@dataclass(frozen=True)
class Budget:
    """Limits of one run; None is no limit.

    Attributes:
        seconds: of wall-clock time, from the start of the run.
        gpu_hours: of the GPUs of all worker groups, counted while a group is at a job.
        gpus: GPUs of one worker group.
    """

    seconds: float | None = None
    gpu_hours: float | None = None
    gpus: int = 0

    def reached(self, elapsed: float, busy: float) -> str | None:
        """Which limit is reached, as its flag says it; None while there is some left.

        Args:
            elapsed: seconds since the run began.
            busy: seconds that worker groups were at jobs, summed over the groups.
        """
        if self.seconds is not None and elapsed >= self.seconds:
            return f"--max-time {duration(self.seconds)} reached"
        if self.gpu_hours is not None and self.gpus * busy >= 3600 * self.gpu_hours:
            return f"--max-gpu-hours {self.gpu_hours:g} reached"
        return None


def read_duration(text: str) -> float:
    """Seconds of `90`, `90s`, `15m` or `8h`.

    Raises:
        ValueError: it is none of these.
    """
    number, factor = text.strip(), 1.0
    for unit, seconds in _UNITS:
        if number.endswith(unit):
            number, factor = number.removesuffix(unit), seconds
    try:
        return float(number) * factor
    except ValueError:
        raise ValueError(f"{text!r} is no duration; give seconds, or a number with h, m or s, such as 8h") from None


def duration(seconds: float) -> str:
    """Seconds in the largest unit that takes them without a remainder, such as `8h`."""
    unit, size = next((unit, size) for unit, size in _UNITS if seconds % size == 0 or size == 1)
    return f"{seconds / size:g}{unit}"
