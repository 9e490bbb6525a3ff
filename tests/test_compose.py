# SPDX-License-Identifier: Apache-2.0
"`cop compose`: any video in; music of its length out; one clear line for what cannot be used."

import json

import mido
import numpy as np
import pytest
import soundfile
import torch

from cop_repro.cli import main
from cop_repro.core import BadInput
from cop_repro.data.video import probe_video, read_audio, write_video
from cop_repro.measure.visual_rhythm import PercentileClasses, VideoFeatures
from cop_repro.model.compound import CompoundConfig, CompoundTransformer, make_music, save_compound
from cop_repro.systems.cmt import CMT, Scale
from cop_repro.systems.composing import (
    COMPOSED,
    DEFAULT_TEMPO,
    ComposeConfig,
    Composer,
    compose_features,
    compose_for_video,
    load_composer,
    tempo_of,
)
from cop_repro.systems.instruments import (
    PROGRAMS,
    synthesise_voices,
    voice_notes,
    write_voices,
)
from cop_repro.systems.vmusprod import VMusProd, VMusProdConfig, save_vmusprod

TINY = CompoundConfig(16, 1, 2, 32, (4, 4, 4, 8, 4, 4, 4), 4, 4, dropout=0.0)
SMALL = VMusProdConfig(width=16, depth=1, heads=2, hidden=32, dropout=0.0)
SCALE = Scale(
    PercentileClasses(np.linspace(0.0, 3.0, 101)),
    PercentileClasses(np.linspace(0.0, 2.0, 101)),
    (0, *range(16)),
    (*[1] * 8, *[2] * 5, *[3] * 4),
)


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    "Untrained weights as files."
    folder = tmp_path_factory.mktemp("assets")
    torch.manual_seed(0)
    about = {"kind": "cmt", "scenes": "list", "scale": SCALE.described()}
    save_compound(folder / "cmt.safetensors", CompoundTransformer(TINY), about)
    save_vmusprod(folder / "vmusprod.safetensors", VMusProd(SMALL), {"scenes": "list"})
    return folder


@pytest.fixture(scope="module")
def composer(assets):
    return load_composer("cmt", assets)


def stripes(seconds, rate=25.0, size=(48, 64), speeds=(0.0, 3.0)):
    "Frames of moving stripes; their speed (1/64 of the width in 40 ms) changes every second."
    at, frames = 0.0, []
    ramp = np.linspace(0, 64, size[1])[None] * np.ones((size[0], 1))
    for i in range(round(seconds * rate)):
        at += speeds[int(i / rate) % len(speeds)] * 25 / rate
        wave = 128 + 100 * np.sin((ramp - at) * 2 * np.pi / 16)
        frames.append(np.repeat(wave[..., None], 3, 2).astype(np.uint8))
    return frames


def video(path, seconds=4.4, wav=None, **more):
    rate = more.get("rate", 25.0)
    write_video(path, stripes(seconds, **more), rate, wav)
    return path


FAST = ["--tempo", "120"]


def test_the_command_makes_five_files(tmp_path, assets, capsys):
    clip = video(tmp_path / "clip.mp4", 4.4)
    out = tmp_path / "out"
    assert main(["compose", str(clip), "-o", str(out), "--assets", str(assets), *FAST]) == 0
    assert sorted(p.name for p in out.iterdir()) == sorted(COMPOSED)
    wav, rate = soundfile.read(out / "sound.wav")
    assert rate == 24_000 and len(wav) == round(4.4 * rate) and 0.4 < abs(wav).max() < 0.6
    assert probe_video(out / "video.mp4").duration_s == pytest.approx(4.4, abs=0.05)
    assert len(read_audio(out / "video.mp4")) / 24_000 == pytest.approx(4.4, abs=0.1)
    report = json.loads((out / "report.json").read_text())
    assert (report["tempo_bpm"], report["tempo_from"], report["bars"]) == (120, "given", 3)
    assert len(report["requested_density"]) == len(report["played_density"]) == 3
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMPOSED)


