# SPDX-License-Identifier: Apache-2.0
"What stage notebooks share: places, parameters, progress, metrics. Not for library code."

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import yaml

from cop_repro.cli._progress import progress
from cop_repro.core import (
    ParamsError,
    file_hash,
    from_dict,
    project_root,
    read_json,
    set_plot_style,
    write_json,
)
from cop_repro.data.clips import Store
from cop_repro.parameters import check_params, load_params

PLOT_POINTS = 60  # of a loss curve


@dataclass
class Stage:
    "One run of one stage."

    name: str  # section of the parameters file
    params: dict  # the whole file
    item: str = ""  # entry of the stage's matrix
    root: Path = field(default_factory=project_root)

    @property
    def seed(self) -> int:
        "Of everything that is random in this run."
        return int(self.params["seed"])

    @property
    def profile(self) -> str:
        "Name of the parameters."
        return self.params["profile"]

    @property
    def label(self) -> str:
        "How results of this run are labelled."
        return "smoke" if self.profile == "smoke" else "embedded"

    @property
    def device(self) -> torch.device:
        "Where this run computes."
        name = str(self.params["device"])
        if name.startswith("cuda") and not torch.cuda.is_available():
            raise ParamsError(
                f"device is {name!r}, but this machine has no GPU that torch can use: "
                "choose a profile for CPUs"
            )
        return torch.device(name)

    progress = staticmethod(progress)

    def section(self, *keys: str) -> dict:
        "A mapping of this stage's section."
        value = self.params[self.name]
        for key in keys:
            if key not in value:
                raise ParamsError(f"{self.name}: missing parameter {key!r}")
            value = value[key]
        return value

    def variant(self) -> dict:
        "The parameters of this run's matrix entry."
        entries = self.section("variants")
        if self.item not in entries:
            raise ParamsError(
                f"{self.name}: no variant {self.item!r}; variants are {', '.join(entries)}"
            )
        return entries[self.item]

    def config(self, cls: type, *keys: str, of: str | None = None):
        "A frozen dataclass from this stage's section (or from section `of`)."
        value, where = (self.params[of] if of else self.params[self.name]), of or self.name
        for key in keys:
            if key not in value:
                raise ParamsError(f"{where}: missing parameter {key!r}")
            value, where = value[key], f"{where}.{key}"
        if "seed" in cls.__dataclass_fields__:  # batches and noise follow the run's seed
            value = {"seed": self.seed, **value}
        return from_dict(cls, value, where)

    def path(self, *parts: str) -> Path:
        "A path below the checkout."
        return self.root.joinpath(*parts)

    def store(self, *parts: str) -> Store:
        "A store below features/, every byte of it verified once."
        store = Store(self.path("features", *parts))
        store.verify_once()
        return store

    def inputs(self, *files: Path | None, **stores: str) -> dict[str, str]:
        """What a run is made from: hashes of the code, of each store's index and of each file.

        A checkpoint of other inputs is another run's.
        """
        listed = yaml.safe_load(self.path("fingerprints.yaml").read_text("utf-8"))
        code = dict.fromkeys((self.name, "prepare", "encode"))
        indexes = [self.path("features", folder, "index.json") for folder in stores.values()]
        paths = [p for p in (*files, *indexes) if p is not None and p.is_file()]
        return {f"code of {name}": str(listed[name]) for name in code} | {
            p.relative_to(self.root).as_posix(): file_hash(p) for p in paths
        }

    def scratch(self, inputs: dict[str, str]) -> Path:
        "Git-ignored folder for checkpoints of this very run: its parameters and inputs."
        own = [self.params[self.name], self.item, self.seed, inputs]
        key = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:12]
        name = self.name + (f"-{self.item}" if self.item else "")
        return self.path("work", "checkpoints", name, key)

    def recorded(self) -> dict[str, dict[str, Path]]:
        "Stores of recorded sets that `prepare` listed, if any: name -> folders by kind."
        listed = self.path("features", "clips", "real.json")
        names = read_json(listed) if listed.is_file() else ()
        return {
            name: {
                "clips": self.path("features", "real", name),
                "encoded": self.path("features", "real_encoded", name),
                "rolls": self.path("features", "rolls", "real", name),
            }
            for name in names
        }

    def list_recorded(self, folder: str, known: dict) -> None:
        """Hashes of recorded stores in an output that DVC watches.

        Later stages run again when a set has changed.
        """
        listed = self.path("features", folder, "real.json")
        if known:
            write_json(listed, known)
        else:
            listed.unlink(missing_ok=True)

    def made(self, name: str) -> Path:
        "A file that this run makes, below models/."
        return self.path("models", self.name, *([self.item] if self.item else []), name)

    def place(self, made: str, *files: Path | None, **stores: str) -> dict:
        """Where this run reads, computes and writes, for `training.stages.Place`.

        `files` are models that it starts from, `stores` name -> store below features/.
        """
        inputs = self.inputs(*files, **stores)
        return {
            "stores": {name: self.path("features", folder) for name, folder in stores.items()},
            "scratch": self.scratch(inputs),
            "inputs": inputs,
            "device": str(self.device),
            "seed": self.seed,
            "made": self.made(made),
            "progress": progress,
            "recorded": self.recorded(),
        }

    def report(self, folder: str) -> Path:
        "A small JSON file of this run below reports/, which git and so every experiment keeps."
        name = self.name + (f"-{self.item}" if self.item else "")
        return self.path("reports", folder, f"{name}.json")

    def metrics(self, **values) -> dict:
        "Write reports/stages/<stage>.json: what was measured, for `dvc metrics` and `dvc exp`."
        values = _finite(values)
        write_json(self.report("stages"), values)
        return values

    def losses(self, losses, **logs) -> None:
        """Write reports/losses/<stage>.json, the loss and other logs by step, for `dvc plots`.

        Means over spans of steps, at most `PLOT_POINTS` of them, so that curves can be read.
        """
        columns = {"loss": losses, **logs}
        count = min(PLOT_POINTS, len(losses))
        spans = np.array_split(np.arange(len(losses)), count) if count else []
        rows = [
            {"step": int(span[-1]) + 1}
            | {name: _span_mean(values, span) for name, values in columns.items()}
            for span in spans
        ]
        write_json(self.report("losses"), rows)


def _span_mean(values, span) -> float | None:
    "Mean over some steps of what was logged at them; null where nothing was."
    logged = np.asarray(values, float)[span]
    logged = logged[np.isfinite(logged)]
    return float(f"{logged.mean():.5g}") if len(logged) else None


def _finite(value):
    "NaN (not measured) as null: JSON has no NaN."
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def open_stage(name: str, params_file: str = "params.yaml", item: str = "") -> Stage:
    "Begin a stage: parameters, threads, figure style."
    root = project_root()
    params = load_params(root / params_file)
    if name not in params:
        raise ParamsError(f"{params_file} has no section {name!r}")
    check_params(params, name, "machines")
    torch.set_num_threads(int(params["threads"]))
    set_plot_style()
    return Stage(name, params, item, root)
