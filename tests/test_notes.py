# SPDX-License-Identifier: Apache-2.0
"Facts about notes, rolls, MIDI files and sound that must never change."

import struct

import numpy as np
import pretty_midi
import pytest

from cop_repro.core import BadInput, numpy_rng
from cop_repro.data.notes import (
    Notes,
    add_room,
    extend_by_pedal,
    make_notes,
    make_roll,
    notes_to_roll,
    read_midi,
    roll_to_notes,
    synthesise,
    write_midi,
)


def performance(seed=0, count=400, length_s=60.0):
    "Random notes on 24 keys, re-struck at least 100 ms apart and up for 60 ms."
    rng, last, rows = numpy_rng(seed, "test"), {}, []
    for onset in np.sort(rng.uniform(0, length_s, count)):
        key = int(rng.integers(50, 74))
        if onset - last.get(key, -1) >= 0.1:
            rows.append([key, onset, onset + 0.3, int(rng.integers(20, 121))])
            last[key] = onset
    for i, row in enumerate(rows):
        following = [r[1] for r in rows[i + 1 :] if r[0] == row[0]]
        if following:
            row[2] = min(row[2], following[0] - 0.06)
    return make_notes(*zip(*rows), pedal=[(t, t + 1.5) for t in range(0, int(length_s), 4)])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("frame_rate", [25.0, 30.0, 75.0])
def test_roll_round_trip_keeps_every_note(seed, frame_rate):
    notes = performance(seed)
    again = roll_to_notes(notes_to_roll(notes, 61, frame_rate))
    a, b = (np.lexsort((n.onsets_s, n.pitches)) for n in (notes, again))
    assert len(notes) == len(again) and np.array_equal(notes.pitches[a], again.pitches[b])
    assert np.array_equal(notes.velocities[a], again.velocities[b])
    assert np.abs(notes.onsets_s[a] - again.onsets_s[b]).max() <= 0.5 / frame_rate + 1e-9
    assert np.abs(notes.offsets_s[a] - again.offsets_s[b]).max() <= 1.5 / frame_rate + 1e-9
    assert np.abs(notes.pedal - again.pedal).max() <= 0.5 / frame_rate + 1e-9


def test_repeats_two_rows_apart_survive_and_neighbours_fuse():
    fast = make_notes([60] * 4, [0, 0.08, 0.16, 0.24], [0.03, 0.1, 0.2, 0.3], [64] * 4)
    assert len(roll_to_notes(notes_to_roll(fast, 1))) == 4
    too_fast = make_notes([60, 60], [0, 0.04], [0.03, 0.07], [64, 64])
    assert len(roll_to_notes(notes_to_roll(too_fast, 1))) == 1


def test_last_row_and_first_row():
    edge = make_notes([60, 61], [0, 0.999], [0.01, 5], [1, 127])
    assert roll_to_notes(notes_to_roll(edge, 1)).pitches.tolist() == [60, 61]


def test_random_probabilities_always_decode():
    for seed in range(5):
        rng = numpy_rng(seed, "noise")
        notes = roll_to_notes(make_roll(*rng.random((3, 100, 88)), rng.random(100)))
        assert (
            len(notes) and notes.velocities.min() >= 1 and (notes.offsets_s > notes.onsets_s).all()
        )


def test_pretty_midi_reads_the_same(tmp_path):
    notes = performance()
    write_midi(notes, tmp_path / "a.mid")
    theirs = sorted(
        (n.start, n.pitch, n.end, n.velocity)
        for n in pretty_midi.PrettyMIDI(str(tmp_path / "a.mid")).instruments[0].notes
    )
    ours = read_midi(tmp_path / "a.mid")
    start, pitch, end, velocity = zip(*theirs)
    assert np.allclose(start, ours.onsets_s) and np.allclose(end, ours.offsets_s)
    assert list(pitch) == ours.pitches.tolist() and list(velocity) == ours.velocities.tolist()
    write_midi(ours, tmp_path / "b.mid")
    assert (tmp_path / "a.mid").read_bytes() == (tmp_path / "b.mid").read_bytes()


def test_tempo_changes_and_tracks(tmp_path):
    midi = pretty_midi.PrettyMIDI(resolution=480, initial_tempo=90)
    midi._tick_scales = [(0, 60 / (90 * 480)), (960, 60 / (150 * 480))]
    midi._update_tick_to_time(5000)
    for pitch in (40, 80):
        piano = pretty_midi.Instrument(0)
        piano.notes = [pretty_midi.Note(70, pitch, t, t + 0.25) for t in (0.0, 1.0, 2.0)]
        midi.instruments.append(piano)
    midi.write(str(tmp_path / "t.mid"))
    assert np.allclose(read_midi(tmp_path / "t.mid").onsets_s, [0, 0, 1, 1, 2, 2], atol=2e-3)


