# SPDX-License-Identifier: Apache-2.0
"Roll predictors: the paper's sizes, losses by hand, windows, weights and refusals."

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cop_repro.core import AssetMismatch, BadInput, ParamsError, torch_rng
from cop_repro.data.notes import make_notes, notes_to_roll
from cop_repro.data.rendering import render_strip
from cop_repro.data.video import probe_video, write_video
from cop_repro.model.cop_piano import grow_piano
from cop_repro.model.dit import DiTConfig, MultiStreamDiT, StreamConfig
from cop_repro.model.roll import (
    CONTEXT,
    RollConfig,
    RollLogits,
    RollTarget,
    Touch,
    augment_strips,
    build_roll,
    five_frames,
    load_roll,
    logits_to_roll,
    mean_background,
    onset_logits,
    paper_roll_config,
    predict_logits,
    predict_roll,
    read_roll,
    roll_loss,
    save_roll,
    soft_roll,
    stack_rolls,
)
from cop_repro.systems.cop import (
    Performer,
    WindowConfig,
    strip_windows,
    video_background,
    video_pieces,
)
from cop_repro.training.features import piano_batch, store_rolls

SMALL = RollConfig(width=4, height=16, strip_width=208)
TINY = RollConfig("video2roll", 4, 50, 225, True, False)


def noise(cfg, rows=20, batch=1):
    shape, rng = (batch, rows, cfg.height, cfg.strip_width), torch_rng(0, "test")
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=rng)


def background(strips):
    "The mean of all frames, one picture for each clip."
    return strips.float().mean(1)


def logits_of(model, strips):
    "Logits in evaluation mode, given the strips' own background."
    with torch.no_grad():
        return read_roll(model.eval(), strips, background(strips))


@pytest.mark.parametrize("keys, count", [(51, 12_713_651), (88, 12_718_424)])
def test_paper_parameter_counts(keys, count):
    with torch.device("meta"):
        model = build_roll(paper_roll_config(keys))
    assert sum(p.numel() for p in model.parameters()) == count
    stages = model.trunk(torch.zeros(1, 5, 100, 900, device="meta"))
    sizes = [tuple(stage.shape[1:]) for stage in stages]
    assert sizes == [(64, 25, 225), (128, 13, 113), (256, 7, 57), (512, 4, 29)]


def test_transforms_meet_at_one_size_in_the_paper():
    with torch.device("meta"):
        model = build_roll(paper_roll_config())
    _, s2, s3, s4 = model.trunk(torch.zeros(1, 5, 100, 900, device="meta"))
    for transformed in (model.transform2(s2), model.transform3(s3), model.transform4(s4)):
        assert tuple(transformed.shape[1:]) == (128, 4, 29)


@pytest.mark.parametrize("cfg", [SMALL, TINY])
def test_rolls_have_the_length_of_the_input(cfg):
    roll = predict_roll(build_roll(cfg), noise(cfg, 7)[0].numpy())
    assert roll.presence.shape == (7, 88)
    assert roll.pedal.shape == (7,)
    assert np.isfinite(roll.onset).all()


def test_51_keys_are_pitches_36_to_86():
    model = build_roll(RollConfig("video2roll", 4, 50, 225, False, False, 15, 51))
    logits = logits_of(model, noise(model.cfg, 3))
    presence = soft_roll(logits)
    assert (presence[..., :15] < 1e-3).all()
    assert (presence[..., 66:] < 1e-3).all()
    assert (presence[..., 15:66] > 1e-3).all()
    with pytest.raises(BadInput, match="velocity"):
        soft_roll(logits, velocity=True)


def test_key_roll_has_a_receptive_field_of_nine_rows_to_either_side():
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
        "Presence is the mean grey value of the row's frame, in order for any window."

        def __init__(self):
            super().__init__()
            self.cfg = SMALL
            self.p = torch.nn.Parameter(torch.zeros(1))

        def forward(self, s, background):
            x = s.float().mean((2, 3))[..., None].expand(-1, -1, 88)
            return RollLogits(x, x)

    strips = noise(SMALL, 150)[0].numpy()
    once, pieces = (predict_logits(Echo(), strips, window=w).presence for w in (200, 40))
    assert torch.equal(once, pieces)
    assert once.shape == (1, 150, 88)


