"Speed as ratios against an alternative measured in the same run: `cop bench`. A door: library code never imports it."

import json
import os
import resource
import time
from pathlib import Path

from cop_repro.core import CopError, project_root, write_json

LOADER_SECONDS = (1.0, 2.0, 5.0, 10.0)


def bench_loader(folder: Path, clips: int = 64, batch: int = 16, repeats: int = 5) -> list[dict]:
    "Clips a second that the training batches of stage 1 are read with, from one folder and from shards, by length of the window."
    import numpy as np

    from cop_repro.core import RATES, torch_rng
    from cop_repro.data.clips import fill_store
    from cop_repro.data.shards import fill_shards
    from cop_repro.training.features import general_batch

    rng = np.random.default_rng(0)
    columns = {
        "latents": ((RATES.latents(10.0), 128), "float16"),
        "video": ((RATES.frames(10.0), 128), "float16"),
        "has_video": ((), "bool"),
        "text": ((40, 96), "float16"),
        "text_mask": ((40,), "bool"),
    }
    make = lambda i: {
        n: rng.standard_normal(shape).astype(kind) if kind == "float16" else np.ones(shape, bool)
        for n, (shape, kind) in columns.items()
    }
    stores = {
        "one folder": fill_store(folder / "one", [{}] * clips, columns, make, range(clips), 1),
        "shards": fill_shards(
            folder / "shards", {str(i): i for i in range(clips)}, columns, make, 16
        ),
    }
    rows = [int(r) for r in rng.permutation(clips)[:batch]]
    made = []
    for seconds in LOADER_SECONDS:
        line = {"window_s": seconds, "bytes": 4 * (RATES.latents(seconds) * (128 + 128) + 40 * 96)}
        for name, store in stores.items():
            times = []
            for i in range(repeats + 1):
                began = time.perf_counter()
                general_batch(store, rows, torch_rng(0, "bench", i), RATES.latents(seconds))
                times.append(time.perf_counter() - began)
            line[name] = batch / min(times[1:])
        made.append(line)
    return made


def _print_loader(made: list[dict]) -> None:
    "Clips a second by window, and how the seconds of a clip grow with its length."
    print(
        f"\n{'loading features: window':26s} {'from one folder':>16s} {'from shards':>14s}  MB/clip"
    )
    for r in made:
        print(
            f"{r['window_s']:24g} s {r['one folder']:10.0f} clips/s {r['shards']:8.0f} clips/s  {r['bytes'] / 1e6:7.2f}"
        )
    first, last = made[0], made[-1]
    print(
        f"a window {last['window_s'] / first['window_s']:g} times as long takes {first['one folder'] / last['one folder']:.1f} times as long to load ({first['shards'] / last['shards']:.1f} from shards)"
    )


