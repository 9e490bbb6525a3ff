# SPDX-License-Identifier: Apache-2.0
"What a number descends from: stages, models and parameters, read from dvc.lock."

import hashlib
import os
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

import yaml

from cop_repro.core import CopError

Stages = Mapping[str, Mapping]  # of dvc.lock, by name


def locked_stages(
    root: Path,  # of a work tree, or of a profile's scratch copy
) -> Stages:
    "The stages that dvc.lock records; none where there is no such file."
    path = root / "dvc.lock"
    if not path.is_file():
        return {}
    try:
        held = yaml.safe_load(path.read_text("utf-8"))
        return held["stages"]
    except (UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
        raise CopError(f"{path.name} is no lock file of DVC: restore it from git") from None


def stage_of(
    stages: Stages,
    command: str,  # e.g. "cop run evaluate --item piano"
) -> str:  # "" if no stage has it
    "The stage of a command."
    return next((n for n, s in stages.items() if " ".join(s["cmd"].split()).endswith(command)), "")


def locked_hash(
    stages: Stages,
    path: str,  # of a file, from the root
) -> str:  # "" if no stage names it
    "MD5 of an input or output, as dvc.lock records it."
    files = (f for s in stages.values() for f in (*s.get("outs", ()), *s.get("deps", ())))
    return next((f["md5"] for f in files if f["path"] == path), "")


def is_locked(
    root: Path,
    stages: Stages,
    path: str,  # of a file, from the root
) -> bool:
    "Whether a file is the one that dvc.lock records."
    digest = hashlib.md5((root / path).read_bytes(), usedforsecurity=False).hexdigest()
    return locked_hash(stages, path) == digest


def _overlap(a: str, b: str) -> bool:
    "Whether one path is the other, or lies in it."
    return a == b or a.startswith(f"{b}/") or b.startswith(f"{a}/")


@dataclass(frozen=True)
class Row:
    "A row of `evaluate.variants`, and the rows that are scored in the same stage."

    group: str
    name: str
    rows: Mapping[str, Mapping]  # all rows of the group, as they were scored

    @property
    def entry(self) -> Mapping:
        "The row itself."
        return self.rows[self.name]

    def models(self, name: str) -> set[str]:
        "Files of models that a row of the group names, from the root."
        named = self.rows[name].get("models", {}).values()
        return {os.path.normpath(f"models/{path}") for path in named}

    @property
    def foreign(self) -> set[str]:
        "Models of other rows alone."
        others = set().union(*(self.models(name) for name in self.rows if name != self.name))
        return others - self.models(self.name)


def locked_row(
    stages: Stages,
    stage: str,  # that scored it, e.g. "evaluate_piano"
    name: str,  # of the row
) -> Row | None:  # None where the stage did not score such a row
    "A row as it was scored."
    prefix = "evaluate.variants."
    for key, rows in stages[stage]["params"].get("params.yaml", {}).items():
        if key.startswith(prefix) and name in rows:
            return Row(key.removeprefix(prefix), name, rows)
    return None


@dataclass(frozen=True)
class Parent:
    "A stage that a number descends from."

    stage: str
    notebook: str  # of the stage
    code: str  # fingerprint of the notebook and all that it uses
    made: dict[str, str]  # file -> MD5, of what the number needs
    given: dict[str, str]  # inputs that no stage makes


def _made_in(stages: Stages, dep: str) -> Iterator[tuple[str, str, str]]:
    "(stage, file, MD5) of outputs that an input is, holds or lies in."
    for name, stage in stages.items():
        for out in stage.get("outs", ()):
            if _overlap(out["path"], dep):
                yield name, out["path"], out["md5"]


def _inputs(
    stages: Stages, name: str, skipped: Set[str]
) -> tuple[list[tuple[str, str, str]], dict[str, str]]:
    "What other stages made for a stage, and inputs that no stage makes."
    found, given = [], {}
    for dep in stages[name].get("deps", ()):
        made = list(_made_in(stages, dep["path"]))
        found += [file for file in made if file[1] not in skipped]
        if not made and dep["path"] not in skipped:
            given[dep["path"]] = dep["md5"]
    return found, given


def lineage(
    stages: Stages,
    last: str,  # the stage that scored
    foreign: Set[str] = frozenset(),  # models that this number does not need
) -> list[Parent]:  # the stage itself, then what it descends from, nearest first
    "All stages that a number descends from, with what they made for it."
    made: dict[str, dict[str, str]] = {last: {}}
    given: dict[str, dict[str, str]] = {}
    todo = [last]
    while todo:
        name = todo.pop(0)
        skipped = foreign if name == last else frozenset()
        found, given[name] = _inputs(stages, name, skipped)
        for parent, path, digest in found:
            if parent not in made:
                todo.append(parent)
            made.setdefault(parent, {})[path] = digest
    return [Parent(name, *_code(stages[name]), made[name], given[name]) for name in made]


def _code(stage: Mapping) -> tuple[str, str]:
    "Notebook of a locked stage, and the fingerprint of its code."
    notebook, code = next(iter(stage["params"]["fingerprints.yaml"].items()))
    return notebook, str(code)


def locked_params(
    stages: Stages,
    names: list[str],  # stages
    row: Row | None = None,  # other rows of its group do not count
) -> dict[str, object]:  # "train_roll.train" -> value
    "Parameters that stages were run with, under the names of dvc.yaml."
    made: dict[str, object] = {}
    for name in names:
        made |= stages[name]["params"].get("params.yaml", {})
    if row is not None:
        made.pop(f"evaluate.variants.{row.group}", None)
        made[f"evaluate.variants.{row.group}.{row.name}"] = dict(row.entry)
    return made


def leaves(value: object, place: str = "") -> Iterator[tuple[str, object]]:
    "Values of nested mappings under dotted names."
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from leaves(inner, f"{place}.{key}" if place else str(key))
    else:
        yield place, value


def _value_at(params: Mapping, name: str) -> object:
    "A value by its dotted name; None where there is none."
    value: object = params
    for key in name.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def changed(
    locked: Mapping[str, object],  # of `locked_params`
    params: Mapping,  # a whole parameters file
) -> dict[str, tuple[object, object]]:  # name -> value of the run, value of the file
    "Parameters of a run that differ from those of a file."
    made = {}
    for name, value in locked.items():
        here, there = (dict(leaves(v, name)) for v in (value, _value_at(params, name)))
        for key in dict.fromkeys((*here, *there)):
            if here.get(key) != there.get(key):
                made[key] = (here.get(key), there.get(key))
    return made
