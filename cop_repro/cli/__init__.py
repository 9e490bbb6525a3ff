# SPDX-License-Identifier: Apache-2.0
"""The command line `cop`: one file a command, found by its name.

A command module defines `HELP` (one line), `add_arguments(parser)` and `run(args) -> int`, the exit
code. Heavy libraries are imported inside `run`, so that the parser is built quickly. Modules whose
name begins with an underscore are shared helpers. Library code never imports this package.
"""

import argparse
import importlib
import os
import pkgutil
import sys
from pathlib import Path
from types import ModuleType

from cop_repro.core import CopError

DESCRIPTION = (
    "Chain-of-Perform: silent piano video in, sound and MIDI out; and the papers' tables, "
    "regenerated."
)


def command_modules() -> dict[str, ModuleType]:
    "Every command by name: the modules of this package without an underscore."
    names = sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
    return {name: importlib.import_module(f"{__name__}.{name}") for name in names}


def build_parser() -> argparse.ArgumentParser:
    "All commands and options."
    parser = argparse.ArgumentParser(prog="cop", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in command_modules().items():
        command = commands.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def with_own_programs(path: str) -> str:
    "A search path that begins with this Python's folder, where `dvc` lies without activation."
    own = str(Path(sys.executable).parent)
    if path.split(os.pathsep)[0] == own:
        return path
    return os.pathsep.join(p for p in (own, path) if p)


def main(argv: list[str] | None = None) -> int:
    "Run one command; a `CopError` is one line on stderr and exit code 2."
    args = build_parser().parse_args(argv)
    os.environ["PATH"] = with_own_programs(os.environ.get("PATH", ""))
    try:
        return args.run(args)
    except CopError as error:
        print(f"cop {args.command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `cop ... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print(f"cop {args.command}: interrupted", file=sys.stderr)
        return 130
