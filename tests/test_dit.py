# SPDX-License-Identifier: Apache-2.0
"Multi-stream DiT: exact sizes, exact dropping, carry-over, clamp, checkpointing, shapes."

from dataclasses import replace

import jaxtyping
import pytest
import torch
from shapes import checked_raises

from cop_repro.core import BadInput, ParamsError, save_weights, torch_rng
from cop_repro.model.dit import (
    DiTConfig,
    MultiStreamDiT,
    StreamConfig,
    attend,
    carry_over,
    count_parameters,
    load_dit,
    paper_config,
    save_dit,
)
from cop_repro.model.flow import (
    APGConfig,
    Conditions,
    DropoutConfig,
    SampleConfig,
    drop_conditions,
    fm_loss,
    sample,
)

TINY = DiTConfig(
    depth=2,
    audio=StreamConfig(32, 2, 16),
    video=StreamConfig(24, 2, 8),
    roll=StreamConfig(16, 1, 16),
    latent_channels=6,
    text_width=10,
    video_features=12,
    roll_keys=9,
    num_registers=3,
    max_positions=40,
    time_frequencies=8,
)


def stir(model):
    rng = torch_rng(1, "stir")
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=rng), alpha=0.1)
    return model.eval()


@pytest.fixture
def batch():
    rng = torch_rng(0, "batch")

    def randn(*shape):
        return torch.randn(*shape, generator=rng)

    return (
        randn(2, 20, 6),
        torch.rand(2, generator=rng),
        Conditions(
            randn(2, 4, 10), video=randn(2, 20, 12), roll=torch.rand(2, 20, 9, generator=rng)
        ),
    )


@pytest.mark.parametrize(
    "options, total",
    [
        ({"video": False}, 350_409_216),
        ({}, 710_952_640),
        ({"roll": True}, 789_296_595 - 12_713_651),
        ({"roll": True, "roll_keys": 88}, 789_320_312 - 12_718_424),
    ],
)
def test_paper_sizes(options, total):
    with torch.device("meta"):
        model = MultiStreamDiT(paper_config(**options))
    assert count_parameters(model)["total"] == total == sum(p.numel() for p in model.parameters())


def test_paper_parts():
    with torch.device("meta"):
        piano = count_parameters(MultiStreamDiT(paper_config(roll=True)))
    with torch.device("meta"):
        base = count_parameters(MultiStreamDiT(paper_config()))
    assert base == {
        "audio": 350_409_216,
        "video": 299_791_552,
        "roll": 0,
        "roll projection": 0,
        "fusion": 60_751_872,
        "total": 710_952_640,
    }
    assert (piano["roll"], piano["roll projection"], piano["fusion"]) == (
        50_661_472,
        26_624,
        75_694_080,
    )


def test_fresh_streams_are_inaudible(batch):
    xt, t, cond = batch
    model = MultiStreamDiT(TINY).eval()  # fusion is zero: video and roll have no influence yet
    assert torch.equal(model(xt, t, cond), model(xt, t, Conditions(cond.text)))


def test_carry_over_keeps_learnt_fusion(batch):
    xt, t, cond = batch
    base = stir(MultiStreamDiT(replace(TINY, roll=None)))
    piano = carry_over(base, MultiStreamDiT(TINY, seed=5)).eval()
    assert (piano(xt, t, cond) - base(xt, t, replace(cond, roll=None))).abs().max() < 1e-5
    old, new = (
        base.layers[0].fusion.maps["audio"].weight,
        piano.layers[0].fusion.maps["audio"].weight,
    )
    assert (
        torch.equal(new[:, :56], old)
        and not new[:, 56:].any()
        and not piano.layers[0].fusion.maps["roll"].weight.any()
    )


@pytest.mark.parametrize("change", [{"depth": 4}, {"text_width": 11}, {"num_registers": 2}])
def test_carry_over_refuses_other_sizes(change):
    with pytest.raises(BadInput):
        carry_over(MultiStreamDiT(replace(TINY, roll=None, **change)), MultiStreamDiT(TINY))


