# SPDX-License-Identifier: Apache-2.0
"A long video needs no more memory than a short one; its pieces equal the whole."

import tracemalloc
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from matplotlib.axes import Axes

from cop_repro.core import RATES, BadInput, numpy_rng
from cop_repro.data.clips import LevelMeter, prepare_level
from cop_repro.data.keyboard import parse_corners
from cop_repro.data.notes import NoteDecoder, drop_unstruck, make_roll, read_midi, roll_to_notes
from cop_repro.data.partial_keyboards import Hints
from cop_repro.data.video import probe_video, read_audio, write_video
from cop_repro.model.flow import SampleConfig, window_starts, window_weights
from cop_repro.model.roll import RollLogits, logits_to_roll
from cop_repro.systems.cop import (
    Performer,
    WindowConfig,
    noise_track,
    perform_video,
    play,
    sound_blocks,
    strip_windows,
    video_background,
    video_pieces,
)

CHANNELS = 128


def certain(yes):
    "Logits of a batch of one that are far from zero."
    return (yes.float() * 8 - 4)[None]


class Player(Performer):
    "Stand-ins: keys follow the video's brightness, latents are noise, sound is a channel of them."

    def __init__(self):
        predictor = SimpleNamespace(cfg=SimpleNamespace(height=16, strip_width=104))
        codec = SimpleNamespace(channels=CHANNELS, hop_length=320)
        piano = SimpleNamespace(predictor=predictor, velocity=False)
        super().__init__(codec, None, piano, SampleConfig())

    def rolls(self, strips, background):
        "A frame of brightness 60 + 4 b is row b of a short piece that repeats."
        assert tuple(background.shape) == strips.shape[1:]
        beat = ((np.median(strips, (1, 2)) - 60) / 4).round().astype(int)
        tick = torch.from_numpy(beat)[:, None] + 3 * torch.arange(88)
        return RollLogits(
            certain(tick % 40 < 20),
            certain(tick % 40 == 0),
            certain(tick % 40 < 10),
            certain(tick[:, 0] % 40 < 30),
        )

    def latents(self, strips, logits, text, noise):
        return noise[0]

    def sound(self, latents):
        return latents[:, 0].numpy().repeat(320)


CORNERS = "33,40 607,40 607,72 33,72"


def blink(path: Path, frames: int, rate: float = 25.0) -> Path:
    "A video whose brightness counts to forty, again and again."
    pictures = (np.full((96, 640, 3), 60 + 4 * (i % 40), np.uint8) for i in range(frames))
    write_video(path, pictures, rate)
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> dict[int, Path]:
    "One minute and four."
    folder = tmp_path_factory.mktemp("long")
    return {minutes: blink(folder / f"{minutes}.mp4", 300 * minutes, 5.0) for minutes in (1, 4)}


@pytest.fixture(autouse=True, scope="module")
def any_picture():
    "Nothing in these videos looks like keys; the corners are taken all the same, and so are cuts."
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("cop_repro.data.keyboard.MIN_GIVEN", -1.0)
        monkeypatch.setattr("cop_repro.systems.cop.check_still", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def performed(videos, any_picture, tmp_path_factory):
    "Four minutes, performed: the folder, what is said of it, and how many notes were drawn."
    out, drawn, draw = tmp_path_factory.mktemp("performed") / "out", [], Axes.hlines

    def count(axes, y, *args, **kwargs):
        drawn.append(len(y))
        return draw(axes, y, *args, **kwargs)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Axes, "hlines", count)
        said = perform_video(videos[4], out, Player(), hints=Hints(CORNERS))
    return SimpleNamespace(out=out, said=said, drawn=drawn)


def peak_of(work) -> float:
    "Most memory that Python and numpy held at once, MiB."
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_video(videos, tmp_path):
    "Three minutes are 16 MiB of sound, 5 of rolls and 7 of latents: none may be held whole."
    player = Player()

    def play_minutes(minutes, name):
        play(videos[minutes], tmp_path / name, player, "", 0, Hints(CORNERS))

    def mux_minutes(minutes):
        black = np.zeros((2, 32, 32, 3), np.uint8)
        sound = sound_blocks(tmp_path / f"{minutes}.wav")
        write_video(tmp_path / f"{minutes}.mp4", black, 25.0, sound)

    play_minutes(1, "warm.wav")
    peaks = {m: peak_of(partial(play_minutes, m, f"{m}.wav")) for m in videos}
    assert peaks[4] < peaks[1] + 3, f"{peaks} MiB"
    peaks_of_muxing = {m: peak_of(partial(mux_minutes, m)) for m in videos}
    assert peaks_of_muxing[4] < peaks_of_muxing[1] + 1, f"{peaks_of_muxing} MiB"


