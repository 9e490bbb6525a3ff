# SPDX-License-Identifier: Apache-2.0
"One row of the tables, scored again beside the run, from the models on disk."

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import yaml

from cop_repro.cli._process import run_child
from cop_repro.core import CopError
from cop_repro.parameters import load_params

LINKED = ("settings.ini", "fingerprints.yaml", "data", "features", "nbs", "refs")


def again(
    place: Path,  # of the run
    line: Mapping,  # of its result file
    about: Mapping,  # what `cop explain` says of the line
) -> dict:  # value, and whether it agrees
    "Score the row of a number again, and compare."
    if about["tolerance"] is None:
        raise CopError(f"{about['name']} is no number of a row that this pipeline scores")
    entry, group = about["entry"]["name"], about["entry"]["group"]
    params = load_params(place / "params.yaml")
    _check_inputs(place, about["parents"])
    tree = _tree(place, params, group, entry)
    command = [sys.executable, "-m", "cop_repro.cli", "run", "evaluate", "--item", group]
    env = {**os.environ, "PYTHONPATH": str(place)}
    code = run_child(command, cwd=tree, env=env, stdout=2)  # stdout is for the explanation
    if code:
        raise CopError(f"scoring {entry} again failed with code {code}; the messages above say why")
    value = _value(tree, params, group, line)
    difference = abs(value - line["value"])
    return {"value": value, "agrees": difference <= about["tolerance"]}


def _check_inputs(place: Path, parents: list[Mapping]) -> None:
    "Refuse to begin where features or models are missing."
    needed = [path for parent in parents[1:] for path in parent["made"]]
    lacking = [path for path in needed if not (place / path).exists()]
    if lacking:
        raise CopError(f"{lacking[0]} is missing: run `dvc repro {parents[0]['stage']}` first")


def _tree(place: Path, params: Mapping, group: str, entry: str) -> Path:
    "A work tree whose parameters have this row alone; features and models are links."
    from cop_repro.measure.provenance import keep_commit

    tree = place / "work" / "again"
    shutil.rmtree(tree, ignore_errors=True)
    (tree / "models").mkdir(parents=True)
    models = [path for path in (place / "models").iterdir() if path.name != "evaluate"]
    for source in (*(place / name for name in LINKED), *models):
        (tree / source.relative_to(place)).symlink_to(source.resolve())
    row = params["evaluate"]["variants"][group][entry]
    evaluate = params["evaluate"] | {"variants": {group: {entry: row}}}
    text = yaml.safe_dump({**params, "evaluate": evaluate}, sort_keys=False)
    (tree / "params.yaml").write_text(text, "utf-8")
    keep_commit(place, tree)
    return tree


def _value(tree: Path, params: Mapping, group: str, line: Mapping) -> float:
    "The number as the report would print it."
    from cop_repro.evaluation.claims import read_results
    from cop_repro.evaluation.evaluate import load_origins, load_scores, load_sets, row_folders
    from cop_repro.evaluation.report import RunInfo, write_report
    from cop_repro.evaluation.tables import load_tables
    from cop_repro.judges.transcription import transcriber_name

    folders = row_folders(tree / "models" / "evaluate", {group: {line["entry"]: {}}})
    tables = load_tables(load_params(tree / params["report"]["tables"]))
    about = (line["label"], line["profile"], transcriber_name(), tables)
    run = RunInfo(*about, made_by=load_origins(folders))
    paper = load_params(tree / params["report"]["paper"])
    write_report(tree / "reports", run, load_scores(folders), paper, load_sets(folders))
    key = {name: line[name] for name in ("table", "row", "metric", "entry")}
    made = read_results(tree / "reports" / "results.json").lines
    return next(m["value"] for m in made if key.items() <= m.items() and m["value"] is not None)
