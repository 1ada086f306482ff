"""`vrray COMMAND`: what runs at one's desk, without a cluster."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vrray.job import exit_status


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    parser = argparse.ArgumentParser(prog="vrray", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_convert(commands)
    _add_grade(commands)
    _add_lm_eval(commands)
    _add_plan(commands)
    _add_export(commands)
    _add_store(commands)
    _add_dashboard(commands)
    options = parser.parse_args(arguments)
    return exit_status(lambda: options.run(options), "nothing was kept")


def _add_convert(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "An original Bunny or LLaVA checkpoint to a standard LlavaForConditionalGeneration directory."
    parser = commands.add_parser("convert", help=text, description=text, allow_abbrev=False)
    parser.add_argument("source", type=Path, metavar="SRC", help="directory of the original checkpoint")
    parser.add_argument("target", type=Path, metavar="OUT", help="directory to write; must not exist yet")
    parser.add_argument("--vision-tower", type=Path, metavar="DIR", help="the tower [what SRC's configuration names]")
    parser.add_argument("--base", type=Path, metavar="DIR", help="the model that SRC's adapter or projector belongs to")
    parser.add_argument("--projector", type=Path, metavar="FILE", help="a stage-1 mm_projector.bin to take instead")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="the tokenizer [SRC's, else the base's]")
    parser.set_defaults(run=_convert)


def _convert(options: argparse.Namespace) -> None:
    from vrray.models.convert import convert

    convert(
        options.source,
        options.target,
        vision_tower=options.vision_tower,
        base=options.base,
        projector=options.projector,
        tokenizer=options.tokenizer,
    )


def _add_grade(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "Scores predictions that exist, in a benchmark's official formats, and prints one JSON object."
    parser = commands.add_parser("grade", help=text, description=text, allow_abbrev=False)
    parser.add_argument("--task", required=True, metavar="NAME", help="the benchmark, such as gqa, textvqa or mme")
    parser.add_argument("--predictions", required=True, type=Path, metavar="FILE", help="what a script wrote")
    own = "the benchmark's own file or folder [the predictions, where they hold the reference answers]"
    parser.add_argument("--annotations", type=Path, metavar="FILE", help=own)
    parser.set_defaults(run=_grade)


def _grade(options: argparse.Namespace) -> None:
    from vrray.evaluate.grade import grade

    print(json.dumps(grade(options.task, options.predictions, options.annotations).to_json(), allow_nan=False))


def _add_lm_eval(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from vrray.evaluate.harness import HarnessSpec

    text = "Tasks of lm-evaluation-harness, asked of a model's decoder by the harness itself; prints one JSON object."
    parser = commands.add_parser("lm-eval", help=text, description=text, allow_abbrev=False)
    for name, field in HarnessSpec.model_fields.items():
        options: dict[str, Any] = {"help": field.description, "default": None, "required": field.is_required()}
        if field.annotation is bool:
            options |= {"action": "store_true"}
        else:
            options |= {"metavar": "VALUE", "nargs": "+" if name == "tasks" else None}
        parser.add_argument(f"--{name.replace('_', '-')}", **options)
    parser.set_defaults(run=_lm_eval)


def _lm_eval(options: argparse.Namespace) -> None:
    from vrray.evaluate.harness import HarnessSpec, run_harness

    given = {name: getattr(options, name) for name in HarnessSpec.model_fields}
    spec = HarnessSpec.parse({name: value for name, value in given.items() if value is not None})
    print(json.dumps(run_harness(spec)))


def _add_plan(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "What tuning a region of a model would take on each worker; no weights are needed."
    parser = commands.add_parser("plan", help=text, description=text, allow_abbrev=False)
    parser.add_argument("--model", required=True, metavar="NAME", help="preset, model directory or hub id")
    parser.add_argument("--workers", default=8, metavar="N", help="workers, one GPU each [8]")
    parser.add_argument("--gpu-memory", default="80GiB", metavar="SIZE", help="80GiB, 24GB, or bytes [80GiB]")
    where = "a name such as uniform, or layers such as 0,4,8 [a preset's: the paper's region; else uniform]"
    parser.add_argument("--placement", metavar="VALUE", help=where)
    parser.add_argument("--layers", metavar="VALUE", help="layers tuned: a count or a fraction of the depth [0.25]")
    parser.add_argument("--mode", choices=["full", "lora"], help="full parameters or LoRA [the model's recipe]")
    parser.add_argument("--global-batch", metavar="N", help="rows a step over all workers [the model's recipe]")
    parser.add_argument("--micro-batch", default=8, metavar="N", help="rows a worker takes at once [8]")
    parser.add_argument("--tokens", metavar="N", help="tokens of the longest row [the recipe's limit]")
    parser.add_argument(
        "--precision", choices=["bf16", "fp32"], default="bf16", help="of weights and activations [bf16]"
    )
    parser.add_argument("--image-count", metavar="N", help="images of the data, for the size of their features")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.set_defaults(run=_plan)


def _plan(options: argparse.Namespace) -> None:
    from vrray.plan import PlanSpec, make_plan, parse_bytes, plan_text

    given = {name: getattr(options, name) for name in PlanSpec.model_fields}
    plan = make_plan(PlanSpec.parse({**given, "gpu_memory": parse_bytes(options.gpu_memory)}))
    print(json.dumps(plan.to_json(), indent=1) if options.json else plan_text(plan))


def _add_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from vrray.exporting.spec import ExportSpec

    text = "A variant of a sweep, or a model with layers removed, to a directory that plain transformers loads."
    parser = commands.add_parser("export", help=text, description=text, allow_abbrev=False)
    for name, field in ExportSpec.model_fields.items():
        flag, about = f"--{name.replace('_', '-')}", field.description
        if field.default and not field.is_required():
            about = f"{about} [{field.default}]"
        if field.annotation is bool:
            parser.add_argument(flag, action="store_true", default=None, help=about)
        else:
            parser.add_argument(flag, metavar="VALUE", required=field.is_required(), help=about)
    parser.set_defaults(run=_export)


def _export(options: argparse.Namespace) -> None:
    from vrray.api import export

    given = {name: value for name, value in vars(options).items() if name not in ("run", "command")}
    print(f"{export(**{name: value for name, value in given.items() if value is not None})} written")


def _add_store(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "What a store holds, whether it is whole, and what no run uses any more."
    actions = commands.add_parser("store", help=text, description=text, allow_abbrev=False).add_subparsers(
        dest="action", required=True
    )

    def add(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        parser = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
        parser.add_argument("--store", default="runs", metavar="URI", help="the artefact store: a path or a URI [runs]")
        parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
        parser.set_defaults(run=run)
        return parser

    parser = add("ls", _store_ls, "Kinds of artefacts with their number and size, and the runs that use them.")
    parser.add_argument("--kind", metavar="KIND", help="the artefacts of one kind, and what uses each")
    parser = add("verify", _store_verify, "Check size and SHA-256 of every file; exit status 1 where one is damaged.")
    parser.add_argument("--repair", action="store_true", help="have the next runs rebuild what is damaged")
    parser = add("gc", _store_gc, "List what no run uses any more; all of it can be computed again.")
    hours = "leave what was changed since: what is being written is younger [24]"
    parser.add_argument("--older-than", type=float, default=24.0, metavar="HOURS", help=hours)
    parser.add_argument("--delete", action="store_true", help="remove it, instead of listing it only")


def _store_ls(options: argparse.Namespace) -> None:
    from vrray.upkeep.command import list_store

    list_store(options.store, options.kind, as_json=options.json)


def _store_verify(options: argparse.Namespace) -> None:
    from vrray.upkeep.command import verify_store

    verify_store(options.store, repair=options.repair, as_json=options.json)


def _store_gc(options: argparse.Namespace) -> None:
    from vrray.upkeep.command import collect_garbage

    collect_garbage(options.store, options.older_than, delete=options.delete, as_json=options.json)


def _add_dashboard(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "A web page about the sweeps of a store: watch one, choose a variant, look at what pruning did to answers."
    parser = commands.add_parser("dashboard", help=text, description=text, allow_abbrev=False)
    parser.add_argument("--store", default="runs", metavar="URI", help="the artefact store: a path or a URI [runs]")
    host = "address to listen on; any but this machine's own needs --auth [127.0.0.1]"
    parser.add_argument("--host", default="127.0.0.1", help=host)
    parser.add_argument("--port", type=int, default=7860, metavar="N", help="[7860]")
    parser.add_argument("--auth", metavar="USER:PASSWORD", help="what the browser asks for")
    parser.add_argument("--replicas", type=int, default=1, metavar="N", help="copies of a base that answer [1]")
    api = "also answer OpenAI's chat completions there [no endpoint]"
    parser.add_argument("--api-port", type=int, metavar="N", help=api)
    parser.add_argument("--api-token", metavar="TOKEN", help="what their clients must send")
    parser.set_defaults(run=_dashboard)


def _dashboard(options: argparse.Namespace) -> None:
    from importlib.util import find_spec

    from vrray.errors import SpecError

    if find_spec("gradio") is None or find_spec("dashboard") is None:
        raise SpecError("the dashboard needs its extra: pip install 'vrray[dashboard]'")
    from dashboard.app import Endpoint, Launch, parse_auth, run

    if options.replicas < 1:
        raise SpecError("--replicas must be at least 1")
    if options.api_token is not None and options.api_port is None:
        raise SpecError("--api-token is of the endpoint: say where it listens with --api-port")
    auth = None if options.auth is None else parse_auth(options.auth)
    where = Launch(options.host, options.port, auth)
    endpoint = None if options.api_port is None else Endpoint(options.host, options.api_port, options.api_token)
    run(options.store, where, endpoint, replicas=options.replicas)


if __name__ == "__main__":
    sys.exit(main())