def _clip_scorings() -> dict[str, tuple]:
    "One quantity of a clip twice: name -> (what it is of, ours, theirs, library)."
    import librosa
    import numpy as np
    import torch
    from mir_eval import transcription, transcription_velocity
    from sklearn.metrics import precision_recall_fscore_support
    from torchmetrics.functional.audio import (
        scale_invariant_signal_distortion_ratio as their_si_sdr,
    )

    from cop_repro.measure import audio_metrics as m
    from cop_repro.measure import music_metrics

    n_fft, both = int(2048 * 24_000 / 44_100), lambda f, a, b: (f(a), f(b))
    tensors = lambda a, b: (
        torch.from_numpy(np.ascontiguousarray(b)),
        torch.from_numpy(np.ascontiguousarray(a)),
    )
    spectrum = lambda x: np.abs(
        librosa.stft(x, n_fft=n_fft, hop_length=240, pad_mode="constant")
    ).ravel()
    mel = lambda x: librosa.amplitude_to_db(
        librosa.feature.melspectrogram(
            S=np.abs(librosa.stft(x, n_fft=1024, hop_length=240, pad_mode="constant")) / 256,
            sr=24_000,
            n_mels=80,
            norm=None,
        ),
        amin=1e-4,
        top_db=None,
    )

    def chroma(a, b):
        a, b = both(
            lambda x: librosa.feature.chroma_stft(
                y=x,
                sr=24_000,
                n_fft=4096,
                hop_length=960,
                tuning=0.0,
                norm=None,
                pad_mode="constant",
            ),
            a,
            b,
        )
        return float(
            ((a * b).sum(0) / (np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0))).mean()
        )

    def notes(ref, est):
        intervals = lambda n: (
            np.stack([n.onsets_s, n.offsets_s], 1),
            librosa.midi_to_hz(n.pitches),
        )
        return [
            f(
                *intervals(ref),
                *([ref.velocities] if v else []),
                *intervals(est),
                *([est.velocities] if v else []),
                offset_ratio=ratio,
            )[2]
            for ratio in (None, 0.2)
            for v, f in (
                (0, transcription.precision_recall_f1_overlap),
                (1, transcription_velocity.precision_recall_f1_overlap),
            )
        ]

    def our_notes(ref, est):
        made = music_metrics.note_scores(ref, est)
        return [made[k] for k in ("onset_f1", "onset_velocity_f1", "note_f1", "note_velocity_f1")]

    made = {
        "si_sdr": (
            "sounds",
            m.si_sdr,
            lambda a, b: float(their_si_sdr(*tensors(a, b))),
            "torchmetrics",
        ),
        "si_sdr_spec": (
            "sounds",
            m.si_sdr_spec,
            lambda a, b: float(their_si_sdr(*tensors(*both(spectrum, a, b)))),
            "librosa, torchmetrics",
        ),
        "mel_distance": (
            "sounds",
            m.mel_distance,
            lambda a, b: float(np.abs(mel(a) - mel(b)).mean()),
            "librosa",
        ),
        "chroma_similarity": ("sounds", m.chroma_similarity, chroma, "librosa"),
        "note_scores": ("notes", our_notes, notes, "mir_eval"),
        "frame_scores": (
            "rolls",
            lambda a, b: [
                v for k, v in music_metrics.frame_scores(a, b).items() if "accuracy" not in k
            ],
            lambda a, b: [
                v
                for how in ("samples", "weighted", "micro")
                for v in precision_recall_fscore_support(a, b, average=how, zero_division=1)[:3]
            ],
            "scikit-learn",
        ),
    }
    try:
        import auraloss
    except ImportError:
        return made  # for development only
    loss = auraloss.time.SISDRLoss(zero_mean=False, eps=0)
    return {
        "si_sdr ": (
            "sounds",
            m.si_sdr,
            lambda a, b: -float(loss(*(t[None, None] for t in tensors(a, b)))),
            "auraloss",
        ),
        **made,
    }


def _set_scorings() -> dict[str, tuple]:
    "One quantity of a set twice, from features or class logits."
    import numpy as np
    import torch
    from sklearn.metrics.pairwise import polynomial_kernel
    from torchmetrics.functional import kl_divergence
    from torchmetrics.image.fid import _compute_fid

    from cop_repro.measure import audio_metrics as m

    statistics = lambda x: (torch.from_numpy(x.mean(0)), torch.from_numpy(np.cov(x, rowvar=False)))
    kernel = lambda x, y: polynomial_kernel(x, y, degree=3, gamma=1 / x.shape[1], coef0=1)
    within = lambda k: (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))
    cosine = torch.nn.functional.cosine_similarity
    return {
        "frechet_distance": (
            "windows",
            m.frechet_distance,
            lambda a, b: float(_compute_fid(*statistics(a), *statistics(b))),
            "torchmetrics",
        ),
        "kid": (
            "clips",
            m.kid,
            lambda a, b: within(kernel(a, a)) + within(kernel(b, b)) - 2 * kernel(a, b).mean(),
            "scikit-learn",
        ),
        "kl": (
            "clips",
            m.kl,
            lambda a, b: float(kl_divergence(*(torch.from_numpy(x).softmax(1) for x in (a, b)))),
            "torchmetrics",
        ),
        "clap_score": (
            "clips",
            m.clap_score,
            lambda a, b: float(cosine(*map(torch.from_numpy, (a, b))).mean()),
            "torch",
        ),
    }


