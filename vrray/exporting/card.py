"""The model card of an export: README.md with the front matter that model hubs read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from vrray.data.tasks import ABILITIES
from vrray.exporting.adapter import FOLDER as ADAPTER
from vrray.exporting.source import Source
from vrray.models.family import family_of
from vrray.models.hub import is_hub_id
from vrray.models.presets import find_preset
from vrray.region import Region

_DEMO = {"base_model": "HuggingFaceTB/SmolLM2-135M-Instruct", "license": "apache-2.0"}
_DEMO_TOWER = "efficientnet_lite"


@dataclass(frozen=True)
class Exported:
    """What was written: its name, the command for it, the pruned configuration, how many parameters, an adapter?"""

    name: str
    command: str
    config: Any
    parameters: int
    adapter: bool


def model_card(source: Source, exported: Exported) -> str:
    """The card in Markdown."""
    known = _known(source)
    front = {**known, "library_name": "transformers", "pipeline_tag": "image-text-to-text", "tags": ["vrray", "pruned"]}
    sections = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {exported.name}",
        _summary(source, exported),
        "## Loading\n\n" + _loading(exported),
        _plan(source, exported),
        _scores(source),
        _layer_scores(source),
        _making(source, exported),
        _licence(known),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _known(source: Source) -> dict[str, str]:
    """The base's hub id and licence, as far as they are known."""
    if source.model == "smol":
        return dict(_DEMO)
    preset, known = find_preset(source.model), {}
    if preset is not None:
        known["base_model"] = preset.standard or preset.checkpoint or ""
    elif is_hub_id(source.model) and not Path(source.model).exists():
        known["base_model"] = source.model.partition("@")[0]
    front = _front_matter(source.path / "README.md")
    known |= {key: front[key] for key in ("license", "license_name", "license_link") if isinstance(front.get(key), str)}
    return known


def _front_matter(card: Path) -> dict[str, Any]:
    """What the base's own card says to model hubs."""
    if not card.is_file():
        return {}
    parts = card.read_text(errors="replace").split("---\n", 2)
    if len(parts) < 3 or parts[0].strip():
        return {}
    try:
        found = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def _summary(source: Source, exported: Exported) -> str:
    kept, depth = len(source.kept), source.region.depth
    made = "tuned and pruned" if source.delta and source.removed else "tuned" if source.delta else "pruned"
    return (
        f"A {made} version of `{_base(source)}`: {kept} of its {depth} decoder layers, "
        f"{exported.parameters / 1e6:,.1f}M parameters. Made with vrray."
    )


def _base(source: Source) -> str:
    return Path(source.model).name if Path(source.model).exists() else source.model


def _loading(exported: Exported) -> str:
    config = exported.config
    lines = ["from transformers import AutoModelForImageTextToText, AutoProcessor"]
    if config.vision_config.model_type == _DEMO_TOWER:
        lines.append("import vrray.models.tower  # registers the demo's vision tower, which transformers does not have")
    if exported.adapter:
        lines.insert(0, "from peft import PeftModel")
    lines += ["", f'model = AutoModelForImageTextToText.from_pretrained("{exported.name}")']
    if exported.adapter:
        lines.append(f'model = PeftModel.from_pretrained(model, "{exported.name}/{ADAPTER}")')
    lines.append(f'processor = AutoProcessor.from_pretrained("{exported.name}")')
    for setting, value in family_of(config).one_view.items():
        lines.append(f"processor.image_processor.{setting} = {value}  # one view of an image, as in training")
    code = "```python\n" + "\n".join(lines) + "\n```"
    if exported.adapter:
        code += (
            f"\n\nThe weights here are the pruned base with the tuned projector; the decoder's LoRA adapters are in "
            f"`{ADAPTER}/`. Without them the model is only half tuned."
        )
    return code


