# SPDX-License-Identifier: Apache-2.0
"Speed of the shipped models, by part and by length of the clip, and of one published layer."

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from cop_repro.cli._speed_time import fastest
from cop_repro.core import RATES, torch_rng
from cop_repro.model.dit import MultiStreamDiT, paper_config
from cop_repro.model.flow import Conditions, SampleConfig, draw_noise_and_time, fm_loss, sample

BENCH_LENGTHS_S = (2.5, 5.0, 10.0)
CAPTION = "the sound of playing piano"
SOFT_CLAMP = 50.0


@dataclass(frozen=True)
class Ratio:
    "Ours beside an alternative."

    name: str
    ours: float
    other: float
    unit: str


@dataclass(frozen=True)
class ByClip:
    "One quantity for clips of several lengths."

    name: str
    values: dict[float, float]  # seconds of the clip -> value
    unit: str


def speed_ratios(performer) -> list[Ratio]:
    "A guided step, the conditions, the roll and the sound of a clip of 10 s."
    noise = _noise(1, 10.0, 128)
    with torch.inference_mode():
        return [
            _guided_step(performer, noise),
            _encoded_once(performer),
            _real_time("reading the roll / real time", _roll_call(performer)),
            _real_time("decoding sound / real time", lambda: performer.codec.decode(noise)),
        ]


def _noise(batch: int, seconds: float, channels: int) -> torch.Tensor:
    "Latents of noise."
    size = (batch, RATES.latents(seconds), channels)
    return torch.randn(*size, generator=torch_rng(0, "speed"))


def _guided_step(performer, noise: torch.Tensor) -> Ratio:
    "Both branches of guidance in one batch, against two single passes."
    tokens, mask = performer.encoders.text.encode([CAPTION])
    silent_video, empty_roll = torch.zeros(1, 750, 128), torch.zeros(1, 750, 88)
    cond = Conditions(text=tokens, text_mask=mask, video=silent_video, roll=empty_roll)
    both, single = SampleConfig(num_steps=4), SampleConfig(num_steps=4, cfg_strength=0.0)
    guided = fastest(lambda: sample(performer.piano, noise, cond, both))
    alone = fastest(lambda: sample(performer.piano, noise, cond, single))
    name = "guided step, both branches in one batch / two single passes"
    return Ratio(name, guided / 4, 2 * alone / 4, "s a step")


def _encoded_once(performer) -> Ratio:
    "Conditions encoded once a clip, against once a pass of 16 guided steps."
    frames = torch.zeros(1, 250, 48, 520, 3, dtype=torch.uint8)

    def encode() -> None:
        performer.encoders.text.encode([CAPTION])
        performer.encoders.image.encode(frames)

    once = fastest(encode)
    name = "conditions encoded once a clip / once a pass (16 steps)"
    return Ratio(name, once, 32 * once, "s a clip")


def _roll_call(performer) -> Callable:
    "The roll predictor on the strips of a clip of 10 s."
    strips = np.zeros((250, 48, 520), np.uint8)
    return lambda: performer.rolls(strips)


def _real_time(name: str, call: Callable) -> Ratio:
    "What a clip of 10 s takes, against its own length."
    return Ratio(name, fastest(call), 10.0, "s a clip")


def speed_clips(performer) -> list[ByClip]:
    "Seconds a guided step and a clip, and training tokens a second, for clips of several lengths."
    steps, model = performer.sample.num_steps, performer.piano
    step = {s: _step_seconds(model, s) for s in BENCH_LENGTHS_S}
    training = {s: RATES.latents(s) / _training_seconds(model, s) for s in BENCH_LENGTHS_S}
    return [
        ByClip("guided step (both branches in one batch)", step, "s"),
        ByClip(f"clip, {steps} guided steps", {s: steps * v for s, v in step.items()}, "s"),
        ByClip("training, forward and backward", training, "tokens/s"),
    ]