def _clip_inputs(i: int, base) -> dict[str, tuple]:
    "Two sounds, note lists and rolls of 10 s, different for every clip."
    import numpy as np

    from cop_repro.data.notes import make_notes, notes_to_roll

    rng = np.random.default_rng(i)
    t, pitches, velocities = (
        np.sort(rng.uniform(0, 9, 80)),
        rng.integers(40, 90, 80),
        rng.integers(30, 110, 80),
    )
    notes = (
        make_notes(pitches, t, t + 0.4, velocities),
        make_notes(
            pitches + rng.integers(0, 2, 80),
            t + rng.normal(0, 0.02, 80).clip(-t[0]),
            t + 0.4,
            velocities,
        ),
    )
    return {
        "sounds": tuple(np.roll(b, 7 * i) for b in base),
        "notes": notes,
        "rolls": tuple(notes_to_roll(n, 10.0, 25.0).presence > 0.5 for n in notes),
    }


def bench_scoring(clips: int = 100) -> list[dict]:
    "Seconds to score clips of 10 s one at a time, with our arithmetic and with libraries that define the same quantities, and how far the two values are apart."
    import numpy as np

    rng = np.random.default_rng(0)
    base = (
        0.1 * rng.standard_normal((2, 240_000)) * np.array([[1.0], [0.7]])
        + 0.05 * rng.standard_normal(240_000)
    ).astype(np.float32)
    apart = lambda values: float(
        (
            abs(np.asarray(values[0]) - values[1]) / np.maximum(abs(np.asarray(values[1])), 1e-3)
        ).max()
    )
    made: dict[str, dict] = {}
    each, sets = _clip_scorings(), _set_scorings()
    for i in range(-1, clips):
        given = _clip_inputs(abs(i), base)
        for name, (kind, ours, theirs, library) in each.items():
            row, values = (
                made.setdefault(
                    name,
                    {
                        "what": f"{name.strip()}, {clips} clips",
                        "ours": 0.0,
                        "other": 0.0,
                        "apart": 0.0,
                        "library": library,
                    },
                ),
                [],
            )
            for side, call in (("ours", ours), ("other", theirs)):
                began = time.perf_counter()
                values.append(call(*given[kind]))
                if i >= 0:
                    row[side] += (
                        time.perf_counter() - began
                    )  # the first run loads libraries and does not count
            row["apart"] = max(row["apart"], apart(values))
    features = lambda n: tuple(rng.standard_normal((n, 128)) + 0.1 * side for side in (0, 1))
    given = {"clips": features(clips), "windows": features(10 * max(clips, 13))}
    for name, (kind, ours, theirs, library) in sets.items():
        made[name] = {
            "what": f"{name}, features of {clips} clips",
            "ours": _seconds(lambda: ours(*given[kind])),
            "other": _seconds(lambda: theirs(*given[kind])),
            "apart": apart([ours(*given[kind]), theirs(*given[kind])]),
            "library": library,
        }
    return list(made.values())


