# SPDX-License-Identifier: Apache-2.0
"VMCP on videos of a piano: motion at the keys, delays, pairs, retrieval and offsets."

from dataclasses import replace

import numpy as np
import pytest
import torch

from cop_repro.core import BadInput, numpy_rng
from cop_repro.data.clips import Store, create_columns
from cop_repro.data.keyboard import KEYBOARD_MM, key_centres
from cop_repro.data.notes import Roll, make_notes, notes_to_roll
from cop_repro.judges.vmcp import (
    VmcpConfig,
    VmcpData,
    channels_of,
    fit_vmcp,
    load_vmcp,
    make_vmcp,
    save_vmcp,
    vmcp_step_fn,
)
from cop_repro.judges.vmcp_piano import (
    KeyClip,
    KeyPairs,
    key_clips,
    key_motion,
    moment_similarity,
    music_offset,
    offset_errors,
    offset_row,
    offset_rows,
    piano_rows,
)
from cop_repro.training.loop import TrainConfig

KEYS = VmcpConfig(24, 24, 0, 2, 12, 2.0, 0.0, video="keys", strides=(1, 1, 1), pooled=False)
PLAIN = VmcpData(drop=0.0, max_transpose=0)


def clip(number, frames=100):
    "Keys that are struck at random; the picture changes at the front when they go down."
    rng = numpy_rng(0, "keys", number)
    presence, onset = np.zeros((2, frames, 88), np.float32)
    motion = 0.1 * abs(rng.standard_normal((frames, 176))).astype(np.float32)
    for key in rng.integers(30, 50, 16):
        start = int(rng.integers(0, frames - 10))
        presence[start : start + 8, key] = onset[start, key] = 1
        motion[start, 88 + key] += 2
    roll = Roll(presence, onset, presence / 2, np.zeros(frames, np.float32))
    return KeyClip(f"c{number}", f"w{number}", motion, roll)


@pytest.fixture(scope="module")
def clips():
    return [clip(i) for i in range(46)]


@pytest.fixture(scope="module")
def judge(clips, tmp_path_factory):
    cfg = TrainConfig(steps=80, batch_size=16, learning_rate=5e-3, warmup_steps=5, clip_norm=1.0)
    folder = tmp_path_factory.mktemp("judge")
    return fit_vmcp(KeyPairs(clips[:36]), "hash", cfg, folder, KEYS, PLAIN)[0]


def test_motion_lies_at_its_key():
    strips = np.full((2, 48, 520), 90, np.uint8)
    for key in (0, 39, 87):
        changed = strips.copy()
        column = int(key_centres()[key] / KEYBOARD_MM * 520)
        changed[1, 45:, column - 2 : column + 3] = 200
        motion = key_motion(changed)
        assert motion.shape == (2, 176) and not motion[0].any()
        assert motion[1, 88:].argmax() == key and not motion[1, :88].any()
        back = key_motion(changed[::-1])[1]
        assert np.allclose(back, motion[1]), "darker and brighter count alike"


def test_music_of_a_performance_keeps_its_times():
    notes = make_notes([60, 64], [0.4, 1.0], [0.8, 1.5], [64, 64])
    channels = channels_of(notes_to_roll(notes, 2.0))
    assert channels.shape == (50, 179)
    assert np.flatnonzero(channels[:, -1]).tolist() == [10, 25]
    assert channels[10:20, 39].all() and channels[:, 39].sum() == 10
    with pytest.raises(BadInput, match="25 Hz"):
        channels_of(notes_to_roll(notes, 2.0, 50.0))


def test_delays(clips):
    one = clips[0]
    late, early = one.delayed(3), one.delayed(-3)
    assert (
        np.array_equal(late.roll.onset[3:], one.roll.onset[:-3]) and not late.roll.onset[:3].any()
    )
    assert np.array_equal(early.roll.presence[:-3], one.roll.presence[3:])
    assert not early.roll.presence[-3:].any()
    assert np.array_equal(late.motion, one.motion) and len(late.roll) == len(one.roll)
    assert np.array_equal(one.delayed(0).roll.onset, one.roll.onset)
    part = one.frames(10, 30)
    assert len(part.roll) == len(part.motion) == 20
    assert np.array_equal(part.roll.onset, one.roll.onset[10:30])