def test_a_video_of_four_minutes(performed):
    out = performed.out
    wav, rate = soundfile.read(out / "sound.wav", dtype="float32")
    assert len(wav) == 240 * rate
    assert np.isclose(np.abs(wav).max(), 0.5, atol=1e-4)
    assert performed.said["sound.wav"] == "240.0 s of sound"
    assert abs(probe_video(out / "video.mp4").duration_s - 240) < 0.5
    assert abs(len(read_audio(out / "video.mp4")) - len(wav)) < 4096  # AAC's delay
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    assert len(list(out.iterdir())) == 5


def test_the_first_minute_is_drawn_whatever_comes_after(performed):
    notes = read_midi(performed.out / "notes.mid")
    assert performed.drawn == [(notes.onsets_s < 60).sum()]
    assert len(notes) > 2 * performed.drawn[0] > 0


def roll_at_once(video: Path, player: Player, rows: int):
    "The roll of a video in one window."
    corners, size = parse_corners(CORNERS), (16, 104)
    windows = WindowConfig(rows / 25, 0.0)
    _, strips = next(strip_windows(video, corners, size, rows, windows))
    return logits_to_roll(player.rolls(strips, video_background(video, corners, size, rows)))


@pytest.mark.parametrize("frames", [1, 3, 10, 50, 51, 249, 250, 251, 300])
def test_videos_of_any_length(frames, tmp_path):
    "From one picture to a window and a bit: the sound's length and the notes are the video's."
    video, sound, player = tmp_path / "video.mp4", tmp_path / "sound.wav", Player()
    made = play(blink(video, frames), sound, player, "", 0, Hints(CORNERS))
    assert soundfile.info(sound).frames == round(frames * RATES.sample_rate / 25)
    assert not list(tmp_path.glob("*raw*"))
    whole = roll_to_notes(roll_at_once(video, player, max(frames, 3)))
    ours, theirs = ((n.pitches, n.onsets_s, n.offsets_s) for n in (made.notes, whole))
    order = [np.lexsort(x[:2]) for x in (ours, theirs)]
    for mine, other in zip(ours, theirs):
        assert np.allclose(mine[order[0]], other[order[1]], rtol=0, atol=1e-3)
    assert frames < 10 or len(made.notes)


def test_windows_join_as_if_the_video_were_one(tmp_path):
    "With one noise track and equal pictures, the cross-fade returns the track and the roll."
    video, player = blink(tmp_path / "video.mp4", 540), Player()
    corners, windows = parse_corners(CORNERS), WindowConfig(4.0, 1.0)
    pieces = list(video_pieces(video, corners, 21.6, player, "", 0, windows))
    latents = np.concatenate([z.numpy() for _, z in pieces])
    assert np.allclose(latents, noise_track(0, 0, 1620)[0], atol=1e-6)
    assert max(len(roll) for roll, _ in pieces) <= 100
    whole = roll_at_once(video, player, 540)
    assert whole.presence.std() > 0.4
    assert whole.pedal.std() > 0.4
    for name in ("presence", "onset", "pedal"):
        joined = np.concatenate([getattr(roll, name) for roll, _ in pieces])
        assert np.allclose(joined, getattr(whole, name), atol=1e-6), name


def test_after_an_error_nothing_is_left(tmp_path, monkeypatch):
    video, out = blink(tmp_path / "video.mp4", 60), tmp_path / "new" / "deep" / "out"

    def full(*_):
        raise BadInput("the disk is full")

    monkeypatch.setattr("cop_repro.systems.cop.write_midi", full)
    with pytest.raises(BadInput, match="the disk is full"):
        perform_video(video, out, Player(), hints=Hints(CORNERS))
    assert [p.name for p in tmp_path.iterdir()] == ["video.mp4"]

    def crowded(*_):
        (out.parent / "another").mkdir()
        raise BadInput("the disk is full")

    monkeypatch.setattr("cop_repro.systems.cop.write_midi", crowded)
    with pytest.raises(BadInput, match="the disk is full"):
        perform_video(video, out, Player(), hints=Hints(CORNERS))  # not that a folder is not empty
    assert [p.name for p in out.parent.iterdir()] == ["another"]