def bench_scoring_memory(folder: Path, counts: tuple[int, int]) -> list[dict]:
    "Largest memory of this process, MB, after `cop score` of folders with few and with many clips: ten sounds a side under many names."
    import numpy as np
    import soundfile

    from cop_repro.evaluation.folders import score_folders

    made, rng = [], np.random.default_rng(0)
    for count in (min(10, *counts), *counts):  # the first run loads libraries and does not count
        for side in ("ref", "est"):
            (folder / str(count) / side).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                path, first = (folder / str(count) / side / f"{n:05d}.wav" for n in (i, i % 10))
                if i < 10:
                    soundfile.write(path, 0.1 * rng.standard_normal(240_000), 24_000)
                else:
                    os.link(first, path)
        began = time.perf_counter()
        score_folders(
            folder / str(count) / "ref",
            folder / str(count) / "est",
            ["si_sdr_spec", "si_sdr", "mel_distance", "chroma_similarity"],
        )
        made.append(
            {
                "clips": count,
                "seconds": time.perf_counter() - began,
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )
    return made[1:]


def _print_scoring(rows: list[dict], memory: list[dict]) -> None:
    "Ratios, and memory by number of clips."
    print(f"{'scoring':45s} {'ours':>8s} {'other':>8s}  ratio  apart")
    for r in rows:
        print(
            f"{r['what']:45s} {r['ours']:8.3f} {r['other']:8.3f}  {r['ours'] / r['other']:5.2f}  {r['apart']:.0e}  s, {r['library']}"
        )
    for r in memory:
        print(
            f"`cop score`, {r['clips']} pairs of WAV files of 10 s: {r['seconds']:.1f} s, peak memory {r['peak_mb']:.0f} MB"
        )


BENCH_LENGTHS_S = (2.5, 5.0, 10.0)


def _seconds(call, repeats: int = 3) -> float:
    "The fastest of some runs, after one that does not count."
    call()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)


def _bench_clips(performer) -> list[tuple]:
    "Seconds a guided step and a clip, and training tokens a second, for clips of several lengths: (name, values by length, unit)."
    import torch

    from cop_repro.core import RATES, torch_rng
    from cop_repro.model.flow import Conditions, SampleConfig, draw_noise_and_time, fm_loss, sample

    steps, model, rows = (
        performer.sample.num_steps,
        performer.piano,
        {"guided step": {}, "clip": {}, "training": {}},
    )
    for length_s in BENCH_LENGTHS_S:
        n = RATES.latents(length_s)
        x = torch.randn(1, n, model.dit.config.latent_channels, generator=torch_rng(0, "bench"))
        cond = Conditions(
            text=torch.zeros(1, 8, model.dit.config.text_width),
            video=torch.zeros(1, n, model.dit.config.video_features),
            roll=torch.zeros(1, n, 88),
        )
        with torch.inference_mode():
            rows["guided step"][length_s] = (
                _seconds(lambda: sample(model, x, cond, SampleConfig(num_steps=2)), 2) / 2
            )
        rows["clip"][length_s] = steps * rows["guided step"][length_s]

        def learn():
            noise, t = draw_noise_and_time(x, torch_rng(0, "bench", "t"))
            fm_loss(model, x, cond, noise, t).backward()
            model.zero_grad(set_to_none=True)

        rows["training"][length_s] = n / _seconds(learn, 2)
    return [
        ("guided step (both branches in one batch)", rows["guided step"], "s"),
        (f"clip, {steps} guided steps", rows["clip"], "s"),
        ("training, forward and backward", rows["training"], "tokens/s"),
    ]


def _bench_paper_layer() -> tuple:
    "One layer of the published three-stream network, full width: seconds for both branches of a guided step, by clip length."
    from dataclasses import replace

    import torch

    from cop_repro.core import RATES, torch_rng
    from cop_repro.model.dit import MultiStreamDiT, paper_config
    from cop_repro.model.flow import Conditions

    found = {}
    for clamp in (None, 50.0):
        model = MultiStreamDiT(
            replace(paper_config(roll=True, roll_keys=88), depth=1, soft_clamp=clamp)
        ).eval()
        for length_s in BENCH_LENGTHS_S:
            n = RATES.latents(length_s)
            cond = Conditions(
                torch.zeros(2, 16, 1024), video=torch.zeros(2, n, 1280), roll=torch.zeros(2, n, 88)
            )
            x = torch.randn(2, n, 128, generator=torch_rng(0, "bench"))
            with torch.inference_mode():
                found.setdefault(clamp, {})[length_s] = _seconds(
                    lambda: model(x, torch.zeros(2), cond), 1
                )
    return found[None], found[50.0], sum(p.numel() for p in model.layers.parameters())


