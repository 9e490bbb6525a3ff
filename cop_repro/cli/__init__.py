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

from cop_repro import __version__
from cop_repro.cli._failures import failure
from cop_repro.cli._parser import Parser
from cop_repro.cli._process import (
    Stopped,
    discard_stdout,
    flushed_stdout,
    plain_warnings,
    say,
    skip_unused,
    steady_streams,
    stoppable,
)

DESCRIPTION = (
    "Chain-of-Perform: silent piano video in, sound and MIDI out; and the papers' tables, "
    "regenerated."
)


def command_modules() -> dict[str, ModuleType]:
    "Every command by name: the modules of this package without an underscore."
    names = sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
    return {name: importlib.import_module(f"{__name__}.{name}") for name in names}


def build_parser() -> Parser:
    "All commands and options."
    parser = Parser(prog="cop", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"cop_repro {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in command_modules().items():
        command = commands.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(command)
        command.set_defaults(run=module.run, parser=command)
    return parser


def parse(argv: list[str] | None) -> argparse.Namespace:
    "The arguments; unknown ones are refused by the command that they were given to."
    args, unknown = build_parser().parse_known_args(argv)
    if unknown:
        args.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return args


def with_own_programs(path: str) -> str:
    "A search path that begins with this Python's folder, where `dvc` lies without activation."
    own = str(Path(sys.executable).parent)
    if path.split(os.pathsep)[0] == own:
        return path
    return os.pathsep.join(p for p in (own, path) if p)


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    An expected failure is one line on stderr and exit code 2; a signal that ends the command is
    one line and 128 + its number. Anything else is an error of the program, with its traceback.
    """
    steady_streams()
    skip_unused()
    command = "cop"
    try:
        with stoppable():
            args = parse(argv)
            command = f"cop {args.command}"
            os.environ["PATH"] = with_own_programs(os.environ.get("PATH", ""))
            with plain_warnings(command):
                code = args.run(args)
            sys.stdout.flush()
            return code
    except BrokenPipeError:  # `cop ... | head` has read enough
        discard_stdout()
        return 141
    except Stopped as signalled:
        return _ended(f"{command}: stopped by {signalled}", 128 + signalled.number)
    except KeyboardInterrupt:
        return _ended(f"{command}: interrupted", 130)
    except Exception as error:
        line = failure(error)
        if line is None:
            raise
        return _ended(f"{command}: {line}", 2)


def _ended(line: str, code: int) -> int:
    "The exit code, after the line that explains it."
    flushed_stdout()
    say(line)
    return code
