"Recorded sets in their own layouts: odd lists, odd files, and what becomes of them."

import numpy as np
import pytest
import soundfile

from cop_repro.core import BadInput, DatasetMissing
from cop_repro.data.clips import StripSize, store_clip, works_of
from cop_repro.data.notes import make_notes, read_midi, synthesise, write_midi
from cop_repro.data.official_lists import (
    SET_LOADERS,
    RealClips,
    read_set,
    real_stores,
    write_pseudo_midi,
)
from cop_repro.data.real_sets import REAL_SETS
from cop_repro.data.video import write_video

MAESTRO_HEADER = (
    "canonical_composer,canonical_title,split,year,midi_filename,audio_filename,duration"
)
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


def test_every_set_of_table1_and_every_piano_can_be_read():
    without = set(REAL_SETS) - set(SET_LOADERS)
    assert without == {"Piano-10h", "SymMV"}, "never released; music video without a keyboard"


def test_lists_as_spreadsheets_write_them(tmp_path):
    put(
        tmp_path / "musiccaps-public.csv",
        "\ufeffytid,start_s,end_s,audioset_positive_labels,aspect_list,caption,author_id,"
        "is_balanced_subset,is_audioset_eval\n"
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
    "Transcribed without MIDI, refused where the box exceeds the picture; both in the coverage."
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
                "json_files/BBC/bbc_final.json": (
                    '{"data": [{"id": "1", "caption": "x"}, {"id": "2"}]}'
                )
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
                "data.json": (
                    '{"location": "a/b.wav", "captions": "x"}\n'
                    '{"location": "a/c.wav", "captions": []}\n'
                )
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
                "musiccaps-public.csv": (
                    "ytid,start_s,end_s,caption,is_audioset_eval\na,0,10,x,True\nb,0,10,x\n"
                )
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
                "metadata.json": (
                    '{"1": {"record_time": "t", "split": "train", "Point_LT": "1,2", '
                    '"Point_RT": "1,b", "Point_RB": "1,2", "Point_LB": "1,2"}}'
                )
            },
            "metadata.json, entry 1: Point_RT",
        ),
        ({"metadata.json": '{"1": {"record_time": "t"}}'}, "metadata.json, entry 1"),
        (
            {
                "metadata.json": (
                    '{"1": {"record_time": "t", "split": "train", "Point_LT": "1", '
                    '"Point_RT": "1,2", "Point_RB": "1,2", "Point_LB": "1,2"}}'
                )
            },
            "metadata.json, entry 1",
        ),
        ({"metadata.json": '{"1": 5}'}, "metadata.json, entry 1"),
        ({"metadata.json": "[]"}, "metadata.json"),
    ],
    "MAESTRO": [
        (
            {"maestro-v3.0.0.csv": f"{MAESTRO_HEADER}\nA,B,train,2018,a.midi,a.wav,long\n"},
            "maestro-v3.0.0.csv, line 2: duration",
        ),
        (
            {"maestro-v3.0.0.csv": f"{MAESTRO_HEADER}\nA,B,train\n"},
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
