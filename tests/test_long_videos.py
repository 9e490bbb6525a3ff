"A long video needs no more memory than a short one, and is performed as if it were one piece."

import tracemalloc
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from cop_repro.core import RATES, BadInput, numpy_rng
from cop_repro.data.clips import LevelMeter, prepare_level
from cop_repro.data.keyboard import parse_corners
from cop_repro.data.notes import NoteDecoder, drop_unstruck, make_roll, read_midi, roll_to_notes
from cop_repro.data.video import probe_video, read_audio, write_video
from cop_repro.model.flow import SampleConfig
from cop_repro.model.roll import RollLogits, logits_to_roll
from cop_repro.systems.cop import (
    Performer,
    WindowConfig,
    noise_track,
    perform_video,
    play,
    sound_blocks,
    strip_windows,
    video_pieces,
    window_starts,
    window_weights,
)

CHANNELS = 128


class Player(Performer):
    """Networks in miniature.

    Keys come and go with the brightness of the video, latents are the noise, sound is its first
    channel.
    """

    def __init__(self):
        predictor = SimpleNamespace(cfg=SimpleNamespace(height=16, strip_width=104))
        super().__init__(
            SimpleNamespace(channels=CHANNELS, hop_length=320),
            None,
            SimpleNamespace(predictor=predictor, velocity=False),
            SampleConfig(),
        )

    def rolls(self, strips):
        "A frame of brightness 60 + 4 b is row b of a short piece that plays again and again."
        tick = torch.from_numpy(((np.median(strips, (1, 2)) - 60) / 4).round().astype(int))[
            :, None
        ] + 3 * torch.arange(88)
        sure = lambda yes: (yes.float() * 8 - 4)[None]
        return RollLogits(
            sure(tick % 40 < 20),
            sure(tick % 40 == 0),
            sure(tick % 40 < 10),
            sure(tick[:, 0] % 40 < 30),
        )

    def latents(self, strips, logits, text, noise):
        return noise[0]

    def sound(self, latents):
        return latents[:, 0].numpy().repeat(320)


CORNERS = "33,80 607,80 607,112 33,112"


def blink(path: Path, frames: int, rate: float = 25.0) -> Path:
    "A video whose brightness counts to forty, again and again."
    write_video(
        path, (np.full((96, 640, 3), 60 + 4 * (i % 40), np.uint8) for i in range(frames)), rate
    )
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> dict[int, Path]:
    "One minute and four."
    folder = tmp_path_factory.mktemp("long")
    return {minutes: blink(folder / f"{minutes}.mp4", 300 * minutes, 5.0) for minutes in (1, 4)}


@pytest.fixture(autouse=True)
def any_picture(monkeypatch):
    "Nothing in these videos looks like keys; the corners are taken all the same, and so are cuts."
    monkeypatch.setattr("cop_repro.data.keyboard.MIN_GIVEN", -1.0)
    monkeypatch.setattr("cop_repro.systems.cop.check_still", lambda *_: None)


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

    def perform(minutes, name):
        return play(videos[minutes], tmp_path / name, player, "", 0, CORNERS)

    perform(1, "warm.wav")
    peaks = {minutes: peak_of(partial(perform, minutes, f"{minutes}.wav")) for minutes in videos}
    assert peaks[4] < peaks[1] + 3, f"{peaks} MiB"

    def mux(minutes):
        frames, wav = np.zeros((2, 32, 32, 3), np.uint8), tmp_path / f"{minutes}.wav"
        write_video(tmp_path / f"{minutes}.mp4", frames, 25.0, sound_blocks(wav))

    sounds = {minutes: peak_of(partial(mux, minutes)) for minutes in videos}
    assert sounds[4] < sounds[1] + 1, f"{sounds} MiB"


def test_a_video_of_four_minutes(videos, tmp_path):
    said = perform_video(videos[4], tmp_path / "out", Player(), corners=CORNERS)
    wav, rate = soundfile.read(tmp_path / "out" / "sound.wav", dtype="float32")
    assert (
        len(wav) == 240 * rate
        and np.isclose(np.abs(wav).max(), 0.5, atol=1e-4)
        and said["sound.wav"] == "240.0 s of sound"
    )
    assert abs(probe_video(tmp_path / "out" / "video.mp4").duration_s - 240) < 0.5
    assert abs(len(read_audio(tmp_path / "out" / "video.mp4")) - len(wav)) < 4096  # AAC's delay
    assert (
        sorted(p.name for p in tmp_path.iterdir()) == ["out"]
        and len(list((tmp_path / "out").iterdir())) == 5
    )


def read_at_once(video: Path, player: Player, rows: int):
    "The roll of a video in one window."
    return logits_to_roll(
        player.rolls(
            next(
                strip_windows(
                    video, parse_corners(CORNERS), (16, 104), rows, WindowConfig(rows / 25, 0.0)
                )
            )[1]
        )
    )


@pytest.mark.parametrize("frames", [1, 3, 10, 50, 51, 249, 250, 251, 300])
def test_videos_of_any_length(frames, tmp_path):
    """From one picture to a window and a bit: sound as long as the video.

    Its notes are those of its rows read at once.
    """
    made = play(
        blink(tmp_path / "video.mp4", frames),
        tmp_path / "sound.wav",
        player := Player(),
        "",
        0,
        CORNERS,
    )
    assert soundfile.info(tmp_path / "sound.wav").frames == round(
        frames * RATES.sample_rate / 25
    ) and not list(tmp_path.glob("*raw*"))
    assert made.notes == roll_to_notes(
        read_at_once(tmp_path / "video.mp4", player, max(frames, 3))
    ) and (frames < 10 or len(made.notes))


