# SPDX-License-Identifier: Apache-2.0
"`cop adapt FOLDER -o OUT`: the roll predictor learns a piano and a camera."

from pathlib import Path

from cop_repro.cli._assets import assets_folder
from cop_repro.cli._progress import progress
from cop_repro.core import check_output_folder

HELP = "adapt the roll predictor to videos of your own piano"

SHOWN = {
    "onset_f1": "onset F1 (50 ms)",
    "note_f1": "note F1 (onset and offset)",
    "frame_f1_micro": "frame F1",
    "velocity_mae": "velocity error (of 127)",
}


def add_arguments(parser) -> None:
    "A folder of videos, and how long to train."
    parser.add_argument(
        "folder",
        help="videos with MIDI files of the same stems; without MIDI the sound is transcribed",
    )
    parser.add_argument("-o", "--output", required=True, help="folder of weights to make")
    parser.add_argument("--steps", type=int, default=300, help="optimiser steps")
    parser.add_argument(
        "--window", type=float, default=10.0, help="windows that videos are cut into, seconds"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the crops")
    parser.add_argument(
        "--corners", help="keyboard corners in every video, as for `cop perform`; default: found"
    )
    parser.add_argument(
        "--keys", help="visible keys if not all 88 are in the picture, such as 36-96 or C2-C7"
    )
    parser.add_argument(
        "--lag",
        metavar="MS",
        help="how much later than its keys move the video sounds, in milliseconds, rounded to "
        "frames of 40; default: 80",
    )
    parser.add_argument("--assets", help="folder with other weights; default: the shipped ones")


def run(args) -> int:
    "Train, score held-out videos before and after, and write weights for `cop perform`."
    from cop_repro.data.partial_keyboards import Hints
    from cop_repro.systems.adapt import ADAPTED, AdaptConfig, adapt_folder
    from cop_repro.systems.cop import recorded_windows

    lag_rows = recorded_windows(args.lag).lag_rows
    cfg = AdaptConfig(args.steps, window_s=args.window, lag_rows=lag_rows, seed=args.seed)
    check_output_folder(args.output, ADAPTED)
    assets = Path(args.assets) if args.assets else assets_folder()
    report = adapt_folder(
        Path(args.folder),
        Path(args.output),
        assets,
        cfg,
        Hints(args.corners, args.keys),
        progress=progress,
    )
    _print(report, args.output, args.lag)
    return 0


def _print(report: dict, output: str, lag: str | None) -> None:
    "Videos, scores before and after, and what to do next."
    for name, reason in report["refused"].items():
        print(f"left out {name}: {reason}")
    for video in report["videos"]:
        moved = f", MIDI moved by {video['lag_s']:+.2f} s" if video["lag_from"] else ""
        print(
            f"{video['video']}: {video['windows']} windows, notes from {video['notes_from']}{moved}"
        )
    held_out = report["windows"]["held_out"]
    print(f"{held_out} held-out window{'s' * (held_out != 1)}: before, after")
    for name, label in SHOWN.items():
        print(f"  {label:28s} {report['before'][name]:8.2f} {report['after'][name]:8.2f}")
    if report["after"]["onset_f1"] > report["before"]["onset_f1"]:
        given = "" if lag is None else f" --lag {lag}"
        print(f"next: cop perform VIDEO -o OUT --assets {output}{given}")
    else:
        print("onsets did not gain: keep the shipped weights, or add videos and steps")