@pytest.mark.parametrize(
    ("rate", "size", "sound"),
    [(12.5, (30, 50), False), (60.0, (96, 64), True), (29.97, (64, 200), False)],
)
def test_any_rate_size_and_sound(tmp_path, composer, rate, size, sound):
    wav = np.zeros(24_000 * 5, np.float32) if sound else None
    clip = video(tmp_path / "v.mp4", 4.4, wav, rate=rate, size=size)
    duration = probe_video(clip).duration_s
    compose_for_video(clip, tmp_path / "out", composer, ComposeConfig(tempo_bpm=120))
    made = soundfile.info(tmp_path / "out" / "sound.wav").duration
    assert made == pytest.approx(duration, abs=1e-3)
    if sound:
        assert abs(read_audio(tmp_path / "out" / "video.mp4")).max() > 0.1, "its sound is replaced"


def test_seed_length_and_control(tmp_path, composer):
    clip = video(tmp_path / "v.mp4", 6.2)

    def notes(name, **cfg):
        compose_for_video(clip, tmp_path / name, composer, ComposeConfig(120.0, **cfg))
        return (tmp_path / name / "notes.mid").read_bytes()

    assert notes("a") == notes("b"), "one seed, one piece"
    assert notes("a") != notes("c", seed=1)
    assert notes("a") != notes("d", control=0.0)
    notes("e", length_s=4.1)
    assert soundfile.info(tmp_path / "e" / "sound.wav").duration == pytest.approx(4.1, abs=1e-3)
    assert probe_video(tmp_path / "e" / "video.mp4").duration_s == pytest.approx(4.1, abs=0.05)


