# SPDX-License-Identifier: Apache-2.0
"The renderer and video files: damaged and unusual files, determinism, no leak of labels."

import struct
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest

from cop_repro.core import BadInput, numpy_rng
from cop_repro.data.notes import Notes, make_notes
from cop_repro.data.rendering import (
    VIEWS,
    Nuisance,
    descent_time,
    hand_joints,
    key_centres,
    key_depth,
    pedal_depth,
    render,
    render_strip,
    sample_nuisance,
)
from cop_repro.data.video import iter_video, probe_video, read_audio, read_video, write_video

NOTES = make_notes(
    [48, 60, 63], [0.2, 0.3, 0.5], [0.5, 0.6, 0.8], [60, 90, 110], pedal=[(0.3, 0.7)]
)
FINGERS = np.array([2, 5, 7])


def ramp(count=30, height=48, width=64):
    return np.broadcast_to(
        (40 + 5 * np.arange(count, dtype=np.uint8))[:, None, None, None], (count, height, width, 3)
    )


@pytest.fixture
def video(tmp_path):
    write_video(tmp_path / "ramp.mp4", ramp(), 25, np.zeros(28_800, np.float32))
    return tmp_path / "ramp.mp4"


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("shown", [NOTES, Notes.empty()])
def test_every_view_is_repeatable_and_of_the_requested_size(view, shown):
    fingers = FINGERS if len(shown) else np.zeros(0, int)
    nuisance = sample_nuisance(numpy_rng(1, "test"))
    a, b = (render(shown, fingers, 0.4, view, nuisance, (66, 130), seed=5) for _ in range(2))
    assert a.frames.shape == (10, 66, 130, 3) and a.frames.dtype == np.uint8
    assert np.array_equal(a.frames, b.frames)


@pytest.mark.parametrize("index", range(12))
def test_every_nuisance_shows_keys(index):
    nuisance = sample_nuisance(numpy_rng(2, "test", index))
    strip = render_strip(NOTES, FINGERS, 0.4, nuisance, seed=index)
    assert strip.shape == (10, 64, 624)
    behind, in_front = strip[:, 15:30].mean(), strip[:, 45:60].mean()
    assert in_front > behind + 15  # black keys behind, white in front


def test_strength_zero_is_clean_and_ranges_hold():
    assert replace(sample_nuisance(numpy_rng(0, "test"), 0.0), letterbox=0.0) == Nuisance.none()
    sampled = [sample_nuisance(numpy_rng(3, "test", i)) for i in range(200)]
    for name, low, high in (
        ("travel_mm", 8.5, 11),
        ("light", 0.75, 1.4),
        ("curl", 0, 1),
        ("hover_mm", 1, 15),
        ("corner_jitter_mm", 0, 5),
        ("black_ratio", 0.57, 0.69),
    ):
        values, rim = np.array([getattr(n, name) for n in sampled]), 0.1 * (high - low)
        assert low <= values.min() < low + rim
        assert high - rim < values.max() <= high
    for name in ("skin", "white", "black", "desk"):
        colours = np.array([getattr(n, name) for n in sampled])
        assert colours.min() >= 0 and colours.max() <= 255


def test_a_frame_does_not_depend_on_the_frames_before():
    clean = replace(Nuisance.none(), hands=False)
    late = make_notes([60], [11.0], [11.5], [90])  # beyond the first block of 250 frames
    early = make_notes([60, 60], [1.0, 11.0], [1.5, 11.5], [90, 90])
    assert np.array_equal(
        render_strip(late, None, 12.0, clean)[270:], render_strip(early, None, 12.0, clean)[270:]
    )


def test_video_shows_no_key_before_it_moves_and_no_pedal_from_above():
    clean = replace(Nuisance.none(), hands=False)
    video = render_strip(NOTES, None, 1.2, clean).astype(int)
    first = np.flatnonzero(np.abs(video - video[0]).max((1, 2)) > 3)[0]
    start = (NOTES.onsets_s - descent_time(NOTES.velocities)).min() * 25
    assert start - 1 <= first <= start + 3
    assert np.array_equal(video, render_strip(NOTES.replace(pedal=()), None, 1.2, clean))


def test_velocity_is_visible_only_while_the_key_moves():
    moments = np.arange(0, 1, 0.01)
    soft, loud = (key_depth(make_notes([60], [0.5], [0.8], [v]), moments)[:, 39] for v in (30, 120))
    assert np.array_equal(soft[50:], loud[50:])
    assert (soft[40:50] > loud[40:50]).any()


def test_fingers_are_on_their_keys():
    moments = (np.arange(30) + 0.5) / 25
    joints = hand_joints(NOTES, FINGERS, moments, Nuisance.none(), 0)
    for pitch, finger, onset in zip(NOTES.pitches, FINGERS, NOTES.onsets_s):
        assert abs(joints[int(onset * 25), finger, 0, 0] - key_centres()[pitch - 21]) < 8


def test_the_pedal_is_down_as_long_as_it_is_held():
    assert pedal_depth(NOTES, np.array([0.1, 0.5, 0.9])).tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    "wrong",
    [
        dict(view="below"),
        dict(duration_s=float("nan")),
        dict(duration_s=1e9),
        dict(fingers=np.array([10, 1, 1])),
        dict(frame_rate=0),
        dict(size=(4, 4)),
        dict(size=(9000, 9000)),
    ],
)
def test_nonsense_is_refused(wrong):
    with pytest.raises(BadInput):
        render(**(dict(notes=NOTES, fingers=FINGERS, duration_s=1.0) | wrong))