@pytest.mark.parametrize("name", ["text", "video", "roll"])
def test_dropped_is_absent(batch, name):
    xt, t, cond = batch
    model = stir(MultiStreamDiT(TINY))
    poisoned = (
        replace(cond, **{name: torch.full_like(getattr(cond, name), torch.nan)}).drop(
            **{name: True}
        )
        if name != "text"
        else cond.drop(text=True)
    )
    assert torch.allclose(
        model(xt, t, poisoned), model(xt, t, replace(cond, **{name: None})), atol=1e-6
    )


def test_roll_stream_lives_without_a_piano(batch):
    xt, t, cond = batch
    model = stir(MultiStreamDiT(TINY))
    before = model(xt, t, cond.drop(roll=True))
    with torch.no_grad():
        model.roll_input.bias += 1
    assert (model(xt, t, cond.drop(roll=True)) - before).abs().max() > 1e-3


def test_order_one_layer_by_hand(batch):
    "A one-layer network equals its parts, called in the documented order."
    xt, t, cond = batch
    model = stir(MultiStreamDiT(replace(TINY, depth=1)))
    layer, streams = model.layers[0], model._streams(xt, cond)
    from cop_repro.model.dit import _text, rotary_table

    tables = {name: rotary_table(23, getattr(TINY, name).head_width) for name in streams}
    sides = {name: getattr(layer, name)(streams[name], tables[name]) for name in ("video", "roll")}
    everything = torch.cat([streams["audio"], sides["video"], sides["roll"]], -1)
    audio = streams["audio"] + everything @ layer.fusion.maps["audio"].weight.T
    audio = layer.audio(audio, model.audio_time(t), tables["audio"], _text(cond, xt.dtype))
    v, features = model(xt, t, cond, features=True)
    assert torch.allclose(v, model.audio_output(model.audio_norm(audio[:, 3:])), atol=1e-6)
    assert torch.allclose(features.audio, audio[:, 3:], atol=1e-6) and torch.equal(
        features.video, sides["video"][:, 3:]
    )


def test_soft_clamp_by_hand():
    q, k, v = torch.randn(3, 1, 1, 5, 8, generator=torch_rng(0, "qkv")).mul(20)
    logits = 50 * torch.tanh((q @ k.transpose(-1, -2)) / 8**0.5 / 50)
    assert torch.allclose(attend(q, k, v, soft_clamp=50.0), logits.softmax(-1) @ v, atol=1e-4)
    assert (
        attend(q, k, v, torch.tensor([[True, False, False, False, False]]), soft_clamp=50.0)
        .isfinite()
        .all()
    )


def test_checkpointing_changes_no_gradient(batch):
    xt, t, cond = batch

    def gradients(config):
        torch.manual_seed(0)  # dropout
        model = stir(MultiStreamDiT(config)).train()
        fm_loss(model, xt, cond, torch.zeros_like(xt), t).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    config = replace(TINY, dropout=0.2, attention_dropout=0.2)
    assert torch.allclose(
        gradients(config), gradients(replace(config, checkpointing=True)), atol=1e-6
    )
    assert not torch.allclose(gradients(config), gradients(TINY), atol=1e-4)


def test_autocast_and_half_features(batch):
    xt, t, cond = batch
    model = stir(MultiStreamDiT(TINY))
    exact = model(xt, t, cond)
    assert torch.allclose(model(xt, t, cond.map(lambda v: v.half())), exact, atol=0.02)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(xt, t, cond)
    assert (rough - exact).norm() / exact.norm() < 0.05


def test_global_generator_is_untouched():
    before = torch.get_rng_state()
    a, b, c = MultiStreamDiT(TINY, 1), MultiStreamDiT(TINY, 1), MultiStreamDiT(TINY, 2)
    assert torch.equal(before, torch.get_rng_state())
    assert all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values())
    ) and not torch.equal(a.audio_input.weight, c.audio_input.weight)


