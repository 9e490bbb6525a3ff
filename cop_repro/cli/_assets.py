# SPDX-License-Identifier: Apache-2.0
"Where the shipped weights lie."

from pathlib import Path

from cop_repro.core import project_root


def assets_folder() -> Path:
    "data/assets of the checkout that holds this code, whatever the working directory."
    return project_root(Path(__file__).parent) / "data" / "assets"
