# SPDX-License-Identifier: Apache-2.0
"`cop compare A B`: two result files, with a tolerance per metric."

import json
from pathlib import Path

from cop_repro.core import CopError

HELP = "compare two result files, with a tolerance per metric"


def add_arguments(parser) -> None:
    "Two files."
    parser.add_argument("a")
    parser.add_argument("b")


def run(args) -> int:
    "Compare two result files; exit code 1 if a number differs beyond its tolerance."
    from cop_repro.evaluation.report import compare_results

    tables = [_read_results(name) for name in (args.a, args.b)]
    lines, worst = compare_results(*tables)
    print("\n".join(lines))
    return 0 if worst == 0 else 1


def _read_results(name: str) -> object:
    "What a result file holds."
    path = Path(name)
    if not path.is_file():
        raise CopError(f"no result file {name}")
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise CopError(f"{name} is not JSON: {error}") from None