def test_a_folder_in_the_way_of_a_file(tmp_path):
    video, out = blink(tmp_path / "video.mp4", 60), tmp_path / "out"
    (out / "sound.wav").mkdir(parents=True)
    with pytest.raises(BadInput, match="sound.wav is a folder"):
        perform_video(video, out, Player(), hints=Hints(CORNERS))
    assert [p.name for p in out.iterdir()] == ["sound.wav"]


@pytest.mark.parametrize(
    "total, window, overlap",
    [(1000, 250, 50), (251, 250, 50), (100, 250, 50), (60, 50, 49), (333, 100, 70)],
)
def test_weights_are_made_one_at_a_time_and_sum_to_one(total, window, overlap):
    starts = window_starts(total, window, overlap)
    covered = np.zeros(total)
    for start, weight in zip(starts, window_weights(starts, total, window), strict=True):
        covered[start : start + len(weight)] += weight
    assert np.allclose(covered, 1)


def rough(rng, *shape):
    "A random walk folded into 0 to 1, which crosses one half often."
    return np.clip(np.cumsum(rng.normal(0, 0.25, shape), 0) % 2 - 0.5, 0, 1)


@pytest.mark.parametrize("seed", range(8))
def test_notes_in_pieces_are_the_notes_of_the_whole(seed):
    rng = numpy_rng(seed, "pieces")
    rows = int(rng.integers(3, 400))
    columns = [rough(rng, rows, 88), rough(rng, rows, 88), rough(rng, rows, 88), rough(rng, rows)]
    decoder, start = NoteDecoder(), 0
    while start < rows:
        stop = start + int(rng.integers(1, 40))
        decoder.add(make_roll(*(column[start:stop] for column in columns)))
        start = stop
    found, whole = decoder.finish(), make_roll(*columns)
    assert len(found)
    assert found == roll_to_notes(whole)
    assert found == roll_to_notes(drop_unstruck(whole))


def test_note_decoder_refuses_what_it_cannot_join():
    decoder = NoteDecoder()
    decoder.add(make_roll(np.zeros((2, 88))))
    with pytest.raises(BadInput, match="at least 3"):
        decoder.finish()
    with pytest.raises(BadInput, match="one rate"):
        decoder.add(make_roll(np.zeros((9, 88)), frame_rate=50.0))
    decoder.add(make_roll(np.zeros((9, 88))))
    assert len(decoder.finish()) == 0
    with pytest.raises(BadInput, match="new NoteDecoder"):
        decoder.add(make_roll(np.zeros((9, 88))))


def test_level_of_pieces_is_the_level_of_the_whole():
    wav = numpy_rng(0, "level").normal(0.1, 0.2, 10_001).astype(np.float32)
    meter = LevelMeter()
    for part in np.array_split(wav, 7):
        meter.add(part)
    pieces = np.concatenate([meter.level(part) for part in np.array_split(wav, 7)])
    whole = prepare_level(wav)
    assert np.allclose(pieces, whole, atol=1e-6)
    assert np.isclose(np.abs(whole).max(), 0.5)
    assert abs(whole.mean()) < 1e-4
    assert not prepare_level(np.full(99, 0.3, np.float32)).any()
    assert prepare_level(np.zeros(0, np.float32)).shape == (0,)


def test_sound_in_pieces_is_the_same_video(tmp_path):
    wav = numpy_rng(0, "voice").uniform(-0.5, 0.5, 24_000).astype(np.float32)
    frames = np.zeros((25, 32, 32, 3), np.uint8)
    write_video(tmp_path / "whole.mp4", frames, 25.0, wav)
    write_video(tmp_path / "pieces.mp4", frames, 25.0, (p for p in np.array_split(wav, 11)))
    assert (tmp_path / "whole.mp4").read_bytes() == (tmp_path / "pieces.mp4").read_bytes()
    with pytest.raises(BadInput, match="finite"):
        write_video(tmp_path / "bad.mp4", frames, 25.0, iter([np.full(9, np.nan, np.float32)]))
    assert not (tmp_path / "bad.mp4").exists()
