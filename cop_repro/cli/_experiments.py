# SPDX-License-Identifier: Apache-2.0
"What experiments beside the pipeline share: the rendered clips of the default run."

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from cop_repro.core import CopError, project_root
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


def made_now(module: str, command: str, params: dict | None, seed: int | None) -> dict:
    "The provenance of an experiment of this checkout, for its file; nothing without a checkout."
    from cop_repro.cli.fingerprints import module_fingerprint
    from cop_repro.measure.provenance import observe

    try:
        root = project_root(Path(__file__).parent)
    except CopError:  # an installed package
        return {}
    made = observe(root, command, module_fingerprint(module, root), params)
    return {"made_by": asdict(replace(made, seed=seed))}


def evenly(rows, count: int) -> np.ndarray:
    "At most `count` of the rows, spread evenly."
    places = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
    return np.asarray(rows)[np.unique(places)]
