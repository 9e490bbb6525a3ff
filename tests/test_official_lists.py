# SPDX-License-Identifier: Apache-2.0
"Recorded sets in their own layouts: odd lists, odd files, and what becomes of them."

import json

import numpy as np
import pytest
import soundfile

from cop_repro.core import BadInput, DatasetMissing, numpy_rng
from cop_repro.data import official_lists
from cop_repro.data.clips import StripSize, store_clip, works_of
from cop_repro.data.keyboard import find_keyboard, key_profile, key_shift, rectify
from cop_repro.data.notes import make_notes, read_midi, synthesise, write_midi
from cop_repro.data.official_lists import (
    SET_LOADERS,
    RealClips,
    read_set,
    real_stores,
    write_pseudo_midi,
)
from cop_repro.data.real_sets import REAL_SETS
from cop_repro.data.rendering import render, sample_nuisance
from cop_repro.data.video import read_video, write_video
from cop_repro.systems.cop import WindowConfig, strip_windows

PLAYED = make_notes([60, 72], [0.2, 0.9], [0.8, 1.6], [50, 100])


def video(path, seconds=2.0, size=(24, 104), wav=True):
    count = round(25 * seconds)
    frames = np.broadcast_to(
        np.linspace(40, 200, count).astype(np.uint8)[:, None, None, None], (count, *size, 3)
    )
    write_video(path, frames, 25, tone(seconds) if wav else None)


def tone(seconds):
    return (0.2 * np.sin(np.arange(round(seconds * 24_000)) * 0.1)).astype(np.float32)


def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("name", list(SET_LOADERS))
def test_a_missing_list_names_itself(tmp_path, name):
    with pytest.raises(DatasetMissing, match=name):
        read_set(name, tmp_path / REAL_SETS[name].folder)
    (tmp_path / REAL_SETS[name].folder).mkdir()
    with pytest.raises(DatasetMissing) as error:
        read_set(name, tmp_path / REAL_SETS[name].folder)
    assert (
        name in str(error.value)
        and str(tmp_path) not in str(error.value)
        and REAL_SETS[name].licence in str(error.value)
    )


def test_every_set_of_table1_and_every_piano_has_a_loader():
    without = set(REAL_SETS) - set(SET_LOADERS)
    assert without == {"Piano-10h", "SymMV"}, "never released; music video without a keyboard"


def test_lists_as_spreadsheets_write_them(tmp_path):
    put(
        tmp_path / "musiccaps-public.csv",
        "\ufeffytid,start_s,end_s,audioset_positive_labels,aspect_list,caption,author_id,is_balanced_subset,is_audioset_eval\n"
        '-0aB,30,40,/m/1,"[\'a\', \'b\']","Two lines,\nand a ""quote""",4,False,TRUE\n'
        "other,0,10,,,x,1,False,False\n",
    )
    soundfile.write(tmp_path / "-0aB.wav", tone(1.0), 24_000)
    listing = read_set("MusicCaps", tmp_path, 1.0)
    assert (
        listing.items[0].text == 'Two lines,\nand a "quote"'
        and listing.items[0].split == "test"
        and listing.coverage["n_official"] == 2
    )
    (tmp_path / "again").mkdir()
    soundfile.write(tmp_path / "again" / "-0aB.flac", tone(1.0), 24_000)
    with pytest.raises(BadInput, match="share the stem"):
        read_set("MusicCaps", tmp_path, 1.0)


def test_no_work_is_in_two_splits(tmp_path):
    put(
        tmp_path / "maestro-v3.0.0.csv",
        "canonical_composer,canonical_title,split,year,midi_filename,audio_filename,duration\nA,B,train,2018,a.midi,a.wav,3\nA,B,test,2018,b.midi,b.wav,3\n",
    )
    for stem in "ab":
        soundfile.write(tmp_path / f"{stem}.wav", tone(3.0), 24_000)
        write_midi(PLAYED, tmp_path / f"{stem}.midi")
    listing = read_set("MAESTRO", tmp_path, 1.0, limit=2)
    assert [i.files["start_s"] for i in listing.items] == [0, 2, 0, 2], "windows are spread"
    with pytest.raises(BadInput, match="splits are by work"):
        works_of(listing.items)


