"""What a running sweep says: a bar with an estimate on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Literal, Self

import ray
from ray import tune
from tqdm import tqdm

from vrray.sweep.bridge import point_of
from vrray.sweep.live import LiveState
from vrray.sweep.space import Space
from vrray.train.launch import failure_reason

_LOG_EVERY_SECONDS = 15.0


class Progress:
    """Progress over all trainings, counted in optimizer steps; `live` is the same for other watchers."""

    def __init__(self, total_steps: int, live: LiveState | None = None):
        self.live = live or LiveState()
        self._steps: dict[str, int] = {}
        self._said: dict[str, float] = {}
        self._bar = (
            tqdm(total=total_steps, unit="step", desc="sweep", dynamic_ncols=True) if sys.stderr.isatty() else None
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def say(self, text: str) -> None:
        self.live.say(text)
        self._say(text)

    def ended(
        self, trial: str, key: str, state: Literal["finished", "failed", "stopped"], text: str, message: str = ""
    ) -> None:
        """Say how a trial ended; `message` is why it failed."""
        self.live.ended(key, trial, state, message or None)
        self.say(f"{trial}: {text}")

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(text)
        else:
            print(text, flush=True)

    def update(self, trial: str, metrics: dict[str, Any], key: str = "") -> None:
        """Take in one report of a trial; `key` tells trials of one name apart."""
        key = key or trial
        step = int(metrics.get("step", 0))
        if "say" in metrics:
            self.say(f"  {trial}: {metrics['say']}")
        elif "evaluated" in metrics:
            self.live.evaluated(key, trial, int(metrics["evaluated"]))
            self._throttled(key, f"  {trial}: evaluated with {int(metrics['evaluated'])} layers removed")
        elif step:
            self.live.stepped(key, trial, metrics)
            seconds, steps = metrics["step_seconds"], int(metrics["steps"])
            self._throttled(
                key,
                f"  {trial}: step {step}/{steps}, loss {metrics['loss_mean']:.3f}, lr {metrics['learning_rate']:.1e}, "
                f"{metrics['samples_per_second']:.1f} samples/s, "
                f"{metrics['supervised_tokens_per_second']:.0f} supervised tokens/s, "
                f"peak {metrics['peak_mib']:.0f} MiB, {(steps - step) * seconds:.0f} s left",
                always=step == steps,
            )
        if self._bar is not None:
            self._bar.update(max(0, step - self._steps.get(key, 0)))
            if step:
                self._bar.set_postfix_str(f"{trial} loss {metrics['loss_mean']:.3f}")
        self._steps[key] = max(step, self._steps.get(key, 0))

    def _throttled(self, trial: str, text: str, always: bool = False) -> None:
        now = time.monotonic()
        if self._bar is None and (always or now - self._said.get(trial, 0.0) >= _LOG_EVERY_SECONDS):
            self._said[trial] = now
            self._say(text)


class TuneProgress(tune.Callback):
    """Passes Tune's trial events on to a `Progress`, and tells the desk when a scheduler stops a trial."""

    def __init__(self, progress: Progress, desk: Any, space: Space):
        self._progress, self._desk, self._space = progress, desk, space

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        if not {"finished", "failed", "paused"} & result.keys():
            self._progress.update(result["trial"], result, result["key"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        result = trial.last_result or {}
        name, key = self._name(trial)
        if "finished" in result:
            score = f", score {result['score']:.3f}" if "score" in result else ""
            self._progress.ended(name, key, "finished", f"finished{score}")
        elif "failed" in result:
            self._progress.ended(name, key, "failed", f"failed, {result['failed']}", str(result["failed"]))
        elif "paused" in result:
            text = f"paused at step {result['step']:g}" if "step" in result else "not begun"
            text += ", the budget is spent"
            self._progress.ended(name, key, "stopped", text)
        else:
            ray.get(self._desk.cancel.remote(key))
            text = f"stopped by the scheduler at step {result.get('step', 0):g}"
            self._progress.ended(name, key, "stopped", text)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        name, key = self._name(trial)
        error = trial.get_error()
        reason = failure_reason(error) if error else "its process was lost"
        self._progress.ended(name, key, "failed", "failed, the others go on; the reason is in the table", reason)

    def _name(self, trial: Any) -> tuple[str, str]:
        point = self._space.trial(point_of(trial.config))
        return point.region.name, point.key