def test_joint_loss_by_hand():
    silent = torch.zeros(1, 1, 88)
    one_key = torch.tensor([[[1.0] + [0.0] * 87]])
    target = RollTarget(one_key, silent, silent, torch.zeros(1, 1))
    logits = RollLogits(silent, silent)
    by_hand = (0.9 * 0.25 + 87 * 0.1 * 0.25) / 88
    assert np.isclose(roll_loss(logits, target, "joint")["loss"], by_hand)
    assert np.isclose(roll_loss(logits, target, "mse")["loss"], 0.25)


def test_masked_rows_do_not_count():
    torch.manual_seed(0)
    rolls = stack_rolls([notes_to_roll(make_notes([60], [0.2], [0.6], [80]), 1.0)])
    logits = RollLogits(*(torch.randn(1, 25, 88) for _ in range(3)), torch.randn(1, 25))
    mask = torch.arange(25)[None] < 10
    changed = [x.clone() for x in logits]
    for x in changed:
        x[:, 10:] = 5.0
    for kind in ("bce", "mse", "joint"):
        expected = roll_loss(logits, rolls, kind, mask)["loss"]
        assert torch.isclose(roll_loss(RollLogits(*changed), rolls, kind, mask)["loss"], expected)


def test_soft_notes_keep_their_presence():
    roll = notes_to_roll(make_notes([60], [0.2], [0.8], [20]), 1.0)
    columns = (torch.from_numpy(getattr(roll, name))[None] for name in RollLogits._fields)
    again = logits_to_roll(RollLogits(*(torch.logit(x.clamp(1e-4, 1 - 1e-4)) for x in columns)))
    assert np.array_equal(again.presence > 0.5, roll.presence > 0.5)
    assert np.abs(again.velocity - roll.velocity).max() < 1e-3


def test_onset_of_a_constant_is_its_first_row():
    onset = onset_logits(torch.full((1, 5, 88), 8.0)).sigmoid()[0, :, 0]
    assert onset[0] > 0.99
    assert (onset[1:] < 0.01).all()
    assert torch.isfinite(onset_logits(torch.full((1, 5, 88), 80.0))).all()


def test_five_frames_are_centred():
    stack = five_frames(torch.arange(6.0).view(1, 6, 1, 1))[0, :, :, 0, 0]
    assert stack[:, 2].tolist() == list(range(6))
    assert stack[3].tolist() == [1, 2, 3, 4, 5]


def test_augmentation_is_repeatable_and_keeps_columns_in_order():
    ramp = torch.arange(208, dtype=torch.uint8).expand(1, 2, 16, 208).contiguous()
    a, b = (augment_strips(ramp, torch_rng(3, "a")) for _ in range(2))
    assert torch.equal(a, b)
    assert (a.int().diff(dim=-1) >= 0).all()
    assert not torch.equal(a, ramp)


def test_weights_round_trip_and_mismatch(tmp_path):
    model, strips = build_roll(SMALL), noise(SMALL)
    save_roll(tmp_path / "r.safetensors", model, {"split": "x"})
    again, meta = load_roll(tmp_path / "r.safetensors", SMALL)
    assert torch.equal(logits_of(model, strips).presence, logits_of(again, strips).presence)
    assert meta["split"] == "x"
    with pytest.raises(AssetMismatch, match="width: stored 4, wanted 8"):
        load_roll(tmp_path / "r.safetensors", RollConfig(width=8, height=16, strip_width=208))
    with pytest.raises(BadInput):
        load_roll(tmp_path / "none.safetensors")


