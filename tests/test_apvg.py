# SPDX-License-Identifier: Apache-2.0
"Sound to video: network, windows, training, the cycle through a roll predictor, `cop animate`."

import ast
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from cop_repro.cli import main
from cop_repro.core import AssetMismatch, BadInput, ParamsError, file_hash, load_weights
from cop_repro.data.clips import Clip, Store, fill_store, index_row, prepare_level
from cop_repro.data.keyboard import KEY_MM, key_centres
from cop_repro.data.notes import make_notes, notes_to_roll, roll_to_notes, synthesise
from cop_repro.data.performance import assign_fingers
from cop_repro.data.rendering import render_strip
from cop_repro.data.video import probe_video, read_audio, read_video
from cop_repro.evaluation.cycle import (
    CycleRows,
    control_videos,
    cycle_clips,
    cycle_scores,
    cycle_table,
    cycle_text,
    evaluate_cycle,
    load_cycle_predictor,
    load_cycle_systems,
    median_clip,
    motion_error,
    partners,
    plot_cycle,
)
from cop_repro.measure.music_metrics import onset_scores
from cop_repro.model.keypoints import (
    Animation,
    Animator,
    AnimatorConfig,
    ConvGRU,
    FingerGraph,
    halved,
    heatmaps,
    load_animator,
    save_animator,
    soft_argmax,
    sound_columns,
    sound_gate,
)
from cop_repro.model.roll import RollConfig, build_roll, predict_roll, save_roll
from cop_repro.systems import apvg, apvg_training
from cop_repro.systems.apvg import (
    CONTEXT,
    MARGIN,
    WINDOW,
    ApvgSystem,
    animate,
    animate_window,
    joined,
    load_apvg,
    open_sound,
    sound_windows,
)
from cop_repro.systems.apvg_training import (
    APVG,
    LOOK,
    SEED,
    ApvgSettings,
    animation_losses,
    animation_targets,
    build_animator,
    contacts,
    fingertips,
    fit_apvg,
    frame_times,
    pixel_weights,
    start_animator,
    target_windows,
)
from cop_repro.systems.contract import SystemFiles, check_system
from cop_repro.training.loop import TrainConfig
from cop_repro.training.stages import Place

TINY = AnimatorConfig(16, 104, 20, 8, 8, 4, 4, 2.0)
SETTINGS = ApvgSettings(TINY, sound_steps=2, sound_s=1.0, unet_s=0.4, validation_clips=1)
PLAN = TrainConfig(2, 2, 1e-3, clip_norm=None)
FILES = SystemFiles("toy", Path(), Path(), Path())


def animator(cfg=TINY, seed=0):
    "A network whose U-Net does correct the video."
    torch.manual_seed(seed)
    model = Animator(cfg).eval()
    torch.nn.init.normal_(model.unet.out.weight, std=0.05)
    return model


def noise(seconds, seed=0):
    rng = np.random.default_rng(seed)
    return (0.1 * rng.standard_normal(round(24_000 * seconds))).astype(np.float32)


def played(name, pitches, split="train", size=None):
    "A clip of two seconds; with strips of a size, if one is given."
    onsets = 0.3 + 0.4 * np.arange(len(pitches))
    notes = make_notes(pitches, onsets, onsets + 0.35, [80] * len(pitches))
    wav = prepare_level(synthesise(notes, 2.0))
    strips = size and render_strip(notes, assign_fingers(notes), 2.0, LOOK, *size, seed=SEED)
    return Clip(name, name, split, "piano", 2.0, wav=wav, notes=notes, strips=strips)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    "A store of two training clips, one of them without notes, and a validation clip."
    made = [played("a", [60, 64, 67]), played("b", [48, 52]), played("v", [62, 65], "val")]
    made[1] = replace(made[1], notes=None)
    folder = tmp_path_factory.mktemp("apvg") / "clips"
    rows = [index_row(clip, "nuisance") for clip in made]

    def make(i):
        return {"wav": (made[i].wav * 32767).round().astype(np.int16)}

    fill_store(folder, rows, {"wav": ((48_000,), "int16")}, make, range(3), 1, split_hash="toy")
    return folder


