# SPDX-License-Identifier: Apache-2.0
"Adapting the roll predictor to a folder of videos: alignment, held-out windows, weights, refusals."

from dataclasses import replace

import numpy as np
import pytest
import torch

from cop_repro.cli import main
from cop_repro.core import RATES, BadInput, ParamsError, numpy_rng, read_json
from cop_repro.data.notes import make_notes, synthesise, write_midi
from cop_repro.data.rendering import Nuisance, render
from cop_repro.data.video import write_video
from cop_repro.model.cop_piano import load_piano
from cop_repro.systems import adapt
from cop_repro.systems.adapt import (
    ADAPTED,
    AdaptConfig,
    adapt_folder,
    held_out_windows,
    move_notes,
    own_windows,
    sound_lag,
)
from cop_repro.systems.cop import load_performer

SECONDS, OFFSET_S = 8.0, 0.7
SHORT = AdaptConfig(steps=2, batch_size=2, window_s=4.0, lag_rows=0)  # rendered videos


def tune(seed: int, seconds: float = SECONDS):
    "Random notes in the middle of the keyboard."
    rng = numpy_rng(seed, "tune")
    onsets = np.arange(0.4, seconds - 0.5, 0.25)
    pitches = rng.integers(48, 84, len(onsets))
    return make_notes(pitches, onsets, onsets + 0.2, rng.integers(50, 100, len(onsets)))


def record(folder, name: str, notes, sound: bool = True) -> None:
    "A video of keys that move by themselves."
    view = render(notes, None, SECONDS, nuisance=Nuisance(), size=(128, 640))
    wav = synthesise(notes, SECONDS) if sound else None
    write_video(folder / f"{name}.mp4", view.frames, RATES.frame_rate, wav, RATES.sample_rate)


@pytest.fixture(scope="module")
def assets(root):
    return root / "data" / "assets"


@pytest.fixture(scope="module")
def predictor(assets):
    return load_piano(assets / "piano.safetensors")[0].predictor


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    "One video with sound and one without; both MIDI files begin at moments of their own."
    folder = tmp_path_factory.mktemp("recordings")
    for i, (name, sound) in enumerate({"heard": True, "seen": False}.items()):
        record(folder, name, tune(i), sound)
        write_midi(move_notes(tune(i), OFFSET_S, 20.0), folder / f"{name}.mid")
    return folder


@pytest.fixture(scope="module")
def windows(recordings, predictor, tmp_path_factory):
    "What is cut from both recordings."
    return own_windows(recordings, predictor, tmp_path_factory.mktemp("windows"), SHORT)


@pytest.mark.parametrize("offset_s", [-0.8, -0.05, 0.0, 0.33, 2.0])
def test_the_lag_of_a_midi_file_is_found_in_the_sound(offset_s):
    notes = tune(3)
    wav = synthesise(notes, SECONDS)
    lag_s = sound_lag(notes.shift(2.0), wav, 5.0) + 2.0
    assert abs(lag_s) <= 0.015
    moved = move_notes(notes, offset_s, 20.0)
    assert abs(sound_lag(moved, wav, 5.0) + offset_s) <= 0.015


def test_moved_notes_are_cut_at_both_ends():
    notes = make_notes([60, 62, 64], [0.1, 1.0, 3.0], [0.3, 1.5, 3.5], [64, 64, 64])
    early, late = move_notes(notes, -0.5, 4.0), move_notes(notes, 0.7, 4.0)
    assert early.pitches.tolist() == [62, 64] and np.allclose(early.onsets_s, [0.5, 2.5])
    assert late.offsets_s.max() == 4.0 and np.allclose(late.onsets_s, [0.8, 1.7, 3.7])
    assert len(move_notes(notes, -9.0, 4.0)) == 0


def test_whole_videos_are_held_out_and_one_video_gives_its_end():
    works = ["a", "a", "b", "c", "c", "d"]
    for share in (0.01, 0.25, 0.5, 0.99):
        held = held_out_windows(works, share)
        groups = {w: {bool(h) for x, h in zip(works, held) if x == w} for w in works}
        assert all(len(g) == 1 for g in groups.values())
        assert 0 < held.sum() < len(works)
    assert held_out_windows(["a"] * 4, 0.25).tolist() == [False, False, False, True]


def test_midi_files_are_aligned_by_sound_or_by_picture(windows):
    assert windows.refused == {} and windows.strips.shape[0] == 4
    by_name = {video.name: video for video in windows.videos}
    assert {name: v.lag_from for name, v in by_name.items()} == {
        "heard": "sound",
        "seen": "picture",
    }
    assert all(abs(v.lag_s + OFFSET_S) <= 0.05 for v in windows.videos)
    columns = windows.columns()
    assert set(columns) == {"strips", "presence", "onset", "velocity", "pedal"}
    for video, row, start_s in windows.rows():
        starts = columns["onset"][row].sum()
        assert starts >= len(windows.notes(video, start_s)) > 5


