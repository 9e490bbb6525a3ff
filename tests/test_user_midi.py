# SPDX-License-Identifier: Apache-2.0
"MIDI files of many programs: pairing, channel mode, what notes do not need, and damage."

import struct
import warnings

import mido
import numpy as np
import pretty_midi
import pytest

from cop_repro.core import BadInput, numpy_rng
from cop_repro.data.notes import MidiWarning, make_notes, read_midi, write_midi

END = (0, b"\xff\x2f\x00")
NOTE = [(0, b"\x90\x3c\x50"), (480, b"\x80\x3c\x40"), END]
HALF_SECOND = [(60, 0.0, 0.5)]


def on(pitch=60, velocity=80, channel=0) -> bytes:
    return bytes([0x90 | channel, pitch, velocity])


def off(pitch=60, channel=0) -> bytes:
    return bytes([0x80 | channel, pitch, 64])


def control(number, value, channel=0) -> bytes:
    return bytes([0xB0 | channel, number, value])


def quantity(value: int) -> bytes:
    digits = [value & 127]
    while value := value >> 7:
        digits.insert(0, value & 127 | 128)
    return bytes(digits)


def track(events, size=None) -> bytes:
    "A track of (ticks since the last event, bytes)."
    data = b"".join(quantity(delta) + message for delta, message in events)
    return b"MTrk" + struct.pack(">I", len(data) if size is None else size) + data


def header(count=1, kind=1, division=480) -> bytes:
    return b"MThd" + struct.pack(">IHHH", 6, kind, count, division)


def smf(*tracks, kind=1) -> bytes:
    "At 480 ticks per beat, 120 beats a minute: 960 ticks a second."
    return header(len(tracks), kind) + b"".join(map(track, tracks))


@pytest.fixture
def read(tmp_path):
    "Reads bytes as a file; any warning is an error."

    def from_bytes(data: bytes, **options):
        (tmp_path / "x.mid").write_bytes(data)
        return read_midi(tmp_path / "x.mid", **options)

    return from_bytes


def listed(notes) -> list[tuple]:
    columns = notes.pitches.tolist(), notes.onsets_s.tolist(), notes.offsets_s.tolist()
    return list(zip(*columns))


@pytest.mark.parametrize("release", [off(), on(velocity=0)])
@pytest.mark.parametrize("strike_first", [False, True])
def test_repeats_end_to_end_in_either_order(read, release, strike_first):
    between = [on(), release] if strike_first else [release, on()]
    events = [(0, on())] + [(480, between[0]), (0, between[1])] * 15 + [(480, release), END]
    expected = [(60, 0.5 * i, 0.5 * i + 0.5) for i in range(16)]
    assert listed(read(smf(events, kind=0))) == expected


def test_overlapping_voices_of_one_track(read):
    "A whole note and four quarters of the same key; the next bar's strike precedes the releases."
    quarters = [
        (0, on()),
        (480, off()),
        (0, on()),
        (480, off()),
        (0, on()),
        (480, off()),
        (0, on()),
    ]
    events = [
        (0, on(velocity=100)),
        *quarters,
        (480, on()),
        (0, off()),
        (0, off()),
        (480, off()),
        END,
    ]
    notes = read(smf(events))
    assert listed(notes) == [(60, 0.5 * i, 0.5 * i + 0.5) for i in range(5)]
    assert notes.velocities.tolist() == [100, 80, 80, 80, 80]


def test_a_strike_ends_the_note_that_is_held(read):
    events = [(0, on()), (240, on(velocity=90)), (240, off()), (480, off()), END]
    assert listed(read(smf(events))) == [(60, 0, 0.25), (60, 0.25, 0.5)]


def test_a_lost_release_shortens_no_later_note(read):
    events = [(0, on()), (480, on()), (240, off()), (240, on()), (240, off()), END]
    assert listed(read(smf(events))) == [(60, 0, 0.5), (60, 0.5, 0.75), (60, 1, 1.25)]


