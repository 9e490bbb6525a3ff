# SPDX-License-Identifier: Apache-2.0
"How many clips a second the training batches of stage 1 are read with."

from itertools import count
from pathlib import Path

import numpy as np

from cop_repro.cli._speed_time import fastest
from cop_repro.core import RATES, torch_rng
from cop_repro.data.clips import fill_store
from cop_repro.data.shards import fill_shards
from cop_repro.training.features import general_batch

LOADER_SECONDS = (1.0, 2.0, 5.0, 10.0)

COLUMNS = {
    "latents": ((RATES.latents(10.0), 128), "float16"),
    "video": ((RATES.frames(10.0), 128), "float16"),
    "has_video": ((), "bool"),
    "text": ((40, 96), "float16"),
    "text_mask": ((40,), "bool"),
}


def speed_loader(folder: Path, clips: int = 64, batch: int = 16, repeats: int = 5) -> list[dict]:
    "Clips a second from one folder and from shards, by length of the window."
    rng = np.random.default_rng(0)
    stores = _stores(folder, clips, rng)
    rows = [int(r) for r in rng.permutation(clips)[:batch]]
    made = []
    for seconds in LOADER_SECONDS:
        line = {"window_s": seconds, "bytes": _clip_bytes(seconds)}
        for name, store in stores.items():
            line[name] = batch / _batch_seconds(store, rows, seconds, repeats)
        made.append(line)
    return made


def _stores(folder: Path, clips: int, rng: np.random.Generator) -> dict:
    "The same columns in one folder and in shards."

    def features(_) -> dict[str, np.ndarray]:
        return {name: _values(rng, shape, kind) for name, (shape, kind) in COLUMNS.items()}

    jobs = {str(i): i for i in range(clips)}
    return {
        "one folder": fill_store(folder / "one", [{}] * clips, COLUMNS, features, range(clips), 1),
        "shards": fill_shards(folder / "shards", jobs, COLUMNS, features, 16),
    }


def _values(rng: np.random.Generator, shape: tuple[int, ...], kind: str) -> np.ndarray:
    "Noise, or a mask without holes."
    if kind == "bool":
        return np.ones(shape, bool)
    return rng.standard_normal(shape).astype(kind)


def _clip_bytes(seconds: float) -> int:
    "A clip of a batch: latents, video at the latents' rate and text, fp32."
    return 4 * (RATES.latents(seconds) * (128 + 128) + 40 * 96)


def _batch_seconds(store, rows: list[int], seconds: float, repeats: int) -> float:
    "The fastest of some batches, each of other windows."
    seeds = count()

    def read():
        return general_batch(
            store, rows, torch_rng(0, "speed", next(seeds)), RATES.latents(seconds)
        )

    return fastest(read, repeats)


def loader_lines(made: list[dict]) -> list[str]:
    "Clips a second by window, and how the seconds of a clip grow with its length."
    return [
        "",
        f"{'loading features: window':26s} {'from one folder':>16s} {'from shards':>14s}  MB/clip",
        *(_line(row) for row in made),
        _growth(made[0], made[-1]),
    ]


def _line(row: dict) -> str:
    "One window."
    return (
        f"{row['window_s']:24g} s {row['one folder']:10.0f} clips/s "
        f"{row['shards']:8.0f} clips/s  {row['bytes'] / 1e6:7.2f}"
    )


def _growth(first: dict, last: dict) -> str:
    "How much longer the longest window takes."
    folder, shards = (first[name] / last[name] for name in ("one folder", "shards"))
    return (
        f"a window {last['window_s'] / first['window_s']:g} times as long takes {folder:.1f} "
        f"times as long to load ({shards:.1f} from shards)"
    )
