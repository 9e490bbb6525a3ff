# SPDX-License-Identifier: Apache-2.0
"`cop nuisance`: an ablation of what the renderer varies in its videos."

import os
from pathlib import Path

from cop_repro.cli._progress import progress
from cop_repro.core import (
    CopError,
    check_output_file,
    did_you_mean,
    file_hash,
    from_dict,
    project_root,
    write_json,
)
from cop_repro.parameters import load_params

HELP = "ablation of the rendered videos' nuisances: one roll predictor for each group left out"


def add_arguments(parser) -> None:
    "Sizes of the experiment."
    parser.add_argument("videos", nargs="*", help="real piano videos with sound, scored too")
    parser.add_argument(
        "-o", "--output", default="reports/nuisance.json", help="file to write, JSON"
    )
    parser.add_argument("--clips", type=int, default=24, help="training videos of each variant")
    parser.add_argument("--test-clips", type=int, default=8, help="scored videos of each kind")
    parser.add_argument("--steps", type=int, default=200, help="training steps of each variant")
    parser.add_argument(
        "--variants", nargs="+", help="e.g. all none without_hands; default: every one"
    )
    parser.add_argument("--start", help="roll predictor to go on from; default: fresh weights")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="peak")


def run(args) -> int:
    "Train a roll predictor for each variant, score all, write the scores."
    root = project_root()
    output = check_output_file(os.path.join(root, args.output), args.videos)
    variants = _variants(args.variants)
    params = load_params(root / "params.yaml")
    made = _ablation(args, root, params, variants)
    write_json(output, made)
    for name, scored in made["scored"].items():
        print(f"{name:20s} {_summary(scored)}")
    return 0


def _variants(wanted: list[str] | None) -> dict:
    "Variants by name; default all."
    from cop_repro.evaluation.nuisance_ablation import VARIANTS

    unknown = sorted(set(wanted or ()) - set(VARIANTS))
    if unknown:
        hint = did_you_mean(unknown[0], VARIANTS)
        raise CopError(f"no variant {unknown[0]!r}{hint}; variants are {', '.join(VARIANTS)}")
    return {name: VARIANTS[name] for name in wanted or VARIANTS}


def _ablation(args, root: Path, params: dict, variants: dict) -> dict:
    "The scores of all variants, with what they were made from."
    from cop_repro.cli._experiments import made_now, rendered
    from cop_repro.data.clips import StripSize, load_works
    from cop_repro.evaluation.nuisance_ablation import more_clips, nuisance_ablation, real_video
    from cop_repro.model.roll import RollConfig

    clips = rendered(root, params)
    train = _training_items(clips.items, args.clips)
    tests = _test_rows(clips.piano, args.test_clips)
    held = [clips.piano.index[int(row)]["clip_id"] for row in tests["nuisance"][1]]
    held = [item for item in clips.items if item.clip_id in held]
    works = sorted({item.recipe["work"] for item in [*train, *held]})
    scores = load_works(works, root / params["prepare"]["etudes"], progress)
    size = from_dict(StripSize, params["prepare"]["strip"], "prepare.strip")
    cfg, start = _train_config(args.steps, args.learning_rate), _start(args.start)
    folder = root / "work" / "nuisance"
    tests["more"] = more_clips(folder / "more", held, scores, size, clips.split, progress=progress)
    scored = nuisance_ablation(
        folder,
        train,
        scores,
        size,
        from_dict(RollConfig, params["train_roll"]["roll"], "train_roll.roll"),
        cfg,
        params["train_roll"]["crop_s"],
        clips.split,
        tests,
        [real_video(Path(video), size) for video in args.videos],
        variants,
        progress=progress,
        init=start,
    )
    return {
        "start": None if start is None else file_hash(start),
        "learning_rate": cfg.learning_rate,
        "clips": len(train),
        "steps": cfg.steps,
        "seed": cfg.seed,
        "test_clips": args.test_clips,
        "split": clips.split,
        "scored": scored,
        **made_now(nuisance_ablation.__module__, "cop nuisance VIDEO", params, cfg.seed),
    }


def _training_items(items: list, count: int) -> list:
    "Training videos with nuisances, one of each performance, spread evenly."
    from cop_repro.cli._experiments import evenly

    found = [
        item
        for item in items
        if item.split == "train" and item.recipe["nuisance"] and "video_touch" not in item.recipe
    ]
    return [found[int(k)] for k in evenly(range(len(found)), count)]


def _test_rows(store, count: int) -> dict[str, tuple]:
    "Test clips by kind: clean, and with nuisances."
    from cop_repro.cli._experiments import evenly

    return {
        kind: (store, evenly(store.select(split="test", rendering=kind), count))
        for kind in ("clean", "nuisance")
    }


def _start(path: str | None) -> Path | None:
    "The predictor to go on from."
    if path is None:
        return None
    if not Path(path).is_file():
        raise CopError(
            f"--start {path}: no such file; data/assets/roll.safetensors is the shipped one"
        )
    return Path(path)


def _train_config(steps: int, learning_rate: float):
    "How every variant is trained."
    from cop_repro.training.loop import TrainConfig

    about = {"warmup_steps": min(20, steps), "decay": "cosine", "clip_norm": 1.0}
    return TrainConfig(steps, 8, learning_rate, **about)


def _summary(scored: dict[str, list[dict]]) -> str:
    "Mean onset F1 by kind of video, with the number of videos."
    means = {kind: f"{_mean_f1(kind, clips):.2f}" for kind, clips in scored.items()}
    return "  ".join(f"{kind} {means[kind]} (n={len(scored[kind])})" for kind in scored)


def _mean_f1(kind: str, clips: list[dict]) -> float:
    "Mean onset F1; of real videos, where sound and picture may be apart, after the best lag."
    import numpy as np

    metric = "lag_onset_f1" if kind == "real" else "onset_f1"
    return float(np.mean([clip["metrics"][metric] for clip in clips]))
