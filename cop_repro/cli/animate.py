# SPDX-License-Identifier: Apache-2.0
"`cop animate SOUND -o FOLDER`: the video of hands on keys that belongs to a piano's sound."

from pathlib import Path

from cop_repro.cli._assets import assets_folder
from cop_repro.cli._progress import progress
from cop_repro.core import DatasetMissing, check_output_folder

HELP = "turn the sound of a piano into a video of hands on keys"
SHIPPED = "apvg.safetensors"


def add_arguments(parser) -> None:
    "A sound, a folder, and weights."
    parser.add_argument("sound", help="WAV, FLAC, MP3 or Ogg of any rate, length and channels")
    parser.add_argument("-o", "--output", required=True, help="folder to make")
    parser.add_argument(
        "--weights", help=f"trained network; default: {SHIPPED} among the shipped weights"
    )


def find_weights(given: str | None) -> Path:
    "The file of the network; a missing one says how it is made."
    path = Path(given) if given else assets_folder() / SHIPPED
    if not path.is_file():
        raise DatasetMissing(
            f"there are no weights {path}: train them with `cop animator CLIPS -o FILE`, "
            "then give their file as --weights"
        )
    return path


def run(args) -> int:
    "Sound in; video with sound and report out."
    from cop_repro.systems.apvg import ANIMATED, animate_file

    check_output_folder(args.output, ANIMATED, [args.sound, args.weights])
    weights = find_weights(args.weights)
    out = animate_file(Path(args.sound), Path(args.output), weights, progress)
    for name, what in out.items():
        print(f"{name:16s} {what}")
    return 0
