# SPDX-License-Identifier: Apache-2.0
"Videos and sounds as users have them: clocks, rates, covers, channels, tags, shapes and names."

import os
import struct
import unicodedata
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import soundfile
from av.stream import Disposition

from cop_repro.core import BadInput
from cop_repro.data.official_lists import read_set
from cop_repro.data.real_sets import folder_items, load_real_clip
from cop_repro.data.video import iter_video, probe_video, read_audio, read_video, write_video
from cop_repro.evaluation.folders import SUFFIXES, find_files, read_sound, score_folders

RATE = 24_000


def counter(count, height=48, width=64):
    "Pictures that show their number as ten bars, black or white."
    frames = np.zeros((count, height, width, 3), np.uint8)
    bars = np.arange(count)[:, None] >> np.arange(10) & 1
    for bar in range(10):
        left = 2 + 6 * bar
        frames[:, 4 : height - 4, left : left + 5] = 255 * bars[:, bar, None, None, None]
    return frames


def number(frame):
    "The number that a picture of `counter` shows."
    bars = frame[frame.shape[0] // 2, 4:64:6].mean(-1) > 128
    return int(bars @ (1 << np.arange(10)))


def tone(seconds, rate=RATE, hertz=440):
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype("f4")


def picture_packets(stream, frames, ticks, time_base):
    "Encoded pictures at the given times."
    packets = []
    for frame, tick in zip(frames, ticks):
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture.pts, picture.time_base = int(tick), time_base
        packets += stream.encode(picture)
    return packets + stream.encode(None)


def sound_packets(stream, wav, rate, layout="mono", channels=1):
    "Encoded sound, the same in all channels."
    packets, size = [], stream.codec_context.frame_size or 1024
    for start in range(0, len(wav) - size + 1, size):
        block = np.repeat(wav[start : start + size], channels)[None]
        frame = av.AudioFrame.from_ndarray(np.float32(block), format="flt", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        packets += stream.encode(frame)
    return packets + stream.encode(None)


def mux(container, packets):
    "Write packets in order of time."
    written = [packet for packet in packets if packet.dts is not None]
    for packet in sorted(written, key=lambda packet: packet.dts * packet.time_base):
        container.mux(packet)


def make_video(path, frames, ticks=None, time_base=Fraction(1, 25), wav=None, **more):
    "A video with pictures at any times and a sound from zero on."
    ticks = range(len(frames)) if ticks is None else ticks
    is_kept, bf = more.pop("is_kept", lambda packet: True), more.pop("bf", "0")
    with av.open(os.fspath(path), "w") as container:
        stream = container.add_stream(more.get("codec", "libx264"), rate=more.get("rate", 25))
        stream.options = {"crf": "12", "bf": bf, "preset": "ultrafast", **more.get("options", {})}
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = more.get("pix_fmt", "yuv420p")
        stream.codec_context.time_base = time_base
        stream.codec_context.sample_aspect_ratio = more.get("pixel", Fraction(1, 1))
        sound = None
        if wav is not None:
            sound = container.add_stream(more.get("sound", "aac"), rate=RATE, layout="mono")
        packets = picture_packets(stream, frames, ticks, time_base)
        if sound:
            packets += [p for p in sound_packets(sound, wav, RATE) if is_kept(p)]
        mux(container, packets)
    return path


def make_sound(path, codec, wav, rate=RATE, layout="mono", channels=1, is_kept=lambda packet: True):
    "A sound file by an encoder of FFmpeg."
    with av.open(os.fspath(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        if codec == "libopus" and channels > 8:
            stream.options = {"mapping_family": "255"}
        packets = sound_packets(stream, wav, rate, layout, channels)
        mux(container, [packet for packet in packets if is_kept(packet)])
    return path


# Time: zero is the earliest stream, the end is that of the picture.


@pytest.mark.parametrize("suffix", ["mkv", "ts", "mov", "mp4"])
@pytest.mark.parametrize("first_s", [0, 3, 20])
@pytest.mark.parametrize("sound_s", [0, 3, 26])
def test_a_whole_file_is_whole_whatever_its_streams_say(tmp_path, suffix, first_s, sound_s):
    wav = tone(sound_s) if sound_s else None
    ticks = 25 * first_s + np.arange(100)
    path = make_video(tmp_path / f"a.{suffix}", counter(100), ticks, wav=wav)
    frames, info = read_video(path), probe_video(path)
    held = 25 * first_s if sound_s or suffix in ("mp4", "mov") and len(frames) > 110 else 0
    assert abs(len(frames) - 100 - held) <= 4  # the padding of AAC is up to 86 ms long
    assert info.duration_s == pytest.approx(len(frames) / 25, abs=0.05)
    assert [number(frame) for frame in frames[-50:]] == list(range(50, 100))


def test_a_late_picture_keeps_its_distance_to_the_sound(tmp_path):
    "A flash and a click at 2.5 s, in a file whose pictures begin at 1 s."
    frames, wav = np.zeros((75, 48, 64, 3), np.uint8), np.zeros(6 * RATE, np.float32)
    frames[37:40], wav[int(2.5 * RATE) :][:2400] = 255, tone(0.1)
    for suffix in ("mkv", "ts", "mp4"):
        folder = tmp_path / suffix
        folder.mkdir()
        path = make_video(folder / f"a.{suffix}", frames, 25 + np.arange(75), wav=wav)
        flash = np.flatnonzero(read_video(path).mean((1, 2, 3)) > 128)[0] / 25
        click = np.flatnonzero(np.abs(read_audio(path)) > 0.1)[0] / RATE
        assert abs(flash - click) < 0.06 and abs(flash - 2.5) < 0.1
        clip = load_real_clip(folder_items(folder, duration_s=1.0)[2], folder)  # from 2 s on
        assert abs(np.flatnonzero(clip.frames.mean((1, 2, 3)) > 128)[0] / 25 - 0.5) < 0.1
        assert abs(np.flatnonzero(np.abs(clip.wav) > 0.1)[0] / RATE - 0.5) < 0.1


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
@pytest.mark.parametrize("sound_s", [0, 12])
def test_a_truncated_file_is_still_found(tmp_path, suffix, sound_s):
    noise = np.random.default_rng(0).integers(0, 255, (100, 48, 64, 3), np.uint8)
    wav = tone(sound_s) if sound_s else None
    path = tmp_path / f"a.{suffix}"
    make_video(tmp_path / "b.mkv", noise, wav=wav)
    if suffix == "mkv":
        path.write_bytes((tmp_path / "b.mkv").read_bytes())
    else:  # the index lies at the front
        write_video(path, noise, 25, wav)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(BadInput, match=f"a.{suffix}"):
        read_video(path)


@pytest.mark.parametrize("suffix", ["mkv", "ts"])
@pytest.mark.parametrize("lost", [(3, 5), (0, 2), (3, 3.3), (1.9, 7.5)])
def test_lost_sound_is_silence(tmp_path, suffix, lost):
    wav = np.zeros(10 * RATE, np.float32)
    for at in (2.5, 8):
        wav[round(at * RATE) :][:1200] = 0.8 * np.sin(np.arange(1200) / 3)
    path = make_video(
        *(tmp_path / f"a.{suffix}", counter(250)),
        wav=wav,
        is_kept=lambda packet: not lost[0] <= packet.pts * packet.time_base < lost[1],
    )
    got = read_audio(path)
    clicks = np.flatnonzero(np.abs(got) > 0.2) / RATE
    assert abs(len(got) / RATE - 10) < 0.15
    assert abs(clicks[-1] - 8.05) < 0.15
    if not lost[0] <= 2.5 < lost[1]:
        assert abs(clicks[0] - 2.5) < 0.1


def test_jitter_of_time_stamps_makes_no_gaps(tmp_path):
    wav, path = tone(4), tmp_path / "a.mkv"
    shaken = np.random.default_rng(0).integers(-6, 7, 200)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=RATE, layout="mono")
        for i, packet in enumerate(sound_packets(stream, wav, RATE)):
            if packet.dts is not None:
                packet.pts += round(int(shaken[i]) / 1000 / packet.time_base) if i else 0
                packet.dts = packet.pts
                container.mux(packet)
    got = read_audio(path)
    size = min(len(got), len(wav))
    assert size > 3.9 * RATE and np.abs(got[:size] - wav[:size]).max() < 0.01


@pytest.mark.parametrize(
    "name,codec,rate",
    [("a.m4a", "aac", RATE), ("a.opus", "libopus", 48_000), ("a.mp3", "libmp3lame", 44_100)],
)
def test_padding_of_encoders_is_not_brought_back(tmp_path, name, codec, rate):
    wav = np.zeros(2 * rate, np.float32)
    wav[rate : rate + 4800] = tone(4800 / rate, rate)
    got = read_audio(make_sound(tmp_path / name, codec, wav, rate))
    assert abs(np.flatnonzero(np.abs(got) > 0.1)[0] / RATE - 1) < 0.01


def test_sound_can_be_read_up_to_the_end_of_the_picture(tmp_path):
    path = make_video(tmp_path / "a.mkv", counter(50), wav=tone(6))
    end_s = probe_video(path).duration_s
    assert len(read_audio(path)) > 5.8 * RATE
    assert len(read_audio(path, RATE, end_s)) == round(end_s * RATE)


def test_joined_files_with_a_clock_each_are_not_cut_silently(tmp_path):
    part = make_video(tmp_path / "a.ts", counter(100), wav=tone(4)).read_bytes()
    (tmp_path / "joined.ts").write_bytes(part + part)
    for read in (read_video, read_audio):
        with pytest.raises(BadInput, match="joined.ts: its time stamps reach 4"):
            read(tmp_path / "joined.ts")


# Rate: motion stays visible.


def variable_times():
    "Name -> times of pictures in ms, and the rate that shows them."
    fast = np.arange(60) * 1000 // 60
    return {
        "fast first": ([*fast, *range(3000, 11_000, 2000)], 60),
        "fast last": ([*range(0, 8000, 2000), *(8000 + fast)], 60),
        "a tenth fast": ([*(np.arange(25) * 40), *(1000 + 1000 * np.arange(200))], 25),
        "constant": (np.arange(50) * 40, 25),
        "30 Hz in ms": (np.round(np.arange(90) * 100 / 3), 30),
        "slow and constant": (np.arange(20) * 200, 5),
        "two in one ms": (sorted([*(np.arange(50) * 40), *range(1, 2000, 400)]), 25),
    }


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
@pytest.mark.parametrize("name", variable_times())
def test_the_rate_shows_the_motion(tmp_path, name, suffix):
    times, rate = variable_times()[name]
    path = tmp_path / f"a.{suffix}"
    make_video(path, counter(len(times)), times, Fraction(1, 1000), rate=60)
    got = probe_video(path).frame_rate
    assert rate * 0.95 <= got <= rate * 1.15
    times_s, frames = np.array(times) / 1000, read_video(path, 30)
    moments = (np.arange(len(frames)) + 0.5) / 30
    wanted = np.searchsorted(times_s, moments, side="right") - 1
    seen = np.array([number(frame) for frame in frames])
    last = np.searchsorted(moments, times_s[-1])
    assert (np.abs(seen - wanted)[:last] <= 1).all()


@pytest.mark.parametrize("bf", ["0", "3"])
def test_b_frames_do_not_raise_the_rate(tmp_path, bf):
    path = make_video(tmp_path / "a.mkv", counter(60), bf=bf)
    assert probe_video(path).frame_rate == pytest.approx(25, rel=0.05)
    assert [number(frame) for frame in read_video(path)][-60:] == list(range(60))


def test_a_single_picture_and_absurd_declared_rates(tmp_path):
    path = make_video(tmp_path / "one.mkv", counter(1))
    assert 1 <= probe_video(path).frame_rate <= 60 and len(read_video(path)) == 1
    for rate in (90_000, 1000):
        path = make_video(tmp_path / f"{rate}.mkv", counter(75), rate=rate)
        assert probe_video(path).frame_rate == pytest.approx(25, rel=0.05)
        assert len(read_video(path)) in (74, 75)


# Streams: a cover is not the video.


def box(kind, body):
    return struct.pack(">I", 8 + len(body)) + kind + body


def with_cover(path, target):
    "An MP4 whose cover comes before its streams."
    jpg = cv2.imencode(".jpg", np.full((240, 320, 3), 90, np.uint8))[1].tobytes()
    cover = box(b"covr", box(b"data", struct.pack(">II", 13, 0) + jpg))
    handler = box(b"hdlr", bytes(8) + b"mdirappl" + bytes(9))
    tags = box(b"udta", box(b"meta", bytes(4) + handler + box(b"ilst", cover)))
    data = path.read_bytes()
    at = data.index(b"moov") - 4
    size, head = struct.unpack(">I", data[at : at + 4])[0], data[at + 8 :]
    first = struct.unpack(">I", head[:4])[0]
    moov = struct.pack(">I", size + len(tags)) + b"moov" + head[:first] + tags + head[first:]
    target.write_bytes(data[:at] + moov)
    return target


@pytest.mark.parametrize("wav", [None, tone(2)])
def test_a_cover_is_never_the_video(tmp_path, wav):
    path = make_video(tmp_path / "a.mp4", counter(50), wav=wav)
    path = with_cover(path, tmp_path / "cover.mp4")
    assert [number(frame) for frame in read_video(path)][-50:] == list(range(50))
    info = probe_video(path)
    assert (info.width, info.height, info.frame_rate) == (64, 48, 25)
    assert (info.sample_rate is None) == (wav is None)


def test_a_sound_with_a_cover_has_no_video(tmp_path):
    path = with_cover(make_sound(tmp_path / "a.m4a", "aac", tone(2)), tmp_path / "cover.mp4")
    for read in (read_video, probe_video):
        with pytest.raises(BadInput, match="cover.mp4 holds no picture"):
            read(path)
    assert abs(len(read_audio(path)) / RATE - 2) < 0.1


# Sound: any format, rate and number of channels.


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 6, 7, 8, 9, 12, 16, 24])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_any_number_of_channels_and_format(tmp_path, channels, subtype):
    wav = tone(0.5)
    loud = np.repeat(wav[:, None], channels, 1)
    soundfile.write(tmp_path / "a.wav", loud, RATE, subtype=subtype)
    got = read_sound(tmp_path / "a.wav")
    tolerance = 0.01 if subtype == "PCM_U8" else 1e-4
    assert len(got) == len(wav) and np.abs(got - wav).max() < tolerance


@pytest.mark.parametrize(
    "name,codec,layout,channels",
    [
        ("a.mka", "aac", "7.1", 8),
        ("a.m4a", "aac", "5.1", 6),
        ("a.flac", "flac", "7.1", 8),
        ("b.mka", "libopus", "7.1", 8),
        ("c.mka", "libopus", "16 channels", 16),
        ("d.mka", "pcm_f32le", "hexadecagonal", 16),
    ],
)
def test_codecs_with_many_channels(tmp_path, name, codec, layout, channels):
    wav = tone(1, 48_000)
    path = make_sound(tmp_path / name, codec, wav, 48_000, layout, channels)
    got = read_audio(path, 48_000)
    assert abs(len(got) - 48_000) < 3000 and 0.1 < got[10_000:40_000].std() < 0.25


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100, 48_000, 96_000, 192_000])
def test_any_sample_rate(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", tone(1, rate), rate)
    got = read_sound(tmp_path / "a.wav")
    assert abs(len(got) - RATE) < 30
    assert np.abs(got[2000:20_000] - tone(1)[2000:20_000]).max() < 0.02


def test_rate_and_channels_may_change_in_the_stream(tmp_path):
    make_sound(tmp_path / "one.aac", "aac", tone(1, 22_050), 22_050)
    make_sound(tmp_path / "two.aac", "aac", tone(1, 44_100), 44_100, "stereo", 2)
    both = (tmp_path / "one.aac").read_bytes() + (tmp_path / "two.aac").read_bytes()
    (tmp_path / "both.aac").write_bytes(both)
    got = read_audio(tmp_path / "both.aac")
    assert abs(len(got) / RATE - 2) < 0.25 and got[3000:20_000].std() > 0.1
    assert got[30_000:44_000].std() > 0.1


# Metadata and names cost nothing.


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("bad", [b"F\xfcr Elise ", b"\xff\xfeF\x80\x81 ise ", b"\xc3( \xa0 xyz  "])
def test_tags_in_other_encodings_are_ignored(tmp_path, suffix, bad):
    path = tmp_path / f"a.{suffix}"
    make_video(tmp_path / "plain.mp4", counter(25), wav=tone(1))
    with av.open(str(tmp_path / "plain.mp4")) as source, av.open(str(path), "w") as target:
        target.metadata["title"] = "Fuer Elise"
        streams = [target.add_stream_from_template(s) for s in source.streams]
        streams[0].metadata["title"] = "Fuer Elise"
        streams[1].metadata["handler_name"] = "Fuer Elise"
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    data = path.read_bytes()
    assert b"Fuer Elise" in data and len(bad) == 10
    path.write_bytes(data.replace(b"Fuer Elise", bad))
    assert len(read_video(path)) in (25, 26, 27) and probe_video(path).sample_rate == RATE
    assert len(read_audio(path)) > 0.9 * RATE


NAMES = [
    *(b"12:30.mp4", b"file:x.mp4", b"pipe:0.mp4", b"http:a.mp4", b"concat:a|b.mp4", b"a%03d.mp4"),
    *(
        b"a#b?c.mp4",
        b"-i.mp4",
        b" a b .mp4",
        b"caf\xe9.mp4",
        b"\xff\xfe.mp4",
        "\u97f3.mp4".encode(),
    ),
    *(b"a\nb.mp4", b"'\"$HOME`.mp4", b"subfile,,x:.mp4", b"data:,.mp4"),
]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_read_and_written(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    frames, path = counter(10), Path(os.fsdecode(name))
    write_video("plain.mp4", frames, 25, tone(0.4))
    write_video(path, frames, 25, tone(0.4))
    assert path.read_bytes() == Path("plain.mp4").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["plain.mp4", path.name])
    assert len(read_video(path)) == 10 and probe_video(path).sample_rate == RATE
    assert len(read_audio(path)) > 0


# Pictures: one size, square pixels, upright.


def two_sizes(path, first, second, codec="libx264"):
    "A transport stream whose picture changes from one size (w, h) to another after a second."
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        (stream.width, stream.height), stream.pix_fmt = first, "yuv420p"
        packets, grey = [], 40 + 4 * np.arange(50, dtype=np.uint8)
        for part, size in enumerate((first, second)):
            encoder = av.CodecContext.create(codec, "w")
            encoder.width, encoder.height = size
            encoder.pix_fmt, encoder.time_base = "yuv420p", Fraction(1, 25)
            encoder.options = {"bf": "0", "x264-params": "annexb=1:repeat-headers=1"}
            shown = [np.full((size[1], size[0], 3), g, np.uint8) for g in grey[25 * part :][:25]]
            ticks = 25 * part + np.arange(25)
            packets += picture_packets(encoder, shown, ticks, Fraction(1, 25))
        for packet in packets:
            packet.stream, packet.time_base = stream, Fraction(1, 25)
            container.mux(packet)
    return path


@pytest.mark.parametrize(
    "first,second", [((960, 128), (720, 96)), ((320, 240), (640, 480)), ((64, 48), (66, 46))]
)
def test_a_size_that_changes_is_scaled_to_the_first(tmp_path, first, second):
    path = two_sizes(tmp_path / "a.ts", first, second)
    frames = read_video(path)
    assert frames.shape[1:] == (first[1], first[0], 3) and abs(len(frames) - 50) <= 1
    assert np.abs(frames[:50].mean((1, 2, 3)) - 40 - 4 * np.arange(len(frames[:50]))).max() < 6


def test_a_shape_that_changes_is_one_clear_error(tmp_path):
    path = two_sizes(tmp_path / "a.ts", (320, 240), (240, 320))
    with pytest.raises(BadInput, match="a.ts: the picture changes from 320x240 to 240x320"):
        read_video(path)
    assert len(read_video(path, end_s=0.8)) == 20


def test_the_first_size_holds_after_seeking(tmp_path):
    frames = counter(300)
    path = make_video(tmp_path / "a.mp4", frames, options={"g": "25"})
    whole = read_video(path)
    assert np.array_equal(read_video(path, start_s=10.4), whole[260:])


@pytest.mark.parametrize(
    "pixel,width",
    [((2, 1), 128), ((10, 11), 58), ((4, 3), 85), ((1, 2), 32), ((1, 1000), 64), ((900, 1), 64)],
)
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_pixels_are_square(tmp_path, pixel, width, suffix):
    path = make_video(tmp_path / f"a.{suffix}", counter(25), pixel=Fraction(*pixel))
    info, frames = probe_video(path), read_video(path)
    assert (info.width, info.height) == (width, 48) and frames.shape[1:3] == (48, width)
    assert max(read_video(path, max_side=24).shape[1:3]) == 24
    write_video(tmp_path / "b.mp4", iter_video(path), 25)
    again = probe_video(tmp_path / "b.mp4")
    assert abs(again.width / again.height - width / 48) < 0.05


def test_a_turned_picture_with_wide_pixels_becomes_tall(tmp_path):
    path = make_video(tmp_path / "a.mp4", counter(10), pixel=Fraction(2, 1))
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # the 3x3 matrix of the first track, version 0
    turned = (0, 0x10000, 0, -0x10000, 0, 0, 48 << 16, 0, 0x40000000)
    data[at : at + 36] = struct.pack(">9i", *turned)
    path.write_bytes(data)
    assert read_video(path).shape[1:3] == (128, 48)
    assert (probe_video(path).width, probe_video(path).height) == (48, 128)


@pytest.mark.parametrize("pix_fmt", ["yuv420p10le", "yuv422p", "yuv444p", "gray"])
def test_any_pixel_format(tmp_path, pix_fmt):
    path = make_video(tmp_path / "a.mkv", counter(20), pix_fmt=pix_fmt)
    assert [number(frame) for frame in read_video(path)] == list(range(20))


# Sets and folders: one bad clip, many kinds of sound.


def test_a_bad_video_of_a_folder_is_listed_and_the_others_are_used(tmp_path):
    write_video(tmp_path / "good.mp4", counter(60), 25, tone(2.4))
    with_cover(make_sound(tmp_path / "x.m4a", "aac", tone(2)), tmp_path / "cover.mp4")
    data = (tmp_path / "good.mp4").read_bytes()
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mkv").write_text("no video")
    (tmp_path / "noise.mp4").write_bytes(data[:100] + os.urandom(5000))
    write_video(tmp_path / "short.mp4", counter(10))
    listing = read_set("folder", tmp_path, 2.0)
    assert listing.used == ("good",) and len(listing.items) == 1
    assert set(listing.lost) == {"empty", "text", "noise", "cover", "short"}
    assert all(name in reason for name, reason in listing.lost.items())
    with pytest.raises(BadInput, match="cover.mp4"):
        folder_items(tmp_path, duration_s=2.0)


def test_every_decoder_error_of_a_clip_is_bad_input(tmp_path):
    write_video(tmp_path / "good.mp4", counter(60), 25, tone(2.4))
    data, random = (tmp_path / "good.mp4").read_bytes(), np.random.default_rng(0)
    for _ in range(20):
        broken = bytearray(data)
        for at in random.integers(40, len(data), 40):
            broken[at] = random.integers(256)
        (tmp_path / "bad.mp4").write_bytes(broken)
        for read in (probe_video, read_video, read_audio):
            try:
                read(tmp_path / "bad.mp4")
            except BadInput as error:
                assert "bad.mp4" in str(error)


@pytest.mark.parametrize(
    "name,codec,rate",
    [
        ("a.opus", "libopus", 48_000),
        ("a.mp3", "libmp3lame", 44_100),
        ("a.m4a", "aac", RATE),
        ("A.OGG", "libopus", 48_000),
        ("a.AIF", "pcm_s16be", RATE),
        ("a.aiff", "pcm_s16be", RATE),
        ("a.mka", "flac", RATE),
        ("a.aac", "aac", RATE),
    ],
)
def test_sounds_of_every_kind_are_scored(tmp_path, name, codec, rate):
    for side in ("ref", "est"):
        (tmp_path / side).mkdir()
    wav = tone(2, rate)
    name = name.lower() if name == "A.OGG" else name
    made = make_sound(tmp_path / f"x{Path(name).suffix.lower()}", codec, wav, rate)
    made.rename(tmp_path / "est" / name)
    soundfile.write(tmp_path / "ref" / "a.wav", tone(2), RATE)
    scores = score_folders(tmp_path / "ref", tmp_path / "est", ["mel_distance"], cut=True)
    assert scores["metrics"]["mel_distance"]["n"] == 1


def test_names_match_across_unicode_forms(tmp_path):
    for side, form in (("ref", "NFC"), ("est", "NFD")):
        (tmp_path / side).mkdir()
        name = unicodedata.normalize(form, "Für Élise")
        soundfile.write(tmp_path / side / f"{name}.wav", tone(1), RATE)
        soundfile.write(tmp_path / side / "b.WAV", tone(1), RATE, format="WAV")
    works = {unicodedata.normalize("NFD", "Für Élise"): "w", "b": "w"}
    made = score_folders(tmp_path / "ref", tmp_path / "est", ["si_sdr"], works=works)
    assert (made["clips"], made["works"]) == (2, 1)
    soundfile.write(tmp_path / "est" / "Für Élise.flac", tone(1), RATE)
    with pytest.raises(BadInput, match="share the id"):
        find_files(tmp_path / "est")


def test_an_empty_folder_names_every_kind(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(BadInput) as error:
        find_files(tmp_path)
    assert all(s in str(error.value) for kinds in SUFFIXES.values() for s in kinds)


@pytest.mark.parametrize("b_frames", ["0", "2"])
def test_avi_has_no_display_times(tmp_path, b_frames):
    "AVI numbers its packets; decoded frames take these times in order."
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": b_frames})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for level in range(0, 250, 5):
            picture = np.full((48, 64, 3), level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    levels = read_video(path).mean((1, 2, 3))
    assert np.allclose(levels, np.arange(0, 250, 5), atol=3)


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_a_still_picture_in_front_is_not_the_video(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=25)
        video = container.add_stream("libx264", rate=25, options={"bf": "0"})
        cover.width, cover.height, cover.pix_fmt = 320, 240, "yuvj420p"
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        still = np.full((240, 320, 3), 90, np.uint8)
        container.mux(cover.encode(av.VideoFrame.from_ndarray(still, format="rgb24")))
        container.mux(cover.encode(None))
        for level in range(50):
            picture = np.full((48, 64, 3), level, np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode(None))
    assert read_video(path).shape == (50, 48, 64, 3)
    assert probe_video(path).duration_s == pytest.approx(2.0, abs=0.05)


def test_the_sound_marked_default_is_read(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("pcm_s16le", rate=24_000, layout="mono") for _ in range(2)]
        streams[0].disposition = Disposition(0)
        streams[1].disposition = Disposition.default
        for stream, level in zip(streams, (0, 8000)):
            samples = np.full((1, 24_000), level, np.int16)
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.sample_rate = 24_000
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    assert np.median(read_audio(path)) == pytest.approx(8000 / 32768, abs=1e-3)


def test_a_sound_that_cannot_be_read_is_called_a_sound(tmp_path):
    (tmp_path / "a.wav").write_text("no sound")
    with pytest.raises(BadInput, match="cannot be read as a sound .* WAV or FLAC"):
        read_audio(tmp_path / "a.wav")
    with pytest.raises(BadInput, match="is a folder"):
        read_video(tmp_path)
