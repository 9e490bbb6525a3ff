# SPDX-License-Identifier: Apache-2.0
"What tests share: one process, one thread, no display, no network."

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `cop_repro` sets it, but before torch
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jaxtyping
import pytest
import torch
from shapes import raises

torch.set_num_threads(1)
sys.modules.setdefault("rfc3987_syntax", None)  # as `skip_unused` of the command line does
pytest.raises = raises
jaxtyping.install_import_hook("cop_repro", "shapes.check_arrays")


def minutes(item: pytest.Item) -> float:
    "How long a slow test takes, by its marker; 0 for all others."
    mark = item.get_closest_marker("slow")
    return mark.args[0] if mark else 0.0


@pytest.hookimpl(trylast=True)  # after what is not asked for has been left out
def pytest_collection_modifyitems(items: list) -> None:
    "Slow tests begin first, each with another worker: `worksteal` gives each one run of the list."
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    firsts = [[] for _ in range(count)]
    for item in sorted(filter(minutes, items), key=minutes, reverse=True):
        min(firsts, key=lambda first: sum(map(minutes, first))).append(item)
    others, dealt = [item for item in items if not minutes(item)], []
    for part, first in enumerate(firsts):
        room = (len(items) - len(dealt)) // (count - part) - len(first)
        dealt += first + others[: max(0, room)]
        del others[: max(0, room)]
    items[:] = dealt + others


@pytest.fixture(scope="session")
def root() -> Path:
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_folder(root) -> Path:
    "Real recordings, never part of the checkout: they lie beside it where they are available."
    folder = Path(os.environ.get("COP_REAL_CLIPS", root.parent / "shared" / "real"))
    if not folder.is_dir():
        pytest.skip("no real recordings at hand (set COP_REAL_CLIPS to a folder that holds them)")
    return folder