@pytest.mark.parametrize("channels", [(0, 0), (0, 1)])
@pytest.mark.parametrize("swap", [False, True])
def test_two_hands_on_one_key(read, channels, swap):
    "The right hand strikes in the tick in which the left releases."
    left, right = channels
    hands = [
        [(0, on(60, 80, left)), (480, off(60, left)), END],
        [(480, on(60, 90, right)), (480, off(60, right)), END],
    ]
    assert listed(read(smf(*hands[:: -1 if swap else 1]))) == [(60, 0, 0.5), (60, 0.5, 1)]


def test_hands_do_not_swallow_each_other(read):
    inside = [[(0, on()), (960, off()), END], [(480, on()), (240, off()), END]]
    assert listed(read(smf(*inside))) == [(60, 0, 0.5), (60, 0.5, 0.75)]
    together = [[(0, on(60, 50)), (960, off()), END], [(0, on(60, 90)), (240, off()), END]]
    for hands in (together, together[::-1]):
        notes = read(smf(*hands))
        assert listed(notes) == [(60, 0, 1)] and notes.velocities.tolist() == [90]


def test_one_track_with_two_channels(read):
    events = [(0, on()), (480, on(60, 90, 1)), (0, off()), (480, off(60, 1)), END]
    assert listed(read(smf(events, kind=0))) == [(60, 0, 0.5), (60, 0.5, 1)]


def test_notes_without_a_duration_are_left_out_with_a_warning(read):
    events = [(0, on(60)), (0, off(60)), (0, on(62)), (480, off(62)), END]
    with pytest.warns(MidiWarning, match="notes without a duration"):
        assert listed(read(smf(events))) == [(62, 0, 0.5)]


def test_stuck_notes_end_with_their_track(read):
    melody = [(0, on()), (480, b"\xff\x2f\x00")]
    notes = read(smf(melody, [(0, on(64)), (4800, off(64)), END]))
    assert listed(notes) == [(60, 0, 0.5), (64, 0, 5)]


def test_drums_are_no_notes(read):
    events = [(0, on(60, 80, 9)), (0, on()), (480, off(60, 9)), (0, off()), END]
    assert listed(read(smf(events))) == HALF_SECOND


def test_running_status_and_tempo_of_another_track(read):
    tempo = [(0, b"\xff\x51\x03\x0f\x42\x40"), (960, b"\xff\x51\x03\x03\xd0\x90"), END]
    events = [(0, on()), (480, b"\x3c\x00"), (0, b"\x3e\x50"), (960, b"\x3e\x00"), END]
    assert listed(read(smf(tempo, events))) == [(60, 0, 1), (62, 1, 2.25)]


@pytest.mark.parametrize("number", [120, 123, 124, 125, 126, 127])
def test_all_notes_off_ends_the_notes_of_its_channel(read, number):
    notes = [(0, on()), (0, on(64, 80, 1)), (480, control(number, 0)), (0, on(67)), (480, off(67))]
    events = [*notes, (0, off(64, 1)), END]
    assert listed(read(smf(events))) == [(60, 0, 0.5), (64, 0, 1), (67, 0.5, 1)]


def test_all_notes_off_from_another_track(read):
    assert (
        listed(read(smf([(480, control(123, 0)), END], [(0, on()), (960, END[1])]))) == HALF_SECOND
    )


def test_all_notes_off_in_the_tick_of_a_strike_leaves_it(read):
    for opening in ([(0, control(123, 0)), (0, on())], [(0, on()), (0, control(123, 0))]):
        assert listed(read(smf([*opening, (480, off()), END]))) == HALF_SECOND


