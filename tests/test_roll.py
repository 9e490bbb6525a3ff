"Roll predictors: the paper's sizes, losses by hand, windows, weights and refusals."

import numpy as np
import pytest
import torch

from cop_repro.core import AssetMismatch, BadInput, ParamsError, torch_rng
from cop_repro.data.notes import make_notes, notes_to_roll
from cop_repro.model.roll import (
    RollConfig,
    RollLogits,
    RollTarget,
    augment_strips,
    build_roll,
    five_frames,
    load_roll,
    logits_to_roll,
    onset_logits,
    paper_roll_config,
    predict_logits,
    predict_roll,
    roll_loss,
    save_roll,
    soft_roll,
    stack_rolls,
)

SMALL = RollConfig(width=4, height=16, strip_width=208)
TINY = RollConfig("video2roll", 4, 50, 225, True, False)


def noise(cfg, rows=20, batch=1):
    return torch.randint(
        0,
        256,
        (batch, rows, cfg.height, cfg.strip_width),
        dtype=torch.uint8,
        generator=torch_rng(0, "test"),
    )


@pytest.mark.parametrize("keys, count", [(51, 12_713_651), (88, 12_718_424)])
def test_paper_parameter_counts(keys, count):
    with torch.device("meta"):
        model = build_roll(paper_roll_config(keys))
    assert sum(p.numel() for p in model.parameters()) == count
    assert [
        tuple(s.shape[1:]) for s in model.trunk(torch.zeros(1, 5, 100, 900, device="meta"))
    ] == [(64, 25, 225), (128, 13, 113), (256, 7, 57), (512, 4, 29)]


def test_transforms_meet_at_one_size_in_the_paper():
    with torch.device("meta"):
        model = build_roll(paper_roll_config())
    _, s2, s3, s4 = model.trunk(torch.zeros(1, 5, 100, 900, device="meta"))
    assert {
        tuple(x.shape[1:])
        for x in (model.transform2(s2), model.transform3(s3), model.transform4(s4))
    } == {(128, 4, 29)}


@pytest.mark.parametrize("cfg", [SMALL, TINY])
def test_networks_give_rolls_of_the_input_length(cfg):
    roll = predict_roll(build_roll(cfg), noise(cfg, 7)[0].numpy())
    assert (
        roll.presence.shape == (7, 88)
        and roll.pedal.shape == (7,)
        and np.isfinite(roll.onset).all()
    )


def test_51_keys_are_pitches_36_to_86():
    model = build_roll(RollConfig("video2roll", 4, 50, 225, False, False, 15, 51)).eval()
    with torch.no_grad():
        presence = soft_roll(model(noise(model.cfg, 3)))
    assert (
        (presence[..., :15] < 1e-3).all()
        and (presence[..., 66:] < 1e-3).all()
        and (presence[..., 15:66] > 1e-3).all()
    )
    with pytest.raises(BadInput, match="velocity"):
        soft_roll(model(noise(model.cfg, 3)), velocity=True)


def test_key_roll_sees_nine_rows_to_either_side():
    model = build_roll(RollConfig(width=4, height=16, strip_width=208, pedal=False)).eval()
    with torch.no_grad():
        x = torch.rand(1, 16, 40, 88, generator=torch_rng(1, "t"))
        y = x.clone()
        y[:, :, 20] += 1
        moved = (model.blocks(x) - model.blocks(y)).abs().amax((0, 1, 3)) > 0
    assert moved.nonzero()[[0, -1], 0].tolist() == [12, 28], (
        "8 rows; the differences between frames add one"
    )


def test_windows_agree_with_one_pass():
    class Echo(torch.nn.Module):
        "Presence = mean grey of the row's frame: must come back in order whatever the window."

        def __init__(self):
            super().__init__()
            self.cfg = SMALL
            self.p = torch.nn.Parameter(torch.zeros(1))

        def forward(self, s, background):
            x = s.float().mean((2, 3))[..., None].expand(-1, -1, 88)
            return RollLogits(x, x)

    strips = noise(SMALL, 150)[0].numpy()
    once, pieces = (predict_logits(Echo(), strips, w).presence for w in (200, 40))
    assert torch.equal(once, pieces) and once.shape == (1, 150, 88)


