"`cop compare A B`: two result files, with a tolerance per metric."

from pathlib import Path

from cop_repro.core import CopError, read_json

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
    if not Path(name).is_file():
        kind = "a folder" if Path(name).is_dir() else "missing"
        raise CopError(
            f"no result file {name}: it is {kind}; a file like reports/results.json is needed"
        )
    return read_json(name)