@pytest.mark.parametrize(
    "events, spans",
    [
        ([(0, control(64, 127)), (960, control(121, 0)), (960, on()), (960, off())], [[0, 1]]),
        ([(0, control(64, 127)), (960, on()), (960, off())], [[0, 2]]),  # end of the file
        ([(0, control(64, 64)), (480, control(64, 100)), (480, control(64, 63))], [[0, 1]]),
        ([(0, control(66, 127)), (480, control(67, 127)), (480, control(69, 127))], []),
        ([(0, control(64, 127)), (480, control(123, 0)), (480, control(64, 0))], [[0, 1]]),
        ([(0, control(64, 127)), (480, control(121, 0, 1)), (480, control(64, 0))], [[0, 1]]),
        (
            [
                (0, control(64, 127)),
                (480, control(64, 127, 1)),
                (480, control(64, 0)),
                (480, control(64, 0, 1)),
            ],
            [[0, 1.5]],
        ),
    ],
    ids=["reset", "never lifted", "half", "others", "notes off", "other channel", "two channels"],
)
def test_pedal(read, events, spans):
    assert read(smf([*events, END])).pedal.tolist() == spans


META = {
    "key of 8 sharps": b"\xff\x59\x02\x08\x00",
    "key in mode 255": b"\xff\x59\x02\xfe\xff",
    "empty key": b"\xff\x59\x00",
    "short time signature": b"\xff\x58\x02\x04\x02",
    "empty time signature": b"\xff\x58\x00",
    "denominator of 2 to the 255": b"\xff\x58\x04\x04\xff\x18\x08",
    "SMPTE offset of an unknown rate": b"\xff\x54\x05\xff\xff\xff\xff\xff",
    "short SMPTE offset": b"\xff\x54\x01\x00",
    "empty sequence number": b"\xff\x00\x00",
    "channel prefix of 16": b"\xff\x20\x01\x10",
    "empty port": b"\xff\x21\x00",
    "title in Shift JIS": b"\xff\x03\x04\x83\x47\x83\x8a",
    "lyric of lone bytes": b"\xff\x05\x03\xff\xfe\x80",
    "unknown type": b"\xff\x77\x02\x01\x02",
    "unknown type above 127": b"\xff\x90\x03\x3c\x50\x00",
    "sequencer specific": b"\xff\x7f\x81\x00" + bytes(range(128)),
    "system exclusive": b"\xf0\x05\x7e\x7f\x09\x01\xf7",
    "system exclusive with high bytes": b"\xf0\x04\x43\x90\xff\xf7",
    "escape": b"\xf7\x02\xf3\x01",
    "song select": b"\xf3\x01",
    "clock": b"\xf8",
    "undefined status": b"\xf4",
    "pitch bend": b"\xe0\x00\x40",
    "pressure": b"\xd0\x10",
}


@pytest.mark.parametrize("event", META.values(), ids=META)
def test_other_events_cost_no_notes_and_no_time(read, event):
    assert listed(read(smf([(0, event), *NOTE]))) == HALF_SECOND
    assert listed(read(smf([(480, event), *NOTE]))) == [(60, 0.5, 1)]
    assert listed(read(smf([NOTE[0], (240, event), (240, off()), END]))) == HALF_SECOND


def test_running_status_goes_on_after_a_title(read):
    events = [(0, on()), (0, b"\xff\x01\x01a"), (480, b"\x3c\x00"), END]
    assert listed(read(smf(events))) == HALF_SECOND


def test_other_chunks_are_skipped(read):
    vendor = b"XFIH" + struct.pack(">I", 4) + b"MTrk"
    one, two = track(NOTE), track([(480, on(64)), (480, off(64)), END])
    expected = HALF_SECOND + [(64, 0.5, 1)]
    assert listed(read(header(2) + vendor + one + vendor + two + vendor)) == expected
    long_header = b"MThd" + struct.pack(">IHHH", 8, 1, 1, 480) + b"\x00\x00"
    assert listed(read(long_header + one)) == HALF_SECOND


def test_riff_wrapper(read):
    body = smf(NOTE)
    info = b"LIST" + struct.pack("<I", 4) + b"INFO"
    for data in (
        b"RMIDdata" + struct.pack("<I", len(body)) + body,
        b"RMID" + info + b"data" + struct.pack("<I", len(body)) + body + info,
    ):
        assert listed(read(b"RIFF" + struct.pack("<I", len(data)) + data)) == HALF_SECOND


