# SPDX-License-Identifier: Apache-2.0
"`cop ablation --parts`: what each part of a neighbouring system contributes; rows are kept."

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path

from cop_repro.cli.ablation import short_name
from cop_repro.core import (
    CopError,
    ParamsError,
    atomic_file,
    check_output_file,
    did_you_mean,
    file_hash,
    from_dict,
    read_json,
    write_json,
)
from cop_repro.parameters import load_params

FILE = "refs/parts.yaml"
STUDIES = {  # system -> module whose `study` trains and scores its rows
    "vmusprod": "cop_repro.cli._parts_vmusprod",
    "apvg": "cop_repro.cli._parts_apvg",
}


@dataclass(frozen=True)
class Plan:
    "Rows of a study that are trained alike."

    system: str
    root: Path  # of the checkout
    settings: Mapping  # of the first row
    train: object  # TrainConfig
    rows: Mapping[str, Mapping]  # row -> what it changes of `settings["net"]`; none in the first
    count: int  # scenes or clips that are scored
    code: str  # fingerprint of the code that trains and scores

    @property
    def first(self) -> str:
        "The row with which the others are compared."
        return next(iter(self.rows))

    def settings_of(self, row: str) -> dict:
        "Settings of a row."
        return {**self.settings, "net": {**self.settings["net"], **self.rows[row]}}

    def folder(self, inputs: Mapping[str, str]) -> Path:
        "Where trainings of equal settings, inputs and code are kept."
        name = short_name(self.settings, asdict(self.train), inputs, self.code)
        return self.root / "work" / "parts" / self.system / name

    def about(self) -> dict:
        "What a report says of its rows."
        return {
            "system": self.system,
            "label": "embedded",
            "seed": self.train.seed,
            "settings": dict(self.settings),
            "train": asdict(self.train),
        }


def load_plan(
    root: Path,  # of the checkout
    system: str,  # one of `STUDIES`
    sizes: tuple[int | None, int, int],  # steps, None: of the file; scenes or clips; seed
    code: str = "",  # fingerprint
    wanted: str | None = None,  # e.g. "no_graph,no_heatmaps"; the first row always joins
) -> Plan:
    "The rows of a system in refs/parts.yaml."
    from cop_repro.training.loop import TrainConfig

    listed, (steps, count, seed) = load_params(root / FILE)[system], sizes
    train = from_dict(TrainConfig, {**listed["train"], "seed": seed}, f"{system}.train")
    steps = steps or train.steps
    train = replace(train, steps=steps, warmup_steps=min(train.warmup_steps, steps))
    rows = listed["rows"]
    first = next(iter(rows))
    if rows[first]:
        raise ParamsError(f"{FILE}: {first} is the first row of {system} and changes {rows[first]}")
    if wanted is not None:
        rows = {name: rows[name] for name in _names(wanted, rows)}
    if len(rows) < 2:
        raise CopError(f"--rows {wanted}: a row beside {first} is needed for a comparison")
    return Plan(system, root, listed["settings"], train, rows, count, code)


def _names(wanted: str, rows: Mapping) -> list[str]:
    "The first row and those that are asked for; an unknown one is refused."
    names = list(dict.fromkeys([next(iter(rows)), *filter(None, wanted.split(","))]))
    for name in names:
        if name not in rows:
            hint = did_you_mean(name, rows)
            raise CopError(f"no row {name!r}{hint}; rows are {', '.join(rows)}")
    return names


def parts(root: Path, params: dict, args, output: Path) -> int:
    "Train and score what is not finished yet; write the report and, beside it, its tables."
    import torch

    from cop_repro.cli._experiments import made_now

    tables = check_output_file(output.with_suffix(".md"))
    if tables == output:
        raise CopError(f"{output.name} is to hold JSON; the tables are written beside it, as .md")
    module = STUDIES[args.parts]
    made_by = made_now(module, "ablation", params, args.seeds[0])
    study = import_module(module)
    count = study.DEFAULT if (given := getattr(args, study.SIZE)) is None else given
    if count < study.LEAST:
        raise CopError(f"--{study.SIZE} is {count}; at least {study.LEAST} are needed")
    sizes = (args.steps, count, args.seeds[0])
    code = made_by.get("made_by", {}).get("code", "")
    plan = load_plan(root, args.parts, sizes, code, args.rows)
    torch.set_num_threads(1)
    made, text = study.study(plan)
    write_json(output, without_nan({**plan.about(), **made, **made_by}))
    with atomic_file(tables) as temporary:
        temporary.write_text(text, "utf-8")
    print(text)
    return 0


def hashes(root: Path, *paths: Path) -> dict[str, str]:
    "Hashes of files by their names below the checkout."
    return {path.relative_to(root).as_posix(): file_hash(path) for path in paths}


def trained_row(
    folder: Path,  # of `Plan.folder`
    row: str,
    fit: Callable,  # (place for checkpoints, file to make) -> Trained
) -> tuple[Path, dict]:  # weights; their number, what training measured, its processor time
    "A trained row; a finished one is read, and an interrupted training goes on."
    weights, record = folder / f"{row}.safetensors", folder / f"{row}.json"
    if not (weights.is_file() and record.is_file()):
        folder.mkdir(parents=True, exist_ok=True)
        began = time.process_time()
        trained = fit(folder / "checkpoints" / row, weights)
        seconds = round(time.process_time() - began, 1)
        if trained.result.resumed_from:
            seconds = None  # of a part of the steps alone
        about = {"parameters": trained.parameters, "measured": dict(trained.measured)}
        write_json(record, without_nan({**about, "cpu_seconds": seconds}))
        print(f"{row}: trained in {seconds or 'resumed, unknown'} CPU-seconds", flush=True)
    return weights, read_json(record)


def kept(path: Path, make: Callable[[], object]):
    "What a finished computation has left, or what it makes now."
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, without_nan(make()))
    return read_json(path)


def without_nan(value):
    "NaN (undefined) as null: JSON has no NaN."
    if isinstance(value, Mapping):
        return {key: without_nan(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def training_table(rows: Mapping[str, Mapping]) -> str:
    "Number of weights, processor time and what training measured, row by row, in Markdown."
    names = list(dict.fromkeys(name for row in rows.values() for name in row["measured"]))
    head = ["row", "weights", "CPU-seconds", *(name.replace("_", " ") for name in names)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, row in rows.items():
        seconds, measured = row["cpu_seconds"], row["measured"]
        cells = [name, f"{row['parameters']:,}", "-" if seconds is None else f"{seconds:.0f}"]
        cells += [_cell(measured.get(key)) for key in names]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(value: float | None) -> str:
    "A measured value; a row need not have every one."
    return "-" if value is None else f"{value:.4g}"
