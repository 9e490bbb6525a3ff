# SPDX-License-Identifier: Apache-2.0
"Flow matching: closed forms, a second solver, bad input."

import math

import pytest
import torch

from cop_repro.core import BadInput, ParamsError, from_dict, torch_rng
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
    rescale_guidance,
    sample,
    start_noise,
    sway_times,
    to_latent_rate,
    velocity_loss,
    window_starts,
    window_weights,
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


def tiny_performer(config):
    "Untrained networks of a performer of 4 channels, with strips of 8 frames and their logits."
    import numpy as np

    from cop_repro.model.cop_piano import grow_piano
    from cop_repro.model.dit import DiTConfig, MultiStreamDiT, StreamConfig
    from cop_repro.model.encoders import (
        EmbeddedSizes,
        EncodersConfig,
        build_encoders,
        learn_words,
    )
    from cop_repro.model.roll import RollConfig, build_roll
    from cop_repro.systems.cop import Performer

    sizes = EmbeddedSizes(text_dim=32, image_dim=32, image_width=4, max_tokens=16, image_size=32)
    encoders = build_encoders(EncodersConfig(embedded=sizes), learn_words([CAPTION])).eval()
    dit = DiTConfig(
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
    predictor = build_roll(RollConfig(width=2, height=16, strip_width=104))
    piano = grow_piano(MultiStreamDiT(dit), predictor, StreamConfig(16, 1, 16)).eval()
    return Performer(None, encoders, piano, config, {}), np.zeros((8, 16, 104), np.uint8)


CAPTION = "the sound of playing piano"


def perform(performer, strips, noise):
    from cop_repro.model.roll import mean_background

    logits = performer.rolls(strips, mean_background(strips))
    return performer.latents(strips, logits, CAPTION, noise)


def test_conditions_are_encoded_once_a_clip():
    "One call of text encoder, image encoder and roll predictor, whatever the number of passes."
    config = SampleConfig(num_steps=16, cfg_strength=2.0, roll_strength=1.0, method="midpoint")
    performer, strips = tiny_performer(config)
    calls = dict.fromkeys(("text", "image", "predictor", "dit"), 0)
    for name, module in (
        ("text", performer.encoders.text.t5),
        ("image", performer.encoders.image.visual),
        ("predictor", performer.piano.predictor),
        ("dit", performer.piano.dit),
    ):
        module.register_forward_pre_hook(
            lambda *_, name=name: calls.update({name: calls[name] + 1})
        )
    perform(performer, strips, randn(1, 24, 4))
    assert calls == {"text": 1, "image": 1, "predictor": 1, "dit": 32}


def test_a_performance_starts_at_the_temperature():
    config = SampleConfig(num_steps=2, cfg_strength=0.0, temperature=0.5)
    performer, strips = tiny_performer(config)
    cooler = perform(performer, strips, randn(1, 24, 4))
    performer.sample = SampleConfig(num_steps=2, cfg_strength=0.0)
    assert torch.equal(perform(performer, strips, 0.5 * randn(1, 24, 4)), cooler)
    assert not torch.equal(perform(performer, strips, randn(1, 24, 4)), cooler)


WINDOWS = {"window_s": 2.0, "overlap_s": 1.0}  # 150 and 75 latents


def test_windows_do_not_change_a_velocity_without_context():
    x0 = randn(3, 340, 4)
    whole = sample(optimal, x0, Conditions(), SampleConfig(6, 0.0, method="midpoint"))
    lengths = []

    def recorded(xt, t, cond):
        lengths.append(tuple(xt.shape[:2]))
        return optimal(xt, t, cond)

    config = SampleConfig(6, 0.0, method="midpoint", **WINDOWS)
    windowed = sample(recorded, x0, Conditions(), config)
    assert torch.allclose(windowed.latents, whole.latents, atol=1e-5)
    starts = window_starts(340, 150, 75)
    assert set(lengths) == {(3 * len(starts), 150)}
    assert (windowed.passes, whole.passes) == (12 * len(starts), 12)


def in_the_window(xt, t, cond):
    "A velocity that depends on the place in the window, as with learnt positions."
    return torch.arange(float(xt.shape[1]))[None, :, None].expand_as(xt)


def test_velocities_are_faded_with_the_weights_of_the_windows():
    expected, starts = torch.zeros(340), window_starts(340, 150, 75)
    for start, weight in zip(starts, window_weights(starts, 340, 150), strict=True):
        expected[start : start + 150] += torch.from_numpy(weight).float() * torch.arange(150.0)
    zeros = torch.zeros(2, 340, 3)
    made = sample(in_the_window, zeros, Conditions(), SampleConfig(4, 0.0, **WINDOWS)).latents
    assert torch.allclose(made, expected[None, :, None].expand_as(made), atol=1e-3)


@pytest.mark.parametrize("total", [1, 100, 150])
def test_a_clip_of_one_window_is_sampled_at_once(total):
    x0, cond = randn(2, total, 4), Conditions(text=randn(2, 3, 4), roll=randn(2, total, 4))
    calls = []

    def model(xt, t, given):
        calls.append(given.batch)
        return in_the_window(xt, t, given) + given.kept("roll")

    windowed = sample(model, x0, cond, SampleConfig(3, 2.0, 1.0, **WINDOWS))
    whole = sample(model, x0, cond, SampleConfig(3, 2.0, 1.0))
    assert torch.equal(windowed.latents, whole.latents)
    assert windowed.passes == whole.passes == 9
    assert set(calls) == {6}


def conditioned(xt, t, cond):
    "A velocity that depends on every condition at its own latent, on the clip's text and on flags."
    words = cond.kept("text") * cond.text_mask[:, :, None]
    return 0.3 * xt + words.sum((1, 2))[:, None, None] + cond.kept("video") - cond.kept("roll")


@pytest.mark.parametrize("options", [{}, {"apg": APGConfig(0.2, 0.5)}, {"rescale": 0.7}])
def test_windows_carry_conditions_flags_and_guidance(options):
    x0 = randn(3, 340, 4)
    cond = Conditions(
        text=randn(3, 2, 5, name="text"),
        text_mask=torch.tensor([[True, True], [True, False], [True, True]]),
        video=randn(3, 340, 4, name="video"),
        roll=randn(3, 340, 4, name="roll"),
        video_keep=torch.tensor([True, True, False]),
        roll_keep=torch.tensor([False, True, True]),
    )
    whole = sample(conditioned, x0, cond, SampleConfig(4, 2.0, 1.0, **options))
    windowed = sample(conditioned, x0, cond, SampleConfig(4, 2.0, 1.0, **options, **WINDOWS))
    assert torch.allclose(windowed.latents, whole.latents, atol=1e-4)
    assert windowed.passes == whole.passes * len(window_starts(340, 150, 75))
    alone = sample(conditioned, x0[1:2], cond[1:2], SampleConfig(4, 2.0, 1.0, **options, **WINDOWS))
    assert torch.allclose(windowed.latents[1:2], alone.latents, atol=1e-4)


def test_windows_need_conditions_at_the_latent_rate():
    cond = Conditions(roll=randn(1, 100, 4))
    with pytest.raises(BadInput, match="roll has 100 rows for 300 latents"):
        sample(conditioned, randn(1, 300, 4), cond, SampleConfig(2, 0.0, **WINDOWS))


def test_a_network_of_few_positions_samples_long_clips_in_windows():
    performer, _ = tiny_performer(SampleConfig())
    dit, x0, cond = performer.piano.dit, randn(1, 90, 4), Conditions(text=randn(1, 2, 32))
    with pytest.raises(BadInput, match="cut the clip into windows"):
        sample(dit, x0, cond, SampleConfig(2))
    made = sample(dit, x0, cond, SampleConfig(2, window_s=0.4, overlap_s=0.2))
    assert made.latents.isfinite().all()
    assert made.passes == 2 * 2 * len(window_starts(90, 30, 15))


def text_adds_one(xt, t, cond):
    kept = torch.ones(len(xt)) if cond.text_keep is None else cond.text_keep.float()
    return (1 + kept)[:, None, None].expand_as(xt)


@pytest.mark.parametrize("method, evaluations", [("euler", 1), ("midpoint", 2)])
def test_guidance_on_an_interval_costs_and_acts_there_alone(method, evaluations):
    x0, cond, rows = torch.zeros(2, 3, 4), Conditions(text=randn(2, 1, 1)), []

    def model(xt, t, given):
        rows.append((round(t[0].item(), 3), len(xt)))
        return text_adds_one(xt, t, given)

    config = SampleConfig(4, 3.0, sway=0.0, method=method, guided=(0.25, 0.75))
    result = sample(model, x0, cond, config)
    assert all(count == (4 if 0.25 <= t < 0.75 else 2) for t, count in rows)
    assert result.passes == 6 * evaluations == sum(count for _, count in rows) // 2
    assert torch.allclose(result.latents, torch.full_like(x0, 2 + 0.5 * 3.0))


def test_guidance_at_all_times_is_the_default():
    x0, cond = randn(2, 6, 4), Conditions(text=randn(2, 1, 1))
    plain = sample(text_adds_one, x0, cond, SampleConfig(8, 2.0))
    spelt = sample(
        text_adds_one, x0, cond, SampleConfig(8, 2.0, guided=(0.0, 1.0), rescale=0.0, window_s=None)
    )
    assert torch.equal(plain.latents, spelt.latents)
    assert plain.passes == spelt.passes == 16


@pytest.mark.parametrize("rescale", [0.25, 1.0])
def test_rescaling_is_that_of_its_paper(rescale):
    "The formula of arXiv 2305.08891, clip by clip, in numpy."
    guided, conditional = 3 * randn(3, 7, 5) + 1, randn(3, 7, 5, name="conditional")
    made = rescale_guidance(guided, conditional, rescale)
    for ours, strong, plain in zip(made.numpy(), guided.numpy(), conditional.numpy(), strict=True):
        expected = rescale * strong * plain.std() / strong.std() + (1 - rescale) * strong
        assert ours == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_a_constant_velocity_is_not_rescaled():
    flat = torch.full((2, 3, 4), 2.0)
    assert torch.equal(rescale_guidance(flat, randn(2, 3, 4), 1.0), flat)


def test_temperature_scales_the_start():
    noise = randn(2, 5, 4)
    assert torch.equal(start_noise(noise, SampleConfig()), noise)
    assert torch.equal(start_noise(noise, SampleConfig(temperature=0.5)), 0.5 * noise)
    assert start_noise(noise, SampleConfig(temperature=0)).abs().max() == 0


def test_options_of_a_parameter_file():
    given = {
        "guided": [0.2, 0.8],
        "rescale": 0.7,
        "window_s": 2,
        "overlap_s": 0.5,
        "temperature": 0,
        "apg": {"parallel": 0.5},
    }
    config = from_dict(SampleConfig, given, "evaluate.sample")
    assert config == SampleConfig(
        apg=APGConfig(0.5),
        guided=(0.2, 0.8),
        rescale=0.7,
        window_s=2.0,
        overlap_s=0.5,
        temperature=0.0,
    )
    for wrong in ({"guided": [0.2]}, {"guided": 0.2}, {"apg": {"paralel": 1}}, {"window_s": "2 s"}):
        with pytest.raises(ParamsError, match=f"evaluate.sample.{next(iter(wrong))}"):
            from_dict(SampleConfig, wrong, "evaluate.sample")


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"guided": (0.5, 0.5)}, "low < high"),
        ({"guided": (-0.1, 1.0)}, "low < high"),
        ({"guided": (0.0, math.nan)}, "low < high"),
        ({"rescale": 1.1}, "rescale is 1.1"),
        ({"rescale": math.nan}, "rescale is nan"),
        ({"window_s": 0.0}, "at least one latent"),
        ({"window_s": -2.0}, "at least one latent"),
        ({"window_s": 0.001, "overlap_s": 0.0}, "at least one latent"),
        ({"window_s": math.inf}, "at least one latent"),
        ({"window_s": 1.0}, "would not advance"),
        ({"window_s": 1.0, "overlap_s": 0.999}, "would not advance"),
        ({"overlap_s": -0.5}, "overlap_s is -0.5"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": math.inf}, "temperature is inf"),
    ],
)
def test_options_out_of_range(wrong, message):
    with pytest.raises(BadInput, match=message):
        SampleConfig(**wrong)


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
