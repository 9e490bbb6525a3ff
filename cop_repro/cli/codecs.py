# SPDX-License-Identifier: Apache-2.0
"`cop codecs`: which codec a small DiT generates best through."

import os
from dataclasses import asdict
from pathlib import Path

from cop_repro.cli._progress import progress
from cop_repro.core import atomic_folder, check_output_file, project_root, write_json
from cop_repro.parameters import load_params

HELP = "compare codecs by what a fixed small DiT generates through each"

CROP_S = 2.0
FITTED_CLIPS = 48  # of each domain, for the statistics of the untrained codec


def add_arguments(parser) -> None:
    "Candidates and the sizes of the experiment."
    parser.add_argument(
        "candidates", nargs="*", help="NAME=FILE.safetensors, beside the untrained codec"
    )
    parser.add_argument("-o", "--output", default="reports/codecs.json", help="file to write, JSON")
    parser.add_argument("--clips", type=int, default=60, help="training clips")
    parser.add_argument("--test-clips", type=int, default=8, help="scored clips")
    parser.add_argument("--steps", type=int, default=150, help="training steps for each codec")


def run(args) -> int:
    "Train the same small DiT on the latents of each codec, score what it generates."
    from cop_repro.cli._experiments import evenly, rendered

    root = project_root()
    files = [entry.partition("=")[2] for entry in args.candidates]
    output = check_output_file(os.path.join(root, args.output), files)
    clips = rendered(root, load_params(root / "params.yaml"))
    train = evenly(clips.piano.select(split="train", rendering="nuisance"), args.clips)
    held = evenly(clips.piano.select(split="val", rendering="nuisance"), args.test_clips)
    cfg, made = _train_config(args.steps), {}
    for name, codec in _candidates(clips, args.candidates).items():
        folder = root / "work" / "codecs" / name
        made[name] = _trial(codec, clips, (train.tolist(), held.tolist()), cfg, folder)
        scores = "  ".join(f"{metric} {value:.2f}" for metric, value in made[name].items())
        print(f"{name:16s} {scores}", flush=True)
    write_json(output, made)
    return 0


def _candidates(clips, given: list[str]) -> dict:
    "The untrained band codec with fitted statistics, and the codecs of the given files."
    import torch

    from cop_repro.data.clips import store_wav
    from cop_repro.model.codec import CodecConfig, load_codec, make_codec, prepare_wav

    stores = (clips.piano, clips.foley)
    wavs = [store_wav(s, s.select(split="train")[:FITTED_CLIPS]) for s in stores]
    sounds = [prepare_wav(torch.from_numpy(wav)) for wav in wavs]
    bands = make_codec(CodecConfig()).eval().fit_statistics(sounds)
    files = {name: path for name, _, path in (entry.partition("=") for entry in given)}
    return {"bands": bands} | {name: load_codec(path, clips.split) for name, path in files.items()}


def _train_config(steps: int):
    "How the DiT is trained on the latents of every codec."
    from cop_repro.training.loop import TrainConfig

    return TrainConfig(steps, 8, 3e-3, warmup_steps=20, decay="cosine", clip_norm=1.0, ema=0.98)


def _trial(codec, clips, rows: tuple[list, list], cfg, target: Path) -> dict[str, float]:
    "Scores of what a DiT generates through one codec."
    from cop_repro.evaluation.codec_choice import codec_trial

    train, held = rows
    with atomic_folder(target) as folder:
        found = codec_trial(
            codec,
            clips.piano,
            train,
            held,
            clips.foley,
            cfg,
            CROP_S,
            folder / "run",
            progress=progress,
        )
    return asdict(found)
