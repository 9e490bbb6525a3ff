# SPDX-License-Identifier: Apache-2.0
"An explanation of `cop explain` as text."

from collections.abc import Iterable, Mapping

from cop_repro.cli._lineage import leaves

WIDTH = 14  # of the first column


def explained_text(
    about: Mapping,  # of `cop explain --json`
) -> str:
    "Everything about a number, a fact a line."
    lines = [f"{about['name']} = {_value(about)}"]
    for title, facts in _facts(about):
        for fact in facts:
            lines.append(f"  {title:{WIDTH}s}{fact}".rstrip())
            title = ""
    return "\n".join(lines)


def _facts(about: Mapping) -> Iterable[tuple[str, Iterable[str]]]:
    "Titles, each with its facts."
    yield "better", [_better(about["higher_is_better"])]
    yield "clips", [str(about["n"])] if about["n"] else []
    yield "label", [f"{about['label']}, profile {about['profile']}"]
    yield "paper", [] if about["paper"] is None else [_number(about["paper"], about["unit"])]
    yield "extractor", [about["extractor"] or "none"]
    yield "row", _row(about["entry"])
    yield "made by", _made_by(about["made_by"])
    yield "copied from", [f"{path}  {md5}" for path, md5 in about["source"].items()]
    yield "parameters", _differences(about["differs"], about["profile"])
    yield "parents", _parents(about["parents"])
    yield "careful", about["doubts"]
    yield "reruns", _reruns(about)
    yield "compute again", about["commands"]
    yield "came out as", _again(about.get("again"), about["unit"])


def _number(value: float, unit: str) -> str:
    "A value with its unit."
    shown = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{shown} {unit}".strip()


def _value(about: Mapping) -> str:
    "A value with its interval."
    if about["value"] is None:
        return "not run"
    interval = ""
    if about["ci_low"] is not None:
        interval = f" [{about['ci_low']:.4g}, {about['ci_high']:.4g}]"
    return _number(about["value"], f"{about['unit']}{interval}".strip())


def _better(higher: bool | None) -> str:
    "The direction of a metric."
    return {True: "higher", False: "lower", None: "neither"}[higher]


def _row(entry: Mapping) -> list[str]:
    "The row of the parameters."
    if not entry["name"]:
        return []
    group = f" of evaluate.variants.{entry['group']}" if "group" in entry else ""
    rest = {k: v for k, v in entry.items() if k not in ("name", "group")}
    return [f"{entry['name']}{group}", *(f"{name}: {value}" for name, value in leaves(rest))]


def _made_by(made: Mapping) -> list[str]:
    "Command, code, commit, parameters, seed, threads and device, as far as they are known."
    if made["command"] is None:
        return []
    state = {True: "", False: " and changes", None: ""}[made["clean"]]
    known = {
        "code": made["code"],
        "commit": made["commit"] and f"{made['commit']}{state}",
        "params": made["params"],
        "seed": made["seed"],
        "threads": made["threads"],
        "device": made["device"],
    }
    return [
        made["command"],
        *(f"{key:8s}{'unknown' if value is None else value}" for key, value in known.items()),
    ]


def _differences(differs: Mapping, profile: str) -> list[str]:
    "Parameters that differ, of the run and of a file."
    lines = []
    for whose, changes in (("params.yaml", "default"), (f"profile {profile}", "profile")):
        found = differs[changes]
        if found is None or (changes == "profile" and profile == "default"):
            continue
        lines.append(f"as in {whose}" if not found else f"other than in {whose}:")
        lines += [f"  {key}: {ran} (there: {there})" for key, (ran, there) in found.items()]
    return lines


def _parents(parents: Iterable[Mapping]) -> Iterable[str]:
    "Stages with the fingerprint of their code, and files with their MD5, nearest first."
    for parent in parents:
        yield f"{parent['stage']}, code {parent['code']}"
        for path, md5 in parent["made"].items():
            yield f"  made  {path}  {md5}"
        for path, md5 in parent["given"].items():
            yield f"  given {path}  {md5}"


def _reruns(about: Mapping) -> list[str]:
    "By how much an honest rerun may differ."
    if about["tolerance"] is None:
        return []
    most = _number(about["tolerance"], about["unit"])
    return [f"differ by at most {most} on other machines (refs/reruns.yaml)"]


def _again(made: Mapping | None, unit: str) -> list[str]:
    "What the number is when it is computed again."
    if made is None:
        return []
    word = "agrees" if made["agrees"] else "DIFFERS"
    return [f"{_number(made['value'], unit)}: {word}"]
