# SPDX-License-Identifier: Apache-2.0
"`cop real VIDEO ...`: the shipped models on recorded piano videos that have sound."

import json
from pathlib import Path

from cop_repro.cli._assets import assets_folder
from cop_repro.cli._progress import progress
from cop_repro.core import CopError, check_output_file, write_json

HELP = "score the shipped models on real piano videos that have sound"


def add_arguments(parser) -> None:
    "Videos, and where to write."
    parser.add_argument("videos", nargs="+", help="piano videos with sound")
    parser.add_argument("-o", "--output", default="reports/real.json", help="file to write, JSON")
    parser.add_argument(
        "--disguised",
        action="store_true",
        help="also score the video darker, brighter, from one side, and cut off at both ends",
    )
    parser.add_argument(
        "--lag",
        metavar="MS",
        help="how much later than its keys move the video sounds, in milliseconds, rounded to "
        "frames of 40; default: 80",
    )
    parser.add_argument("--picture", help="file to write, PNG; default: none")


def run(args) -> int:
    "Score shipped models on real piano videos against a transcription of their own sound."
    from cop_repro.cli._experiments import made_now
    from cop_repro.evaluation.real_videos import score_real_video
    from cop_repro.systems.cop import load_performer, recorded_windows

    windows = recorded_windows(args.lag)
    picture = None if args.picture is None else check_output_file(args.picture, args.videos)
    output = check_output_file(args.output, args.videos)
    if picture is not None and picture.absolute() == output.absolute():
        raise CopError(f"-o and --picture are both {output}: give two names")
    performer = load_performer(assets_folder())
    origin = made_now(score_real_video.__module__, "cop real VIDEO", None, None)
    made = [
        score_real_video(
            Path(video), performer, picture, windows, args.disguised, progress=progress
        )
        | origin
        for video in args.videos
    ]
    write_json(args.output, made)
    print(json.dumps(made, indent=1))
    return 0
