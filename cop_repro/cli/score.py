# SPDX-License-Identifier: Apache-2.0
"`cop score REF EST`: metrics of one folder of files against another."

import json
from pathlib import Path

from cop_repro.cli._assets import assets_folder
from cop_repro.cli._progress import progress_beside
from cop_repro.core import CopError, check_output_file, did_you_mean, read_json, write_json

HELP = "score a folder of sounds, MIDI files or videos against the true ones, matched by file name"

JUDGES_HELP = (
    "weights behind FAD and the like: PATH of embedded judges, or vggish=, panns=, "
    "passt=FILE.safetensors, ast=, clap=, openclip=, wav2clip=FOLDER; default: the shipped ones"
)


# A count, of which neither more nor less is better.
NEUTRAL = ("velocity_matched",)


def add_arguments(parser) -> None:
    "Two folders, what to compute, and where to write it."
    parser.add_argument("ref", help="folder of true files")
    parser.add_argument("est", help="folder of generated files")
    parser.add_argument(
        "--metrics",
        nargs="+",
        help="names, with spaces or commas between them; default: all that the files allow",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("-o", "--output", help="write JSON to this file")
    parser.add_argument("--judges", help=JUDGES_HELP)
    parser.add_argument("--works", help="JSON, id -> work: intervals are bootstrapped over works")
    parser.add_argument("--texts", help="JSON, id -> caption, for clap_score")
    parser.add_argument(
        "--cut",
        action="store_true",
        help="score the common beginning of sounds of different lengths",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap")


def run(args) -> int:
    "Score a folder of sounds, MIDI files or videos against the true ones."
    if args.output is not None:
        _check_output(args)
    made = _score(args)
    if args.output is not None:
        write_json(args.output, made)
    if args.json:
        print(json.dumps(made, indent=1, allow_nan=False))
    elif args.output is None:
        print("\n".join(_lines(made)))
    return 0


def _check_output(args) -> None:
    "Refuse, before anything is computed, an output that cannot be written or is an input."
    from cop_repro.evaluation.folders import SUFFIXES

    check_output_file(args.output, (args.works, args.texts, args.judges))
    # An output that is named like a file to score, or like weights, is a slip, and may be an input.
    inputs = {".safetensors", *(suffix for kind in SUFFIXES.values() for suffix in kind)}
    if Path(args.output).suffix.lower() in inputs:
        raise CopError(f"-o {args.output}: scores are JSON; give a name that ends in .json")


def _score(args) -> dict:
    "All metrics that were asked for, with progress on stderr."
    from cop_repro.evaluation.folders import score_folders

    works, texts = _mapping(args.works), _mapping(args.texts)
    report = progress_beside()
    judges = find_judge(args.judges)
    return score_folders(
        args.ref, args.est, _names(args.metrics), judges, works, texts, args.cut, args.seed, report
    )


def _names(given: list[str] | None) -> list[str] | None:
    "Metrics by name, divided at spaces and commas."
    if not given:
        return None
    from cop_repro.evaluation.folders import GROUPS
    from cop_repro.measure.registry import REGISTRY

    names = [name for part in given for name in part.split(",") if name]
    known = [*(name for group in GROUPS.values() for name in group), *REGISTRY.sets]
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known)
            raise CopError(f"no metric {name!r}{hint}; there are {', '.join(known)}")
    return names


def _mapping(name: str | None) -> dict | None:
    "A JSON file that maps ids to something."
    if name is None:
        return None
    made = read_json(name)
    if not isinstance(made, dict):
        raise CopError(f"{Path(name).name} must hold one JSON object, id -> value")
    return made


def find_judge(asked: str | None):
    "The extractor that was asked for, else the shipped judges where they are at hand."
    from cop_repro.judges.pretrained import load_extractor

    if not asked:
        shipped = _shipped_judges()
        return load_extractor("embedded", shipped) if shipped else None
    kind, _, path = asked.partition("=")
    if not path or Path(asked).exists():  # a path may hold the sign, too
        return load_extractor("embedded", asked)
    return load_extractor(kind, path)


def _shipped_judges() -> Path | None:
    "The embedded judges of this checkout, if there is one."
    try:
        path = assets_folder() / "judges.safetensors"
    except CopError:
        return None
    return path if path.is_file() else None


def _lines(made: dict) -> list[str]:
    "Scores for people to read."
    head = (
        f"{_count(made['clips'], 'clip')} of {_count(made['works'], 'work')} (ids {made['ids']}), "
        f"{made['sample_rate']} Hz"
    )
    return [head, *(_line(name, line) for name, line in made["metrics"].items())]


def _count(number: int, what: str) -> str:
    "A number of things, in the singular or plural."
    return f"{number} {what}{'' if number == 1 else 's'}"


def _line(name: str, line: dict) -> str:
    "One metric."
    extractor = f" {line['extractor']}" if line["extractor"] else ""
    undefined = f" undefined: {line['undefined']}" if line["undefined"] else ""
    remarks = f"{'' if name in NEUTRAL else _direction(line)}{_comparison(line)}".lstrip(", ")
    shown = f"{name:28s} {_value(line)} {line['unit']} n={line['n']}"
    return f"{shown}{f' ({remarks})' if remarks else ''}{extractor}{undefined}"


def _value(line: dict) -> str:
    "A metric's value with its interval, or why there is none."
    if line["value"] is None:
        return line.get("note", "")
    if not line["interval"]:
        return f"{line['value']:.4f}"
    low, high = line["interval"][:2]
    return f"{line['value']:.4f} [{low:.4f}, {high:.4f}]"


def _direction(line: dict) -> str:
    "Which values are good."
    if line["higher_is_better"] is None:
        return f"closer to {line['reference']:.4f}" if "reference" in line else "neither"
    return "higher is better" if line["higher_is_better"] else "lower is better"


def _comparison(line: dict) -> str:
    "The same metric of the true sound and of another clip's, where it has been computed."
    if "shuffled" not in line:
        return ""
    names = {"reference": "true sound", "shuffled": "another clip's sound"}
    return "".join(f", {words} {line[key]:.4f}" for key, words in names.items() if key in line)