def test_pianoyt_from_video_to_rows(tmp_path):
    "Transcribed where MIDI is missing; refused where the box does not fit; coverage says so."
    from cop_repro.judges.transcription import transcribe

    folder = tmp_path / "pianoyt"
    put(
        folder / "pianoyt.csv",
        "7,https://youtu.be/x,1,4,20,2,100\n8,https://youtu.be/y,3,400,700,60,1860\n9,https://youtu.be/z,3,4,20,2,100\n",
    )
    sound = synthesise(
        make_notes([60, 64, 67], [0.1, 0.6, 1.1], [0.5, 1.0, 1.8], [90, 90, 90]), 2.0
    )
    for i in (7, 8):
        write_video(folder / f"video_{i}.0.mp4", np.full((50, 24, 104, 3), 90, np.uint8), 25, sound)
    with pytest.raises(DatasetMissing, match="write_pseudo_midi"):
        read_set("PianoYT", folder, 2.0)
    written = write_pseudo_midi(folder, transcribe)
    assert {60, 64, 67} <= set(read_midi(written[0]).pitches.tolist()) and write_pseudo_midi(
        folder, transcribe
    ) == []
    stores, covered = real_stores(tmp_path / "out", {"PianoYT": folder}, 2.0, StripSize(16, 104))
    store = stores["pianoyt_piano"]
    assert len(store) == 1 and "another size" in store.rejects["pianoyt/8/0s"]
    assert (
        covered["PianoYT"]["n_used"],
        covered["PianoYT"]["n_official"],
        covered["PianoYT"]["refused"],
    ) == (1, 3, 1)
    clip = store_clip(store, 0)
    assert (
        clip.notes.pitches.tolist() == read_midi(written[0]).pitches.tolist()
        and abs(int(clip.strips[25].mean()) - 90) < 4
        and np.abs(clip.wav).max() == pytest.approx(0.5, abs=0.01)
    )
    assert store.index[0]["rendering"] == "real" and set(store.columns) == {
        "wav",
        "strips",
        "presence",
        "onset",
        "velocity",
        "pedal",
    }


def test_any_folder(tmp_path):
    mine = tmp_path / "mine"
    video(mine / "a.mp4")
    write_midi(PLAYED, mine / "a.mid")
    with pytest.raises(BadInput, match="none of 2 clips.*corners"):
        real_stores(tmp_path / "out", {"folder": mine}, 1.0, StripSize(16, 104))
    listing = read_set(
        "folder", mine, 1.0, split="train", corners=[[0, 2], [104, 2], [104, 22], [0, 22]]
    )
    row = RealClips(mine, StripSize(16, 104))(listing.items[1])
    assert (
        row["strips"].shape == (25, 16, 104)
        and row["strips"][-1].mean() > 190
        and row["index"]["split"] == "train"
    )
    assert (row["presence"][:, 72 - 21] > 0.5).sum() in range(13, 18), (
        "72 sounds from 0 to .6 s of the second window"
    )
    with pytest.raises(BadInput, match="no loader for 'FSD50K'"):
        read_set("FSD50K", mine)


