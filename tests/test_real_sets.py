# SPDX-License-Identifier: Apache-2.0
"Real sets: what is missing is named, folders of videos become clips, coverage is a fact."

import numpy as np
import pytest

from cop_repro.core import BadInput, DatasetMissing
from cop_repro.data.clips import Item
from cop_repro.data.notes import make_notes, write_midi
from cop_repro.data.real_sets import REAL_SETS, coverage, folder_items, load_real_clip, require
from cop_repro.data.video import write_video


def video(path, seconds=2.0, rate=25, wav=None):
    frames = np.repeat(
        np.linspace(20, 220, round(seconds * rate)).astype(np.uint8), 32 * 48 * 3
    ).reshape(-1, 32, 48, 3)
    write_video(path, frames, rate, wav)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    video(folder / "a.mp4", 2.0, 25, 0.2 * np.sin(np.arange(48_000) * 0.1).astype(np.float32))
    video(folder / "b.mp4", 3.0, 24)
    write_midi(make_notes([60, 72], [0.25, 1.25], [0.75, 1.75], [50, 90]), folder / "a.mid")
    (folder / "notes.txt").write_text("ignored")
    return folder


@pytest.mark.parametrize("name", list(REAL_SETS))
def test_a_missing_set_says_everything(tmp_path, name):
    with pytest.raises(DatasetMissing) as error:
        require(name, tmp_path)
    one = REAL_SETS[name]
    assert all(part in str(error.value) for part in (one.name, one.folder, one.source, one.licence))
    assert str(tmp_path.parent) not in str(error.value)


def test_a_set_at_hand_is_found(tmp_path):
    (tmp_path / "maestro").mkdir()
    with pytest.raises(DatasetMissing, match="is empty"):
        require("MAESTRO", tmp_path)
    (tmp_path / "maestro" / "maestro-v3.0.0.csv").write_text("x")
    assert require("MAESTRO", tmp_path) == tmp_path / "maestro"
    with pytest.raises(BadInput, match="registry"):
        require("maestro", tmp_path)


def test_table1_of_the_paper(root):
    import yaml

    printed = yaml.safe_load((root / "refs" / "paper.yaml").read_text())["table1"]["clips"]
    assert printed == {s.name: s.num_paper for s in REAL_SETS.values() if s.num_paper}


def test_windows_of_videos(folder):
    items = folder_items(folder, "val", 1.0)
    assert [(i.work_id, i.files["start_s"]) for i in items] == [
        ("a", 0),
        ("a", 1),
        ("b", 0),
        ("b", 1),
        ("b", 2),
    ]
    assert {i.split for i in items} == {"val"} and len({i.clip_id for i in items}) == 5
    assert [("midi" in i.files) for i in items] == [True, True, False, False, False]
    assert not any("/" in str(v) for i in items for v in i.files.values()), "names are relative"


def test_a_window_is_cut_alike_from_video_sound_and_notes(folder):
    second = load_real_clip(folder_items(folder, duration_s=1.0)[1], folder)
    assert (
        second.frames.shape == (25, 32, 48, 3)
        and second.wav.shape == (24_000,)
        and second.strips is None
    )
    assert (
        second.notes.pitches.tolist() == [72]
        and abs(second.notes.onsets_s[0] - 0.25) < 0.01
        and second.notes.velocities.tolist() == [90]
    )
    level = second.frames.mean((1, 2, 3))
    assert level[0] > 110 and (np.diff(level) > -1).all() and level[-1] > 205
    whole = load_real_clip(folder_items(folder, duration_s=None)[1], folder)
    assert whole.wav is None and whole.notes is None and len(whole.frames) == 75, (
        "24 fps in, 25 out"
    )


def test_folders_that_cannot_be_used(tmp_path, folder):
    for given, why in ((tmp_path / "none", "no folder"), (tmp_path, "no video")):
        with pytest.raises(BadInput, match=why):
            folder_items(given)
    write_midi(make_notes([60], [0], [1], [64]), tmp_path / "x.mid")
    video(tmp_path / "y.mp4", 1.0)
    with pytest.raises(BadInput, match="no video for x.mid"):
        folder_items(tmp_path)
    (tmp_path / "x.mid").rename(tmp_path / "y.midi")
    assert folder_items(tmp_path, duration_s=1.0)[0].files["midi"] == "y.midi"
    (tmp_path / "y.mov").write_bytes(b"")
    with pytest.raises(BadInput, match="share the stem"):
        folder_items(tmp_path)
    (tmp_path / "y.mp4").unlink()
    with pytest.raises(BadInput, match="empty"):
        folder_items(tmp_path)
    with pytest.raises(BadInput, match="less than one window"):
        folder_items(folder, duration_s=60.0)
    for wrong in ({"split": "tset"}, {"duration_s": 0.0}):
        with pytest.raises(BadInput):
            folder_items(folder, **wrong)
    with pytest.raises(BadInput, match="names no video"):
        load_real_clip(Item("r", "r", "test", "piano", 1.0), folder)


def test_sound_that_stops_early_is_no_silence(tmp_path):
    video(tmp_path / "short.mp4", 2.0, 25, 0.1 * np.ones(12_000, np.float32))
    with pytest.raises(BadInput, match="end early"):
        load_real_clip(folder_items(tmp_path, duration_s=2.0)[0], tmp_path)


def test_coverage(folder):
    items = folder_items(folder, duration_s=1.0)
    made = coverage(items, 9)
    assert made == coverage(items[::-1], 9) and (made["n_used"], made["n_official"]) == (5, 9)
    assert (
        coverage(items[1:], 9)["id_hash"] != made["id_hash"] and coverage([], None)["n_used"] == 0
    )
    with pytest.raises(BadInput, match="unique"):
        coverage(items * 2, None)
    with pytest.raises(BadInput, match="lists 3"):
        coverage(items, 3)