def _clip_of(model, seconds: float) -> tuple[torch.Tensor, Conditions]:
    "Latents of noise with empty conditions."
    n, config = RATES.latents(seconds), model.dit.config
    cond = Conditions(
        text=torch.zeros(1, 8, config.text_width),
        video=torch.zeros(1, n, config.video_features),
        roll=torch.zeros(1, n, 88),
    )
    return _noise(1, seconds, config.latent_channels), cond


def _step_seconds(model, seconds: float) -> float:
    "One guided step."
    x, cond = _clip_of(model, seconds)
    with torch.inference_mode():
        return fastest(lambda: sample(model, x, cond, SampleConfig(num_steps=2)), 2) / 2


def _training_seconds(model, seconds: float) -> float:
    "One forward and backward pass."
    x, cond = _clip_of(model, seconds)

    def learn() -> None:
        noise, t = draw_noise_and_time(x, torch_rng(0, "speed", "t"))
        fm_loss(model, x, cond, noise, t).backward()
        model.zero_grad(set_to_none=True)

    return fastest(learn, 2)


def speed_paper_layer() -> list[ByClip]:
    "One layer of the published three-stream network, full width, without and with a soft clamp."
    plain, clamped = _paper_layer(None), _paper_layer(SOFT_CLAMP)
    millions = sum(p.numel() for p in plain.layers.parameters()) / 1e6
    name = f"one published layer ({millions:.0f}M), guided step"
    clamp_name = "the same with soft clamp (compat, no fused kernel)"
    return [
        ByClip(name, {s: _layer_seconds(plain, s) for s in BENCH_LENGTHS_S}, "s"),
        ByClip(clamp_name, {s: _layer_seconds(clamped, s) for s in BENCH_LENGTHS_S}, "s"),
    ]


def _paper_layer(soft_clamp: float | None) -> MultiStreamDiT:
    "The published network with one layer."
    config = paper_config(roll=True, roll_keys=88)
    return MultiStreamDiT(replace(config, depth=1, soft_clamp=soft_clamp)).eval()


def _layer_seconds(model: MultiStreamDiT, seconds: float) -> float:
    "Both branches of a guided step."
    n = RATES.latents(seconds)
    cond = Conditions(
        torch.zeros(2, 16, 1024), video=torch.zeros(2, n, 1280), roll=torch.zeros(2, n, 88)
    )
    x, t = _noise(2, seconds, 128), torch.zeros(2)
    with torch.inference_mode():
        return fastest(lambda: model(x, t, cond), 1)


def ratio_lines(rows: Sequence[Ratio]) -> list[str]:
    "Ours, the alternative, and how they compare."
    return [
        f"{'what / alternative':62s} {'ours':>8s} {'other':>8s}  ratio",
        *(
            f"{r.name:62s} {r.ours:8.3f} {r.other:8.3f}  {r.ours / r.other:5.2f}  {r.unit}"
            for r in rows
        ),
    ]


def clip_lines(rows: Sequence[ByClip]) -> list[str]:
    "Quantities by length of the clip."
    lengths = " ".join(f"{f'{s:g} s':>8s}" for s in rows[0].values)
    return ["", f"{'by length of the clip':62s} {lengths}", *(_clip_line(row) for row in rows)]


def _clip_line(row: ByClip) -> str:
    "One quantity."
    numbers = " ".join(f"{v:8.3f}" if v < 1000 else f"{v:8.0f}" for v in row.values.values())
    return f"{row.name:62s} {numbers}  {row.unit}"


def numbers(ratios: Sequence[Ratio], by_clip: Sequence[ByClip]) -> dict:
    "All measurements as JSON can hold them."
    return {
        "ratios": {r.name: {"ours": r.ours, "other": r.other, "unit": r.unit} for r in ratios},
        "by_clip_seconds": {
            row.name: {"values": {f"{s:g}": v for s, v in row.values.items()}, "unit": row.unit}
            for row in by_clip
        },
        "threads": torch.get_num_threads(),
    }
