# SPDX-License-Identifier: Apache-2.0
"`cop perform VIDEO -o FOLDER`: sound for a silent piano video."

from pathlib import Path

from cop_repro.cli._assets import assets_folder
from cop_repro.cli._progress import progress
from cop_repro.core import check_output_folder

HELP = "turn a silent piano video into WAV, MIDI and a video with sound"


def add_arguments(parser) -> None:
    "A video, a folder, and how to perform."
    parser.add_argument("video", help="video of a pianist, the keys from above")
    parser.add_argument("-o", "--output", required=True, help="folder to make")
    parser.add_argument(
        "--text", default="the sound of playing piano", help="caption that conditions the sound"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise")
    parser.add_argument(
        "--corners",
        help="keyboard corners in pixels: 'x,y x,y x,y x,y' "
        "(top left, top right, bottom right, bottom left); default: they are searched for",
    )
    parser.add_argument(
        "--keys", help="visible keys if not all 88 are in the picture, such as 36-96 or C2-C7"
    )
    parser.add_argument(
        "--lowest", help="lowest visible key, such as 36 or C2; default: the middle octaves"
    )
    parser.add_argument(
        "--steps", type=int, default=16, help="steps of the flow from noise to sound"
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "auto", "bfloat16", "int8"),
        default="float32",
        help="of large matrix products; auto: what this processor is fast at",
    )
    parser.add_argument(
        "--lag",
        metavar="MS",
        help="how much later than its keys move the video sounds, in milliseconds, rounded to "
        "frames of 40; default: 80",
    )
    parser.add_argument("--assets", help="folder with other weights; default: the shipped ones")


def run(args) -> int:
    "Silent piano video in; WAV, MIDI, video with sound, picture and report out."
    from cop_repro.cli._quick import quick_performer
    from cop_repro.data.partial_keyboards import Hints
    from cop_repro.systems.cop import PERFORMED, perform_video, recorded_windows

    hints, windows = Hints(args.corners, args.keys, args.lowest), recorded_windows(args.lag)
    check_output_folder(args.output, PERFORMED, [args.video])
    folder = Path(args.assets) if args.assets else assets_folder()
    performer = quick_performer(folder, args.steps, args.precision)
    out = perform_video(
        Path(args.video),
        Path(args.output),
        performer,
        text=args.text,
        seed=args.seed,
        hints=hints,
        windows=windows,
        progress=progress,
    )
    for name, what in out.items():
        print(f"{name:16s} {what}")
    return 0