def test_file_round_trip(tmp_path, batch):
    model = stir(MultiStreamDiT(TINY))
    save_dit(tmp_path / "m.safetensors", model, {"split": "abc"})
    again, meta = load_dit(tmp_path / "m.safetensors")
    assert (
        again.config == TINY
        and meta["split"] == "abc"
        and torch.equal(again(*batch), model(*batch))
    )
    assert all(p.requires_grad for p in again.parameters())
    save_weights(tmp_path / "other.safetensors", {"a": torch.zeros(1)}, {})
    with pytest.raises(BadInput, match="no sizes"):
        load_dit(tmp_path / "other.safetensors")
    save_weights(tmp_path / "torn.safetensors", {"a": torch.zeros(1)}, meta)
    with pytest.raises(BadInput, match="description"):
        load_dit(tmp_path / "torn.safetensors")


def test_bad_input(batch):
    xt, t, cond = batch
    model = MultiStreamDiT(TINY)
    for wrong in [
        (xt[..., :5], t, cond),
        (xt, t[:1], cond),
        (torch.zeros(1, 41, 6), t[:1], Conditions()),
        (xt, t, cond[:1]),
        (xt, t, Conditions(torch.zeros(2, 1, 11))),
        (xt, t, Conditions(video=torch.zeros(2, 7, 12))),
        (xt, t, Conditions(roll=torch.zeros(2, 20, 88))),
    ]:
        with pytest.raises(BadInput):
            model(*wrong)
    with pytest.raises(BadInput, match="without a roll stream"):
        MultiStreamDiT(replace(TINY, roll=None))(xt, t, cond)
    for make in (
        lambda: StreamConfig(8, 1, 7),
        lambda: replace(TINY, depth=0),
        lambda: replace(TINY, conv_kernel=30),
    ):
        with pytest.raises(ParamsError):
            make()


def test_declared_shapes_are_checked(batch):
    "conftest checks every annotated array: sampling with all streams passes, other shapes do not."
    xt, t, cond = batch
    model = MultiStreamDiT(TINY)
    dropped = drop_conditions(cond, DropoutConfig(), torch_rng(0, "drop"))
    mask = torch.ones(2, 20, dtype=torch.bool)
    loss = fm_loss(model, xt, dropped, torch.zeros_like(xt), t, mask, per_example=True)
    loss.sum().backward()
    apg = APGConfig(0.0, 1.0)
    sample(model.eval(), xt, cond, SampleConfig(2, 2.0, 1.0, method="midpoint", apg=apg))
    with checked_raises(jaxtyping.TypeCheckError, match="parameter 't'"):
        model(xt, t[:, None], cond)


def test_guided_sampling_equals_single_passes(batch):
    xt, t, cond = batch
    model = stir(MultiStreamDiT(TINY))
    x, w, w_r = xt, 1.5, 0.5
    with torch.no_grad():

        def v(c):
            return model(x, torch.zeros(2), c)

        full, no_c, none = (
            v(cond),
            v(cond.drop(text=True, video=True)),
            v(cond.drop(True, True, True)),
        )
        by_hand = x + full + w * (full - no_c) + w_r * (no_c - none)
    assert torch.allclose(
        sample(model, x, cond, SampleConfig(1, w, w_r)).latents, by_hand, atol=1e-5
    )


def test_paper_layers():
    "Every part of a layer at the published sizes, on the meta device."
    with torch.device("meta"):
        model = MultiStreamDiT(paper_config(roll=True))
    size = lambda *modules: sum(p.numel() for m in modules for p in m.parameters())
    audio, video, roll = (getattr(model.layers[0], n) for n in ("audio", "video", "roll"))
    assert (size(audio.conv), size(audio.ff)) == (32_768, 12_592_128)
    assert [size(m) for m in (audio.attention, audio.cross)] == [4_210_704] * 2
    assert [size(m) for m in audio.norms] == [1_048_576] * 3 and [size(m) for m in audio.gates] == [
        1_049_600
    ] * 3
    assert (size(audio), size(video), size(roll)) == (27_340_832, 24_979_216, 4_220_424)
    assert {size(layer.audio) for layer in model.layers} == {27_340_832}
    assert size(*(layer.skip for layer in model.layers[6:])) == 12_582_912