def test_vmusprod_composes(tmp_path, assets):
    clip = video(tmp_path / "v.mp4", 4.4)
    given = ["--assets", str(assets), "--system", "vmusprod", *FAST]
    assert main(["compose", str(clip), "-o", str(tmp_path / "out"), *given]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["system"] == "vmusprod" and len(report["weights"]) == 2


def one_picture(path):
    write_video(path, stripes(0.04), 25.0)


def constant(path):
    write_video(path, stripes(5, speeds=(0.0,)), 25.0)


def short(path):
    video(path, 3.0)


def usual(path):
    video(path, 4.4)


def no_video(path):
    soundfile.write(path.with_suffix(".wav"), np.zeros(24_000), 24_000)
    path.with_suffix(".wav").rename(path)


@pytest.mark.parametrize(
    ("make", "more", "message"),
    [
        (one_picture, [], "two bars"),
        (constant, FAST, "nothing moves"),
        (constant, [], "nothing moves"),
        (short, FAST, "shorter than two bars"),
        (usual, ["--tempo", "39"], "40 to 240"),
        (usual, ["--tempo", "241"], "40 to 240"),
        (usual, ["--tempo", "nan"], "40 to 240"),
        (usual, ["--length", "9", *FAST], "as long as the video"),
        (usual, ["--length", "0"], "a positive one"),
        (usual, ["--length", "2", *FAST], "two bars"),
        (usual, ["--control", "2"], "0 (free) to 1"),
        (usual, ["--where", "tempo"], "NAME=VALUE"),
        (usual, ["--where", "tempo=presto"], "slow, fast"),
        (usual, ["--where", "colour=red"], "no attribute 'colour'"),
        (usual, ["--where", "tempo=slow", *FAST], "belongs to vmb"),
        (usual, ["--system", "vmb"], "vmb.safetensors is missing"),
        (no_video, [], "picture"),
        (None, [], "clip.mp4"),
    ],
)
def test_what_cannot_be_used_is_one_line(tmp_path, assets, capsys, make, more, message):
    clip, out = tmp_path / "clip.mp4", tmp_path / "out"
    if make:
        make(clip)
    given = ["compose", str(clip), "-o", str(out), "--assets", str(assets), *more]
    assert main(given) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and message in said[0], said
    assert not out.exists(), "a failure leaves nothing behind"


def test_missing_weights_and_unknown_systems(tmp_path):
    with pytest.raises(BadInput, match="cmt.safetensors is missing"):
        load_composer("cmt", tmp_path)
    with pytest.raises(BadInput, match="no composing system"):
        load_composer("gan", tmp_path)


def moving(seconds):
    "Features of a video whose speed rises and falls."
    frames = round(25 * seconds)
    flow = (1.5 + np.sin(np.arange(frames) / 60)).astype(np.float32)
    spread = np.repeat(flow[:, None] / 8, 8, 1)
    others = np.zeros((frames // 5 + 1, 12)), np.zeros((frames // 5 + 1, 22))
    return VideoFeatures(flow, spread, *others)


def test_music_of_a_long_video(composer):
    "Ten minutes: windows of eight bars side by side, one length, no gap at their seams."
    cfg = ComposeConfig(tempo_bpm=60.0)
    made, _ = compose_features(moving(600), composer, cfg, 600.0)
    assert made.music.num_bars == 150
    bars = np.unique(made.music.ticks // 16)
    assert len(bars) > 120
    notes = voice_notes(made.music, 60.0, 600.0)
    assert max(n.end_s for n in notes.values()) <= 600.0


def test_a_video_without_a_period_gets_the_default_tempo():
    flat = moving(10)
    still = VideoFeatures(flat.flow, np.ones_like(flat.directogram), flat.colour, flat.picture)
    assert tempo_of(still, ComposeConfig()) == (DEFAULT_TEMPO, "default")
    assert tempo_of(still, ComposeConfig(90.0)) == (90.0, "given")


def test_an_hour_is_possible_and_three_are_not(tmp_path, composer):
    "One picture a second: the file is small, its length is what counts."
    path = tmp_path / "long.mp4"
    write_video(path, stripes(7300, rate=0.01), 0.01)
    with pytest.raises(BadInput, match="minutes"):
        compose_for_video(path, tmp_path / "out", composer, ComposeConfig())


def test_voices_have_instruments(tmp_path):
    music = make_music([0, 0, 0, 8], [72, 64, 48, 74], [8, 16, 16, 8], [1, 2, 3, 1], 2)
    write_voices(tmp_path / "a.mid", music, 100.0, 4.0)
    file = mido.MidiFile(tmp_path / "a.mid")
    programs = {m.channel: m.program for t in file.tracks for m in t if m.type == "program_change"}
    assert programs == {v - 1: p for v, p in PROGRAMS.items()}
    played = [(m.channel, m.note) for t in file.tracks for m in t if m.type == "note_on"]
    assert sorted(played) == [(0, 72), (0, 74), (1, 64), (2, 48)]
    tempi = [m.tempo for t in file.tracks for m in t if m.type == "set_tempo"]
    assert tempi == [600_000]
    notes = voice_notes(music, 100.0, 1.0)
    assert all(n.end_s <= 1.0 for n in notes.values()), "notes end with the video"
    alone = [synthesise_voices(music.select([v]), 100.0, 2.0) for v in PROGRAMS]
    spectra = [abs(np.fft.rfft(w)) / np.linalg.norm(np.fft.rfft(w)) for w in alone]
    assert max(spectra[i] @ spectra[j] for i in range(3) for j in range(i)) < 0.5


def test_a_folder_in_the_way(tmp_path, composer):
    clip = video(tmp_path / "v.mp4", 4.4)
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInput, match="a folder is needed"):
        compose_for_video(clip, tmp_path / "file", composer, ComposeConfig(120.0))


def test_a_composer_needs_its_own_scale(assets):
    "Both systems are measured by the scale in CMT's file."
    both = [load_composer(name, assets) for name in ("cmt", "vmusprod")]
    assert both[0].scale.densities == both[1].scale.densities == SCALE.densities
    assert isinstance(both[0].model, CMT) and isinstance(both[1].model, VMusProd)
    assert isinstance(both[0], Composer)
