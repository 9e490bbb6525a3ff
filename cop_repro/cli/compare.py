# SPDX-License-Identifier: Apache-2.0
"`cop compare A B`: whether two runs reproduce the same numbers and verdicts."

from pathlib import Path

import yaml

from cop_repro.core import CopError, atomic_file, project_root, read_json
from cop_repro.parameters import load_params

HELP = "compare two runs: result files, or report folders with their verdicts"

RERUNS = "refs/reruns.yaml"
NONE = {"metrics": {}}  # of a profile that was never rerun: least tolerances
HEAD = """\
# How far honest reruns of a profile differ, per metric: the largest difference of a row, the
# largest relative one, and the rms over rows; rows that differ far more have numbers of their own
# (`rows`) and no part in the others. Written by `cop compare A B --measure WHAT`.
"""


def add_arguments(parser) -> None:
    "Two result files or report folders."
    parser.add_argument("a", help="results.json, or a folder with it and verdicts.json")
    parser.add_argument("b", help="the other run, in the same form")
    parser.add_argument(
        "--measure",
        metavar="WHAT",
        help=f"record the differences of two honest runs as tolerances in {RERUNS}; WHAT describes "
        "how the runs were made, e.g. 'the default profile with 1 and with 2 threads'",
    )
    parser.add_argument(
        "--widen",
        action="store_true",
        help="with --measure: keep what other pairs of runs have shown where it is larger",
    )


def run(args) -> int:
    "Compare two runs; exit code 1 if they differ by more than honest reruns do."
    from cop_repro.evaluation.claims import read_results
    from cop_repro.evaluation.reruns import compare_results, compare_verdicts, rerun_differences

    if args.widen and not args.measure:
        raise CopError("--widen adds a pair of runs to the tolerances: it needs --measure WHAT")
    results = [read_results(_file(name, "results.json")).lines for name in (args.a, args.b)]
    profile, other = map(_profile, results)
    if args.measure:
        if not profile or profile != other:
            raise CopError(
                f"--measure takes two runs of one profile; these are of {profile or 'none'!r} and "
                f"{other or 'none'!r}"
            )
        known = _reruns().get(profile, {}) if args.widen else {}
        differences = rerun_differences(*results, known.get("metrics"))
        return _measure(args.measure, profile, differences, known)
    lines, wrong = compare_results(*results, _reruns().get(profile, NONE)["metrics"])
    if all(Path(name).is_dir() for name in (args.a, args.b)):
        verdicts = [read_json(_file(name, "verdicts.json")) for name in (args.a, args.b)]
        found = compare_verdicts(*verdicts)
        lines[-1:-1], wrong = found, wrong + len(found)
        lines[-1] += f", {len(found)} verdicts contradict"
    print("\n".join(lines))
    return 0 if wrong == 0 else 1


def _profile(lines: list[dict]) -> str:
    "The profile that made a result file; nothing for a file without numbers of our own."
    return next((r["profile"] for r in lines if r["profile"] != "paper"), "")


def _measure(about: str, profile: str, differences: dict, known: dict) -> int:
    "Write the differences of two honest runs, or the larger of them and of those known."
    measured = {metric: _rounded(found) for metric, found in differences.items()}
    for metric, found in known.get("metrics", {}).items():
        measured[metric] = _larger(found, measured.get(metric, {}))
    said = "; ".join(filter(None, (known.get("about"), about)))
    made = {profile: {"about": said, "metrics": measured}}
    with atomic_file(project_root() / RERUNS) as temporary:
        temporary.write_text(HEAD + yaml.safe_dump(_reruns() | made), encoding="utf-8")
    print(f"profile {profile}: {len(measured)} metrics measured; written to {RERUNS}")
    return 0


def _rounded(found: dict) -> dict:
    "Two digits of every number, rows of their own included."
    return {k: _rounded(v) if isinstance(v, dict) else float(f"{v:.2g}") for k, v in found.items()}


def _larger(one: dict, two: dict) -> dict:
    "The larger of two numbers of each kind, and of each row of its own."
    made = dict(two)
    for kind, value in one.items():
        other = two.get(kind)
        if isinstance(value, dict):
            made[kind] = _larger(value, other or {})
        else:
            made[kind] = value if other is None else max(value, other)
    return made


def _reruns() -> dict:
    "What honest reruns differ by: profile -> how it was measured, and the metrics."
    path = project_root(Path(__file__).parent) / RERUNS
    return load_params(path) if path.is_file() else {}


def _file(name: str, inside: str) -> Path:
    "A result file, given itself or by its folder."
    path = Path(name)
    path = path / inside if path.is_dir() else path
    if not path.is_file():
        raise CopError(f"no result file {path}: a file or folder like reports/ is needed")
    return path