def test_both_stretches_of_a_clip_are_in_a_batch(clips):
    pairs = KeyPairs(clips[:8])
    rows = pairs.rows(0, 8, 0, True)
    assert len(rows) == 8 and all(rows.count(row) == 2 for row in rows)
    assert len(set(pairs.rows(0, 8, 0, False))) == 8
    assert not pairs.shared(rows).any(), "other times of a clip are negatives"
    cfg = TrainConfig(steps=5, batch_size=8, learning_rate=1e-3)
    losses = [
        float(vmcp_step_fn(make_vmcp(KEYS), pairs, cfg, PLAIN)(step, 0, 1)[0].detach())
        for step in (2, 2, 3)
    ]
    assert losses[0] == losses[1] != losses[2]
    with pytest.raises(BadInput, match="no clips"):
        KeyPairs([])


def test_a_judge_in_time(judge, clips):
    unseen = clips[36:]
    rows = piano_rows(judge, unseen, pool=20, num_pools=1)
    assert rows["truth"].row()["average_rank"] < 3
    assert rows["shuffled"].row()["average_rank"] > 6
    assert rows["without motion"].row()["average_rank"] > 6
    errors = offset_errors(judge, unseen)
    assert errors.shape == (10, 5) and np.median(abs(errors)) <= 40
    apart = offset_rows(judge, unseen)
    assert apart["truth"]["median_ms"] <= 40 < 100 < apart["shuffled"]["median_ms"]
    moved = music_offset(judge, unseen[1].delayed(-6)).offset_ms
    assert abs(moved + 240) <= 40, "early music has a negative offset"


def test_one_clip_of_a_work_counts(judge, clips):
    double = [*clips[36:42], replace(clips[42], work_id=clips[36].work_id)]
    rows = piano_rows(judge, double, pool=12, num_pools=1)
    assert rows["truth"].works == tuple(c.work_id for c in clips[36:42])


def test_errors_by_hand():
    row = offset_row(np.array([[0.0, -40.0], [80.0, 400.0]]))
    assert row == {"median_ms": 60.0, "mean_ms": 130.0, "within_40_ms": 0.5}


def test_vectors_of_moments_do_not_depend_on_what_lies_far_away(judge, clips):
    whole = moment_similarity(judge, clips[40])
    part = moment_similarity(judge, clips[40].frames(20, 80))
    assert np.allclose(part[10:50, 10:50], whole[30:70, 30:70], atol=1e-5)
    assert abs(whole).max() <= 1 + 1e-6


def test_wrong_judges_are_refused(clips, judge, tmp_path):
    for wrong in (replace(KEYS, strides=(2, 1, 1)), replace(KEYS, pooled=True)):
        with pytest.raises(BadInput, match="no vector for every frame"):
            moment_similarity(make_vmcp(wrong), clips[0])
    with pytest.raises(BadInput, match="has no blocks"):
        make_vmcp(replace(KEYS, blocks=1))
    with pytest.raises(BadInput, match="videos are scene, keys"):
        make_vmcp(replace(KEYS, video="hands"))
    cfg = TrainConfig(steps=1, batch_size=4, learning_rate=1e-3)
    with pytest.raises(BadInput, match="pairs of 'keys' for a judge of 'scene'"):
        fit_vmcp(KeyPairs(clips[:4]), "hash", cfg, tmp_path, VmcpConfig())
    save_vmcp(tmp_path / "piano.safetensors", judge)
    again = load_vmcp(tmp_path / "piano.safetensors", "hash")
    assert again.cfg == KEYS
    assert np.array_equal(again.video(clips[0].motion), judge.video(clips[0].motion))


def test_clips_of_a_store(tmp_path):
    entries = [
        {"clip_id": f"c{i}", "work_id": "w", "split": split, "duration_s": 0.4}
        for i, split in enumerate(("train", "test"))
    ]
    roll = ((10, 88), "float16")
    columns = {"strips": ((10, 48, 520), "uint8"), "presence": roll, "onset": roll}
    columns |= {"velocity": roll, "pedal": ((10,), "float16")}
    create_columns(tmp_path, entries, columns, split_hash="x")
    store = Store(tmp_path, "r+")
    store["onset"][1, 4, 39] = store["presence"][1, 4:8, 39] = 1
    (found,) = key_clips(store, split="test")
    assert found.name == "c1" and found.motion.shape == (10, 176)
    assert np.flatnonzero(found.roll.onset[:, 39]).tolist() == [4]
    assert channels_of(found.roll).dtype == np.float32
    assert torch.from_numpy(found.motion).dtype == torch.float32
    with pytest.raises(BadInput, match="no clip with"):
        key_clips(store, split="val")
