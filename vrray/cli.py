"""`vrray COMMAND`: what runs at one's desk, without a cluster."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vrray.job import exit_status


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    parser = argparse.ArgumentParser(prog="vrray", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_convert(commands)
    _add_plan(commands)
    options = parser.parse_args(arguments)
    return exit_status(lambda: options.run(options))


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


def _add_plan(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "What tuning a region of a model would take on each worker; no weights are needed."
    parser = commands.add_parser("plan", help=text, description=text, allow_abbrev=False)
    parser.set_defaults(run=_plan)


def _plan(options: argparse.Namespace) -> None:
    raise NotImplementedError


if __name__ == "__main__":
    sys.exit(main())
