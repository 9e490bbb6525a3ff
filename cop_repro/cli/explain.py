# SPDX-License-Identifier: Apache-2.0
"`cop explain TABLE.ROW.METRIC`: where a number comes from, and how to compute it again."

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from cop_repro.cli._explained import explained_text
from cop_repro.cli._lineage import (
    Parent,
    Row,
    changed,
    is_locked,
    lineage,
    locked_hash,
    locked_params,
    locked_row,
    locked_stages,
    stage_of,
)
from cop_repro.cli._profiles import profile_folder, profile_params
from cop_repro.core import CopError, ParamsError, did_you_mean, project_root
from cop_repro.parameters import load_params

HELP = "where a number of the tables comes from, and how to compute it again"

RESULTS = "reports/results.json"


def add_arguments(parser) -> None:
    "A number, and how to print its explanation."
    parser.add_argument(
        "name",
        help="TABLE.ROW.METRIC, e.g. table4.cop_piano.si_sdr_spec; parts that are not needed to "
        "tell it from other numbers may be left out",
    )
    parser.add_argument("--profile", default="", help="a profile that was run; default: reports/")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.add_argument(
        "--again",
        action="store_true",
        help="score this row again, from the models on disk, and compare",
    )


def run(args) -> int:
    "Explain a number; with --again, exit code 1 if it does not come out again."
    from cop_repro.evaluation.claims import read_results

    root = project_root()
    place = _place(root, args.profile)
    results = read_results(place / RESULTS)
    number = find_number(results.lines, args.name)
    about = explain(Run(root, place), number, results)
    code = 0
    if args.again:
        from cop_repro.cli._again import again

        about["again"] = again(place, number.line, about)
        code = 0 if about["again"]["agrees"] else 1
    print(json.dumps(about, indent=1) if args.json else explained_text(about))
    return code


def _place(root: Path, profile: str) -> Path:
    "Where a run lies: the checkout, or a profile's scratch copy."
    if not profile:
        return root
    profile_params(root, profile)
    place = profile_folder(root, profile)
    if not (place / RESULTS).is_file():
        raise CopError(f"profile {profile} has no results here: run `cop profile {profile}` first")
    return place


# Names


@dataclass(frozen=True)
class Number:
    "A number of the tables."

    name: str  # TABLE.ROW.METRIC
    line: dict  # of the result file: ours where there is one, else the paper's
    paper: dict | None  # the paper's own line


def _names(lines: list[dict]) -> dict[str, list[dict]]:
    "Lines by name: ours, the paper's or both, ours first."
    made: dict[str, list[dict]] = {}
    for line in sorted(lines, key=lambda line: line["label"] == "paper"):
        made.setdefault(f"{line['table']}.{line['row']}.{line['metric']}", []).append(line)
    return made


def find_number(
    lines: list[dict],  # of a result file
    wanted: str,  # a name, or parts of it
) -> Number:
    "The number of a name; unknown and ambiguous names are refused with the nearest ones."
    names, wanted = _names(lines), wanted.replace("/", ".")
    found = [wanted] if wanted in names else [n for n in names if f".{wanted}." in f".{n}."]
    if len(found) > 1:
        shown = ", ".join(found[:8]) + (", ..." if len(found) > 8 else "")
        raise CopError(f"{wanted!r} names {len(found)} numbers: {shown}; write one of them")
    if not found:
        raise CopError(f"no number {wanted!r}{_nearest(names, wanted)}")
    here = names[found[0]]
    paper = next((line for line in here if line["label"] == "paper"), None)
    return Number(found[0], here[0], paper)


def _nearest(names: dict[str, list[dict]], wanted: str) -> str:
    "What could have been meant: a metric of a known row, else the nearest name."
    row, _, metric = wanted.rpartition(".")
    metrics = [n.removeprefix(f"{row}.") for n in names if row and n.rpartition(".")[0] == row]
    if metrics:
        return f"{did_you_mean(metric, metrics)}; metrics of {row} are {', '.join(metrics)}"
    if near := did_you_mean(wanted, names):
        return near
    tables = dict.fromkeys(name.partition(".")[0] for name in names)
    return f": a name is TABLE.ROW.METRIC; tables are {', '.join(tables)}"


# Explanations


@dataclass(frozen=True)
class Run:
    "A finished run, with the files that explanations read."

    root: Path  # of the checkout
    place: Path  # of the run: the checkout, or a profile's scratch copy

    @cached_property
    def stages(self) -> dict:
        "Of its dvc.lock."
        return locked_stages(self.place)

    @cached_property
    def params(self) -> dict:
        "Its parameters file."
        return load_params(self.place / "params.yaml")

    @cached_property
    def default(self) -> dict:
        "Parameters of the checkout."
        return load_params(self.root / "params.yaml")

    @cached_property
    def codes(self) -> dict:
        "Fingerprints of the code as it is here."
        return load_params(self.place / "fingerprints.yaml")

    @cached_property
    def reruns(self) -> dict:
        "What honest reruns differ by."
        return load_params(self.root / "refs" / "reruns.yaml")

    @cached_property
    def is_locked(self) -> bool:
        "Whether its result file is the one of its dvc.lock."
        return is_locked(self.place, self.stages, RESULTS)

    def profile(self, name: str) -> dict | None:
        "Parameters of a profile as it is written; None where there is none of that name."
        if name == "default":
            return self.default
        try:
            return profile_params(self.root, name)
        except ParamsError:
            return None


