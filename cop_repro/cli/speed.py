# SPDX-License-Identifier: Apache-2.0
"`cop speed`: speed as ratios against an alternative measured in the same run."

import json
import tempfile
from pathlib import Path

from cop_repro.core import CopError, check_output_file, project_root, write_json

HELP = "measure speed relative to reference implementations, loading, and `cop perform`"

MIN_CLIPS = 10


def add_arguments(parser) -> None:
    "What to measure."
    parser.add_argument("--loader", action="store_true", help="only the loading of features")
    parser.add_argument(
        "--json", action="store_true", help="print JSON, with --loader or --scoring"
    )
    parser.add_argument(
        "--scoring",
        action="store_true",
        help="only the metrics, against reference libraries, and the memory of `cop score`",
    )
    parser.add_argument(
        "--clips",
        type=int,
        default=100,
        help="with --scoring: clips of 10 s, 10 or more; 1000 take minutes",
    )
    parser.add_argument(
        "--published",
        action="store_true",
        help="only the network at published widths, against its released form; 7 GB of memory",
    )
    parser.add_argument("-o", "--output", help="also write the numbers as JSON")


def run(args) -> int:
    "Measure one part, or all: models, growth, `cop perform`, loading, published widths, scoring."
    if args.output is not None:
        check_output_file(args.output)
    if args.scoring:
        return _speed_scoring(args.clips, args.json)
    if args.published:
        _written(args.output, {"published": _speed_published()})
        return 0
    from cop_repro.cli._speed_loader import loader_lines, speed_loader

    with tempfile.TemporaryDirectory() as folder:
        loaded = speed_loader(Path(folder))
    if args.loader:
        _show(loaded, loader_lines(loaded), args.json)
        return 0
    made = _speed_models() | {"growth": _speed_growth(), "perform": _speed_perform()}
    print("\n".join(loader_lines(loaded)), flush=True)
    made |= {"published": _speed_published()}
    print()
    _written(args.output, made)
    return _speed_scoring(MIN_CLIPS, False)


def _written(path: str | None, made: dict) -> None:
    "Write the numbers, if a file was named."
    if path is not None:
        write_json(path, made)


def _speed_published() -> dict:
    "Print time at published widths against the released form; the numbers for a file."
    from cop_repro.cli._speed_models import numbers, ratio_lines
    from cop_repro.cli._speed_published import speed_published

    rows = speed_published()
    print("", *ratio_lines(rows), sep="\n", flush=True)
    return numbers(rows, [])["ratios"]


def _speed_growth() -> list[dict]:
    "Print how a step grows with the clip; the numbers for a file."
    from cop_repro.cli._speed_growth import growth_lines, speed_growth

    rows = speed_growth()
    print("\n".join(growth_lines(rows)), flush=True)
    return rows


def _speed_scoring(clips: int, as_json: bool) -> int:
    "Metrics against reference libraries, and the memory of `cop score`."
    from cop_repro.cli._speed_memory import memory_lines, speed_memory

    if clips < MIN_CLIPS:
        raise CopError(f"--clips {clips}: at least {MIN_CLIPS} are needed")
    with tempfile.TemporaryDirectory() as folder:
        memory = speed_memory(Path(folder), (max(clips // 10, MIN_CLIPS), clips))
    from cop_repro.cli._speed_scoring import scoring_lines, speed_scoring  # after the memory

    rows = speed_scoring(clips)
    lines = scoring_lines(rows) + memory_lines(memory)
    _show({"scoring": rows, "memory": memory}, lines, as_json)
    return 0


def _speed_models() -> dict:
    "Print the speed of the shipped models and of a published layer; the numbers for a file."
    from cop_repro.cli._speed_models import (
        clip_lines,
        numbers,
        ratio_lines,
        speed_clips,
        speed_paper_layer,
        speed_ratios,
    )
    from cop_repro.systems.cop import load_performer

    performer = load_performer(project_root() / "data" / "assets")
    ratios = speed_ratios(performer)
    print("\n".join(ratio_lines(ratios)))
    by_clip = [*speed_clips(performer), *speed_paper_layer()]
    print("\n".join(clip_lines(by_clip)))
    return numbers(ratios, by_clip)


def _speed_perform() -> list[dict]:
    "Print what `cop perform` takes as a process; the numbers for a file."
    from cop_repro.cli._speed_perform import perform_lines, perform_numbers, speed_perform

    with tempfile.TemporaryDirectory() as folder:
        rows = speed_perform(Path(folder))
    print("\n".join(perform_lines(rows)))
    return perform_numbers(rows)


def _show(made: object, lines: list[str], as_json: bool) -> None:
    "Numbers as JSON or as a table."
    print(json.dumps(made, indent=1) if as_json else "\n".join(lines))