def test_every_route_averages_before_it_samples(tmp_path):
    "One bright line (200) in four: the average is 50, a sample without averaging is 0 or 200."
    corners, size = [[0, 0], [416, 0], [416, 64], [0, 64]], StripSize(16, 104)
    points = dict(
        zip(("Point_LT", "Point_RT", "Point_RB", "Point_LB"), ("0,0", "416,0", "416,64", "0,64"))
    )
    lines = np.zeros((50, 64, 416, 3), np.uint8)
    lines[:, :, ::4] = 200
    files = {"PianoYT": "video_7.0.mp4", "PianoVAM": "Video/t.mp4", "folder": "a.mp4"}
    for name, file in files.items():
        write_video(tmp_path / name / file, lines, 25, tone(2.0))
        write_midi(PLAYED, (tmp_path / name / file).with_suffix(".mid"))
    put(tmp_path / "PianoYT" / "pianoyt.csv", "7,https://youtu.be/x,1,0,64,0,416\n")
    entry = {"record_time": "t", "split": "train", **points}
    put(tmp_path / "PianoVAM" / "metadata.json", json.dumps({"1": entry}))
    video = tmp_path / "folder" / "a.mp4"
    wanted = rectify(read_video(video, 25.0), np.array(corners, float), 16, 104)
    assert np.abs(wanted.astype(int) - 50).max() <= 4
    for name in files:
        options = {"corners": corners} if name == "folder" else {}
        item = read_set(name, tmp_path / name, 2.0, **options).items[0]
        assert np.array_equal(RealClips(tmp_path / name, size)(item)["strips"], wanted), name
    windows = strip_windows(video, np.array(corners, float), (16, 104), 50, WindowConfig())
    assert np.array_equal(next(windows)[1], wanted), "cop perform"


def test_a_folder_without_corners_is_searched(tmp_path, monkeypatch):
    "One search for each video, over all of it; without a keyboard its clips are refused."
    mine, size, searches = tmp_path / "mine", StripSize(32, 260), []
    nuisance = sample_nuisance(numpy_rng(1, "scene"), 1.0)
    scene = render(PLAYED, None, 4.0, "top", nuisance, (180, 320))
    frames = scene.frames.copy()
    frames[:25] = 0  # the beginning alone would not be enough
    write_video(mine / "a.mp4", frames, 25, tone(4.0))
    for stem in ("mute", "wall"):
        write_video(mine / f"{stem}.mp4", np.full((100, 180, 320, 3), 90, np.uint8), 25, tone(4.0))
    for stem in ("a", "wall"):
        write_midi(PLAYED, mine / f"{stem}.mid")

    def counting(frames):
        searches.append(len(frames))
        return find_keyboard(frames)

    monkeypatch.setattr(official_lists, "find_keyboard", counting)
    stores, covered = real_stores(tmp_path / "out", {"folder": mine}, 2.0, size)
    store = stores["folder_piano"]
    assert [row["clip_id"] for row in store.index] == ["a-0s", "a-2s"]
    assert set(store.rejects) == {"mute-0s", "mute-2s", "wall-0s", "wall-2s"}
    assert "no keyboard found" in store.rejects["wall-2s"]
    assert "no MIDI" in store.rejects["mute-0s"]
    assert covered["folder"]["n_used"] == 1 and len(searches) == 2
    wanted = rectify(scene.frames[50:], scene.corners, 32, 260)
    shift, likeness = key_shift(key_profile(wanted), key_profile(store["strips"][1]))
    assert abs(shift) < 0.1 and likeness > 0.9


def test_a_long_video_is_searched_from_end_to_end(tmp_path):
    ramp = np.repeat(np.linspace(20, 220, 65).astype(np.uint8), 32 * 48 * 3).reshape(-1, 32, 48, 3)
    for rate, last in ((25, 210), (1, 190)):  # 2.6 s; 65 s
        write_video(tmp_path / f"{rate}.mp4", ramp, rate)
        level = official_lists._spread_frames(tmp_path / f"{rate}.mp4").mean((1, 2, 3))
        assert len(level) == 31 and (np.diff(level) > 0).all()
        assert level[0] < 30 and level[-1] > last


