# SPDX-License-Identifier: Apache-2.0
"""A guided step and a clip at published widths, against the architecture as it was released.

Weights are random: they decide nothing about time. The released form is that of
`_speed_released`; ours is a `PreparedDiT` under `sample`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from cop_repro.cli._speed_models import Ratio
from cop_repro.cli._speed_released import ReleasedDiT
from cop_repro.core import RATES, torch_rng
from cop_repro.model.dit import DiTConfig, MultiStreamDiT, paper_config
from cop_repro.model.flow import Conditions, SampleConfig, sway_times
from cop_repro.model.prepared import PreparedDiT, fast_precision

PUBLISHED = paper_config(roll=True, roll_keys=88)
RELEASED_STEPS = 63  # intervals of the released code, two branches each
OURS = SampleConfig(num_steps=8, cfg_strength=2.0, guided=(0.0, 0.5))
TOKENS = 8  # of the caption
T5_LARGE = {
    "vocab_size": 32_128,
    "d_model": 1024,
    "d_kv": 64,
    "d_ff": 2816,
    "num_layers": 24,
    "num_heads": 16,
    "feed_forward_proj": "gated-gelu",
}


@dataclass(frozen=True)
class Published:
    "The networks and one clip."

    dit: MultiStreamDiT
    text_encoder: nn.Module  # identifiers -> `last_hidden_state`
    noise: torch.Tensor
    ids: torch.Tensor
    video: torch.Tensor
    roll: torch.Tensor

    @property
    def given(self) -> dict[str, torch.Tensor]:
        "Inputs of a released pass."
        return {"ids": self.ids, "video": self.video, "roll": self.roll}

    def conditions(self) -> Conditions:
        "Conditions of ours, the text encoded."
        text = self.text_encoder(input_ids=self.ids).last_hidden_state
        return Conditions(text, video=self.video, roll=self.roll)


def published(config: DiTConfig = PUBLISHED, seconds: float = 10.0, t5: dict = T5_LARGE):
    "Networks with random weights, and the inputs of a clip."
    import transformers

    with torch.device("meta"):
        dit = MultiStreamDiT(config)
        encoder = transformers.T5EncoderModel(transformers.T5Config(**t5))
    rng, n = torch_rng(0, "speed", "published"), RATES.latents(seconds)
    for model in (dit, encoder):
        _fill(model.to_empty(device="cpu").requires_grad_(False).eval(), rng)
    draw = {"generator": rng}
    return Published(
        dit,
        encoder,
        torch.randn(1, n, config.latent_channels, **draw),
        torch.randint(t5["vocab_size"], (1, TOKENS), **draw),
        torch.randn(1, n, config.video_features, **draw),
        torch.rand(1, n, config.roll_keys, **draw),
    )


def _fill(model: nn.Module, rng: torch.Generator) -> None:
    "Small random weights, from one block of numbers that is repeated."
    block = 0.02 * torch.randn(2**20, generator=rng)
    for name, weight in (*model.named_parameters(), *model.named_buffers()):
        if not weight.is_floating_point():
            weight.zero_()
        elif weight.ndim < 2:
            weight.fill_(1.0 if name.endswith("weight") else 0.1)
        else:
            for part in weight.view(-1).split(len(block)):
                part.copy_(block[: len(part)])


def speed_published(made: Published | None = None, repeats: int = 2) -> list[Ratio]:
    "Guided step, unguided step and whole clip, ours against the released form."
    with torch.inference_mode():
        made = published() if made is None else made
        step = _released_step(made)
        rows, clips = [], []
        for precision in dict.fromkeys(("float32", fast_precision())):
            model = PreparedDiT(made.dit, precision)
            guided, single = _our_steps(model, made, repeats)
            rows.append(Ratio(f"guided step, {precision} / as released", guided, step, "s a step"))
            clips.append(_clip(f"clip of 10 s, {precision}", made, guided, single, step))
        name = "the same step without the unconditional branch / as released"
        return [*rows, Ratio(name, single, step, "s a step"), *clips]


def _released_step(made: Published) -> float:
    "Both branches, one after the other."
    model, t = ReleasedDiT(made.dit, made.text_encoder), torch.tensor([0.3])
    brief = {name: x if name == "ids" else x[:, :8] for name, x in made.given.items()}
    model(made.noise[:, :8], t, **brief)  # loads weights and libraries; does not count
    return _seconds(lambda: model.guided(made.noise, t, made.given))


def _our_steps(model: PreparedDiT, made: Published, repeats: int) -> tuple[float, float]:
    "Seconds of a guided step and of one without the unconditional branch, conditions kept."
    cond, drop = made.conditions(), torch.tensor([False, True])
    both = cond.repeat(2).drop(text=drop, video=drop)
    guided = _step(model, made.noise.repeat(2, 1, 1), both, repeats)
    return guided, _step(model, made.noise, cond, repeats)


def _step(model: PreparedDiT, x: torch.Tensor, cond: Conditions, repeats: int) -> float:
    "The fastest of some passes; the first one of all, on a brief clip, does not count."
    t = torch.full((len(x),), 0.3)
    model(x[:, :8], t, _short(cond, 8))
    return min(_seconds(lambda: model(x, t, cond)) for _ in range(repeats))


def _short(cond: Conditions, length: int) -> Conditions:
    "The beginning of a clip's conditions."
    return replace(cond, video=cond.video[:, :length], roll=cond.roll[:, :length])


def _clip(name: str, made: Published, guided: float, single: float, released: float) -> Ratio:
    "A whole clip from its steps: ours with the text encoded once, the released one in full."
    count = sum(t < OURS.guided[1] for t in _times())
    ours = _seconds(made.conditions) + count * guided + (OURS.num_steps - count) * single
    steps = f"{OURS.num_steps} steps, guided until {OURS.guided[1]:g}"
    return Ratio(f"{name}, {steps} / 63 as released", ours, RELEASED_STEPS * released, "s a clip")


def _times() -> list[float]:
    "Starts of our intervals."
    return sway_times(OURS.num_steps, OURS.sway).tolist()[:-1]


def _seconds(call: Callable[[], object]) -> float:
    "Of one call."
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
