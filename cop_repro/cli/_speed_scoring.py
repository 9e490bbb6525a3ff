# SPDX-License-Identifier: Apache-2.0
"Our metrics beside libraries that define the same quantities."

import time
from collections.abc import Sequence

import numpy as np

from cop_repro.cli._speed_libraries import Pair, clip_pairs, set_pairs
from cop_repro.cli._speed_time import fastest
from cop_repro.data.notes import make_notes, notes_to_roll

SAMPLES = 240_000
NUM_NOTES = 80
MIN_SET = 13  # clips whose ten windows each give a covariance of full rank


def speed_scoring(clips: int = 100) -> list[dict]:
    "Seconds to score clips of 10 s one at a time, ours and theirs, and how far the values differ."
    rng = np.random.default_rng(0)
    base = _base_sounds(rng)
    pairs = clip_pairs()
    rows = [_row(pair, f"{pair.name}, {clips} clips") for pair in pairs]
    for i in range(-1, clips):  # the first run loads libraries and does not count
        inputs = _clip_inputs(abs(i), base)
        for pair, row in zip(pairs, rows):
            _add(row, pair, inputs[pair.inputs], counts=i >= 0)
    return rows + _speed_sets(clips, rng)


def _base_sounds(rng: np.random.Generator) -> np.ndarray:
    "Two noises that share a third."
    own = 0.1 * rng.standard_normal((2, SAMPLES)) * np.array([[1.0], [0.7]])
    shared = 0.05 * rng.standard_normal(SAMPLES)
    return (own + shared).astype(np.float32)


def _row(pair: Pair, what: str) -> dict:
    "A line of the table, nothing measured yet."
    return {"what": what, "ours": 0.0, "other": 0.0, "apart": 0.0, "library": pair.library}


def _add(row: dict, pair: Pair, inputs: tuple, counts: bool) -> None:
    "One clip, scored twice."
    values = []
    for side, call in (("ours", pair.ours), ("other", pair.theirs)):
        began = time.perf_counter()
        values.append(call(*inputs))
        if counts:
            row[side] += time.perf_counter() - began
    row["apart"] = max(row["apart"], _apart(*values))


def _apart(ours, theirs) -> float:
    "Largest relative difference."
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    return float((abs(ours - theirs) / np.maximum(abs(theirs), 1e-3)).max())


def _speed_sets(clips: int, rng: np.random.Generator) -> list[dict]:
    "Metrics of a whole set, from features."

    def features(count: int) -> tuple[np.ndarray, ...]:
        return tuple(rng.standard_normal((count, 128)) + 0.1 * side for side in (0, 1))

    inputs = {"clips": features(clips), "windows": features(10 * max(clips, MIN_SET))}
    return [_set_row(pair, clips, inputs[pair.inputs]) for pair in set_pairs()]


def _set_row(pair: Pair, clips: int, inputs: tuple) -> dict:
    "One metric of a set."
    row = _row(pair, f"{pair.name}, features of {clips} clips")
    return row | {
        "ours": fastest(lambda: pair.ours(*inputs)),
        "other": fastest(lambda: pair.theirs(*inputs)),
        "apart": _apart(pair.ours(*inputs), pair.theirs(*inputs)),
    }


def _clip_inputs(i: int, base: np.ndarray) -> dict[str, tuple]:
    "Two sounds, note lists and rolls of 10 s, different for every clip."
    notes = _note_pair(np.random.default_rng(i))
    return {
        "sounds": tuple(np.roll(sound, 7 * i) for sound in base),
        "notes": notes,
        "rolls": tuple(notes_to_roll(n, 10.0, 25.0).presence > 0.5 for n in notes),
    }


def _note_pair(rng: np.random.Generator) -> tuple:
    "Notes, and the same with some wrong pitches and shifted onsets."
    onsets = np.sort(rng.uniform(0, 9, NUM_NOTES))
    pitches = rng.integers(40, 90, NUM_NOTES)
    velocities = rng.integers(30, 110, NUM_NOTES)
    wrong = pitches + rng.integers(0, 2, NUM_NOTES)
    shifted = onsets + rng.normal(0, 0.02, NUM_NOTES).clip(-onsets[0])
    return (
        make_notes(pitches, onsets, onsets + 0.4, velocities),
        make_notes(wrong, shifted, onsets + 0.4, velocities),
    )


def scoring_lines(rows: Sequence[dict]) -> list[str]:
    "Seconds, ratios and differences."
    return [
        f"{'scoring':45s} {'ours':>8s} {'other':>8s}  ratio  apart",
        *(_line(row) for row in rows),
    ]


def _line(row: dict) -> str:
    "One metric."
    return (
        f"{row['what']:45s} {row['ours']:8.3f} {row['other']:8.3f}  "
        f"{row['ours'] / row['other']:5.2f}  {row['apart']:.0e}  s, {row['library']}"
    )
