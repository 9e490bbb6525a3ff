# SPDX-License-Identifier: Apache-2.0
"A DiT prepared for sampling equals the slow one and the released form; a switch sets precision."

from dataclasses import replace

import pytest
import torch

from cop_repro.cli._speed_released import ReleasedDiT
from cop_repro.core import BadInput, torch_rng
from cop_repro.model.controlformer import inject
from cop_repro.model.dit import DiTConfig, MultiStreamDiT, StreamConfig
from cop_repro.model.flow import Conditions, SampleConfig, sample
from cop_repro.model.prepared import Once, PreparedDiT, fast_precision

STREAM = StreamConfig(64, 4, 16)
TINY = DiTConfig(
    depth=4,
    audio=STREAM,
    video=StreamConfig(48, 2, 16),
    roll=StreamConfig(32, 2, 16),
    latent_channels=8,
    text_width=12,
    video_features=48,
    num_registers=4,
    max_positions=64,
    time_frequencies=16,
    dropout=0.1,
    attention_dropout=0.1,
    soft_clamp=3.0,
)


def stirred(config: DiTConfig) -> MultiStreamDiT:
    "A network without zeros."
    made, rng = MultiStreamDiT(config), torch_rng(1, "stir")
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(torch.randn(weight.shape, generator=rng), alpha=0.1)
    return made.eval()


def clip(batch: int = 1, length: int = 24, seed: int = 0) -> tuple[torch.Tensor, Conditions]:
    "Noise and all three conditions."
    rng = torch_rng(seed, "clip")

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(batch, *size, generator=rng)

    return draw(length, 8), Conditions(draw(5, 12), video=draw(length, 48), roll=draw(length, 88))


def released(dit: MultiStreamDiT, x: torch.Tensor, t: torch.Tensor, cond: Conditions):
    "Guidance of strength two in the released form."
    given = {"ids": cond.text, "video": cond.video, "roll": cond.roll}
    return ReleasedDiT(dit).guided(x, t, given)


def ours(dit: MultiStreamDiT, x: torch.Tensor, t: torch.Tensor, cond: Conditions):
    "The same in one batch."
    drop = torch.tensor([False, True])
    both = cond.repeat(2).drop(text=drop, video=drop)
    conditional, null = dit(x.repeat(2, 1, 1), t.repeat(2), both).chunk(2)
    return conditional + 2.0 * (conditional - null)


@pytest.mark.parametrize("soft_clamp", [None, 3.0, 50.0])
def test_all_forms_of_the_network_agree(soft_clamp):
    dit = stirred(replace(TINY, soft_clamp=soft_clamp))
    quick = PreparedDiT(dit)
    for seed in (0, 1):
        x, cond = clip(seed=seed)
        for t in (0.0, 0.4, 1.0):
            time = torch.tensor([t])
            with torch.no_grad():
                slow = released(dit, x, time, cond)
                for model in (dit, quick):
                    gap = (ours(model, x, time, cond) - slow).abs().max()
                    assert gap < 1e-5 * slow.abs().max()


@pytest.mark.parametrize("streams", [{}, {"roll": None}, {"video": None, "roll": None}])
@pytest.mark.parametrize("window_s", [None, 0.2])
def test_prepared_sampling_equals_sampling_to_the_last_bit(streams, window_s):
    dit = stirred(replace(TINY, soft_clamp=None, **streams))
    quick = PreparedDiT(dit)
    config = SampleConfig(num_steps=3, guided=(0.0, 0.5), window_s=window_s, overlap_s=0.08)
    for batch, length, seed in ((1, 24, 0), (2, 24, 1), (1, 30, 2), (1, 24, 0)):
        x, cond = clip(batch, length, seed)
        absent = {name: None for name in ("video", "roll") if name in streams}
        cond = replace(cond, **absent)
        slow, fast = (sample(model, x, cond, config) for model in (dit, quick))
        assert torch.equal(slow.latents, fast.latents)
        assert slow.passes == fast.passes


def test_what_is_kept_is_computed_once():
    calls = []

    def count(x):
        calls.append(x)
        return x + 1

    once, x = Once(count), torch.ones(2)
    assert once(x) is once(x) and len(calls) == 1
    once(x.clone())
    assert len(calls) == 2


def test_weights_are_shared_in_float32_and_the_source_stays_as_it_is():
    dit = stirred(TINY)
    before = {name: weight.clone() for name, weight in dit.state_dict().items()}
    quick = PreparedDiT(dit)
    own = dit.layers[0].audio.ff.up.weight
    assert quick.layers[0].audio.ff.up.weight.data_ptr() == own.data_ptr()
    for precision in ("bfloat16", "int8"):
        x, cond = clip()
        assert PreparedDiT(dit, precision)(x, torch.tensor([0.3]), cond).dtype == torch.float32
    assert own.requires_grad and own.dtype == torch.float32
    assert all(torch.equal(before[n], w) for n, w in dit.state_dict().items())


@pytest.mark.parametrize("precision, bound", [("bfloat16", 0.05), ("int8", 0.2)])
def test_other_precisions_stay_near(precision, bound):
    dit = stirred(TINY)
    quick = PreparedDiT(dit, precision)
    x, cond = clip()
    for t in (0.0, 0.5, 1.0):
        with torch.no_grad():
            exact, found = (model(x, torch.tensor([t]), cond) for model in (dit, quick))
        assert 0 < (found - exact).norm() / exact.norm() < bound


@pytest.mark.parametrize(
    "knows, chosen",
    [
        ({"avx2": True}, "int8"),
        ({"avx2": True, "avx512_bf16": True}, "bfloat16"),
        ({"avx2": True, "amx_bf16": True}, "bfloat16"),
        ({}, "float32"),
    ],
)
def test_the_processor_decides(monkeypatch, knows, chosen):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: knows)
    assert fast_precision() == chosen


def test_what_cannot_be_prepared_is_refused():
    with pytest.raises(BadInput, match="InjectedDiT cannot be prepared"):
        PreparedDiT(inject(stirred(replace(TINY, roll=None)), "concat", 8))
    with pytest.raises(BadInput, match="did you mean 'int8'"):
        PreparedDiT(stirred(TINY), "int9")
