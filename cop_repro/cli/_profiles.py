# SPDX-License-Identifier: Apache-2.0
"Profiles: params.yaml with other numbers, run in a scratch copy of the work tree."

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import yaml

from cop_repro.cli._process import run_child
from cop_repro.core import CopError, ParamsError, check_output_folder, did_you_mean
from cop_repro.parameters import check_params, load_params, merge

# What a profile's own run makes; the other reports in its copy are those of the default run.
PUBLISHED = (
    "results.json",
    "tables.md",
    "tables",
    "verdicts.json",
    "verdicts.md",
    "headline.json",
    "figures",
    "compose",
)

# The scratch copy makes these itself.
OWN_OUTPUTS = (
    "reports/results",
    "reports/tables",
    "reports/verdicts",
    "reports/headline",
    "reports/figures/",
    "reports/stages/",
    "reports/losses/",
    "reports/compose/",
    "reports/cycle/",
    "reports/bridges/",
)


def profile_params(root: Path, name: str, changes: Sequence[str] = ()) -> dict:
    "All parameters of a profile with `key.key=value` changes, checked; `default` is params.yaml."
    params = load_params(root / "params.yaml")
    if name != "default":
        params = merge(params, load_params(_profile_file(root, name)))
    for change in changes:
        params = merge(params, _parsed_change(change))
    check_params(params)
    return params


def _parsed_change(change: str) -> dict:
    "`train.steps=10` as a mapping of mappings; the value is YAML."
    keys, equals, value = change.partition("=")
    if not equals or not all(keys.split(".")):
        raise ParamsError(f"-S {change!r}: write it as section.key=value")
    try:
        made = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ParamsError(f"-S {change!r}: the value is not YAML") from None
    for key in reversed(keys.split(".")):
        made = {key: made}
    return made


def _profile_file(root: Path, name: str) -> Path:
    "The parameter file of a profile; an unknown name is refused with the known ones."
    path = root / "profiles" / f"{name}.yaml"
    files = sorted((root / "profiles").glob("*.yaml"))
    if path not in files:
        known = ["default", *(p.stem for p in files)]
        hint = did_you_mean(name, known)
        raise ParamsError(f"no profile {name!r}{hint}; profiles are {', '.join(known)}")
    return path


def profile_folder(root: Path, name: str) -> Path:
    "Where a profile's scratch copy lies."
    return root / "work" / "profiles" / name


def _tracked_files(root: Path) -> set[str]:
    "Files of the work tree that git tracks or would track, without what a run makes."
    command = ["git", "ls-files", "-z", "-co", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, capture_output=True, check=True).stdout.decode()
    return {
        name
        for name in listed.split("\0")
        if name
        and name != "dvc.lock"
        and not name.startswith(OWN_OUTPUTS)
        and (root / name).is_file()
    }


def _copy_files(root: Path, scratch: Path, names: set[str]) -> None:
    "Copy files, and remove modules of an earlier copy that the work tree has no more."
    for old in scratch.rglob("*.py"):
        if str(old.relative_to(scratch)) not in names:
            old.unlink()
    for name in names:
        target = scratch / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, target)


def scratch_copy(root: Path, name: str, params: dict) -> Path:
    "A copy of the work tree and data with a profile's parameters; outputs of earlier runs stay."
    from cop_repro.measure.provenance import keep_commit

    scratch = profile_folder(root, name)
    check_output_folder(scratch).mkdir(parents=True, exist_ok=True)
    _copy_files(root, scratch, _tracked_files(root))
    shutil.copytree(root / "data", scratch / "data", dirs_exist_ok=True)
    (scratch / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), "utf-8")
    (scratch / ".dvc" / "config.local").write_text("[core]\n    no_scm = true\n")
    keep_commit(root, scratch)
    return scratch


def reproduce(scratch: Path, name: str, targets: list[str]) -> None:
    "`dvc repro` in a scratch copy, with the copy's own package."
    env = {**os.environ, "PYTHONPATH": str(scratch)}
    code = run_child(["dvc", "repro", *targets], cwd=scratch, env=env)
    if code:
        raise CopError(
            f"profile {name}: dvc repro failed with code {code}; the messages above say where"
        )


def publish(reports: Path, target: Path) -> None:
    "Copy what a profile's run has made, and nothing that it was given."
    for name in PUBLISHED:
        if (reports / name).is_dir():
            shutil.copytree(reports / name, target / name, dirs_exist_ok=True)
        elif (reports / name).is_file():
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy2(reports / name, target / name)
