"""Tasks of EleutherAI's lm-evaluation-harness, asked of the decoder of a model: its own code runs and scores them."""

from __future__ import annotations

import difflib
import json
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from vrray.errors import DataError, SpecError
from vrray.frozen import Frozen

_SHOWN = ("results", "groups", "versions", "n-shot", "n-samples")  # of what the harness returns, under its own names
_FURTHER = ("higher_is_better", "configs", "samples")


class HarnessSpec(Frozen):
    """Which tasks of the harness a model is asked, and how."""

    model: str = Field(description="directory that `vrray export` wrote, or a preset, model directory or hub id")
    tasks: list[str] = Field(min_length=1, description="tasks or groups of the harness, or YAML files of tasks")
    include_path: Path | None = Field(None, description="folder with task files of one's own")
    num_fewshot: int | None = Field(None, ge=0, description="examples in front of each question [each task's own]")
    chat_template: bool = Field(False, description="ask through the model's chat template")
    limit: int | None = Field(None, ge=1, description="the first N questions of each task alone, for a trial [all]")
    batch: int = Field(8, ge=1, description="questions, or options, that the model reads at once")
    dtype: Literal["fp32", "fp16", "bf16"] | None = Field(None, description="of the weights [as they are stored]")
    out: Path | None = Field(None, description="JSON file for the results with every question and answer")


def run_harness(spec: HarnessSpec) -> dict[str, Any]:
    """Ask a model tasks of lm-evaluation-harness, without images, on the GPU where there is one.

    Returns:
        The harness's own `results`, `groups`, `versions`, `n-shot` and `n-samples`, and what was asked with which
        versions. `spec.out` gets these with the tasks' configurations and every question and answer.

    Raises:
        SpecError: the package is not installed, a task is unknown, or the folder of `out` is not there.
        DataError: a task's data cannot be had, or a package that it needs.
        ModelError: the model cannot be loaded, or a LoRA adapter lies beside it.
    """
    check_installed()
    if spec.out is not None and not spec.out.absolute().parent.is_dir():
        raise SpecError(f"--out {spec.out}: there is no folder {spec.out.parent}")
    from datasets.exceptions import DatasetsError
    from lm_eval import simple_evaluate
    from lm_eval.utils import handle_non_serializable

    from vrray.evaluate.harness_model import load_for_harness
    from vrray.models.loading import base_identity, resolve_model

    tasks = _task_manager(spec)
    path = resolve_model(spec.model)
    model = load_for_harness(path, spec.dtype, spec.batch)
    try:
        found = simple_evaluate(
            model,
            tasks=spec.tasks,
            task_manager=tasks,
            num_fewshot=spec.num_fewshot,
            batch_size=spec.batch,
            limit=spec.limit,
            apply_chat_template=spec.chat_template,
            log_samples=spec.out is not None,
        )
    except (OSError, ImportError, DatasetsError) as error:
        raise DataError(f"the tasks {' '.join(spec.tasks)} cannot be asked: {error}") from error
    asked = {
        "model": spec.model,
        "identity": base_identity(path),
        "dtype": str(model.model.dtype).removeprefix("torch."),
        "chat_template": spec.chat_template,
        "limit": spec.limit,
        "packages": {name: version(name) for name in ("lm_eval", "vrray", "torch", "transformers")},
    }
    shown = asked | {name: found[name] for name in _SHOWN if name in found}
    if spec.out is not None:
        whole = shown | {name: found[name] for name in _FURTHER if name in found}
        text = json.dumps(whole, indent=1, default=handle_non_serializable, ensure_ascii=False)
        spec.out.write_text(text, encoding="utf-8")
    return dict(json.loads(json.dumps(shown, default=handle_non_serializable)))


def check_installed() -> None:
    """Raises SpecError where lm-evaluation-harness is not installed."""
    if find_spec("lm_eval") is None:
        raise SpecError(
            "lm-evaluation-harness is not installed; install the extra lm-eval: pip install 'vrray[lm-eval]'"
        )


def _task_manager(spec: HarnessSpec) -> Any:
    """The harness's index of tasks, with those of one's own."""
    if spec.include_path is not None and not spec.include_path.is_dir():
        raise SpecError(f"--include-path {spec.include_path} is no folder; name the one with the tasks' YAML files")
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=spec.include_path)
    for name in spec.tasks:
        if name in manager.all_tasks or Path(name).is_file():
            continue
        near = difflib.get_close_matches(name, manager.all_tasks, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise SpecError(
            f"--tasks {name}: lm_eval {version('lm_eval')} has no task or group of that name; {hint}"
            "Tasks of your own are found with --include-path DIR, or named as a YAML file"
        )
    return manager