def _plan(source: Source, exported: Exported) -> str:
    region, delta = source.region, source.delta
    rows = [("base", f"`{_base(source)}`")]
    if delta is not None:
        how = f"LoRA, rank {delta.lora_rank}, alpha {delta.lora_alpha}" if delta.mode == "lora" else "all parameters"
        tuned = f"{region.name}: layers {_listed(region)}" if len(region) else "no decoder layer"
        rows += [("tuned", f"{tuned}; and the projector"), ("trained", how), ("base's identity", f"`{delta.base}`")]
    elif len(region):
        rows.append(("protected from pruning", f"layers {_listed(region)}"))
    ranking = source.row.get("ranking") or (source.scores or {}).get("name")
    rows += [
        ("removed layers", _listed(source.removed)),
        *([("chosen by", str(ranking))] if ranking and source.removed else []),
        *([("healed", "by a short training of the tuned layers afterwards")] if source.row.get("healed") else []),
        ("decoder layers", f"{len(source.kept)} of {region.depth}"),
        ("parameters", f"{exported.parameters:,}"),
    ]
    note = "Layers are numbered as in the base, from 0 at the input."
    return f"## What it is\n\n{_table(('', ''), rows)}\n\n{note}"


def _scores(source: Source) -> str:
    row = source.row
    cells = []
    for prefix, split in (("", row.get("split")), ("test_", "test")):
        for ability in ABILITIES:
            value, low, high = (row.get(f"{prefix}score_{ability}{end}") for end in ("", "_low", "_high"))
            if value is not None:
                interval = "" if low is None or high is None else f"{low:.3f} to {high:.3f}"
                cells.append((ability, str(split), f"{value:.3f}", interval))
    if not cells:
        return ""
    measured = [f"Tasks: {source.context['tasks']}." if "tasks" in source.context else ""]
    for name, text in (("blind_visual", "without the image, unpruned"), ("floor_visual", "best guess from questions")):
        if row.get(name) is not None:
            measured.append(f"Visual, {text}: {row[name]:.3f}.")
    for ability in ABILITIES:
        if row.get(f"retention_{ability}") is not None:
            measured.append(f"{ability.capitalize()} retention: {100 * row[f'retention_{ability}']:.1f} %.")
    table = _table(("ability", "split", "score", "95 % interval"), cells)
    note = "Variants were chosen on `select`: the score on `test` is the one to quote."
    return "\n\n".join(["## Scores", table, " ".join(filter(None, [*measured, note]))])


def _layer_scores(source: Source) -> str:
    if source.scores is None:
        return ""
    names = {True: "removed", False: ""}
    cells = [
        (str(layer), f"{value:.4g}", f"{error:.2g}", names[layer in source.removed])
        for layer, (value, error) in enumerate(
            zip(source.scores["values"], source.scores["standard_errors"], strict=True)
        )
    ]
    measured = f"`{source.scores['name']}` over {source.scores['samples']} samples"
    title = f"{measured}; a small value is a layer that matters less."
    return f"## Layer scores\n\n{title}\n\n{_table(('layer', 'score', 'standard error', ''), cells)}"


def _making(source: Source, exported: Exported) -> str:
    parts = ["## How it was made"]
    if "recipe" in source.context:
        recipe = json.loads(source.context["recipe"])
        recipe |= {name: source.row[name] for name in ("learning_rate", "seed") if source.row.get(name) is not None}
        parts.append("```json\n" + json.dumps(recipe, indent=1) + "\n```")
    rows = [
        (name, source.context[name]) for name in ("data", "command", "machine", "versions") if name in source.context
    ]
    if rows:
        parts.append(_table(("the sweep", ""), rows))
    packages = ", ".join(f"{name} {version(name)}" for name in ("vrray", "torch", "transformers"))
    parts += [f"Exported with {packages}:", f"```\n{exported.command}\n```"]
    return "\n\n".join(parts)


def _licence(known: dict[str, str]) -> str:
    base = f"`{known['base_model']}`" if "base_model" in known else "the base model"
    said = f"{known['license']}, as {base} says" if "license" in known else f"not known here; look it up at {base}"
    return (
        f"## Licence\n\nThese weights derive from {base}, whose licence applies to them too ({said}). "
        "The licences of the training data may add to it."
    )


def _listed(layers: Region | Sequence[int]) -> str:
    return ", ".join(map(str, layers)) or "none"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
