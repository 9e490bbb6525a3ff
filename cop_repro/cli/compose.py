# SPDX-License-Identifier: Apache-2.0
"`cop compose VIDEO -o FOLDER`: music for any video."

from pathlib import Path

from cop_repro.cli._assets import assets_folder
from cop_repro.cli._progress import progress
from cop_repro.core import BadInput, check_output_folder

HELP = "compose music for any video: WAV, MIDI and the video with its music"


def add_arguments(parser) -> None:
    "A video, a folder, and how to compose."
    parser.add_argument("video", help="any video that moves, of two bars (some seconds) or more")
    parser.add_argument("-o", "--output", required=True, help="folder to make")
    parser.add_argument(
        "--system", choices=("cmt", "vmusprod", "vmb"), default="cmt", help="which system composes"
    )
    parser.add_argument(
        "--tempo", type=float, help="beats a minute, 40 to 240; default: that of the motion"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed makes other music")
    parser.add_argument(
        "--length", type=float, help="seconds of music; default: as long as the video"
    )
    parser.add_argument(
        "--control",
        type=float,
        default=1.0,
        help="probability with which bars and beats follow the video, 0 to 1 (cmt)",
    )
    parser.add_argument(
        "--where",
        nargs="+",
        metavar="NAME=VALUE",
        help="attributes of the reference that vmb is given, e.g. tempo=slow mode=minor",
    )
    parser.add_argument("--assets", help="folder with weights; default: the shipped ones")


def run(args) -> int:
    "Any video in; WAV, MIDI, video with music, picture and report out."
    from cop_repro.systems.composing import (
        COMPOSED,
        ComposeConfig,
        compose_for_video,
        load_composer,
    )

    check_output_folder(args.output, COMPOSED, [args.video])
    cfg = ComposeConfig(args.tempo, args.seed, args.length, args.control, _where(args.where))
    folder = Path(args.assets) if args.assets else assets_folder()
    composer = load_composer(args.system, folder)
    made = compose_for_video(Path(args.video), Path(args.output), composer, cfg, progress)
    for name, what in made.items():
        print(f"{name:16s} {what}")
    return 0


def _where(given: list[str] | None) -> dict[str, str] | None:
    "Attributes from the words of the command line."
    if given is None:
        return None
    pairs = [word.partition("=") for word in given]
    for name, sign, value in pairs:
        if not (name and sign and value):
            raise BadInput(f"--where {name}{sign}{value}: NAME=VALUE is needed, e.g. tempo=slow")
    return {name: value for name, _, value in pairs}
