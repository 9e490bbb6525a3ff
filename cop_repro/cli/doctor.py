# SPDX-License-Identifier: Apache-2.0
"`cop doctor`: what this machine has and what is missing, with the remedy."

import importlib.metadata
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cop_repro.core import project_root

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
    import torch

    root = project_root()
    failed = 0
    for check in (*_software(), *_data(root), *_machine(root)):
        print(check.line())
        failed += not check.present
    print(f"       {os.cpu_count()} CPU cores, {torch.cuda.device_count()} GPUs (none needed)")
    return 2 if failed else 0


def _software() -> Iterator[Check]:
    "Python and the packages."
    python = sys.version.split()[0]
    right = sys.version_info[:2] == (3, 11)
    yield Check(right, f"Python {python}", "the lock file is made for 3.11")
    for name in PACKAGES:
        try:
            yield Check(True, f"{name} {importlib.metadata.version(name)}", SETUP)
        except importlib.metadata.PackageNotFoundError:
            yield Check(False, name, SETUP)


def _data(root: Path) -> Iterator[Check]:
    "The data folder and its assets."
    from cop_repro.systems.cop import ASSETS

    yield Check((root / "data" / "manifest.json").exists(), "data folder", SETUP)
    for name in ASSETS:
        yield Check((root / "data" / "assets" / name).exists(), f"asset {name}", SETUP)


def _machine(root: Path) -> Iterator[Check]:
    "Disk and memory."
    free = shutil.disk_usage(root).free / 2**30
    disk = f"the default run needs {DISK_GB} GB"
    yield Check(free > DISK_GB, f"{free:.0f} GB of disk free", disk)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    enough = memory > MEMORY_GB - 0.5  # a machine of 8 GB reports a little less
    yield Check(enough, f"{memory:.0f} GB of memory", f"the default run needs {MEMORY_GB} GB")