def test_joint_loss_by_hand():
    target = RollTarget(
        torch.tensor([[[1.0] + [0.0] * 87]]),
        torch.zeros(1, 1, 88),
        torch.zeros(1, 1, 88),
        torch.zeros(1, 1),
    )
    logits = RollLogits(torch.zeros(1, 1, 88), torch.zeros(1, 1, 88))
    assert np.isclose(
        roll_loss(logits, target, "joint")["loss"], (0.9 * 0.25 + 87 * 0.1 * 0.25) / 88
    )
    assert np.isclose(roll_loss(logits, target, "mse")["loss"], 0.25)


def test_masked_rows_do_not_count():
    torch.manual_seed(0)
    rolls = stack_rolls([notes_to_roll(make_notes([60], [0.2], [0.6], [80]), 1.0)])
    logits = RollLogits(
        torch.randn(1, 25, 88), torch.randn(1, 25, 88), torch.randn(1, 25, 88), torch.randn(1, 25)
    )
    mask = torch.arange(25)[None] < 10
    other = RollLogits(
        *(
            torch.where(mask.view(1, 25, *[1] * (x.ndim - 2)), x, torch.full_like(x, 5.0))
            for x in logits
        )
    )
    for kind in ("bce", "mse", "joint"):
        assert torch.isclose(
            roll_loss(logits, rolls, kind, mask)["loss"],
            roll_loss(other, rolls, kind, mask)["loss"],
        )


def test_soft_notes_keep_their_presence():
    roll = notes_to_roll(make_notes([60], [0.2], [0.8], [20]), 1.0)
    as_logits = lambda x: torch.logit(torch.from_numpy(x)[None].clamp(1e-4, 1 - 1e-4))
    read = logits_to_roll(
        RollLogits(
            as_logits(roll.presence),
            as_logits(roll.onset),
            as_logits(roll.velocity),
            as_logits(roll.pedal),
        )
    )
    assert (
        np.array_equal(read.presence > 0.5, roll.presence > 0.5)
        and np.abs(read.velocity - roll.velocity).max() < 1e-3
    )


def test_onset_of_a_constant_is_its_first_row():
    onset = onset_logits(torch.full((1, 5, 88), 8.0)).sigmoid()[0, :, 0]
    assert (
        onset[0] > 0.99
        and (onset[1:] < 0.01).all()
        and torch.isfinite(onset_logits(torch.full((1, 5, 88), 80.0))).all()
    )


def test_five_frames_are_centred():
    stack = five_frames(torch.arange(6.0).view(1, 6, 1, 1))[0, :, :, 0, 0]
    assert stack[:, 2].tolist() == list(range(6)) and stack[3].tolist() == [1, 2, 3, 4, 5]


def test_augmentation_is_repeatable_and_keeps_columns_in_order():
    ramp = torch.arange(208, dtype=torch.uint8).expand(1, 2, 16, 208).contiguous()
    a, b = (augment_strips(ramp, torch_rng(3, "a")) for _ in range(2))
    assert torch.equal(a, b) and (a.int().diff(dim=-1) >= 0).all() and not torch.equal(a, ramp)


def test_weights_round_trip_and_mismatch(tmp_path):
    model = build_roll(SMALL).eval()
    save_roll(tmp_path / "r.safetensors", model, {"split": "x"})
    again, meta = load_roll(tmp_path / "r.safetensors", SMALL)
    with torch.no_grad():
        assert (
            torch.equal(model(noise(SMALL)).presence, again(noise(SMALL)).presence)
            and meta["split"] == "x"
        )
    with pytest.raises(AssetMismatch, match="width: stored 4, wanted 8"):
        load_roll(tmp_path / "r.safetensors", RollConfig(width=8, height=16, strip_width=208))
    with pytest.raises(BadInput):
        load_roll(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    "wrong",
    [
        dict(num_keys=51),
        dict(height=40),
        dict(kind="video2roll", first_key=60, num_keys=51),
        dict(width=0),
        dict(strip_width=209),
    ],
)
def test_impossible_configurations(wrong):
    with pytest.raises(ParamsError):
        RollConfig(**wrong)


@pytest.mark.parametrize(
    "strips",
    [
        torch.zeros(1, 3, 16, 208),
        torch.zeros(3, 16, 208, dtype=torch.uint8),
        torch.zeros(1, 3, 16, 210, dtype=torch.uint8),
    ],
)
def test_wrong_strips(strips):
    with pytest.raises(BadInput, match="uint8"):
        build_roll(SMALL)(strips)


def test_default_costs():
    model = build_roll(RollConfig())
    assert sum(p.numel() * 4 for p in model.parameters()) < 4e6
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(noise(RollConfig(), 10))
    assert counter.get_total_flops() / 2 / 10 < 40e6, "multiply-adds per frame"
