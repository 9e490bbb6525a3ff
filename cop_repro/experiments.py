"Experiments beside the pipeline, each a file in reports/ that the report or a notebook shows: `cop nuisance`, `cop codecs`, `cop verdicts`. A door: library code never imports it."

from dataclasses import asdict
from pathlib import Path

import numpy as np

from cop_repro.core import CopError, atomic_folder, from_dict, project_root, write_json


def _piano(root: Path, params: dict):
    "Items, split and rendered clips of the default run."
    from cop_repro.data.clips import Store, read_manifest

    items, split = read_manifest(root / params["prepare"]["manifest"])
    folder = root / "features" / "clips"
    if not (folder / "piano").exists():
        raise CopError("no rendered clips in features/clips: run `cop run prepare` first")
    return (
        [i for i in items if i.domain == "piano"],
        split,
        {name: Store(folder / name) for name in ("piano", "foley")},
    )


def _even(rows, count: int) -> np.ndarray:
    return np.asarray(rows)[
        np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))
    ]


def nuisance(args, params: dict, progress) -> int:
    "Which nuisance of the rendered videos buys what: predictors from scratch, one group of knobs left out."
    from cop_repro.data.clips import StripSize, load_works
    from cop_repro.evaluation.nuisance_ablation import VARIANTS, nuisance_ablation, real_video
    from cop_repro.model.roll import RollConfig
    from cop_repro.training.loop import TrainConfig

    root, wanted = project_root(), args.variants or list(VARIANTS)
    if unknown := sorted(set(wanted) - set(VARIANTS)):
        raise CopError(f"no variant {unknown[0]!r}; variants are {', '.join(VARIANTS)}")
    items, split, stores = _piano(root, params)
    train = [
        i
        for i in items
        if i.split == "train" and i.recipe["nuisance"] and "video_touch" not in i.recipe
    ]
    train = [train[int(k)] for k in _even(range(len(train)), args.clips)]
    size, rolls, store = (
        from_dict(StripSize, params["prepare"]["strip"], "prepare.strip"),
        params["train_roll"],
        stores["piano"],
    )
    test = {
        kind: (store, _even(store.select(split="test", rendering=kind), args.test_clips))
        for kind in ("clean", "nuisance")
    }
    cfg = TrainConfig(
        args.steps, 8, 3e-3, warmup_steps=min(20, args.steps), decay="cosine", clip_norm=1.0
    )
    made = nuisance_ablation(
        root / "work" / "nuisance",
        train,
        load_works(
            sorted({i.recipe["work"] for i in train}), root / params["prepare"]["etudes"], progress
        ),
        size,
        from_dict(RollConfig, rolls["roll"], "train_roll.roll"),
        cfg,
        rolls["crop_s"],
        split,
        test,
        [real_video(Path(v), size) for v in args.videos],
        {n: VARIANTS[n] for n in wanted},
        progress=progress,
    )
    write_json(
        root / args.output,
        {
            "clips": len(train),
            "steps": cfg.steps,
            "seed": cfg.seed,
            "test_clips": args.test_clips,
            "split": split,
            "scored": made,
        },
    )
    for name, scored in made.items():
        print(
            f"{name:20s} "
            + "  ".join(
                f"{kind} {np.mean([c['metrics']['lag_onset_f1' if kind == 'real' else 'onset_f1'] for c in clips]):.2f}"
                for kind, clips in scored.items()
            )
        )
    return 0


def codecs(args, params: dict, progress) -> int:
    "Candidates for the codec, judged by what a fixed small DiT generates through each."
    import torch

    from cop_repro.data.clips import store_wav
    from cop_repro.evaluation.codec_choice import codec_trial
    from cop_repro.model.codec import CodecConfig, load_codec, make_codec, prepare_wav
    from cop_repro.training.loop import TrainConfig

    root = project_root()
    _, split, stores = _piano(root, params)
    piano, foley = stores["piano"], stores["foley"]
    rows, held = (
        _even(piano.select(split="train", rendering="nuisance"), args.clips),
        _even(piano.select(split="val", rendering="nuisance"), args.test_clips),
    )
    heard = [
        prepare_wav(torch.from_numpy(store_wav(s, s.select(split="train")[:48])))
        for s in (piano, foley)
    ]
    candidates = {
        "bands": make_codec(CodecConfig()).eval().fit_statistics(heard),
        **{
            name: load_codec(path, split)
            for name, _, path in (c.partition("=") for c in args.candidates)
        },
    }
    cfg, made = (
        TrainConfig(args.steps, 8, 3e-3, warmup_steps=20, decay="cosine", clip_norm=1.0, ema=0.98),
        {},
    )
    for name, codec in candidates.items():
        with atomic_folder(root / "work" / "codecs" / name) as folder:
            made[name] = asdict(
                codec_trial(
                    codec,
                    piano,
                    rows.tolist(),
                    held.tolist(),
                    foley,
                    cfg,
                    2.0,
                    folder / "run",
                    progress=progress,
                )
            )
        print(f"{name:16s} " + "  ".join(f"{k} {v:.2f}" for k, v in made[name].items()), flush=True)
    write_json(root / args.output, made)
    return 0


def verdicts(args, params: dict, progress) -> int:
    "The claims as a profile's scored rows judge them, published; rows that it has not scored are not run."
    import yaml

    from cop_repro.evaluation.report import CLAIMS, row_name, verdict
    from cop_repro.evaluation.rows import load_scores, row_folders
    from cop_repro.parameters import load_params, settings_hash

    root = project_root()
    variants = {
        group: rows
        for group, rows in params["evaluate"]["variants"].items()
        if group in ("read", "piano")
    }
    folders = {
        row: path
        for row, path in row_folders(
            root / "work" / "profiles" / args.name / "models" / "evaluate", variants
        ).items()
        if (path / "scores.json").exists()
    }
    if not folders:
        raise CopError(
            f"profile {args.name} has scored nothing: run `cop profile {args.name} evaluate@piano` first"
        )
    scored: dict = {}
    for entry, clips in load_scores(folders).items():
        for clip in clips:
            scored.setdefault(row_name(entry, clip["suffix"]), []).append(clip)
    made = [
        verdict(claim, scored, None, yaml.safe_load((root / params["report"]["paper"]).read_text()))
        for claim in CLAIMS
    ]
    settings = settings_hash(load_params(root / "work" / "profiles" / args.name / "params.yaml"))
    write_json(
        root / "reports" / "profiles" / args.name / "verdicts.json",
        {"settings": settings, "verdicts": made},
    )
    for v in made:
        print(
            f"{v['claim']} {v['verdict']:15s} "
            + "  ".join(
                f"{m['metric']} {m['difference']:+.3f} [{m['ci_low']:+.3f}, {m['ci_high']:+.3f}]"
                for m in v["metrics"]
                if "difference" in m
            )
        )
    return 0