def test_a_folder_becomes_weights_that_perform(recordings, assets, tmp_path):
    out = tmp_path / "mine"
    report = adapt_folder(recordings, out, assets, SHORT)
    assert sorted(path.name for path in out.iterdir()) == sorted(ADAPTED)
    assert read_json(out / "adapted.json") == report
    assert report["windows"] == {"training": 2, "held_out": 2}
    assert {v["video"]: v["held_out"] for v in report["videos"]} == {"heard": 0, "seen": 2}
    mine, shipped = (load_piano(f / "piano.safetensors")[0] for f in (out, assets))
    changed = {k for k, v in mine.state_dict().items() if not v.equal(shipped.state_dict()[k])}
    assert changed and all(name.startswith("predictor.") for name in changed)
    assert not any(".touch." in name for name in changed)
    assert load_performer(out).piano.velocity == shipped.velocity


def test_the_same_seed_gives_the_same_weights(recordings, windows, assets, tmp_path, monkeypatch):
    "The seed decides about the training alone, so all three train on the same windows."
    monkeypatch.setattr(adapt, "own_windows", lambda *args, **options: windows)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        adapt_folder(recordings, tmp_path / name, assets, replace(SHORT, seed=seed))
    a, b, c = (load_piano(tmp_path / n / "piano.safetensors")[0].state_dict() for n in "abc")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], c[k]) for k in a)


def test_unusable_videos_are_left_out_with_their_reason(recordings, predictor, tmp_path):
    folder = tmp_path / "recordings"
    folder.mkdir()
    for path in recordings.glob("heard.*"):
        (folder / path.name).symlink_to(path)
    (folder / "other.mp4").symlink_to(recordings / "heard.mp4")
    write_midi(tune(9), folder / "other.mid")
    (folder / "mute.mp4").symlink_to(recordings / "seen.mp4")
    write_video(folder / "wall.mp4", np.full((250, 64, 160, 3), 90, np.uint8), 25.0)
    write_midi(tune(9), folder / "wall.mid")
    (folder / "broken.mp4").write_bytes(b"no video")
    windows = own_windows(folder, predictor, tmp_path, SHORT)
    assert [video.name for video in windows.videos] == ["heard"]
    assert "do not fit its picture" in windows.refused["other"]
    assert "neither sound nor a MIDI file" in windows.refused["mute"]
    assert "160x64" in windows.refused["wall"]  # too small, which is found without a search
    assert set(windows.refused) == {"other", "mute", "wall", "broken"}


def test_sound_is_transcribed_where_midi_is_missing(recordings, predictor, tmp_path):
    folder = tmp_path / "recordings"
    folder.mkdir()
    (folder / "heard.mp4").symlink_to(recordings / "heard.mp4")
    heard = []

    def transcriber(wav):
        heard.append(len(wav))
        return tune(0)

    (video,) = own_windows(folder, predictor, tmp_path, SHORT, transcriber=transcriber).videos
    assert heard == [RATES.samples(SECONDS)] and (video.source, video.lag_s) == ("sound", 0.0)


def test_what_cannot_be_learnt_from_is_refused_and_leaves_nothing(
    recordings, assets, tmp_path, monkeypatch
):
    with pytest.raises(BadInput, match="two are needed"):
        adapt_folder(
            one_window(recordings, tmp_path), tmp_path / "out", assets, replace(SHORT, window_s=8.0)
        )
    monkeypatch.setattr(adapt, "MAX_WINDOWS", 3)
    with pytest.raises(BadInput, match="4 windows of 4 s; at most 3"):
        adapt_folder(recordings, tmp_path / "out", assets, SHORT)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(BadInput, match="holds no video"):
        adapt_folder(empty, tmp_path / "out", assets, SHORT)
    assert not (tmp_path / "out").exists()
    for wrong in ({"held_out": 0.0}, {"crop_s": 20.0}, {"steps": 0}):
        with pytest.raises(ParamsError):
            AdaptConfig(**wrong)


def one_window(recordings, tmp_path):
    "A folder with the first video alone."
    folder = tmp_path / "one"
    folder.mkdir()
    for path in recordings.glob("heard.*"):
        (folder / path.name).symlink_to(path)
    return folder


def test_the_command_says_what_was_learnt_and_what_to_do_next(recordings, tmp_path, capsys):
    out = tmp_path / "mine"
    assert main(["adapt", str(recordings), "-o", str(out), "--steps", "1", "--window", "4"]) == 0
    said = capsys.readouterr().out
    assert "heard: 2 windows, notes from midi, MIDI moved by -0." in said
    assert "onset F1 (50 ms)" in said and ("--assets" in said or "keep the shipped" in said)
    assert main(["adapt", str(tmp_path / "nowhere"), "-o", str(out)]) == 2
    assert "no folder" in capsys.readouterr().err
