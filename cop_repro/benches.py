"Speed as ratios against an alternative measured in the same run: `cop bench`. A door: library code never imports it."
import json, resource, time
from pathlib import Path

from cop_repro.core import project_root, write_json

LOADER_SECONDS = (1.0, 2.0, 5.0, 10.0)

def bench_loader(folder: Path, clips: int = 64, batch: int = 16, repeats: int = 5) -> list[dict]:
    "Clips a second that the training batches of stage 1 are read with, from one folder and from shards, by length of the window."
    import numpy as np
    from cop_repro.core import RATES, torch_rng
    from cop_repro.data.clips import fill_store
    from cop_repro.data.shards import fill_shards
    from cop_repro.training.general import general_batch
    rng = np.random.default_rng(0)
    columns = {"latents": ((RATES.latents(10.0), 128), "float16"), "video": ((RATES.frames(10.0), 128), "float16"), "has_video": ((), "bool"), "text": ((40, 96), "float16"), "text_mask": ((40,), "bool")}
    make = lambda i: {n: rng.standard_normal(shape).astype(kind) if kind == "float16" else np.ones(shape, bool) for n, (shape, kind) in columns.items()}
    stores = {"one folder": fill_store(folder / "one", [{}] * clips, columns, make, range(clips), 1), "shards": fill_shards(folder / "shards", {str(i): i for i in range(clips)}, columns, make, 16)}
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
    print(f"\n{'loading features: window':26s} {'from one folder':>16s} {'from shards':>14s}  MB/clip")
    for r in made: print(f"{r['window_s']:24g} s {r['one folder']:10.0f} clips/s {r['shards']:8.0f} clips/s  {r['bytes'] / 1e6:7.2f}")
    first, last = made[0], made[-1]
    print(f"a window {last['window_s'] / first['window_s']:g} times as long takes {first['one folder'] / last['one folder']:.1f} times as long to load ({first['shards'] / last['shards']:.1f} from shards)")