@pytest.mark.parametrize("cfg", [SMALL, TINY], ids=["key_roll", "video2roll"])
def test_touch_changes_velocities_alone_and_leaves_gradients(cfg, tmp_path):
    plain, model = build_roll(cfg), build_roll(replace(cfg, touch=4))
    model.load_state_dict(model.state_dict() | plain.state_dict())
    strips = noise(cfg, 21)
    before, untrained = logits_of(plain, strips), logits_of(model, strips)
    assert torch.equal(before.velocity, untrained.velocity)
    torch.nn.init.ones_(model.touch.gains.bias)
    save_roll(tmp_path / "r.safetensors", model)
    after = logits_of(load_roll(tmp_path / "r.safetensors")[0], strips)
    assert not torch.equal(before.velocity, after.velocity)
    for name in ("presence", "onset", "pedal"):
        one, two = getattr(before, name), getattr(after, name)
        assert one is two is None or torch.equal(one, two), name
    gradients = []
    for predictor in (plain, model):
        read_roll(predictor, strips, background(strips)).velocity.sum().backward()
        gradients.append({n: p.grad for n, p in predictor.named_parameters()})
    for name, gradient in gradients[0].items():
        same = gradients[1][name]
        assert gradient is same is None or torch.allclose(gradient, same), name
    assert gradients[1]["touch.gains.weight"].abs().sum() > 0


def test_touch_hears_the_music_around_a_note():
    "A note seconds away matters; what a window does not hold cannot."
    torch.manual_seed(0)
    touch = Touch(8)
    torch.nn.init.normal_(touch.gains.weight)
    rows = [torch.full((1, 100, 88), -5.0), torch.full((1, 100, 88), -5.0)]
    logits = RollLogits(*rows, torch.zeros(1, 100, 88))
    changed = [x.clone() for x in rows]
    for x in changed:
        x[0, 80, 40] = 5.0
    other = touch(RollLogits(*changed, logits.velocity))
    assert not torch.equal(touch(logits)[0, 5], other[0, 5])
    assert touch(RollLogits(*(x[:, :1] for x in logits if x is not None))).shape == (1, 1, 88)


