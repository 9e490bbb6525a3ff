# SPDX-License-Identifier: Apache-2.0
"Flow matching: closed forms, a second solver, bad input."

import math

import pytest
import torch

from cop_repro.core import BadInput, torch_rng
from cop_repro.model.flow import (
    MAX_SWAY,
    APGConfig,
    Conditions,
    DropoutConfig,
    SampleConfig,
    concat_conditions,
    draw_noise_and_time,
    drop_conditions,
    fm_loss,
    guidance_branches,
    path,
    sample,
    sway_times,
    to_latent_rate,
    velocity_loss,
)


def randn(*shape, name="x"):
    return torch.randn(*shape, generator=torch_rng(0, name))


def optimal(xt, t, cond):
    return xt * ((2 * t - 1) / (t**2 + (1 - t) ** 2))[:, None, None]


@pytest.mark.parametrize(
    "sway, inner",
    [
        (-1, (0.076120, 0.292893, 0.617317)),
        (-0.5, (0.163060, 0.396447, 0.683658)),
        (1, (0.423880, 0.707107, 0.882683)),
    ],
)
def test_sway_golden(sway, inner):
    assert sway_times(4, sway)[1:-1].tolist() == pytest.approx(inner, abs=1e-6)


@pytest.mark.parametrize("sway", [-1.001, MAX_SWAY + 1e-3, math.nan])
def test_sway_out_of_range(sway):
    with pytest.raises(BadInput, match="backwards"):
        sway_times(8, sway)


def test_closed_form_losses():
    x1 = randn(4096, 16, 8)
    x0, t = draw_noise_and_time(x1, torch_rng(0, "noise"))
    assert fm_loss(
        lambda xt, t, c: torch.zeros_like(xt), x1, Conditions(), x0, t
    ).item() == pytest.approx(2, abs=0.01)
    assert fm_loss(optimal, x1, Conditions(), x0, t).item() == pytest.approx(math.pi / 2, abs=0.02)


def test_shared_noise_makes_losses_comparable():
    x1 = randn(6, 10, 4)
    x0, t = draw_noise_and_time(x1, torch_rng(1, "noise"))
    again = draw_noise_and_time(x1, torch_rng(1, "noise"))
    assert torch.equal(x0, again[0]) and torch.equal(t, again[1])
    a, b = (fm_loss(optimal, x1, Conditions(), x0, t, per_example=True) for _ in range(2))
    assert torch.equal(a, b) and a.shape == (6,)


def test_masked_frames_never_reach_the_loss():
    v, u, mask = (
        randn(2, 8, 3),
        randn(2, 8, 3, name="u"),
        torch.arange(8).expand(2, -1) < torch.tensor([[3], [8]]),
    )
    clips = velocity_loss(v, u, mask, per_example=True)
    assert clips[0].item() == pytest.approx((v[0, :3] - u[0, :3]).square().mean().item(), rel=1e-5)
    v[0, 3:] = math.nan
    assert torch.equal(velocity_loss(v, u, mask, per_example=True), clips)


def test_midpoint_agrees_with_torchdiffeq():
    torchdiffeq = pytest.importorskip("torchdiffeq")
    x0, times = randn(3, 5, 4).double(), sway_times(10, -1.0)
    for method in ("euler", "midpoint"):
        theirs = torchdiffeq.odeint(
            lambda t, x: optimal(x, t.expand(3), None), x0, times, method=method
        )[-1]
        ours = sample(optimal, x0, Conditions(), SampleConfig(10, 0.0, method=method)).latents
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_exact_flow_returns_the_noise():
    x0 = randn(2, 5, 4).double()
    final = sample(optimal, x0, Conditions(), SampleConfig(64, 0.0, 0.0, 0.0, "midpoint")).latents
    assert torch.allclose(final, x0, atol=1e-4)
    euler = sample(optimal, x0, Conditions(), SampleConfig(64, 0.0, 0.0, 0.0)).latents
    assert 0.015 < ((euler - x0).norm() / x0.norm()).item() < 0.03


def test_branches_share_one_batch_and_are_counted():
    calls = []

    def model(xt, t, cond):
        calls.append((len(xt), cond.batch))
        return xt

    cond = Conditions(text=randn(2, 3, 4), roll=randn(2, 6, 88))
    result = sample(model, randn(2, 6, 4), cond, SampleConfig(5, 2.0, 1.0, method="midpoint"))
    assert calls == [(6, 6)] * 10 and result.passes == 30


