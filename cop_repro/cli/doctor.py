"`cop doctor`: what this machine has and what is missing, with the remedy."

import importlib
import importlib.metadata
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from cop_repro.cli._failures import one_line
from cop_repro.core import CopError, project_root
from cop_repro.parameters import load_params

HELP = "check this machine's software, data, disk and memory"

PACKAGES = (
    "torch",
    "torchaudio",
    "encodec",
    "open_clip_torch",
    "librosa",
    "pretty_midi",
    "matplotlib",
    "jupyterlab",
    "papermill",
    "dvc",
    "nbdev",
    "basic-pitch",
    "transkun",
    "music21",
)
DISK_GB = 12  # of the default run
MEMORY_GB = 8
SETUP = "run `make setup`"


@dataclass(frozen=True)
class Check:
    "One thing that the project needs."

    present: bool
    what: str
    remedy: str

    def line(self) -> str:
        "The check as a line of output."
        if self.present:
            return f"ok      {self.what}"
        return f"MISSING {self.what} -- {self.remedy}"


def add_arguments(parser) -> None:
    "It takes no arguments."


def run(args) -> int:
    "Print every check; exit code 2 if one fails."
    failed = 0
    for check in _checks():
        print(check.line(), flush=True)
        failed += not check.present
    print(f"       {os.cpu_count()} CPU cores, {_num_gpus()} GPUs (none needed)")
    return 2 if failed else 0


def _checks() -> Iterator[Check]:
    "Software, then data and machine, which need a checkout."
    yield from _software()
    try:
        root = project_root()
    except CopError as error:
        yield Check(False, "checkout", str(error))
        root = None
    if root is not None:
        yield from _data(root)
    yield from _machine(root or Path.cwd())


def _num_gpus() -> int:
    "GPUs that torch can use."
    try:
        import torch
    except (ImportError, OSError):  # missing, or a library of it is
        return 0
    return torch.cuda.device_count()


def _software() -> Iterator[Check]:
    "Python and the packages."
    python = sys.version.split()[0]
    right = sys.version_info[:2] == (3, 11)
    yield Check(right, f"Python {python}", "the lock file is made for 3.11")
    for name in PACKAGES:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Check(False, name, SETUP)
            continue
        broken = _import_error(name)
        yield Check(not broken, f"{name} {version}", f"cannot be imported ({broken}): {SETUP}")


def _import_error(package: str) -> str:
    "Why a package cannot be imported; empty if it can."
    logging.disable()
    try:
        with warnings.catch_warnings(action="ignore"):
            importlib.import_module(_module_of(package))
    except Exception as error:  # whatever a broken package raises
        return one_line(f"{type(error).__name__}: {error}")
    finally:
        logging.disable(logging.NOTSET)
    return ""


def _module_of(package: str) -> str:
    "The module that a package installs, whose name may be another one."
    usual = package.replace("-", "_")
    files = importlib.metadata.files(package) or ()
    modules = {f.parts[0] for f in files if len(f.parts) == 2 and f.name == "__init__.py"}
    return usual if usual in modules or not modules else sorted(modules)[0]


def _data(root: Path) -> Iterator[Check]:
    "The data folder as data.dvc describes it, and every shipped model."
    data = root / "data"
    wanted = yaml.safe_load((root / "data.dvc").read_text("utf-8"))["outs"][0]["nfiles"]
    found = sum(path.is_file() for path in data.rglob("*")) if data.is_dir() else 0
    manifest = (data / "manifest.json").is_file()
    yield Check(manifest and found >= wanted, f"data folder, {found} of {wanted} files", SETUP)
    for name in load_params(root / "params.yaml")["release"]["assets"]:
        yield _asset(data / "assets" / name)


def _asset(path: Path) -> Check:
    "One shipped model, which must be readable."
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return Check(False, f"asset {path.name}", SETUP)
    try:
        with safe_open(path, framework="np") as file:
            whole = bool(list(file.keys()))
    except (OSError, SafetensorError):
        whole = False
    return Check(whole, f"asset {path.name}", f"damaged: remove it and {SETUP}")


def _machine(root: Path) -> Iterator[Check]:
    "Disk and memory."
    import psutil

    free = shutil.disk_usage(root).free / 2**30
    disk = f"the default run needs {DISK_GB} GB"
    yield Check(free > DISK_GB, f"{free:.0f} GB of disk free", disk)
    memory = psutil.virtual_memory().total / 2**30
    enough = memory > MEMORY_GB - 0.5  # a machine of 8 GB reports a little less
    yield Check(enough, f"{memory:.0f} GB of memory", f"the default run needs {MEMORY_GB} GB")
