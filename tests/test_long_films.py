"A long film needs no more memory than a short one, and its pieces make the same performance as the whole."
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from cop_repro.core import RATES, BadInput, numpy_rng
from cop_repro.data.clips import LevelMeter, prepare_level
from cop_repro.data.notes import NoteReader, make_notes, make_roll, roll_to_notes
from cop_repro.data.rendering import Nuisance, probe_video, read_audio, render, write_video
from cop_repro.model.flow import SampleConfig
from cop_repro.model.roll import RollLogits
from cop_repro.systems.cop import Performer, WindowConfig, film_noise, film_pieces, perform_video, window_starts, window_weights

class Player(Performer):
    "Networks in miniature: keys come and go with a clock, latents are the noise, sound is its first channel."
    def __init__(self):
        reader = SimpleNamespace(cfg=SimpleNamespace(height=16, strip_width=104))
        super().__init__(SimpleNamespace(channels=4, hop_length=320), None, SimpleNamespace(reader=reader, velocity=False), SampleConfig())
        self.seen = 0

    def rolls(self, strips):
        rows = torch.arange(len(strips))[:, None] + 7 * torch.arange(88)
        down = (rows % 40 < 20).float() * 8 - 4
        return RollLogits(down[None], ((rows % 40 == 0).float() * 8 - 4)[None], None, None)

    def latents(self, strips, logits, text, noise): return noise[0, :, :4]
    def sound(self, latents): return latents[:, 0].numpy().repeat(320)

CORNERS = "33,80 607,80 607,112 33,112"

@pytest.fixture(scope="module")
def films(tmp_path_factory) -> dict[int, Path]:
    "A keyboard on which nobody plays, for one minute and for four."
    folder = tmp_path_factory.mktemp("long")
    still = render(make_notes([], [], [], []), None, 1.0, "top", Nuisance.none(), (96, 640), 5.0, seed=0).frames
    for minutes in (1, 4): write_video(folder / f"{minutes}.mp4", (still[i % 5] for i in range(300 * minutes)), 5.0)
    return {minutes: folder / f"{minutes}.mp4" for minutes in (1, 4)}

def test_memory_does_not_grow_with_the_film(films, tmp_path):
    peaks = {}
    for minutes, path in films.items():
        tracemalloc.start()
        said = perform_video(path, tmp_path / str(minutes), Player(), corners=CORNERS)
        peaks[minutes] = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
        wav, rate = soundfile.read(tmp_path / str(minutes) / "sound.wav", dtype="float32")
        assert len(wav) == 60 * minutes * rate and np.isclose(np.abs(wav).max(), .5, atol=1e-4) and f"{60 * minutes}.0 s" in said["sound.wav"]
        assert abs(probe_video(tmp_path / str(minutes) / "video.mp4").duration_s - 60 * minutes) < .5
        assert abs(len(read_audio(tmp_path / str(minutes) / "video.mp4")) - len(wav)) < 4096  # AAC's delay
        assert not list(tmp_path.glob(".*"))
    assert peaks[4] < peaks[1] + 12, f"{peaks} MiB: three more minutes hold about 60 MiB of sound, rolls and latents"

def test_windows_join_as_if_the_film_were_one(films):
    "The same noise track and the same clock in every window: cross-faded pieces are the track itself."
    windows, player = WindowConfig(4.0, 1.0), Player()
    corners = np.array([c.split(",") for c in CORNERS.split()], float)
    pieces = list(film_pieces(films[1], corners, 60.0, player, "", 0, windows))
    latents = torch.cat([z for _, z in pieces])
    assert torch.allclose(latents, film_noise(0, 0, 4500, 4)[0], atol=1e-6) and max(len(r) for r, _ in pieces) <= 100
    assert sum(len(r) for r, _ in pieces) == 1500

@pytest.mark.parametrize("total, window, overlap", [(1000, 250, 50), (251, 250, 50), (100, 250, 50), (60, 50, 49), (333, 100, 70)])
def test_weights_are_made_one_at_a_time_and_sum_to_one(total, window, overlap):
    starts = window_starts(total, window, overlap)
    covered = np.zeros(total)
    for start, weight in zip(starts, window_weights(starts, total, window), strict=True): covered[start:start + len(weight)] += weight
    assert np.allclose(covered, 1)

@pytest.mark.parametrize("seed", range(8))
def test_notes_in_pieces_are_the_notes_of_the_whole(seed):
    rng = numpy_rng(seed, "pieces")
    rows = int(rng.integers(3, 400))
    rough = lambda *shape: np.clip(np.cumsum(rng.normal(0, .25, shape), 0) % 2 - .5, 0, 1)
    whole = make_roll(rough(rows, 88), rough(rows, 88), rough(rows, 88), rough(rows))
    reader, at = NoteReader(), 0
    while at < rows:
        part = slice(at, at := at + int(rng.integers(1, 40)))
        reader.read(make_roll(whole.presence[part], whole.onset[part], whole.velocity[part], whole.pedal[part]))
    assert (found := reader.finish()) == roll_to_notes(whole) and len(found)

def test_reader_of_notes_refuses_what_it_cannot_join():
    reader = NoteReader()
    reader.read(make_roll(np.zeros((2, 88))))
    with pytest.raises(BadInput, match="at least 3"): reader.finish()
    with pytest.raises(BadInput, match="one rate"): reader.read(make_roll(np.zeros((9, 88)), frame_rate=50.0))

def test_level_of_pieces_is_the_level_of_the_whole():
    wav = numpy_rng(0, "level").normal(.1, .2, 10_001).astype(np.float32)
    meter = LevelMeter()
    for part in np.array_split(wav, 7): meter.add(part)
    assert np.allclose(np.concatenate([meter.level(part) for part in np.array_split(wav, 7)]), prepare_level(wav), atol=1e-6)
    assert np.isclose(np.abs(prepare_level(wav)).max(), .5) and abs(prepare_level(wav).mean()) < 1e-4
    assert not prepare_level(np.full(99, .3, np.float32)).any() and prepare_level(np.zeros(0, np.float32)).shape == (0,)

def test_sound_in_pieces_is_the_same_film(tmp_path):
    wav = numpy_rng(0, "voice").uniform(-.5, .5, 24_000).astype(np.float32)
    frames = np.zeros((25, 32, 32, 3), np.uint8)
    write_video(tmp_path / "whole.mp4", frames, 25.0, wav)
    write_video(tmp_path / "pieces.mp4", frames, 25.0, (p for p in np.array_split(wav, 11)))
    assert (tmp_path / "whole.mp4").read_bytes() == (tmp_path / "pieces.mp4").read_bytes()
    with pytest.raises(BadInput, match="finite"): write_video(tmp_path / "bad.mp4", frames, 25.0, iter([np.full(9, np.nan, np.float32)]))
    assert not (tmp_path / "bad.mp4").exists()