def test_conditions_are_encoded_once_a_clip(monkeypatch):
    "One call of text encoder, image encoder and roll predictor, whatever the number of passes."
    import numpy as np

    from cop_repro.model.cop_piano import grow_piano
    from cop_repro.model.dit import DiTConfig, MultiStreamDiT, StreamConfig
    from cop_repro.model.encoders import (
        EmbeddedSizes,
        EncodersConfig,
        build_encoders,
        learn_words,
    )
    from cop_repro.model.roll import RollConfig, build_roll, mean_background
    from cop_repro.systems.cop import Performer

    encoders = build_encoders(
        EncodersConfig(
            embedded=EmbeddedSizes(
                text_dim=32, image_dim=32, image_width=4, max_tokens=16, image_size=32
            )
        ),
        learn_words(["the sound of playing piano"]),
    ).eval()
    base = MultiStreamDiT(
        DiTConfig(
            1,
            StreamConfig(16, 1, 16),
            StreamConfig(32, 1, 32),
            latent_channels=4,
            text_width=32,
            video_features=32,
            num_registers=2,
            max_positions=40,
            time_frequencies=4,
        )
    )
    piano = grow_piano(
        base, build_roll(RollConfig(width=2, height=16, strip_width=104)), StreamConfig(16, 1, 16)
    ).eval()
    calls = dict.fromkeys(("text", "image", "predictor", "dit"), 0)
    for name, module in (
        ("text", encoders.text.t5),
        ("image", encoders.image.visual),
        ("predictor", piano.predictor),
        ("dit", piano.dit),
    ):
        module.register_forward_pre_hook(
            lambda *_, name=name: calls.update({name: calls[name] + 1})
        )
    performer = Performer(
        None,
        encoders,
        piano,
        SampleConfig(num_steps=16, cfg_strength=2.0, roll_strength=1.0, method="midpoint"),
        {},
    )
    strips = np.zeros((8, 16, 104), np.uint8)
    performer.latents(
        strips,
        performer.rolls(strips, mean_background(strips)),
        "the sound of playing piano",
        randn(1, 24, 4),
    )
    assert calls == {"text": 1, "image": 1, "predictor": 1, "dit": 32}


def test_half_precision_answers_do_not_degrade_the_state():
    out = sample(
        lambda xt, t, c: torch.ones_like(xt, dtype=torch.bfloat16),
        randn(1, 2, 2),
        Conditions(),
        SampleConfig(7, 0.0),
    )
    assert out.latents.dtype == torch.float32 and torch.allclose(
        out.latents, randn(1, 2, 2) + 1, atol=1e-5
    )


@pytest.mark.parametrize("parallel, expected", [(1.0, 3.0), (0.0, 1.0)])
def test_apg_removes_what_only_makes_it_louder(parallel, expected):
    def model(xt, t, cond):  # the text doubles the output, along the data estimate
        conditioned = torch.ones(len(xt)) if cond.text_keep is None else cond.text_keep.float()
        return (conditioned[:, None, None]).expand_as(xt)

    x0 = torch.zeros(1, 3, 2)
    out = sample(
        model, x0, Conditions(text=randn(1, 1, 1)), SampleConfig(4, 2.0, apg=APGConfig(parallel))
    ).latents
    assert torch.allclose(out, torch.full_like(out, expected), atol=1e-5)


def test_concat_marks_what_is_missing():
    a, b = (
        Conditions(text=randn(2, 3, 4), roll=randn(2, 5, 7)),
        Conditions(text=randn(1, 1, 4), video=randn(1, 5, 6)),
    )
    joined = concat_conditions([a, b])
    assert joined.roll_keep.tolist() == [True, True, False] and joined.video_keep.tolist() == [
        False,
        False,
        True,
    ]
    assert (
        joined.text_mask.tolist() == [[True] * 3, [True] * 3, [True, False, False]]
        and joined.text_keep.all()
    )
    assert (
        torch.equal(joined[2:].kept("video"), b.video) and joined.kept("roll")[2].abs().max() == 0
    )


def test_dropout_keeps_guidance_possible():
    cond = Conditions(text=torch.zeros(50_000, 1, 1), roll=torch.zeros(50_000, 1, 1))
    dropped = drop_conditions(cond, DropoutConfig(), torch_rng(0, "d"))
    assert (~dropped.text_keep).double().mean().item() == pytest.approx(0.15, abs=0.01)
    assert (~dropped.text_keep & ~dropped.roll_keep).double().mean().item() == pytest.approx(
        0.1 * 0.1 + 0.05 * 0.5, abs=0.005
    )
    assert guidance_branches(cond, 0.0, 0.0) == {(True, True): 1.0}


def test_gradients_reach_the_roll_through_upsampling():
    roll = torch.rand(1, 4, 3, generator=torch_rng(0, "r")).requires_grad_()
    to_latent_rate(roll, 10).sum().backward()
    assert roll.grad[0, :, 0].tolist() == [2, 3, 2, 3]


@pytest.mark.parametrize(
    "call",
    [
        lambda: Conditions(text=torch.zeros(3, 4)),
        lambda: Conditions(video_keep=torch.ones(2, dtype=torch.bool)),
        lambda: Conditions(text=torch.zeros(1, 2, 3), text_mask=torch.ones(1, 3, dtype=torch.bool)),
        lambda: concat_conditions([Conditions(), Conditions(text=torch.zeros(1, 1, 1))]),
        lambda: concat_conditions(
            [Conditions(roll=torch.zeros(1, 5, 1)), Conditions(roll=torch.zeros(1, 6, 1))]
        ),
        lambda: to_latent_rate(torch.zeros(1, 0, 3), 5),
        lambda: path(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), torch.zeros(2)),
        lambda: sample(optimal, torch.zeros(1, 2, 3), Conditions(), SampleConfig(2, method="heun")),
        lambda: DropoutConfig(text=0.9, video=0.2),
    ],
)
def test_bad_input(call):
    with pytest.raises(BadInput):
        call()
