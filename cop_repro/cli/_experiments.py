# SPDX-License-Identifier: Apache-2.0
"What experiments beside the pipeline share: the rendered clips of the default run."

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cop_repro.core import CopError
from cop_repro.data.clips import Item, Store, read_manifest


@dataclass(frozen=True)
class Rendered:
    "Clips of the default run."

    items: list[Item]  # of the piano
    split: str  # hash
    piano: Store
    foley: Store


def rendered(root: Path, params: dict) -> Rendered:
    "Items, split and rendered clips of the default run."
    items, split = read_manifest(root / params["prepare"]["manifest"])
    folder = root / "features" / "clips"
    if not (folder / "piano").exists():
        raise CopError("no rendered clips in features/clips: run `cop run prepare` first")
    piano = [item for item in items if item.domain == "piano"]
    return Rendered(piano, split, Store(folder / "piano"), Store(folder / "foley"))


def evenly(rows, count: int) -> np.ndarray:
    "At most `count` of the rows, spread evenly."
    places = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
    return np.asarray(rows)[np.unique(places)]
