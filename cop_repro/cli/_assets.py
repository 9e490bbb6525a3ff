# SPDX-License-Identifier: Apache-2.0
"Where the shipped weights and études lie: in data/ of a checkout, else inside the package."

from pathlib import Path

from cop_repro.core import DatasetMissing

PACKAGE = Path(__file__).resolve().parents[1]


def checkout() -> Path | None:
    "The checkout whose code this is, whatever the working directory; None for an installed copy."
    root = PACKAGE.parent
    is_checkout = (root / "settings.ini").is_file() and (root / "params.yaml").is_file()
    return root if is_checkout else None


def assets_folder() -> Path:
    "The folder of shipped weights."
    return _shipped("assets")


def etudes_folder() -> Path:
    "The folder of études, one YAML file each."
    return _shipped("etudes")


def _shipped(name: str) -> Path:
    "A folder of shipped files; a wheel holds them, a checkout after `make setup`."
    root = checkout()
    folder = PACKAGE / "shipped" / name if root is None else root / "data" / name
    if not folder.is_dir():
        remedy = "install the package again" if root is None else "run `make setup`"
        raise DatasetMissing(f"there is no folder {folder.parent.name}/{name}: {remedy}")
    return folder
