# SPDX-License-Identifier: Apache-2.0
"`cop verdicts PROFILE`: the claims as another training seed judges them."

from pathlib import Path

import yaml

from cop_repro.cli._profiles import profile_folder
from cop_repro.core import CopError, check_output_file, project_root, write_json
from cop_repro.parameters import load_params, settings_hash

HELP = "judge the piano claims on the rows that another profile has scored"

GROUPS = ("read", "piano")


def add_arguments(parser) -> None:
    "A profile."
    parser.add_argument("name", help="a profile, e.g. seed1")


def run(args) -> int:
    "Publish the claims as a profile's scored rows judge them; rows without scores are not run."
    from cop_repro.evaluation.claims import CLAIMS, verdict

    root = project_root()
    params = load_params(root / "params.yaml")
    definitions, paper = (
        yaml.safe_load((root / params["report"][name]).read_text("utf-8"))
        for name in ("tables", "paper")
    )
    target = root / "reports" / "profiles" / args.name / "verdicts.json"
    check_output_file(target)
    scored = _scored(_folders(root, params, args.name), definitions)
    made = [verdict(claim, scored, None, paper) for claim in CLAIMS]
    settings = settings_hash(load_params(profile_folder(root, args.name) / "params.yaml"))
    write_json(target, {"settings": settings, "verdicts": made})
    for line in made:
        print(f"{line['claim']} {line['verdict']:15s} {_differences(line['metrics'])}")
    return 0


def _folders(root: Path, params: dict, name: str) -> dict[str, Path]:
    "Rows that the profile's scratch copy has scored, and where."
    from cop_repro.evaluation.evaluate import row_folders

    variants = {g: rows for g, rows in params["evaluate"]["variants"].items() if g in GROUPS}
    folders = row_folders(profile_folder(root, name) / "models" / "evaluate", variants)
    scored = {row: path for row, path in folders.items() if (path / "scores.json").exists()}
    if not scored:
        raise CopError(
            f"profile {name} has scored nothing: run `cop profile {name} evaluate_piano` first"
        )
    return scored


def _scored(folders: dict[str, Path], definitions: dict) -> dict[str, list]:
    "Scored clips by the row of the tables."
    from cop_repro.evaluation.evaluate import load_scores
    from cop_repro.evaluation.tables import load_tables

    tables = load_tables(definitions, folders)
    scored: dict[str, list] = {}
    for entry, clips in load_scores(folders).items():
        for clip in clips:
            scored.setdefault(tables.row_name(entry, clip["suffix"]), []).append(clip)
    return scored


def _differences(metrics: list[dict]) -> str:
    "Differences with their intervals, of the metrics that have one."
    return "  ".join(
        f"{m['metric']} {m['difference']:+.3f} [{m['ci_low']:+.3f}, {m['ci_high']:+.3f}]"
        for m in metrics
        if "difference" in m
    )