IRREGULAR = {
    "too many tracks declared": (header(3) + track(NOTE), "declares 3 tracks, 1"),
    "no track declared": (header(0) + track(NOTE), "declares 0 tracks, 1"),
    "bytes before the header": (bytes(128) + smf(NOTE), "128 bytes before"),
    "bytes after the last track": (smf(NOTE) + bytes(17), "17 bytes belong to no chunk"),
    "text after the last track": (smf(NOTE) + b"made by hand", "12 bytes belong to no chunk"),
    "one padding byte": (header(2) + track([END]) + b"\x00" + track(NOTE), "1 bytes belong"),
    "a byte instead of an end event": (
        header(2) + track([]) + b"\x00" + track(NOTE),
        "1 bytes belong to no chunk, a track lacks its end",
    ),
    "no end event": (smf(NOTE[:-1]), "lacks its end"),
    "bytes after the end event": (smf([*NOTE, (0, on())]), "after the end of a track"),
    "velocity above 127": (smf([(0, b"\x90\x3c\xc8"), *NOTE[1:]]), "above 127"),
    "length of zero": (header() + track(NOTE, size=0), "length of a track"),
    "length too short": (header(2) + track(NOTE, 3) + track([END]), "length of a track"),
    "length too long": (header(2) + track(NOTE, 9999) + track([END]), "length of a track"),
}


@pytest.mark.parametrize("data, text", IRREGULAR.values(), ids=IRREGULAR)
def test_irregular_files_are_read_with_one_warning(read, data, text):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert listed(read(data)) == HALF_SECOND
    assert [w.category for w in caught] == [MidiWarning] and text in str(caught[0].message)


FAR = [(0, on()), (0xFFFFFFF, off()), END]
DAMAGED = {
    "text": (b"not MIDI at all", "no header"),
    "half a header": (b"MThd\x00\x00\x00\x06\x00", "no header"),
    "no tracks": (header(2), "no tracks"),
    "too many tracks": (header(2000) + track([END]) * 2000, "1025 tracks"),
    "tempo 0": (smf([(0, b"\xff\x51\x03\x00\x00\x00"), *NOTE]), "tempo"),
    "short tempo": (smf([(0, b"\xff\x51\x02\x07\xa1"), *NOTE]), "tempo"),
    "resolution 0": (header(division=0) + track(NOTE), "resolution zero"),
    "SMPTE time": (header(division=0xE728) + track(NOTE), "SMPTE"),
    "two sequences": (smf(NOTE, NOTE, kind=2), "type 2"),
    "cut in a note": (smf([*NOTE[:-1]] * 5)[:-2], "cut off"),
    "cut between events": (smf([NOTE[0], NOTE[1], *NOTE])[:-9], "cut off"),
    "data without a status": (smf([(0, b"\x3c\x50"), END]), "belong to no message"),
    "long delta": (header() + b"MTrk" + struct.pack(">I", 8) + b"\xff" * 8, "larger than 28 bits"),
    "endless title": (smf([(0, b"\xff\x03\xff\xff\xff\x7f"), *NOTE]), "cut off"),
    "a note of days": (smf(FAR), "at most 7200 s"),
    "a stuck note of days": (smf([(0, on()), (0xFFFFFFF, END[1])]), "at most 7200 s"),
    "a pedal of days": (smf([(0, control(64, 127)), (0xFFFFFFF, END[1])]), "at most 7200 s"),
}


@pytest.mark.parametrize("data, text", DAMAGED.values(), ids=DAMAGED)
def test_damage_is_one_clear_refusal(read, data, text):
    with pytest.raises(BadInput, match="x.mid") as caught:
        read(data)
    assert text in str(caught.value) and "\n" not in str(caught.value)


def test_a_late_end_without_notes_does_no_harm(read):
    assert listed(read(smf([*NOTE[:-1], (0xFFFFFFF, END[1])]))) == HALF_SECOND
    assert len(read(smf([(0, b"\xff\x03\x00"), END]))) == 0