def bench_scoring(clips: int = 100) -> list[dict]:
    "Seconds to score clips of 10 s with our arithmetic and with the libraries that define the same quantities: {what, ours, other, library}."
    import librosa, numpy as np, torch
    from sklearn.metrics.pairwise import polynomial_kernel
    from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio as their_si_sdr
    from torchmetrics.image.fid import _compute_fid
    from cop_repro.measure import audio_metrics as m
    rng, n_fft = np.random.default_rng(0), int(2048 * 24_000 / 44_100)
    base = .1 * rng.standard_normal((2, 240_000)).astype(np.float32)
    pair = lambda i: (np.roll(base[0], 7 * i), np.roll(base[1], 11 * i))
    spectrum = lambda x: np.abs(librosa.stft(x, n_fft=n_fft, hop_length=240, pad_mode="constant"))
    mel = lambda x: librosa.amplitude_to_db(librosa.feature.melspectrogram(S=np.abs(librosa.stft(x, n_fft=1024, hop_length=240)), sr=24_000, n_mels=80), amin=1e-4, top_db=None)
    chroma = lambda x: librosa.feature.chroma_stft(y=x, sr=24_000, n_fft=4096, hop_length=960, tuning=0.0)
    stacks = [np.stack([pair(i)[side] for i in range(10)]) for side in (0, 1)]
    each = {"si_sdr_spec": (m.si_sdr_spec, lambda a, b: float(their_si_sdr(torch.from_numpy(spectrum(b).ravel()), torch.from_numpy(spectrum(a).ravel()))), "librosa, torchmetrics"),
            "mel_distance": (m.mel_distance, lambda a, b: float(np.abs(mel(a) - mel(b)).mean()), "librosa"),
            "chroma_similarity": (m.chroma_similarity, lambda a, b: float((chroma(a) * chroma(b)).sum(0).mean()), "librosa")}
    timed = lambda call: _seconds(call, 1)
    made = [{"what": f"{name}, {clips} clips", "ours": timed(lambda: [ours(*pair(i)) for i in range(clips)]), "other": timed(lambda: [other(*pair(i)) for i in range(clips)]), "library": library}
            for name, (ours, other, library) in each.items()]
    made.insert(0, {"what": f"si_sdr, {clips} clips in stacks of 10", "ours": timed(lambda: [m.si_sdr(*stacks) for _ in range(clips // 10)]),
                    "other": timed(lambda: [their_si_sdr(*map(torch.from_numpy, stacks[::-1])) for _ in range(clips // 10)]), "library": "torchmetrics"})
    a, b = rng.standard_normal((2, 10 * clips, 128))
    statistics = lambda x: (torch.from_numpy(x.mean(0)), torch.from_numpy(np.cov(x, rowvar=False)))
    kernel = lambda x, y: polynomial_kernel(x, y, degree=3, gamma=1 / 128, coef0=1)
    within = lambda k: (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))
    made.append({"what": f"frechet_distance, {10 * clips} windows of 128", "ours": timed(lambda: m.frechet_distance(a, b)), "other": timed(lambda: float(_compute_fid(*statistics(a), *statistics(b)))), "library": "torchmetrics"})
    made.append({"what": f"kid, {10 * clips} windows of 128", "ours": timed(lambda: m.kid(a, b)), "other": timed(lambda: within(kernel(a, a)) + within(kernel(b, b)) - 2 * kernel(a, b).mean()), "library": "scikit-learn"})
    return made

def bench_scoring_memory(folder: Path, counts: tuple[int, int] = (20, 80)) -> list[dict]:
    "Largest memory of this process, MB, after scoring folders of some and of four times as many clips."
    import numpy as np, soundfile
    from cop_repro.benchmark.score import score_folders
    made, rng = [], np.random.default_rng(0)
    for count in (counts[0], *counts):  # the first run loads libraries and does not count
        for side in ("ref", "est"):
            (folder / str(count) / side).mkdir(parents=True, exist_ok=True)
            for i in range(count): soundfile.write(folder / str(count) / side / f"{i:04d}.wav", .1 * rng.standard_normal(240_000), 24_000)
        began = time.perf_counter()
        score_folders(folder / str(count) / "ref", folder / str(count) / "est", ["si_sdr_spec", "si_sdr", "mel_distance", "chroma_similarity"])
        made.append({"clips": count, "seconds": time.perf_counter() - began, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024})
    return made[1:]

def _print_scoring(rows: list[dict], memory: list[dict]) -> None:
    "Ratios, and memory by number of clips."
    print(f"{'scoring':45s} {'ours':>8s} {'other':>8s}  ratio")
    for r in rows: print(f"{r['what']:45s} {r['ours']:8.3f} {r['other']:8.3f}  {r['ours'] / r['other']:5.2f}  s, {r['library']}")
    for r in memory: print(f"`cop score`, {r['clips']} pairs of WAV files: {r['seconds']:.1f} s, peak memory {r['peak_mb']:.0f} MB")

BENCH_LENGTHS_S = (2.5, 5.0, 10.0)

def _seconds(call, repeats: int = 3) -> float:
    "The fastest of some runs, after one that does not count."
    call()
    times = []
    for _ in range(repeats): began = time.perf_counter(); call(); times.append(time.perf_counter() - began)
    return min(times)

def _bench_clips(performer) -> list[tuple]:
    "Seconds a guided step and a clip, and training tokens a second, for clips of several lengths: (name, values by length, unit)."
    import torch
    from cop_repro.core import RATES, torch_rng
    from cop_repro.model.flow import Conditions, SampleConfig, draw_noise_and_time, fm_loss, sample
    steps, model, rows = performer.sample.num_steps, performer.piano, {"guided step": {}, "clip": {}, "training": {}}
    for length_s in BENCH_LENGTHS_S:
        n = RATES.latents(length_s)
        x = torch.randn(1, n, model.dit.config.latent_channels, generator=torch_rng(0, "bench"))
        cond = Conditions(text=torch.zeros(1, 8, model.dit.config.text_width), video=torch.zeros(1, n, model.dit.config.video_features), roll=torch.zeros(1, n, 88))
        with torch.inference_mode(): rows["guided step"][length_s] = _seconds(lambda: sample(model, x, cond, SampleConfig(num_steps=2)), 2) / 2
        rows["clip"][length_s] = steps * rows["guided step"][length_s]
        def learn():
            noise, t = draw_noise_and_time(x, torch_rng(0, "bench", "t"))
            fm_loss(model, x, cond, noise, t).backward()
            model.zero_grad(set_to_none=True)
        rows["training"][length_s] = n / _seconds(learn, 2)
    return [("guided step (both branches in one batch)", rows["guided step"], "s"), (f"clip, {steps} guided steps", rows["clip"], "s"), ("training, forward and backward", rows["training"], "tokens/s")]

def _bench_paper_layer() -> tuple:
    "One layer of the published three-stream network, full width: seconds for both branches of a guided step, by clip length."
    import torch
    from dataclasses import replace
    from cop_repro.core import RATES, torch_rng
    from cop_repro.model.dit import MultiStreamDiT, paper_config
    from cop_repro.model.flow import Conditions
    found = {}
    for clamp in (None, 50.0):
        model = MultiStreamDiT(replace(paper_config(roll=True, roll_keys=88), depth=1, soft_clamp=clamp)).eval()
        for length_s in BENCH_LENGTHS_S:
            n = RATES.latents(length_s)
            cond = Conditions(torch.zeros(2, 16, 1024), video=torch.zeros(2, n, 1280), roll=torch.zeros(2, n, 88))
            x = torch.randn(2, n, 128, generator=torch_rng(0, "bench"))
            with torch.inference_mode(): found.setdefault(clamp, {})[length_s] = _seconds(lambda: model(x, torch.zeros(2), cond), 1)
    return found[None], found[50.0], sum(p.numel() for p in model.layers.parameters())

def bench(args) -> int:
    "Speed as ratios against an alternative measured in the same run, and how it grows with the clip."
    import tempfile
    if args.scoring:
        rows = bench_scoring(args.clips)
        with tempfile.TemporaryDirectory() as folder: memory = bench_scoring_memory(Path(folder))
        print(json.dumps({"scoring": rows, "memory": memory}, indent=1)) if args.json else _print_scoring(rows, memory)
        return 0
    with tempfile.TemporaryDirectory() as folder: loaded = bench_loader(Path(folder))
    if args.loader:
        print(json.dumps(loaded, indent=1)) if args.json else _print_loader(loaded)
        return 0
    import numpy as np, torch
    from cop_repro.core import torch_rng
    from cop_repro.model.flow import Conditions, SampleConfig, sample
    from cop_repro.systems.cop import load_performer
    performer = load_performer(project_root() / "data" / "assets")
    noise = torch.randn(1, 750, 128, generator=torch_rng(0, "bench"))
    frames = torch.zeros(1, 250, 48, 520, 3, dtype=torch.uint8)
    encode = lambda: (performer.encoders.text.encode(["the sound of playing piano"]), performer.encoders.image.encode(frames))
    tokens, mask = performer.encoders.text.encode(["the sound of playing piano"])
    cond = Conditions(text=tokens, text_mask=mask, video=torch.zeros(1, 750, 128), roll=torch.zeros(1, 750, 88))
    strips = np.zeros((250, 48, 520), np.uint8)
    with torch.inference_mode():
        guided = _seconds(lambda: sample(performer.piano, noise, cond, SampleConfig(num_steps=4)))
        single = _seconds(lambda: sample(performer.piano, noise, cond, SampleConfig(num_steps=4, cfg_strength=0.0)))
        once, roll, decode = _seconds(encode), _seconds(lambda: performer.rolls(strips)), _seconds(lambda: performer.codec.decode(noise))
    rows = (("guided step, both branches in one batch / two single passes", guided / 4, 2 * single / 4, "s a step"),
            ("conditions encoded once a clip / once a pass (16 steps)", once, 32 * once, "s a clip"),
            ("reading the roll / real time", roll, 10.0, "s a clip"), ("decoding sound / real time", decode, 10.0, "s a clip"))
    print(f"{'what / alternative':62s} {'ours':>8s} {'other':>8s}  ratio")
    for name, ours, other, unit in rows: print(f"{name:62s} {ours:8.3f} {other:8.3f}  {ours / other:5.2f}  {unit}")
    plain, clamped, weights = _bench_paper_layer()
    grown = [*_bench_clips(performer), (f"one published layer ({weights / 1e6:.0f}M), guided step", plain, "s"), ("the same with soft clamp (compat, no fused kernel)", clamped, "s")]
    print(f"\n{'by length of the clip':62s} " + " ".join(f"{f'{s:g} s':>8s}" for s in grown[0][1]))
    for name, values, unit in grown: print(f"{name:62s} " + " ".join(f"{v:8.3f}" if v < 1000 else f"{v:8.0f}" for v in values.values()) + f"  {unit}")
    _print_loader(loaded)
    if args.output: write_json(args.output, {"ratios": {n: {"ours": a, "other": b, "unit": u} for n, a, b, u in rows}, "by_clip_seconds": {n: {"values": {f"{k:g}": v for k, v in values.items()}, "unit": u} for n, values, u in grown}, "threads": torch.get_num_threads()})
    return 0