@pytest.fixture(scope="module")
def trained(clips, tmp_path_factory):
    "A trained file, and the folder of its run."
    folder = tmp_path_factory.mktemp("trained")
    place = Place({"clips": clips}, folder / "run", folder / "apvg.safetensors")
    place = replace(place, inputs={"roll.safetensors": "0123456789abcdef"})
    return fit_apvg(place, SETTINGS, PLAN, FILES), place


# heatmaps


@pytest.mark.parametrize("sigma", [1.5, 3.0, 6.0])
def test_heatmaps_are_one_at_their_keypoint_and_soft_argmax_inverts_them(sigma):
    mu = torch.tensor([[40.5, 32.5], [51.27, 30.91]])
    maps = heatmaps(mu, (64, 96), sigma)
    assert maps[0, 32, 40] == 1
    assert (soft_argmax(maps) - mu).abs().max() < 0.05
    distance = math.hypot(45.5 - 51.27, 33.5 - 30.91)
    assert maps[1, 33, 45].item() == pytest.approx(
        math.exp(-(distance**2) / 2 / sigma**2), rel=1e-4
    )


def test_a_heatmap_moves_its_keypoint_and_no_other():
    mu = torch.tensor([[20.3, 10.2], [60.0, 12.0]], requires_grad=True)
    maps = heatmaps(mu, (24, 80), 3.0)
    (gradient,) = torch.autograd.grad(maps[0, 12, 24], mu)
    expected = (torch.tensor([24.5, 12.5]) - mu[0]) / 9 * maps[0, 12, 24]
    assert torch.allclose(gradient[0], expected.detach(), atol=1e-6)
    assert gradient[0].abs().min() > 0 and gradient[1].abs().max() == 0


def test_following_the_gradient_of_a_heatmap_finds_the_target():
    target = heatmaps(torch.tensor([[30.0, 12.0]]), (24, 80), 5.0)
    mu = torch.tensor([[25.0, 15.0]], requires_grad=True)
    for _ in range(200):
        (gradient,) = torch.autograd.grad((heatmaps(mu, (24, 80), 5.0) - target).square().sum(), mu)
        mu = (mu - 0.5 * gradient).detach().requires_grad_()
    assert (mu - torch.tensor([[30.0, 12.0]])).abs().max() < 0.05


# network


def test_silence_is_the_rest_picture_exactly():
    model = animator()
    with torch.no_grad():
        made = model(torch.zeros(1, 40, 20))
        sounding = model(sound_columns(torch.from_numpy(noise(1))[None], 25, 20))
    assert torch.equal(made.video, model.rest.expand_as(made.video))
    assert torch.equal(made.tips, model.rest_tips.expand_as(made.tips))
    assert made.contact.max() < -5
    assert (sounding.video - model.rest).abs().max() > 0.01


def test_the_gate_is_open_near_sound_alone():
    wav = np.zeros(24_000 * 4, np.float32)
    wav[48_000:50_000] = 0.3
    gate = sound_gate(sound_columns(torch.from_numpy(wav)[None], 100, 20))[0]
    assert gate[50] == 1 and gate[:35].max() == 0 and gate[70:].max() == 0


def test_an_untrained_unet_corrects_nothing_and_every_weight_learns():
    torch.manual_seed(0)
    model = Animator(TINY)
    columns = sound_columns(torch.from_numpy(noise(1))[None], 25, 20)
    made = model(columns)
    low = halved(model.rest[None])[0]
    up = torch.nn.functional.interpolate(
        made.coarse - low, scale_factor=2, mode="bilinear", align_corners=False
    )
    assert torch.allclose(made.video, model.rest + up, atol=1e-6)
    torch.nn.init.normal_(model.unet.out.weight, std=0.05)
    made = model(columns)
    (made.video.square().mean() + made.contact.mean()).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.parametrize(
    "part", [{"heatmaps": False, "graph": False}, {"graph": False}, {"recurrence": False}]
)
def test_rows_without_a_part_have_fewer_weights_and_still_predict(part):
    full, less = Animator(TINY), animator(replace(TINY, **part))
    count = [sum(p.numel() for p in m.parameters()) for m in (full, less)]
    assert count[1] < count[0]
    with torch.no_grad():
        made = less(sound_columns(torch.from_numpy(noise(0.4))[None], 10, 20))
    assert made.video.shape == (1, 10, 16, 104) and made.video.isfinite().all()