@pytest.mark.parametrize("rate", [5, 12.5, 24, 30, 60])
def test_any_rate_reads_by_time(video, rate):
    got = read_video(video, rate)[:, 24, 32, 1].astype(int)
    moments = (np.arange(len(got)) + 0.5) / rate
    want = 40 + 5 * np.floor(moments * 25 + 1e-6)
    assert abs(len(got) - 1.2 * rate) <= 0.5
    assert np.abs(got - want).max() <= 4


def test_start_end_and_size(video):
    whole = read_video(video)
    assert np.array_equal(read_video(video, start_s=0.4, end_s=0.8), whole[10:20])
    assert read_video(video, max_side=32).shape == (30, 24, 32, 3)
    assert probe_video(video).duration_s == pytest.approx(1.2, abs=0.03)
    assert abs(len(read_audio(video)) - 28_800) < 2100


def test_stored_rotation_is_undone(video):
    turned = video.with_name("turned.mp4")
    picture = np.zeros((10, 48, 64, 3), np.uint8)
    picture[:, :24, :32] = 250  # bright top left: bright top right once turned clockwise
    write_video(video, picture)
    data = bytearray(video.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # the 3x3 matrix of the first track, version 0
    assert struct.unpack(">i", data[at : at + 4])[0] == 0x10000
    data[at : at + 36] = struct.pack(
        ">9i", 0, 0x10000, 0, -0x10000, 0, 0, 48 << 16, 0, 0x40000000
    )  # 90 degrees clockwise
    turned.write_bytes(data)
    seen, info = read_video(turned), probe_video(turned)
    assert seen.shape == (10, 64, 48, 3) and (info.width, info.height) == (48, 64)
    assert seen[0, 10, 40].min() > 200 and seen[0, 10, 8].max() < 50


def test_variable_frame_rate_and_late_start(tmp_path):
    path, pts = tmp_path / "variable.mp4", [0, 100, 140, 500, 540, 1000]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "0", "crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for i, p in enumerate(pts):
            frame = av.VideoFrame.from_ndarray(
                np.full((48, 64, 3), 40 + 30 * i, np.uint8), format="rgb24"
            )
            frame.pts, frame.time_base = p, stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    got = read_video(path, 50)[:, 20, 20, 0].astype(int)
    moments = (np.arange(len(got)) + 0.5) / 50
    want = 40 + 30 * (np.searchsorted(np.array(pts) / 1000, moments, side="right") - 1)
    assert len(got) >= 50 and np.abs(got[:50] - want[:50]).max() <= 4


@pytest.mark.parametrize("height,width", [(47, 63), (2, 2), (33, 500)])
def test_odd_sizes_and_grey(tmp_path, height, width):
    grey = np.tile(np.linspace(20, 220, width).astype(np.uint8), (6, height, 1))
    write_video(tmp_path / "odd.mp4", grey, 30)
    got = read_video(tmp_path / "odd.mp4", 30)[:, :height, :width]
    assert got.shape == (6, height, width, 3) and np.abs(got[..., 0].astype(int) - grey).mean() < 4


def test_damage_is_one_clear_error(video, tmp_path):
    data = bytearray(video.read_bytes())
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 800), np.int16), format="s16", layout="mono"
        )
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    for name in ("empty.mp4", "text.mp4", "cut.mp4", "sound.wav", "missing.mp4"):
        with pytest.raises(BadInput, match=name):
            read_video(tmp_path / name)
        if name != "cut.mp4":  # its first frame may well be whole
            with pytest.raises(BadInput, match=name):
                probe_video(tmp_path / name)
    assert len(read_audio(tmp_path / "sound.wav", 8000)) == 800


def test_silent_video_has_no_sound_and_no_leftovers(tmp_path):
    write_video(tmp_path / "mute.mp4", ramp(5))
    assert read_audio(tmp_path / "mute.mp4") is None
    assert probe_video(tmp_path / "mute.mp4").sample_rate is None

    def breaks():
        yield from ramp(3)
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError):
        write_video(tmp_path / "broken.mp4", breaks())
    assert [p.name for p in tmp_path.iterdir()] == ["mute.mp4"]


def test_a_stream_can_be_closed_early(video):
    stream = iter_video(video)
    assert next(stream).shape == (48, 64, 3)
    stream.close()


def test_a_video_recorded_live_has_its_length_measured(video, tmp_path):
    "Browsers and streams write files that do not say how long they are."
    live = tmp_path / "live.mkv"
    with (
        av.open(str(video)) as source,
        av.open(str(live), "w", format="matroska", options={"live": "1"}) as target,
    ):
        pictures = source.streams.video[0]
        copy = target.add_stream_from_template(pictures)
        for packet in source.demux(pictures):
            if packet.dts is None:
                continue
            packet.stream = copy
            target.mux(packet)
    with av.open(str(live)) as container:
        assert container.duration is None and container.streams.video[0].duration is None
    assert abs(probe_video(live).duration_s - probe_video(video).duration_s) < 0.05
    assert len(list(iter_video(live))) == len(list(iter_video(video)))