@pytest.mark.parametrize(
    "wrong",
    [
        dict(num_keys=51),
        dict(height=40),
        dict(kind="video2roll", first_key=60, num_keys=51),
        dict(width=0),
        dict(strip_width=209),
        dict(touch=-1),
        dict(touch=4, velocity=False),
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
        read_roll(build_roll(SMALL), strips, torch.zeros(1, 16, 208))


def test_a_background_of_other_videos_is_refused():
    strips = noise(SMALL, batch=2)
    for wrong in (background(strips)[:1], background(strips)[:, :8], background(strips)[0]):
        with pytest.raises(BadInput, match="does not belong"):
            read_roll(build_roll(SMALL), strips, wrong)


def test_short_windows_are_refused():
    strips = noise(SMALL)
    with pytest.raises(BadInput, match="context"):
        read_roll(build_roll(SMALL), strips, background(strips), window=2 * CONTEXT)


def test_default_costs():
    from torch.utils.flop_counter import FlopCounterMode

    model = build_roll(RollConfig())
    assert sum(p.numel() * 4 for p in model.parameters()) < 4e6
    with FlopCounterMode(display=False) as counter:
        logits_of(model, noise(RollConfig(), 10))
    assert counter.get_total_flops() / 2 / 10 < 40e6, "multiply-adds per frame"


@pytest.fixture(scope="module")
def strip():
    "A rendered strip of 4 s, 100 rows."
    pitches, onsets = 48 + 3 * np.arange(12), 0.3 * np.arange(12)
    notes = make_notes(pitches, onsets, onsets + 0.4, np.full(12, 80))
    return render_strip(notes, None, 4.0, height=SMALL.height, width=SMALL.strip_width)


@pytest.fixture(scope="module")
def piano(strip):
    "A stage-2 model whose predictor has random weights, and batch norms fitted to the strip."
    torch.manual_seed(0)
    predictor, strips = build_roll(SMALL), torch.from_numpy(strip)[None]
    with torch.no_grad():
        predictor.head.weight *= 10  # probabilities that vary
        for _ in range(40):
            read_roll(predictor, strips, mean_background(strip)[None])
    stream = StreamConfig(16, 1, 16)
    sizes = DiTConfig(1, stream, latent_channels=8, num_registers=1, time_frequencies=8)
    return grow_piano(MultiStreamDiT(sizes), predictor, stream).eval()


class Latents(Performer):
    "A performer without codec and encoders: its latents are the noise."

    def latents(self, strips, logits, text, noise):
        return noise[0]


def whole_clip(piano, strip, folder):
    batch, still = torch.from_numpy(strip)[None], mean_background(strip)[None]
    return slice(0, 100), soft_roll(read_roll(piano.predictor, batch, still), velocity=True)


def in_windows(piano, strip, folder):
    return slice(0, 100), soft_roll(predict_logits(piano.predictor, strip, window=40), True)


def stored(piano, strip, folder):
    roll = store_rolls(piano.predictor, strip)["soft_velocity"]
    return slice(0, 100), torch.from_numpy(roll).float()[None]


def training_window(piano, strip, folder):
    "The rows of a random window of 60 that have their context, with the whole clip's background."
    store = {name: np.zeros((1, 100, 88), np.float32) for name in RollTarget._fields[:3]}
    store["pedal"] = np.zeros((1, 100), np.float32)
    store["latents"], store["strips"] = np.zeros((1, 300, 8), np.float32), strip[None]
    batch = piano_batch(store, [0], torch_rng(0, "window"), crop_latents=180)
    starts = [a for a in range(41) if np.array_equal(batch.strips[0], strip[a : a + 60])]
    assert 0 < starts[0] < 40, "the window lies inside the clip"
    roll = piano.soft_roll(batch.strips, batch.background)[:, CONTEXT:-CONTEXT]
    return slice(starts[0] + CONTEXT, starts[0] + 60 - CONTEXT), roll


def video_file(piano, strip, folder):
    "H.264 at crf 0 with every pixel of the strip doubled, and the corners of the full picture."
    height, width = 2 * SMALL.height, 2 * SMALL.strip_width
    path, corners = folder / "strip.mp4", [[0.0, 0], [width, 0], [width, height], [0, height]]
    write_video(path, strip.repeat(2, 1).repeat(2, 2), 25.0, crf=0)
    size = (SMALL.height, SMALL.strip_width)
    still = video_background(path, np.array(corners), size, len(strip))
    assert (still - mean_background(strip)).abs().max() <= 1, "grey levels"
    performer = Latents(SimpleNamespace(channels=8), None, piano)
    duration_s = probe_video(path).duration_s
    [(roll, _)] = video_pieces(path, np.array(corners), duration_s, performer, "", 0)
    logits = performer.rolls(rows_of(path, corners, size), still)
    assert np.allclose(roll.presence, logits.presence[0].sigmoid(), atol=1e-5)
    return slice(0, 100), soft_roll(logits, True)


def rows_of(path, corners, size):
    "The strips of a video in one window."
    [(_, strips)] = strip_windows(path, np.array(corners), size, 100, WindowConfig())
    return strips


@pytest.mark.parametrize(
    "route, tolerance",
    [
        (in_windows, 1e-5),
        (stored, 1e-3),  # float16
        (training_window, 1e-5),
        (video_file, 0.07),  # one grey level in the strips
    ],
)
@torch.no_grad()
def test_a_video_reads_the_same_through_every_route(route, tolerance, piano, strip, tmp_path):
    _, expected = whole_clip(piano, strip, tmp_path)
    rows, roll = route(piano, strip, tmp_path)
    assert roll.shape == expected[:, rows].shape
    assert (roll - expected[:, rows]).abs().max() < tolerance
    still = background(torch.from_numpy(strip[None, :30]))
    other = piano.soft_roll(torch.from_numpy(strip)[None], still)
    assert (other - expected).abs().max() > 2 * tolerance, "another background is noticed"