def test_corners_that_are_none(tmp_path):
    video(tmp_path / "a.mp4")
    write_midi(PLAYED, tmp_path / "a.mid")
    for corners, why in (
        ([[0, 2], [104, 2], [104, 22]], "four finite points"),
        ([[0, 2], [104], [104, 22], [0, 22]], "four finite points"),
        ([[104, 2], [0, 2], [0, 22], [104, 22]], "clockwise"),
        ([[0, 2], [400, 2], [400, 22], [0, 22]], "another size"),
    ):
        item = read_set("folder", tmp_path, 2.0, corners=corners).items[0]
        with pytest.raises(BadInput, match=why):
            RealClips(tmp_path, StripSize(16, 104))(item)


def test_sounds_that_cannot_be_used(tmp_path):
    rows = "".join(
        f"{i},{n},0,a caption\n" for i, n in enumerate(("good", "silent", "short", "text"))
    )
    for split in ("train", "val", "test"):
        put(
            tmp_path / f"{split}.csv",
            "audiocap_id,youtube_id,start_time,caption\n"
            + (rows if split == "train" else f"{split},none,0,x\n"),
        )
    soundfile.write(tmp_path / "good.wav", tone(3.0), 24_000)
    soundfile.write(tmp_path / "silent.wav", np.zeros(24_000), 24_000)
    soundfile.write(tmp_path / "short.wav", tone(0.5), 24_000)
    (tmp_path / "text.wav").write_text("<html>")
    stores, covered = real_stores(tmp_path / "out", {"AudioCaps": tmp_path}, 2.0)
    store = stores["audiocaps_t2a"]
    assert [r["clip_id"] for r in store.index] == ["audiocaps/0", "audiocaps/2"] and set(
        store.rejects
    ) == {"audiocaps/1", "audiocaps/3"}
    assert (
        "nothing is heard" in store.rejects["audiocaps/1"]
        and "text.wav" in store.rejects["audiocaps/3"]
    )
    short = store["wav"][1]
    assert np.array_equal(short[:12_000], short[12_000:24_000]), "training loops what is short"
    assert covered["AudioCaps"]["n_used"] == 2 and covered["AudioCaps"]["n_official"] == 6