def test_windows_join_as_if_the_video_were_one(tmp_path):
    "One noise track, the same pictures in every window: the cross-fade returns track and roll."
    pieces = list(
        video_pieces(
            blink(tmp_path / "video.mp4", 540),
            parse_corners(CORNERS),
            21.6,
            player := Player(),
            "",
            0,
            WindowConfig(4.0, 1.0),
        )
    )
    latents, presence, onset, pedal = (
        np.concatenate(parts)
        for parts in zip(*((z.numpy(), r.presence, r.onset, r.pedal) for r, z in pieces))
    )
    whole = read_at_once(tmp_path / "video.mp4", player, 540)
    assert (
        np.allclose(latents, noise_track(0, 0, 1620)[0], atol=1e-6)
        and max(len(r) for r, _ in pieces) <= 100
    )
    assert whole.presence.std() > 0.4 and whole.pedal.std() > 0.4
    for got, wanted in ((presence, whole.presence), (onset, whole.onset), (pedal, whole.pedal)):
        assert np.allclose(got, wanted, atol=1e-6)


def test_after_an_error_nothing_is_left(tmp_path, monkeypatch):
    video, out = blink(tmp_path / "video.mp4", 60), tmp_path / "new" / "deep" / "out"
    monkeypatch.setattr(
        "cop_repro.systems.cop.write_midi",
        lambda *_: (_ for _ in ()).throw(BadInput("the disk is full")),
    )
    with pytest.raises(BadInput, match="the disk is full"):
        perform_video(video, out, Player(), corners=CORNERS)
    assert [p.name for p in tmp_path.iterdir()] == ["video.mp4"]

    def crowded(*_):
        (out.parent / "another").mkdir()
        raise BadInput("the disk is full")

    monkeypatch.setattr("cop_repro.systems.cop.write_midi", crowded)
    with pytest.raises(BadInput, match="the disk is full"):
        perform_video(video, out, Player(), corners=CORNERS)  # not that a folder is not empty
    assert [p.name for p in out.parent.iterdir()] == ["another"]


def test_a_folder_in_the_way_of_a_file(tmp_path):
    (tmp_path / "out" / "sound.wav").mkdir(parents=True)
    with pytest.raises(BadInput, match="sound.wav is a folder"):
        perform_video(
            blink(tmp_path / "video.mp4", 60), tmp_path / "out", Player(), corners=CORNERS
        )
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["sound.wav"]


def test_the_first_minute_is_drawn_whatever_comes_after(videos, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "matplotlib.axes.Axes.hlines", lambda self, y, *_, **__: drawn.append(len(y))
    )
    perform_video(videos[4], tmp_path / "out", Player(), corners=CORNERS)
    notes = read_midi(tmp_path / "out" / "notes.mid")
    assert drawn == [(notes.onsets_s < 60).sum()] and len(notes) > 2 * drawn[0] > 0


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


@pytest.mark.parametrize("seed", range(8))
def test_notes_in_pieces_are_the_notes_of_the_whole(seed):
    rng = numpy_rng(seed, "pieces")
    rows = int(rng.integers(3, 400))
    rough = lambda *shape: np.clip(np.cumsum(rng.normal(0, 0.25, shape), 0) % 2 - 0.5, 0, 1)
    whole = make_roll(rough(rows, 88), rough(rows, 88), rough(rows, 88), rough(rows))
    decoder, at = NoteDecoder(), 0
    while at < rows:
        part = slice(at, at := at + int(rng.integers(1, 40)))
        decoder.add(
            make_roll(
                whole.presence[part], whole.onset[part], whole.velocity[part], whole.pedal[part]
            )
        )
    assert (found := decoder.finish()) == roll_to_notes(whole) == roll_to_notes(
        drop_unstruck(whole)
    ) and len(found)


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
    assert np.allclose(
        np.concatenate([meter.level(part) for part in np.array_split(wav, 7)]),
        prepare_level(wav),
        atol=1e-6,
    )
    assert (
        np.isclose(np.abs(prepare_level(wav)).max(), 0.5) and abs(prepare_level(wav).mean()) < 1e-4
    )
    assert not prepare_level(np.full(99, 0.3, np.float32)).any() and prepare_level(
        np.zeros(0, np.float32)
    ).shape == (0,)


def test_sound_in_pieces_is_the_same_video(tmp_path):
    wav = numpy_rng(0, "voice").uniform(-0.5, 0.5, 24_000).astype(np.float32)
    frames = np.zeros((25, 32, 32, 3), np.uint8)
    write_video(tmp_path / "whole.mp4", frames, 25.0, wav)
    write_video(tmp_path / "pieces.mp4", frames, 25.0, (p for p in np.array_split(wav, 11)))
    assert (tmp_path / "whole.mp4").read_bytes() == (tmp_path / "pieces.mp4").read_bytes()
    with pytest.raises(BadInput, match="finite"):
        write_video(tmp_path / "bad.mp4", frames, 25.0, iter([np.full(9, np.nan, np.float32)]))
    assert not (tmp_path / "bad.mp4").exists()
