# SPDX-License-Identifier: Apache-2.0
"Stage 2: conditions of the DiT, where gradients go, aligned windows, variants, files."

import numpy as np
import pytest
import torch

from cop_repro.core import (
    AssetMismatch,
    BadInput,
    ParamsError,
    from_dict,
    numpy_rng,
    save_weights,
    torch_rng,
)
from cop_repro.model.cop_piano import grow_piano, load_piano, save_piano
from cop_repro.model.dit import DiTConfig, MultiStreamDiT, StreamConfig
from cop_repro.model.flow import Conditions, DropoutConfig
from cop_repro.model.roll import RollConfig, build_roll, mean_background, roll_loss
from cop_repro.training.features import aligned_starts, general_batch, store_rolls
from cop_repro.training.guidance import (
    CoPPiano,
    GuidanceConfig,
    batch_roll,
    guidance_loss,
    guidance_step,
    piano_batch,
)
from cop_repro.training.loop import TrainConfig, train

SIZES = DiTConfig(
    2,
    StreamConfig(16, 1, 16),
    StreamConfig(8, 1, 8),
    latent_channels=4,
    text_width=6,
    video_features=5,
    num_registers=2,
    max_positions=48,
    time_frequencies=4,
)
KEEP_ALL = DropoutConfig(0, 0, 0, 0, 0)


def predictor(velocity=True):
    torch.manual_seed(0)
    return build_roll(RollConfig(width=2, height=16, strip_width=104, velocity=velocity))


def piano(velocity=True, stir=True):
    model = grow_piano(MultiStreamDiT(SIZES), predictor(), StreamConfig(16, 1, 16), velocity)
    with torch.no_grad():
        for i, p in enumerate(model.dit.parameters() if stir else ()):
            p.add_(torch.randn(p.shape, generator=torch_rng(0, "stir", i)), alpha=0.1)
    return model.train()


def toy(clips=8, f=8):
    rng = numpy_rng(0, "store")
    held = np.repeat(rng.random((clips, f, 11)) < 0.4, 8, 2).astype(np.float16)
    return {
        "latents": rng.standard_normal((clips, 3 * f, 4)).astype(np.float16),
        "text": np.ones((clips, 2, 6), np.float16),
        "text_mask": np.ones((clips, 2), bool),
        "video": rng.standard_normal((clips, f, 5)).astype(np.float16),
        "strips": rng.integers(0, 255, (clips, f, 16, 104), np.uint8),
        "presence": held,
        "onset": held,
        "velocity": (held * 0.5).astype(np.float16),
        "pedal": np.zeros((clips, f), np.float16),
        "soft_presence": held,
        "soft_velocity": (held * 0.5).astype(np.float16),
    }


def batch(**k):
    return piano_batch(toy(), range(5), torch_rng(0, "batch"), 12, **k)


def test_new_stream_is_silent_at_first_and_learns():
    base = MultiStreamDiT(SIZES)
    model = grow_piano(base, predictor(), StreamConfig(16, 1, 16)).eval()
    b = batch()
    t = torch.rand(5, generator=torch_rng(0, "t"))
    cond = model.with_roll(b.cond, model.soft_roll(b.strips, b.background), 12)
    assert torch.allclose(model(b.x1, t, cond), base.eval()(b.x1, t, b.cond), atol=1e-5)
    model(b.x1, t, cond).square().mean().backward()
    assert any(
        p.grad is not None and p.grad.abs().sum() > 0
        for n, p in model.dit.named_parameters()
        if "fusion" in n
    )


@pytest.mark.parametrize(
    "latents, frames, grid", [(750, 250, 3), (750, 300, 5), (750, 240, 25), (750, 750, 1)]
)
def test_windows_begin_with_a_frame(latents, frames, grid):
    starts = aligned_starts(latents, frames, 150, 500, torch_rng(0, "starts"))
    assert {s % grid for s in starts} == {0}
    assert min(starts) >= 0
    assert max(starts) <= latents - 150
    assert len(set(starts)) > 10
    if grid > 1:
        with pytest.raises(BadInput, match=f"multiple of {grid}"):
            aligned_starts(latents, frames, 151, 1, torch_rng(0, "starts"))


