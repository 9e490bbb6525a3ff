# SPDX-License-Identifier: Apache-2.0
"`cop verdicts [PROFILE]`: the claims over training seeds."

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from cop_repro.cli._profiles import profile_folder
from cop_repro.core import CopError, check_output_file, project_root, read_json, write_json
from cop_repro.parameters import load_params, settings_hash

HELP = "judge the claims on the rows of another training seed; without a name: over all seeds"


def add_arguments(parser) -> None:
    "A profile."
    parser.add_argument(
        "name",
        nargs="?",
        help="a profile whose rows are scored, e.g. seed1; none: show what is published",
    )


def run(args) -> int:
    "Publish the claims as a profile's rows judge them; show them over all published seeds."
    root = project_root()
    params = load_params(root / "params.yaml")
    if args.name is not None:
        _judge(root, params, args.name)
    for line in _shown(root, params):
        print(line)
    return 0


def _judge(root: Path, params: Mapping, name: str) -> None:
    "Write the verdicts of a profile; rows without scores are not run."
    from cop_repro.evaluation.claims import load_claims
    from cop_repro.evaluation.evaluate import load_scores, load_sets
    from cop_repro.evaluation.report import judge_claims, split_rows
    from cop_repro.evaluation.tables import load_tables

    layout, paper, entries = (
        load_params(root / params["report"][part]) for part in ("tables", "paper", "claims")
    )
    target = _published(root, name)
    check_output_file(target)
    folders = _folders(root, params, name)
    tables = load_tables(layout, folders)
    rows = split_rows(load_scores(folders), tables)
    claims = load_claims(entries, tables)
    made = judge_claims(rows, load_sets(folders), paper, tables, claims)
    settings = _settings(load_params(profile_folder(root, name) / "params.yaml"))
    write_json(target, {"settings": settings, "verdicts": made})


def _settings(params: Mapping) -> str:
    "What runs must share before their verdicts are compared."
    from cop_repro.evaluation.report import claim_sections

    return settings_hash(claim_sections(params))


def _published(root: Path, name: str) -> Path:
    "Where the verdicts of a profile lie."
    return root / "reports" / "profiles" / name / "verdicts.json"


def _folders(root: Path, params: Mapping, name: str) -> dict[str, Path]:
    "Rows that the profile's scratch copy has scored, and where."
    from cop_repro.evaluation.evaluate import row_folders

    variants = params["evaluate"]["variants"]
    folders = row_folders(profile_folder(root, name) / "models" / "evaluate", variants)
    scored = {row: path for row, path in folders.items() if (path / "scores.json").exists()}
    if not scored:
        raise CopError(
            f"profile {name} has scored nothing: run `cop profile {name} evaluate_read "
            "evaluate_piano evaluate_general` first"
        )
    return scored


def _shown(root: Path, params: Mapping) -> Iterable[str]:
    "Each claim in all published seeds: words, intervals over works, spread over seeds."
    from cop_repro.evaluation.claims import over_seeds

    own = read_json(root / "reports" / "verdicts.json")
    files = {name: _published(root, name) for name in params["report"]["seeds"]}
    runs = {name: read_json(path) for name, path in files.items() if path.exists()}
    settings = _settings(params)
    stale = [name for name, made in runs.items() if made["settings"] != settings]
    seeds = {name: made["verdicts"] for name, made in runs.items() if name not in stale}
    for name in stale:
        yield f"{name}: made with other parameters, so not shown beside these"
    for found in over_seeds([_alone(v) for v in own], seeds):
        yield from _claim(found)


def _alone(v: Mapping) -> dict:
    "A verdict of the default run without what other seeds say."
    lines = [{k: x for k, x in m.items() if k not in ("seeds", "spread")} for m in v["metrics"]]
    kept = {k: x for k, x in v.items() if k not in ("seeds", "here")}
    return {**kept, "metrics": lines, "verdict": v.get("here", v["verdict"])}


def _claim(found: Mapping) -> Iterable[str]:
    "A claim, and a line for each metric that was judged."
    seeds = {name: seed["verdict"] for name, seed in found.get("seeds", {}).items()}
    words = [f"this run: {found.get('here')}", *(f"{n}: {w}" for n, w in seeds.items())]
    beside = f" ({', '.join(words)})" if seeds else ""
    yield f"{found['claim']} {found['text']}: {found['verdict']}{beside}"
    for m in found["metrics"]:
        if "difference" in m:
            yield "    " + _metric(m)


def _metric(m: Mapping[str, float | Sequence]) -> str:
    "A difference with its interval over works, the other seeds, and the spread over all."
    interval = f"{m['difference']:+.3f} [{m['ci_low']:+.3f}, {m['ci_high']:+.3f}] over works"
    if not m.get("seeds"):
        return f"{m['metric']} {interval}"
    others = ", ".join(f"{name} {value:+.3f}" for name, value in m["seeds"].items())
    return f"{m['metric']} {interval}; {others}; spread over seeds {m['spread']:.3f}"