def test_fingertips_reach_the_video_only_through_heatmaps():
    columns = sound_columns(torch.from_numpy(noise(0.4))[None], 10, 20)
    gate = sound_gate(columns)
    for cfg, reacts in ((TINY, True), (replace(TINY, heatmaps=False, graph=False), False)):
        model = animator(cfg)
        with torch.no_grad():
            made = model(columns)
            moved = made._replace(tips=made.tips + torch.tensor([5.0, 0.0]))
            same = torch.equal(model.refine(made, gate), model.refine(moved, gate))
        assert same != reacts


def test_the_memory_carries_earlier_frames_forward():
    torch.manual_seed(0)
    memory, x = ConvGRU(4), torch.randn(1, 5, 4, 3, 6)
    other = x.clone()
    other[:, 0] += 1
    with torch.no_grad():
        before, after = memory(x), memory(other)
    assert ((before - after).abs().amax((0, 2, 3, 4)) > 1e-4).all()


def test_graph_nodes_exchange_features():
    torch.manual_seed(0)
    graph = FingerGraph(4)
    x = torch.zeros(1, 4, 6, 70)
    mu = torch.stack([3.5 + 7 * torch.arange(10.0), torch.full((10,), 2.5)], 1)[None]
    maps = heatmaps(mu, (6, 70), 0.7)
    other = x.clone()
    other[..., 3] += 1  # features at the first fingertip alone
    with torch.no_grad():
        change = (graph(other, mu, maps) - other - graph(x, mu, maps))[0].norm(dim=0)[2]
    assert change[3] > 0 and change[10] > 0, "the neighbouring finger changes as well"


@pytest.mark.parametrize(
    "wrong", [{"height": 20}, {"strip_width": 100}, {"width": 7}, {"heatmaps": False}, {"unet": 6}]
)
def test_impossible_sizes_are_refused(wrong):
    with pytest.raises(ParamsError):
        replace(TINY, **wrong)


def test_a_file_of_another_kind_or_split_is_refused(tmp_path):
    path = tmp_path / "net.safetensors"
    save_animator(path, animator(), {"split_hash": "toy"})
    model, meta = load_animator(path, "toy")
    assert model.cfg == TINY and meta["split_hash"] == "toy" and not model.training
    with pytest.raises(AssetMismatch, match="split toy, this run uses other"):
        load_animator(path, "other")
    save_roll(path, build_roll(RollConfig(width=2)), {"split_hash": "toy"})
    with pytest.raises(AssetMismatch, match="holds 'roll'"):
        load_animator(path)


# prediction imports no renderer, no roll predictor, no judge

FORBIDDEN = ("rendering", "roll", "judges", "transcription", "evaluation", "performance", "notes")


def project_imports(module):
    tree = ast.parse(Path(module.__file__).read_text())
    names = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {part for name in names for part in name.split(".")}


def test_prediction_imports_neither_renderer_nor_judges():
    from cop_repro.model import keypoints

    for module in (apvg, keypoints):
        assert not project_imports(module) & set(FORBIDDEN), module.__name__
    assert not project_imports(apvg_training) & {"roll", "judges", "transcription", "evaluation"}