def bench(args) -> int:
    "Speed as ratios against an alternative measured in the same run, and how it grows with the clip."
    import tempfile

    if args.scoring:
        if args.clips < 10:
            raise CopError(f"--clips {args.clips}: at least 10 are needed")
        with tempfile.TemporaryDirectory() as folder:
            memory = bench_scoring_memory(Path(folder), (max(args.clips // 10, 10), args.clips))
        rows = bench_scoring(args.clips)
        print(
            json.dumps({"scoring": rows, "memory": memory}, indent=1)
        ) if args.json else _print_scoring(rows, memory)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        loaded = bench_loader(Path(folder))
    if args.loader:
        print(json.dumps(loaded, indent=1)) if args.json else _print_loader(loaded)
        return 0
    import numpy as np
    import torch

    from cop_repro.core import torch_rng
    from cop_repro.model.flow import Conditions, SampleConfig, sample
    from cop_repro.systems.cop import load_performer

    performer = load_performer(project_root() / "data" / "assets")
    noise = torch.randn(1, 750, 128, generator=torch_rng(0, "bench"))
    frames = torch.zeros(1, 250, 48, 520, 3, dtype=torch.uint8)
    encode = lambda: (
        performer.encoders.text.encode(["the sound of playing piano"]),
        performer.encoders.image.encode(frames),
    )
    tokens, mask = performer.encoders.text.encode(["the sound of playing piano"])
    cond = Conditions(
        text=tokens, text_mask=mask, video=torch.zeros(1, 750, 128), roll=torch.zeros(1, 750, 88)
    )
    strips = np.zeros((250, 48, 520), np.uint8)
    with torch.inference_mode():
        guided = _seconds(lambda: sample(performer.piano, noise, cond, SampleConfig(num_steps=4)))
        single = _seconds(
            lambda: sample(
                performer.piano, noise, cond, SampleConfig(num_steps=4, cfg_strength=0.0)
            )
        )
        once, roll, decode = (
            _seconds(encode),
            _seconds(lambda: performer.rolls(strips)),
            _seconds(lambda: performer.codec.decode(noise)),
        )
    rows = (
        (
            "guided step, both branches in one batch / two single passes",
            guided / 4,
            2 * single / 4,
            "s a step",
        ),
        ("conditions encoded once a clip / once a pass (16 steps)", once, 32 * once, "s a clip"),
        ("reading the roll / real time", roll, 10.0, "s a clip"),
        ("decoding sound / real time", decode, 10.0, "s a clip"),
    )
    print(f"{'what / alternative':62s} {'ours':>8s} {'other':>8s}  ratio")
    for name, ours, other, unit in rows:
        print(f"{name:62s} {ours:8.3f} {other:8.3f}  {ours / other:5.2f}  {unit}")
    plain, clamped, weights = _bench_paper_layer()
    grown = [
        *_bench_clips(performer),
        (f"one published layer ({weights / 1e6:.0f}M), guided step", plain, "s"),
        ("the same with soft clamp (compat, no fused kernel)", clamped, "s"),
    ]
    print(f"\n{'by length of the clip':62s} " + " ".join(f"{f'{s:g} s':>8s}" for s in grown[0][1]))
    for name, values, unit in grown:
        print(
            f"{name:62s} "
            + " ".join(f"{v:8.3f}" if v < 1000 else f"{v:8.0f}" for v in values.values())
            + f"  {unit}"
        )
    _print_loader(loaded)
    if args.output:
        write_json(
            args.output,
            {
                "ratios": {n: {"ours": a, "other": b, "unit": u} for n, a, b, u in rows},
                "by_clip_seconds": {
                    n: {"values": {f"{k:g}": v for k, v in values.items()}, "unit": u}
                    for n, values, u in grown
                },
                "threads": torch.get_num_threads(),
            },
        )
    return 0