CUT = {  # set -> its lists; the last line, or entry, of the first one is damaged
    "VGGSound": [
        ({"vggsound.csv": "a,1,x,train\nb,2\n"}, "vggsound.csv, line 2"),
        ({"vggsound.csv": "a,1,x,train\nb,two,x,train\n"}, "vggsound.csv, line 2"),
    ],
    "AudioCaps": [
        (
            {"train.csv": "audiocap_id,youtube_id,start_time,caption\n1,a,0,x\n2,b,0\n"},
            "train.csv, line 3",
        ),
        (
            {"train.csv": "audiocap_id,youtube_id,start_time,caption\n1,a,0,\n"},
            "train.csv, line 2: 'caption'",
        ),
    ],
    "WavCaps": [
        (
            {
                "json_files/BBC/bbc_final.json": '{"data": [{"id": "1", "caption": "x"}, '
                '{"id": "2"}]}'
            },
            "bbc_final.json, entry 1",
        ),
        ({"json_files/BBC/bbc_final.json": '{"data": [7]}'}, "bbc_final.json, entry 0"),
        ({"json_files/BBC/bbc_final.json": '{"data":\n [{"id"'}, "bbc_final.json, line 2"),
        ({"json_files/BBC/bbc_final.json": "[]"}, "bbc_final.json"),
        (
            {
                "json_files/BBC/bbc_final.json": "{}",
                "json_files/blacklist/blacklist_exclude_test_ac.json": "[1",
            },
            "blacklist_exclude_test_ac.json, line 1",
        ),
    ],
    "TangoPromptBank": [
        (
            {
                "data.json": '{"location": "a/b.wav", "captions": "x"}\n'
                '{"location": "a/c.wav", "captions": []}\n'
            },
            "data.json, line 2: 'captions'",
        ),
        (
            {"data.json": '{"location": "a/b.wav", "captions": "x"}\n\n{"location": 7}\n'},
            "data.json, line 3: 'location'",
        ),
        ({"data.json": '{"location": "a/b.wav", "captions": [null]}'}, "data.json, line 1"),
        ({"data.json": '{"location": "a/b.wav"'}, "data.json, line 1"),
    ],
    "MusicCaps": [
        (
            {
                "musiccaps-public.csv": "ytid,start_s,end_s,caption,is_audioset_eval\n"
                "a,0,10,x,True\nb,0,10,x\n"
            },
            "musiccaps-public.csv, line 3",
        )
    ],
    "AF-AudioSet": [
        (
            {"AF-AudioSet.json": '{"ytid": "a", "caption": "x"}\n{"ytid": "b"}\n'},
            "AF-AudioSet.json, line 2: 'caption'",
        ),
        (
            {"AF-AudioSet.json": '{"ytid": "a", "caption": "x"}\n["a"]\n'},
            "AF-AudioSet.json, line 2",
        ),
    ],
    "PianoYT": [
        ({"pianoyt.csv": "1,x,1,4,20,2,100\n2,x,1,4,20,2\n"}, "pianoyt.csv, line 2"),
        ({"pianoyt.csv": "1,x,1,4,20,2,wide\n"}, "pianoyt.csv, line 1: max_x"),
        ({"pianoyt.csv": "1,x,1,4,20,2,nan\n"}, "pianoyt.csv, line 1: max_x"),
    ],
    "PianoVAM": [
        (
            {
                "metadata.json": '{"1": {"record_time": "t", "split": "train", "Point_LT": "1,2", '
                '"Point_RT": "1,b", "Point_RB": "1,2", "Point_LB": "1,2"}}'
            },
            "metadata.json, entry 1: Point_RT",
        ),
        ({"metadata.json": '{"1": {"record_time": "t"}}'}, "metadata.json, entry 1"),
        (
            {
                "metadata.json": '{"1": {"record_time": "t", "split": "train", "Point_LT": "1", '
                '"Point_RT": "1,2", "Point_RB": "1,2", "Point_LB": "1,2"}}'
            },
            "metadata.json, entry 1",
        ),
        ({"metadata.json": '{"1": 5}'}, "metadata.json, entry 1"),
        ({"metadata.json": "[]"}, "metadata.json"),
    ],
    "MAESTRO": [
        (
            {
                "maestro-v3.0.0.csv": "canonical_composer,canonical_title,split,year,"
                "midi_filename,audio_filename,duration\nA,B,train,2018,a.midi,a.wav,long\n"
            },
            "maestro-v3.0.0.csv, line 2: duration",
        ),
        (
            {
                "maestro-v3.0.0.csv": "canonical_composer,canonical_title,split,year,"
                "midi_filename,audio_filename,duration\nA,B,train\n"
            },
            "maestro-v3.0.0.csv, line 2",
        ),
    ],
}


@pytest.mark.parametrize(
    "name, lists, where", [(name, *case) for name, cases in CUT.items() for case in cases]
)
def test_a_damaged_line_is_named(tmp_path, name, lists, where):
    "File and line, no traceback, whichever loader."
    assert set(CUT) == set(SET_LOADERS)
    for path, text in lists.items():
        put(tmp_path / path, text)
    with pytest.raises(BadInput) as error:
        read_set(name, tmp_path, 1.0)
    assert where in str(error.value) and len(str(error.value).splitlines()) == 1


def test_a_list_that_is_no_text(tmp_path):
    for name, file in (
        ("VGGSound", "vggsound.csv"),
        ("AF-AudioSet", "AF-AudioSet.json"),
        ("PianoVAM", "metadata.json"),
    ):
        (tmp_path / file).write_bytes(b"\xff\xfe\x00a,b")
        with pytest.raises(BadInput, match=file):
            read_set(name, tmp_path, 1.0)
