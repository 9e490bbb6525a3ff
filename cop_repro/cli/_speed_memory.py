# SPDX-License-Identifier: Apache-2.0
"Memory of `cop score`, measured before the reference libraries are loaded."

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from cop_repro.core import CopError
from cop_repro.evaluation.folders import score_folders

METRICS = ["si_sdr_spec", "si_sdr", "mel_distance", "chroma_similarity"]
SAMPLES = 240_000
SAMPLE_RATE = 24_000
DISTINCT_FILES = 10  # sounds a side; further names are links to them


def speed_memory(folder: Path, counts: tuple[int, int]) -> list[dict]:
    "Peak memory of this process, MB, after `cop score` of few and of many clips."
    rng = np.random.default_rng(0)
    warm_up = min(DISTINCT_FILES, *counts)  # loads libraries and does not count
    return [_memory_row(folder / str(n), n, rng) for n in (warm_up, *counts)][1:]


def _memory_row(folder: Path, count: int, rng: np.random.Generator) -> dict:
    "Seconds and peak memory of one call."
    sides = [folder / side for side in ("ref", "est")]
    for side in sides:
        _write_sounds(side, count, rng)
    began = time.perf_counter()
    score_folders(*sides, METRICS)
    return {
        "clips": count,
        "seconds": time.perf_counter() - began,
        "peak_mb": _peak_mb(),
    }


def _peak_mb() -> float:
    "Peak memory of this process, MB."
    try:
        import resource
    except ImportError:
        raise CopError("this system does not tell a process its peak memory: use Linux") from None
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _write_sounds(folder: Path, count: int, rng: np.random.Generator) -> None:
    "Ten sounds under many names."
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        path = folder / f"{i:05d}.wav"
        if i < DISTINCT_FILES:
            soundfile.write(path, 0.1 * rng.standard_normal(SAMPLES), SAMPLE_RATE)
        else:
            os.link(folder / f"{i % DISTINCT_FILES:05d}.wav", path)


def memory_lines(rows: Sequence[dict]) -> list[str]:
    "Seconds and peak memory by number of clips."
    return [_memory_line(row) for row in rows]


def _memory_line(row: dict) -> str:
    "One call of `cop score`."
    return (
        f"`cop score`, {row['clips']} pairs of WAV files of 10 s: {row['seconds']:.1f} s, "
        f"peak memory {row['peak_mb']:.0f} MB"
    )