def test_prediction_renders_and_transcribes_nothing(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("called in prediction")

    for name in ("render_strip", "render", "hand_joints", "key_depth"):
        monkeypatch.setattr(f"cop_repro.data.rendering.{name}", refuse)
    monkeypatch.setattr("cop_repro.model.roll.predict_roll", refuse)
    monkeypatch.setattr("cop_repro.judges.transcription.transcribe", refuse)
    clip = Clip("a", "a", "test", "piano", 1.0, wav=noise(1))
    assert ApvgSystem(animator()).predict(clip).video.shape == (25, 16, 104)


# windows


@pytest.mark.parametrize("num_frames", [1, 99, 100, 101, 250])
def test_windows_cover_every_frame_once(num_frames):
    wav = np.arange(num_frames * 960, dtype=np.float32)
    around, seen = (CONTEXT + MARGIN) * 960, 0
    for samples, first, kept in sound_windows([wav], num_frames):
        assert first == seen and len(samples) == kept * 960 + 2 * around
        assert np.array_equal(
            samples[around : around + kept * 960], wav[seen * 960 :][: kept * 960]
        )
        seen += kept
    assert seen == num_frames


def test_pieces_of_any_size_make_the_same_video():
    model, wav = animator(), noise(6)
    whole = joined(animate(model, [wav], 150))
    assert np.array_equal(whole.video, joined(animate(model, np.array_split(wav, 23), 150)).video)


def test_a_long_sound_is_read_window_by_window(monkeypatch):
    "Two hours: no window grows, and no more than one window is read ahead."
    read, num_frames = [0], 2 * 3600 * 25

    def pieces():
        for _ in range(2 * 3600 * 24_000 // 48_000):
            read[0] += 48_000
            yield np.zeros(48_000, np.float32)

    most = (WINDOW + 2 * (CONTEXT + MARGIN)) * 960
    for samples, first, kept in sound_windows(pieces(), num_frames):
        assert len(samples) <= most
        assert read[0] <= (first + kept + CONTEXT + MARGIN) * 960 + 48_000
    assert first + kept == num_frames


def test_what_comes_long_after_a_frame_does_not_change_it():
    model, wav = animator(), noise(10)
    other = np.concatenate([wav[: 7 * 24_000], noise(3, seed=1)])
    a, b = (joined(animate(model, [x], 250)).video for x in (wav, other))
    assert np.array_equal(a[:100], b[:100]) and not np.array_equal(a[200:], b[200:])


# sounds


@pytest.mark.parametrize(
    ("suffix", "rate", "channels"),
    [
        ("wav", 8_000, 1),
        ("wav", 96_000, 2),
        ("flac", 44_100, 2),
        ("mp3", 44_100, 2),
        ("ogg", 48_000, 6),
    ],
)
def test_any_sound_becomes_mono_of_one_level(tmp_path, suffix, rate, channels):
    at_s = np.arange(3 * rate) / rate
    tone = 0.01 * np.sin(2 * np.pi * 440 * at_s)
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, np.repeat(tone[:, None], channels, 1), rate)
    sound = open_sound(path)
    wav = np.concatenate(list(sound.pieces()))
    assert sound.num_frames == pytest.approx(75, abs=2) and len(wav) == pytest.approx(
        72_000, abs=2400
    )
    middle = wav[12_000:60_000]
    lossy = suffix in ("mp3", "ogg")  # overshoots where the tone begins
    assert np.abs(middle).max() == pytest.approx(0.5, rel=0.25 if lossy else 0.02)
    peak = np.abs(np.fft.rfft(middle)).argmax() * 24_000 / len(middle)
    assert peak == pytest.approx(440, abs=1)


def bad_sound(kind, path):
    if kind == "nan":
        soundfile.write(path, np.full(24_000, np.nan), 24_000, subtype="FLOAT")
    elif kind == "infinite":
        soundfile.write(path, np.full(24_000, np.inf), 24_000, subtype="FLOAT")
    elif kind == "short":
        soundfile.write(path, np.zeros(2_300), 24_000)
    elif kind == "empty":
        soundfile.write(path, np.zeros(0), 24_000)
    elif kind == "text":
        path.write_text("no sound")
    elif kind == "folder":
        path.mkdir()


BAD = ("nan", "infinite", "short", "empty", "text", "folder", "missing")


@pytest.mark.parametrize("kind", BAD)
def test_sounds_that_cannot_be_animated_are_refused_and_nothing_is_written(kind, tmp_path, capsys):
    weights = tmp_path / "net.safetensors"
    save_animator(weights, animator(), {"split_hash": "toy"})
    path, out = tmp_path / "sound.wav", tmp_path / "new" / "out"
    bad_sound(kind, path)
    code = main(["animate", str(path), "-o", str(out), "--weights", str(weights)])
    said = capsys.readouterr()
    assert code == 2 and not out.exists() and not out.parent.exists()
    assert len(said.err.strip().splitlines()) == 1 and "sound.wav" in said.err


@pytest.mark.parametrize(("suffix", "rate", "channels"), [("wav", 44_100, 2), ("flac", 22_050, 1)])
def test_animate_writes_a_video_with_its_sound(tmp_path, capsys, suffix, rate, channels):
    weights, path = tmp_path / "net.safetensors", tmp_path / f"sound.{suffix}"
    save_animator(weights, animator(), {"split_hash": "toy"})
    tone = 0.2 * np.sin(2 * np.pi * 330 * np.arange(5 * rate) / rate)
    soundfile.write(path, np.repeat(tone[:, None], channels, 1), rate)
    out = tmp_path / "out"
    assert main(["animate", str(path), "-o", str(out), "--weights", str(weights)]) == 0
    assert sorted(p.name for p in out.iterdir()) == ["report.json", "video.mp4"]
    info = probe_video(out / "video.mp4")
    assert (info.width, info.height, round(info.frame_rate)) == (1040, 128, 25)
    assert (
        info.duration_s == pytest.approx(5, abs=0.05) and len(read_video(out / "video.mp4")) == 125
    )
    track = read_audio(out / "video.mp4", 24_000)[24_000:96_000]
    assert np.abs(np.fft.rfft(track)).argmax() * 24_000 / len(track) == pytest.approx(330, abs=1)
    report = json.loads((out / "report.json").read_text())
    assert report["frames"] == 125 and report["weights"]["hash"] == file_hash(weights)


def test_a_silent_file_shows_hands_at_rest(tmp_path):
    weights, path = tmp_path / "net.safetensors", tmp_path / "silence.wav"
    model = build_animator(TINY, 0)
    torch.nn.init.normal_(model.unet.out.weight, std=0.5)
    save_animator(weights, model, {"split_hash": "toy"})
    soundfile.write(path, np.zeros(48_000), 24_000)
    apvg.animate_file(path, tmp_path / "out", weights)
    frames = read_video(tmp_path / "out" / "video.mp4").astype(int)
    assert np.abs(frames - frames[0]).max() <= 3, "nothing moves"
    assert json.loads((tmp_path / "out" / "report.json").read_text())["fingers_down"] == 0


def test_missing_weights_say_how_they_are_made(tmp_path, capsys):
    path = tmp_path / "sound.wav"
    soundfile.write(path, np.zeros(24_000), 24_000)
    absent = str(tmp_path / "absent.safetensors")
    assert main(["animate", str(path), "-o", str(tmp_path / "out"), "--weights", absent]) == 2
    assert "cop animator" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_clips_without_usable_sound_are_refused():
    system = ApvgSystem(animator())
    for wav in (None, np.zeros(100, np.float32), np.full(24_000, np.nan, np.float32)):
        with pytest.raises(BadInput, match="clip a"):
            system.predict(Clip("a", "a", "test", "piano", 1.0, wav=wav))


# targets and loss


def test_fingertips_lie_on_the_keys_that_they_press():
    notes = make_notes([48, 64, 67, 72], [0.4, 0.4, 1.0, 1.5], [1.3, 0.9, 1.4, 2.0], [80] * 4)
    fingers, times = assign_fingers(notes), frame_times(50)
    tips, down = fingertips(notes, fingers, times, (48, 520)), contacts(notes, fingers, times)
    for pitch, onset, finger in zip(notes.pitches, notes.onsets_s, fingers):
        frame = round((onset + 0.2) * 25)
        assert down[frame, finger]
        x_mm = tips[frame, finger, 0] * 52 * KEY_MM / 520
        assert abs(x_mm - key_centres()[pitch - 21]) < 14
    assert down.any(1).sum() == sum(
        ((times >= a) & (times < b)).sum() for a, b in ((0.4, 1.4), (1.5, 2))
    )


def test_targets_are_made_once_and_only_of_clips_with_notes(clips, tmp_path):
    store = Store(clips)
    made = animation_targets(tmp_path / "targets", store, [0], TINY)
    stamp = (tmp_path / "targets" / "strips.npy").stat().st_mtime_ns
    again = animation_targets(tmp_path / "targets", store, [0], TINY)
    assert (tmp_path / "targets" / "strips.npy").stat().st_mtime_ns == stamp
    assert np.array_equal(made["tips"], again["tips"])
    animation_targets(tmp_path / "targets", store, [0], replace(TINY, num_mels=10))
    assert (tmp_path / "targets" / "strips.npy").stat().st_mtime_ns != stamp
    with pytest.raises(BadInput, match="clip b has no notes"):
        animation_targets(tmp_path / "others", store, [1], TINY)


def test_the_loss_is_zero_at_the_truth_and_weighted_by_motion_and_keys(clips, tmp_path):
    store = animation_targets(tmp_path / "targets", Store(clips), [0], TINY)
    batch = target_windows(store, [0], [5], 20)
    truth = Animation(halved(batch.video), batch.tips, 60 * batch.contact - 30, batch.video)
    assert animation_losses(truth, batch, SETTINGS, TINY.mm_per_px)["loss"] < 1e-6
    weight = pixel_weights(batch, SETTINGS)
    motion = (batch.video - batch.mean[:, None]).abs()
    keys = batch.keys.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.allclose(weight, 1 + 8 * motion + 100 * keys)
    assert keys.max() > 0 and batch.keys[0, 0].max() == 0, "no key is down in the first frame"
    off = truth._replace(video=batch.video + 0.1)
    losses = animation_losses(off, batch, SETTINGS, TINY.mm_per_px)
    assert losses["video"].item() == pytest.approx(0.1 * weight.mean().item(), rel=1e-4)


@pytest.mark.parametrize(
    "wrong", [{"motion_weight": -1.0}, {"sound_steps": -1}, {"unet_s": 2.0}, {"unet_items": 0}]
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ParamsError):
        replace(SETTINGS, **wrong)


# training


def test_training_writes_a_system_that_predicts(trained):
    result, place = trained
    assert result.result.step == 2 and set(result.measured) == {"tip_error_mm", "contact_f1"}
    assert result.measured["tip_error_mm"] > 0
    meta = load_weights(place.made)[1]
    assert meta["split_hash"] == "toy" and meta["inputs"] == {
        "roll.safetensors": "0123456789abcdef"
    }
    files = replace(FILES, models=(("apvg", place.made),))
    (system,) = load_apvg(files).values()
    made = system.predict(played("a", [60, 64, 67]))
    assert made.video.shape == (50, 16, 104) and made.tips.shape == (50, 10, 2)
    with pytest.raises(ParamsError, match="takes no settings"):
        load_apvg(files, SETTINGS)
    with pytest.raises(AssetMismatch):
        load_apvg(replace(files, split="other"))


def test_training_repeats_bit_for_bit(trained, clips, tmp_path):
    _, place = trained
    again = replace(place, scratch=tmp_path / "run", made=tmp_path / "apvg.safetensors")
    fit_apvg(again, SETTINGS, PLAN, FILES)
    assert again.made.read_bytes() == place.made.read_bytes()


def test_a_checkpoint_of_other_settings_is_not_resumed(trained, clips, tmp_path):
    _, place = trained
    other = replace(place, made=tmp_path / "apvg.safetensors")
    with pytest.raises(AssetMismatch, match="key_weight"):
        fit_apvg(other, replace(SETTINGS, key_weight=1.0), PLAN, FILES)


def test_training_uses_no_roll_predictor(trained, clips, tmp_path, monkeypatch):
    "No file of a predictor is opened, and none of its functions is called."

    def refuse(*args, **kwargs):
        raise AssertionError("a roll predictor was used")

    for name in ("load_roll", "read_roll", "predict_roll", "predict_logits", "build_roll"):
        monkeypatch.setattr(f"cop_repro.model.roll.{name}", refuse)
    place = replace(trained[1], scratch=tmp_path / "run", made=tmp_path / "apvg.safetensors")
    fit_apvg(place, SETTINGS, PLAN, FILES)


def test_the_entry_fits_the_contract():
    assert APVG.load is load_apvg and APVG.fit is fit_apvg and APVG.settings is ApvgSettings
    system = ApvgSystem(animator())
    assert check_system("apvg", system) is system and APVG.tasks == (system.task,)


def test_a_start_gives_its_weights_and_a_fresh_unet_keeps_its_own(tmp_path):
    first = build_animator(TINY, 0)
    torch.nn.init.ones_(first.unet.out.weight)
    save_animator(tmp_path / "start.safetensors", first, {"split_hash": "toy"})
    files = replace(FILES, models=(("start", tmp_path / "start.safetensors"),))
    taken = start_animator(ApvgSettings(TINY), 1, files)
    assert all(torch.equal(a, b) for a, b in zip(taken.parameters(), first.parameters()))
    plain = replace(TINY, graph=False)
    fresh = start_animator(ApvgSettings(plain, fresh_unet=True), 1, files)
    assert fresh.unet.graph is None and not fresh.unet.out.weight.any()
    for part in ("encoder", "coarse", "tips"):
        for a, b in zip(getattr(fresh, part).parameters(), getattr(first, part).parameters()):
            assert torch.equal(a, b)
    with pytest.raises(ParamsError, match="other sizes"):
        start_animator(ApvgSettings(plain), 1, files)
    with pytest.raises(ParamsError, match="other sizes"):
        start_animator(ApvgSettings(replace(TINY, unet=8), fresh_unet=True), 1, files)


# the cycle


@pytest.fixture(scope="module")
def predictor(root):
    return load_cycle_predictor(root / "data" / "assets" / "roll.safetensors", {})


@pytest.fixture(scope="module")
def pair():
    size = (48, 520)
    return [played("up", [60, 62, 64, 65], size=size), played("down", [55, 53, 52, 50], size=size)]


def test_the_true_videos_score_is_the_predictors_own(predictor, pair):
    clip = pair[0]
    roll = predict_roll(predictor.model, clip.strips)
    notes, truth = roll_to_notes(roll), notes_to_roll(clip.notes, 2.0, 25)
    own = onset_scores(clip.notes.onsets_s, clip.notes.pitches, notes.onsets_s, notes.pitches)
    scores = cycle_scores(predictor, clip.strips, clip)
    assert scores["onset_f1"] == own["onset_f1"] > 0.8
    hits = 2 * ((roll.presence >= 0.5) & (truth.presence >= 0.5)).sum()
    count = (roll.presence >= 0.5).sum() + (truth.presence >= 0.5).sum()
    assert scores["frame_f1"] == pytest.approx(hits / count)


def test_controls_bound_the_result(predictor, pair):
    untrained = AnimatorConfig(hidden=8, width=8, coarse=2, unet=2)
    torch.manual_seed(0)
    system = ApvgSystem(Animator(untrained).eval())
    scored = evaluate_cycle({"apvg": system}, predictor, pair, transcriber=False)
    rows = {line["row"] for line in scored}
    assert rows == {"apvg", "still", "mean_video", "true_video", "shuffled_audio"}
    table = cycle_table(scored)
    assert table["still"]["onset_f1"][0] == table["mean_video"]["onset_f1"][0] == 0
    assert table["true_video"]["onset_f1_above_floor"][0] > 0.8
    assert len(scored) == 10


def test_shuffled_sound_is_of_another_work(pair):
    twice = [*pair, replace(pair[0], clip_id="third")]
    found = partners(twice)
    assert all(twice[i].work_id != twice[j].work_id for i, j in enumerate(found))
    with pytest.raises(BadInput, match="two works"):
        partners(pair[:1] * 2)


def test_a_predictor_of_the_training_is_refused(tmp_path, root):
    path = tmp_path / "roll.safetensors"
    save_roll(path, build_roll(RollConfig(width=2)), {"split_hash": "toy"})
    with pytest.raises(AssetMismatch, match="input of the training"):
        load_cycle_predictor(path, {"start": file_hash(path)})
    assert load_cycle_predictor(path, {"start": "ffffffffffffffff"}, "toy").hash == file_hash(path)
    with pytest.raises(AssetMismatch):
        load_cycle_predictor(path, {}, "other")


def test_a_video_of_another_length_is_refused(predictor, pair):
    with pytest.raises(BadInput, match="49 frames"):
        cycle_scores(predictor, pair[0].strips[1:], pair[0])
    with pytest.raises(BadInput, match="lacks strips"):
        control_videos(replace(pair[0], strips=None))


def test_the_figure_shows_sound_video_and_notes(predictor, pair):
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(3, 1)
    plot_cycle(axes, pair[0], pair[0].strips, predictor)
    assert [len(ax.images) for ax in axes] == [1, 1, 1]
    plt.close(fig)


def test_the_motion_error_counts_moving_pixels_alone():
    true = np.zeros((4, 2, 2), np.uint8)
    true[2:, 0, 0] = 100  # one pixel moves, 50 from its mean
    assert motion_error(true, true) == 0
    assert motion_error(np.zeros_like(true), true) == 50
    assert motion_error(np.full_like(true, 200), np.zeros_like(true)) == 0  # nothing moves


def test_the_median_clip_is_neither_the_best_nor_the_worst():
    values = {"a": 0.9, "b": 0.1, "c": 0.4}
    scored = [{"row": "apvg", "clip_id": c, "onset_f1": f1} for c, f1 in values.items()]
    scored.append({"row": "still", "clip_id": "a", "onset_f1": 0.0})
    assert median_clip(scored, "apvg") == 2 and median_clip(scored, "still") == 0


def test_the_table_holds_a_line_for_each_row(predictor, pair):
    torch.manual_seed(0)
    small = AnimatorConfig(hidden=8, width=8, coarse=2, unet=2)
    scored = evaluate_cycle({"apvg": ApvgSystem(Animator(small).eval())}, predictor, pair, False)
    lines = cycle_text(cycle_table(scored), predictor, 2).splitlines()
    rows = ["apvg", "still", "mean_video", "true_video", "shuffled_audio"]
    assert [line.split(" | ")[0] for line in lines[-5:]] == [f"| {row}" for row in rows]
    assert predictor.hash in lines[3] and "0.0 [0.0, 0.0] |" in lines[-2]


@pytest.fixture(scope="module")
def run_clips(tmp_path_factory):
    "A store as a run has it: a training clip, and two clean test clips with strips."
    size, folder = (48, 520), tmp_path_factory.mktemp("run") / "clips"
    made = [played("t", [60, 64], size=size)]
    made += [played(name, keys, "test", size) for name, keys in (("x", [57, 60]), ("y", [72, 76]))]
    rows = [index_row(c, "clean" if c.split == "test" else "nuisance") for c in made]
    columns = {"wav": ((48_000,), "int16"), "strips": ((50, *size), "uint8")}

    def make(i):
        return {"wav": (made[i].wav * 32767).round().astype(np.int16), "strips": made[i].strips}

    fill_store(folder, rows, columns, make, range(3), 1, split_hash="toy")
    return folder


def test_clips_of_the_cycle_are_clean_test_clips(run_clips):
    assert {clip.clip_id for clip in cycle_clips(Store(run_clips), 9)} == {"x", "y"}
    with pytest.raises(BadInput, match="at least two"):
        cycle_clips(Store(run_clips), 1)
    with pytest.raises(ParamsError, match="at least one model"):
        CycleRows({}, "roll.safetensors")


def test_systems_of_the_cycle_bring_their_inputs(tmp_path):
    about = {"split_hash": "toy", "inputs": {"start": "0123456789abcdef"}}
    save_animator(tmp_path / "a.safetensors", build_animator(TINY, 0), about)
    systems, inputs = load_cycle_systems({"row": tmp_path / "a.safetensors"}, "toy")
    assert list(systems) == ["row"] and inputs == about["inputs"]
    with pytest.raises(AssetMismatch):
        load_cycle_systems({"row": tmp_path / "a.safetensors"}, "other")


def test_the_last_window_may_be_a_single_frame():
    made = animate_window(animator(), np.zeros((1 + 2 * (CONTEXT + MARGIN)) * 960, np.float32), 1)
    assert made.video.shape == (1, 16, 104)
