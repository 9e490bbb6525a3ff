# SPDX-License-Identifier: Apache-2.0
"`cop doctor`: what this machine has and what is missing, with the remedy."

import importlib
import importlib.metadata
import logging
import os
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from cop_repro.cli._assets import assets_folder
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
EXTRAS = ("pipeline", "judges", "encodec")
REINSTALL = "run `pip install --force-reinstall cop_repro`"


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
    print(f"{failed} missing" if failed else "all checks passed")
    return 2 if failed else 0


def _checks() -> Iterator[Check]:
    "What the pipeline needs in a checkout, and what an installed package needs elsewhere."
    try:
        root = project_root()
    except CopError:
        yield from _installed()
        return
    yield from (*_software(), *_data(root), *_machine(root))


def _num_gpus() -> int:
    "GPUs that torch can use."
    try:
        import torch
    except (ImportError, OSError):  # missing, or a library of it is
        return 0
    return torch.cuda.device_count()


def _installed() -> Iterator[Check]:
    "The package's own requirements and weights; extras are named, and none is needed."
    from cop_repro.systems.cop import ASSETS

    for name in _required():
        yield _package_check(name, REINSTALL)
    for name in ASSETS:
        yield Check((assets_folder() / name).exists(), f"asset {name}", REINSTALL)
    for extra in EXTRAS:
        lacking = [name for name in _required(extra) if _version(name) is None]
        remedy = f"lacks {', '.join(lacking)}: pip install 'cop_repro[{extra}]'"
        print(f"       extra {extra} (optional) {remedy if lacking else 'is installed'}")


def _required(extra: str | None = None) -> list[str]:
    "Names of the packages that this one requires, or that one of its extras does."
    found = []
    for line in importlib.metadata.requires("cop_repro") or ():
        asked = re.search(r"extra == ['\"](\w+)['\"]", line)
        if (asked.group(1) if asked else None) == extra:
            found.append(re.match(r"[\w.-]+", line).group())
    return found


def _version(name: str) -> str | None:
    "The version of an installed package."
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _package_check(name: str, remedy: str) -> Check:
    "Whether a package is installed and can be imported."
    version = _version(name)
    if version is None:
        return Check(False, name, remedy)
    broken = _import_error(name)
    return Check(not broken, f"{name} {version}", f"cannot be imported ({broken}): {remedy}")


def _software() -> Iterator[Check]:
    "Python and the packages."
    python = sys.version.split()[0]
    right = sys.version_info[:2] == (3, 11)
    yield Check(right, f"Python {python}", "the lock file is made for 3.11")
    for name in PACKAGES:
        yield _package_check(name, SETUP)


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
