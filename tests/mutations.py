# SPDX-License-Identifier: Apache-2.0
"Seeded damage to files: to their bytes, and to the values of JSON and YAML."

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml

EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def flip_bits(data: bytearray, rng: np.random.Generator) -> bytearray:
    "One to eight bits."
    for at in rng.integers(len(data), size=rng.integers(1, 9)):
        data[at] ^= 1 << int(rng.integers(8))
    return data


def random_bytes(data: bytearray, rng: np.random.Generator) -> bytearray:
    "One to eight bytes."
    for at in rng.integers(len(data), size=rng.integers(1, 9)):
        data[at] = int(rng.integers(256))
    return data


def truncated(data: bytearray, rng: np.random.Generator) -> bytearray:
    "Only the beginning, or nothing."
    return data[: int(rng.integers(len(data)))]


def without_beginning(data: bytearray, rng: np.random.Generator) -> bytearray:
    "Only the end."
    return data[int(rng.integers(len(data))) :]


def _span(data: bytearray, rng: np.random.Generator) -> slice:
    "A stretch of up to 64 bytes or a quarter of the file."
    size = int(rng.integers(1, max(2, min(len(data), max(64, len(data) // 4)))))
    start = int(rng.integers(max(1, len(data) - size + 1)))
    return slice(start, start + size)


def zeroed(data: bytearray, rng: np.random.Generator) -> bytearray:
    "A stretch of zeros."
    span = _span(data, rng)
    data[span] = bytes(len(data[span]))
    return data


def cut_out(data: bytearray, rng: np.random.Generator) -> bytearray:
    "Without a stretch."
    del data[_span(data, rng)]
    return data


def repeated(data: bytearray, rng: np.random.Generator) -> bytearray:
    "A stretch twice."
    span = _span(data, rng)
    data[span.stop : span.stop] = data[span]
    return data


def moved(data: bytearray, rng: np.random.Generator) -> bytearray:
    "A stretch at another place."
    span = _span(data, rng)
    part = data[span]
    del data[span]
    at = int(rng.integers(len(data) + 1))
    data[at:at] = part
    return data


def extreme_number(data: bytearray, rng: np.random.Generator) -> bytearray:
    "A field of 2, 4 or 8 bytes that holds an extreme number, mostly in the header."
    size = int(rng.choice([2, 4, 8]))
    among = min(len(data), 256) if rng.random() < 0.7 else len(data)
    at = int(rng.integers(max(1, among - size + 1)))
    order = "big" if rng.random() < 0.5 else "little"
    value = int(rng.choice(EXTREMES)) if size < 8 else int(rng.choice(EXTREMES)) << 32
    data[at : at + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, order)
    return data


def with_rubbish(data: bytearray, rng: np.random.Generator) -> bytearray:
    "Random bytes before or behind."
    more = rng.bytes(int(rng.integers(1, 200)))
    return bytearray(more) + data if rng.random() < 0.3 else data + more


def only_rubbish(data: bytearray, rng: np.random.Generator) -> bytearray:
    "Random bytes alone, or the first few of the file and then random bytes."
    kept = int(rng.choice([0, 4, 8, 16]))
    return data[:kept] + rng.bytes(int(rng.integers(0, 400)))


BYTES = (
    flip_bits,
    random_bytes,
    truncated,
    without_beginning,
    zeroed,
    cut_out,
    repeated,
    moved,
    extreme_number,
    with_rubbish,
    only_rubbish,
)


def damaged_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    "One to three kinds of damage, one after the other."
    made = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        if made:
            made = BYTES[int(rng.integers(len(BYTES)))](made, rng)
    return bytes(made)


ODD_VALUES: tuple[Callable[[], object], ...] = (
    lambda: None,
    lambda: True,
    lambda: 0,
    lambda: -1,
    lambda: 10**30,
    lambda: 1e308,
    lambda: float("nan"),
    lambda: float("-inf"),
    lambda: 0.5,
    lambda: "",
    lambda: "x" * 5000,
    lambda: "../../etc/passwd",
    lambda: "a\x00b\ud800",
    lambda: "1e9",
    list,
    dict,
    lambda: [[[]]],
    lambda: {"": None},
    lambda: [1, "a", None],
)


def _places(value: object, place: tuple = ()) -> list[tuple]:
    "Paths of all values inside a value."
    found = [place]
    items = value.items() if isinstance(value, dict) else ()
    items = enumerate(value) if isinstance(value, list) else items
    for key, inner in items:
        found += _places(inner, (*place, key))
    return found


def _container(value, place: tuple):
    "What holds the value at a place."
    for key in place[:-1]:
        value = value[key]
    return value


def damaged_value(value: object, rng: np.random.Generator) -> object:
    "One to three values replaced, removed, or under another name."
    for _ in range(int(rng.integers(1, 4))):
        places = _places(value)
        place = places[int(rng.integers(len(places)))]
        odd = ODD_VALUES[int(rng.integers(len(ODD_VALUES)))]()
        if not place:
            return odd if rng.random() < 0.2 else value
        inside, key, what = _container(value, place), place[-1], rng.random()
        if what < 0.6:
            inside[key] = odd
        elif what < 0.8 or isinstance(inside, list):
            del inside[key]
        else:
            inside[f"{key}?"] = inside.pop(key)
    return value


def damaged_text(data: bytes, rng: np.random.Generator, suffix: str) -> bytes:
    "JSON or YAML with other values, or with damaged bytes."
    if rng.random() < 0.35:
        return damaged_bytes(data, rng)
    if suffix == ".json":
        made = json.dumps(damaged_value(json.loads(data), rng))
    else:
        made = yaml.dump(damaged_value(yaml.safe_load(data), rng), allow_unicode=False)
    return made.encode("utf-8", "backslashreplace")


def damage(path: Path, rng: np.random.Generator) -> None:
    "Overwrite a file with a damaged copy; the file that it may be linked to stays."
    data = path.read_bytes()
    is_text = path.suffix in (".json", ".yaml")
    made = damaged_text(data, rng, path.suffix) if is_text else damaged_bytes(data, rng)
    os.unlink(path)
    path.write_bytes(made)