def test_windows_are_the_same_time_in_every_column():
    store, f = toy(), np.arange(8)
    store["presence"] = np.broadcast_to(f[None, :, None], (8, 8, 88)).astype(np.float16)
    store["latents"] = np.broadcast_to((np.arange(24) // 3)[None, :, None], (8, 24, 4)).astype(
        np.float16
    )
    store["video"] = np.broadcast_to(f[None, :, None], (8, 8, 5)).astype(np.float16)
    store["strips"] = np.broadcast_to(f[None, :, None, None], (8, 8, 16, 104)).astype(np.uint8)
    b = piano_batch(store, range(8), torch_rng(3, "batch"), 12)
    assert torch.equal(b.x1[:, ::3, 0], b.target.presence[..., 0])
    assert torch.equal(b.strips[..., 0, 0].float(), b.target.presence[..., 0])
    assert torch.equal(b.cond.video[..., 0], b.x1[..., 0])
    assert len(b.x1[:, 0, 0].unique()) > 1


def test_backgrounds_are_those_of_the_whole_clips():
    store = toy()
    b = piano_batch(store, range(5), torch_rng(0, "batch"), 12, num_strips=3)
    assert len(b.strips) == len(b.background) == 3
    for row in range(3):
        assert torch.equal(b.background[row], mean_background(store["strips"][row]))
    bare = piano_batch(store, range(5), torch_rng(0, "batch"), 12, num_strips=0)
    assert bare.strips is None
    assert bare.background is None


@pytest.mark.parametrize(
    "joint, source, reached",
    [
        (5, "predicted", True),
        (2, "predicted", True),
        (0, "predicted", False),
        (0, "cached", False),
        (2, "cached", True),
    ],
)
def test_where_the_gradient_goes(joint, source, reached):
    model = piano()
    loss, logs = guidance_loss(
        model,
        batch(cached="soft_velocity"),
        torch_rng(0, "loss"),
        GuidanceConfig(roll_source=source, lambda_roll=0.0, heads_weight=0.0),
        joint,
    )
    loss.backward()
    grads = [p.grad for p in model.predictor.parameters()]
    assert any(g is not None and g.abs().sum() > 0 for g in grads) == reached
    assert ("roll" in logs) == bool(joint)
    assert loss.item() == pytest.approx(logs["fm_piano"].item(), abs=1e-6)


def test_loss_is_the_sum_of_its_parts():
    model, b = piano(), batch()
    cfg = GuidanceConfig(lambda_roll=7.0, heads_weight=2.0)
    loss, logs = guidance_loss(model, b, torch_rng(0, "loss"), cfg)
    total = logs["fm_piano"] + 7 * logs["roll"] + 2 * logs["heads"]
    assert loss.item() == pytest.approx(total.item(), rel=1e-5)
    model.eval()
    roll = roll_loss(model.predictor(b.strips, b.background), b.target, "joint")["loss"]
    assert logs["roll"].item() == pytest.approx(roll.item(), rel=1e-5)
    bare, logs = guidance_loss(model.train(), b, torch_rng(0, "loss"), GuidanceConfig("none"))
    assert bare.item() == pytest.approx(logs["fm_piano"].item(), abs=1e-6)


def test_presence_variant_does_not_depend_on_velocity():
    model, b = piano(velocity=False), batch()
    roll, losses = batch_roll(model, b, GuidanceConfig("presence"), 5)
    model.eval()
    presence = model.predictor(b.strips, b.background).presence.sigmoid()
    assert torch.allclose(roll, presence, atol=1e-6)
    true = b.target.presence
    weighted = (true - 0.1).abs() * (presence - true).square()
    assert losses["roll"].item() == pytest.approx(weighted.mean().item(), rel=1e-5)


def test_batch_statistics_move_only_from_scratch():
    def norms(model):
        buffers = model.predictor.named_buffers()
        return torch.cat([b.flatten().float() for name, b in buffers if "running" in name])

    for guidance, moves in (("velocity", False), ("none", True)):
        model = piano()
        before = norms(model).clone()
        guidance_loss(model, batch(), torch_rng(0, "loss"), GuidanceConfig(guidance))
        assert torch.equal(norms(model), before) != moves
        assert all(m.training for m in model.predictor.modules())


def test_general_clips_have_no_roll():
    model, b = piano().eval(), batch()
    general = general_batch(toy(), range(3), torch_rng(1, "general"), 12)
    seen = []
    model.dit.register_forward_pre_hook(lambda m, args: seen.append(args[2]))
    _, logs = guidance_loss(model, b, torch_rng(0, "loss"), GuidanceConfig(), 0, general, KEEP_ALL)
    assert seen[0].roll_keep.tolist() == [True] * 5 + [False] * 3
    assert seen[0].kept("roll")[5:].abs().sum() == 0
    assert "fm_general" in logs


def test_a_short_run_of_all_variants(tmp_path):
    store, plan = toy(), TrainConfig(3, 4, 1e-3)
    variants = (
        GuidanceConfig("none"),
        GuidanceConfig("presence", "cached", 2, 1),
        GuidanceConfig("velocity", "cached", 3, 2),
    )
    for i, cfg in enumerate(variants):
        model = piano(velocity=cfg.guidance != "presence")
        step_fn = guidance_step(model, store, range(8), plan, cfg, 12, [(toy(), range(4))], 2)
        result = train({"piano": model}, step_fn, plan, tmp_path / str(i))
        assert np.isfinite(result.losses).all()
        joint_steps = [step % cfg.joint_every == 0 for step in range(3)]
        assert (~np.isnan(result.logs["roll"])).tolist() == joint_steps
    with pytest.raises(ParamsError, match="velocity=True"):
        guidance_step(piano(), store, range(8), plan, GuidanceConfig("presence"))
    with pytest.raises(ParamsError, match="general store"):
        guidance_step(piano(), store, range(8), plan, general_items=2)


def test_stored_rolls_are_those_of_the_predictor():
    model, strips = piano().eval(), toy()["strips"][0]
    rolls = store_rolls(model.predictor, strips)
    assert rolls["soft_velocity"].dtype == np.float16
    background = mean_background(strips)[None]
    direct = model.soft_roll(torch.from_numpy(strips)[None], background)[0].detach().numpy()
    assert np.allclose(rolls["soft_velocity"], direct, atol=1e-3)
    assert set(store_rolls(predictor(False), strips)) == {"soft_presence"}


def test_files(tmp_path):
    model, b = piano().eval(), batch()
    save_piano(tmp_path / "p.safetensors", model, {"split_hash": "abc"})
    again, meta = load_piano(tmp_path / "p.safetensors")
    t = torch.full((5,), 0.3)
    with torch.no_grad():
        outputs = []
        for m in (model, again):
            cond = m.with_roll(b.cond, m.soft_roll(b.strips, b.background), 12)
            outputs.append(m(b.x1, t, cond))
    assert torch.equal(*outputs)
    assert meta["split_hash"] == "abc"
    assert not again.training
    save_weights(tmp_path / "other.safetensors", {"a": torch.ones(1)}, {"asset": "roll"})
    with pytest.raises(AssetMismatch, match="'roll'"):
        load_piano(tmp_path / "other.safetensors")


def test_bad_input():
    with pytest.raises(BadInput, match="no roll stream"):
        CoPPiano(MultiStreamDiT(SIZES), predictor())
    with pytest.raises(ParamsError, match="velocity=False"):
        grow_piano(MultiStreamDiT(SIZES), predictor(False), StreamConfig(16, 1, 16))
    with pytest.raises(BadInput, match="no column 'soft_x'"):
        batch(cached="soft_x")
    for wrong in (
        {"guidance": "none", "roll_source": "cached"},
        {"joint_every": 0},
        {"joint_items": 0},
        {"lambda_roll": -1.0},
        {"guidance": "midi"},
    ):
        with pytest.raises(ParamsError):
            from_dict(GuidanceConfig, wrong)
    assert Conditions().batch is None