def random_midi(seed: int) -> pretty_midi.PrettyMIDI:
    "Two pianos that share keys at times of their own, repeated notes end to end, and drums."
    rng = numpy_rng(seed, "midi")
    tempo, resolution = rng.uniform(50, 200), int(rng.choice([96, 220, 480, 960]))
    midi = pretty_midi.PrettyMIDI(resolution=resolution, initial_tempo=tempo)
    for drums in (False, False, True):
        midi.instruments.append(pretty_midi.Instrument(0, is_drum=drums))
        for pitch in range(50, 62):
            ends = np.cumsum(rng.uniform(0.05, 0.5, 20))
            starts = ends - rng.choice([0, 0.03], 20) - np.diff(ends, prepend=0)
            velocities = rng.integers(1, 128, 20)
            for start, end, velocity in zip(starts.clip(0), ends, velocities):
                note = pretty_midi.Note(int(velocity), pitch, start, end)
                midi.instruments[-1].notes.append(note)
    return midi


@pytest.mark.parametrize("seed", range(8))
def test_pretty_midi_reads_the_same_random_file(tmp_path, seed):
    random_midi(seed).write(str(tmp_path / "a.mid"))
    theirs = pretty_midi.PrettyMIDI(str(tmp_path / "a.mid")).instruments
    joined = {}  # equal strikes of both pianos are one note up to the later release
    for note in (n for i in theirs if not i.is_drum for n in i.notes):
        end, velocity = joined.get((note.pitch, note.start), (0, 0))
        strike = note.pitch, note.start
        joined[strike] = max(end, note.end), max(velocity, note.velocity)
    columns = make_notes(*zip(*((*strike, *rest) for strike, rest in joined.items())))
    ours = read_midi(tmp_path / "a.mid")
    assert len(ours) > 300 and np.array_equal(ours.pitches, columns.pitches)
    assert np.array_equal(ours.velocities, columns.velocities)
    assert np.allclose(ours.onsets_s, columns.onsets_s, rtol=0, atol=1e-9)
    assert np.allclose(ours.offsets_s, columns.offsets_s, rtol=0, atol=1e-9)
    write_midi(ours, tmp_path / "b.mid")
    once = read_midi(tmp_path / "b.mid")
    write_midi(once, tmp_path / "c.mid")
    assert (tmp_path / "b.mid").read_bytes() == (tmp_path / "c.mid").read_bytes()


def test_mido_writes_what_is_read(tmp_path):
    first = [
        mido.Message("note_on", note=60, velocity=70),
        mido.Message("note_off", note=60, time=480),
    ]
    extra = [mido.MetaMessage("key_signature", key="F#m"), mido.Message("sysex", data=[1, 2])]
    tracks = [mido.MidiTrack(extra), mido.MidiTrack(first)]
    mido.MidiFile(type=1, ticks_per_beat=480, tracks=tracks).save(tmp_path / "m.mid")
    assert listed(read_midi(tmp_path / "m.mid")) == HALF_SECOND


def test_a_file_cut_in_the_header_of_its_track_is_refused(tmp_path):
    path = tmp_path / "a.mid"
    path.write_bytes(b"MThd" + struct.pack(">IHHH", 6, 0, 1, 480) + b"MTrk\x00\x00")
    with pytest.raises(BadInput, match="ends in its header"):
        read_midi(path)


def test_padded_numbers_are_read(tmp_path):
    path = tmp_path / "a.mid"
    events = b"\x80\x80\x80\x80\x00\x90\x3c\x50\x83\x60\x80\x3c\x40\x00\xff\x2f\x00"
    chunk = b"MTrk" + struct.pack(">I", len(events)) + events
    path.write_bytes(b"MThd" + struct.pack(">IHHH", 6, 0, 1, 480) + chunk)
    assert read_midi(path).onsets_s.tolist() == [0.0]