def explain(
    run: Run,
    number: Number,
    results,  # the `ResultFile` that holds it
) -> dict:  # as --json prints it
    "Everything that is known about a number."
    line, origin = number.line, results.origin(number.line)
    stage = stage_of(run.stages, command) if (command := _command(run, line, origin)) else ""
    row = locked_row(run.stages, stage, line["entry"]) if stage else None
    parents = lineage(run.stages, stage, row.foreign if row else frozenset()) if stage else []
    return {
        "name": number.name,
        **{key: line[key] for key in ("value", "ci_low", "ci_high", "n", "unit", "label")},
        "higher_is_better": line["higher_is_better"],
        "profile": line["profile"],
        "extractor": line["extractor"],
        "paper": None if number.paper is None else number.paper["value"],
        "made_by": asdict(origin) | {"command": command},
        "entry": {"name": line["entry"], **({"group": row.group, **row.entry} if row else {})},
        "source": _source(run, line["made_by"]),
        "parents": [asdict(parent) for parent in parents],
        "differs": _differences(run, line, origin, [p.stage for p in parents], row),
        "doubts": _doubts(run, line, origin, parents),
        "tolerance": _tolerance(run, line),
        "commands": _commands(run, line, command, stage),
    }


def _command(run: Run, line: dict, origin) -> str | None:
    "The command that computed a line; if it is not recorded, the one that computes such a row."
    if origin.command or not line["entry"]:
        return origin.command
    variants = run.params["evaluate"]["variants"]
    groups = [group for group, rows in variants.items() if line["entry"] in rows]
    return f"cop run evaluate --item {groups[0]}" if groups else None


def _source(run: Run, made_by: str) -> dict[str, str]:
    "The file of a number that this run has copied and not measured, and its MD5 in dvc.lock."
    path = run.params["report"].get(made_by)
    return {path: locked_hash(run.stages, path)} if isinstance(path, str) else {}


def _differences(run: Run, line: dict, origin, names: list[str], row: Row | None) -> dict:
    "Parameters of the run that differ from params.yaml, and from the profile as it is written."
    if not names:
        return {"default": None, "profile": None}  # without dvc.lock nothing is known
    locked = locked_params(run.stages, names, row)
    if origin.threads is not None:
        locked["threads"] = origin.threads
    if origin.seed is not None:
        locked["seed"] = origin.seed
    profile = run.profile(line["profile"])
    written = None if profile is None else changed(locked, profile)
    return {"default": changed(locked, run.default), "profile": written}


def _doubts(run: Run, line: dict, origin, parents: list[Parent]) -> list[str]:
    "Reasons why what is printed may not be what made the number."
    said = [origin.note] if origin.note else []
    if origin.clean is False:
        said.append("the code had changes that its commit lacks")
    if line["entry"] and not parents:
        said.append("dvc.lock records no such stage here: parents are not known")
    if parents and not run.is_locked:
        said.append(f"{RESULTS} is not the file of dvc.lock: parents are of another run")
    if parents and origin.code not in (None, parents[0].code):
        said.append(f"dvc.lock has {parents[0].stage} with code {parents[0].code}: another run")
    return said + _other_code(run, parents)


def _other_code(run: Run, parents: list[Parent]) -> list[str]:
    "Stages whose code has changed here since they ran."
    changed_since = [p.stage for p in parents if str(run.codes.get(p.notebook)) != p.code]
    return [f"here the code of {', '.join(changed_since)} is another"] if changed_since else []


def _tolerance(run: Run, line: dict) -> float | None:
    "By how much honest reruns of a number may differ; None where nothing is rerun."
    from cop_repro.evaluation.reruns import row_tolerance

    if line["value"] is None or not line["entry"]:
        return None
    measured = run.reruns.get(line["profile"], {"metrics": {}})
    return row_tolerance(line, measured["metrics"])


def _commands(run: Run, line: dict, command: str | None, stage: str) -> list[str]:
    "Commands that compute a number again, from the root of a checkout."
    if not command:
        return []
    if not line["entry"]:
        return [command, "dvc repro report"]
    profile = "" if run.place == run.root else line["profile"]
    target = stage or "report"
    whole = f"cop profile {profile} {target} report" if profile else f"dvc repro {target} report"
    name = ".".join((line["table"], line["row"], line["metric"]))
    one = f"cop explain {name}" + (f" --profile {profile}" if profile else "") + " --again"
    return ["make setup", whole, one]