def midi_bytes(events: bytes, division: int = 480) -> bytes:
    return (
        b"MThd"
        + struct.pack(">IHHH", 6, 0, 1, division & 0xFFFF)
        + b"MTrk"
        + struct.pack(">I", len(events) + 4)
        + events
        + b"\x00\xff\x2f\x00"
    )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"MThd",
        b"RIFF" * 9,
        midi_bytes(b"\x00\x90\x3c\x40\xff\xff\xff\x7f\x80\x3c\x40", 1),
        midi_bytes(b"\x00\x90\x3c\x40\x10\x80\x3c\x40", 0),
        midi_bytes(b"\x00\x90\x3c\x40\x10\x80\x3c\x40", 0xE728),
        midi_bytes(b"\x00\x90\x05\x40\x10\x80\x05\x40"),
        b"MThd" + struct.pack(">IHHH", 6, 0, 65535, 480),
    ],
)
def test_damaged_midi_is_bad_input(tmp_path, data):
    (tmp_path / "bad.mid").write_bytes(data)
    with pytest.raises(BadInput):
        read_midi(tmp_path / "bad.mid")


@pytest.mark.filterwarnings("ignore::cop_repro.data.notes.MidiWarning")
def test_flipped_bytes_never_escape(tmp_path):
    write_midi(performance(count=40, length_s=10), tmp_path / "a.mid")
    good, rng = (tmp_path / "a.mid").read_bytes(), numpy_rng(0, "fuzz")
    for _ in range(150):
        data = bytearray(good)
        for at in rng.integers(0, len(data), 3):
            data[at] = int(rng.integers(256))
        (tmp_path / "f.mid").write_bytes(bytes(data))
        try:
            assert isinstance(read_midi(tmp_path / "f.mid", drop_foreign=True), Notes)
        except BadInput:
            pass


def test_foreign_pitches_can_be_dropped(tmp_path):
    (tmp_path / "low.mid").write_bytes(
        midi_bytes(b"\x00\x90\x05\x40\x00\x90\x3c\x40\x81\x00\x80\x05\x40\x00\x80\x3c\x40")
    )
    assert read_midi(tmp_path / "low.mid", drop_foreign=True).pitches.tolist() == [60]


def test_failed_write_leaves_nothing(tmp_path, monkeypatch):
    import mido

    def fail(self, path):
        raise OSError("disk full")

    monkeypatch.setattr(mido.MidiFile, "save", fail)
    with pytest.raises(OSError):
        write_midi(performance(), tmp_path / "a.mid")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        ([60], [0], [0], [64]),
        ([60], [-1], [1], [64]),
        ([60], [np.nan], [1], [64]),
        ([60.5], [0], [1], [64]),
        ([109], [0], [1], [64]),
        ([60], [0], [1], [0]),
        ([60], [0], [1], [128]),
        ([[60]], [[0]], [[1]], [[64]]),
        ([60], [0], [1], [64], [(1, 1)]),
    ],
)
def test_impossible_notes(arguments):
    with pytest.raises(BadInput):
        make_notes(*arguments)


def test_window_errors():
    notes = performance()
    for call in (
        lambda: notes_to_roll(notes, 10),
        lambda: synthesise(notes, 10),
        lambda: notes_to_roll(notes, 1e9),
        lambda: notes_to_roll(notes, 0),
        lambda: notes.crop(2, 2),
        lambda: synthesise(notes, 61, soundfont="missing.sf2"),
        lambda: add_room(np.zeros(9), 2),
    ):
        with pytest.raises(BadInput):
            call()


def test_crops_partition_the_sounding_time():
    notes = performance()
    parts = [notes.crop(t, t + 10) for t in range(0, 60, 10)]
    held = sum(float((p.offsets_s - p.onsets_s).sum()) for p in parts)
    inside = np.minimum(notes.offsets_s, 60) - notes.onsets_s
    assert np.isclose(held, inside.sum()) and sum(len(p) for p in parts) >= len(notes)


def test_sound_is_linear_in_nothing_but_deterministic():
    notes = make_notes([60, 64, 67], [0, 0.1, 0.2], [0.5, 0.5, 0.5], [80, 80, 80], [(0.3, 0.9)])
    wav = synthesise(notes, 1.5)
    assert (
        wav.dtype == np.float32
        and wav.shape == (36_000,)
        and np.array_equal(wav, synthesise(notes, 1.5))
    )
    assert np.array_equal(wav, synthesise(extend_by_pedal(notes), 1.5))
    assert 0 < np.abs(wav).max() < 1
    room = synthesise(notes, 1.5, reverb=0.4)
    assert (
        room.shape == wav.shape
        and np.array_equal(room, synthesise(notes, 1.5, reverb=0.4))
        and not np.allclose(room, wav)
    )
    cluster = make_notes(np.arange(40, 70), [0] * 30, [1] * 30, [127] * 30)
    assert np.abs(synthesise(cluster, 1.5)).max() < 1.05
