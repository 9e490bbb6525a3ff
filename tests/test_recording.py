# SPDX-License-Identifier: Apache-2.0
"The default look of rendered clips, what recordings do to it, and the lag of recorded videos."

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from cop_repro.cli import main
from cop_repro.core import BadInput, numpy_rng
from cop_repro.data.notes import make_notes
from cop_repro.data.recording import CLEAN, Recording, sample_recording
from cop_repro.data.rendering import EXTRA, Nuisance, hand_joints, render, render_strip
from cop_repro.data.rendering import sample_nuisance as sample
from cop_repro.systems.cop import LAG_ROWS, RECORDED, WindowConfig, recorded_windows

NOTES = make_notes(
    [48, 60, 63], [0.2, 0.3, 0.5], [0.5, 0.6, 0.8], [60, 90, 110], pedal=[(0.3, 0.7)]
)
FINGERS = np.array([2, 5, 7])
# of strips of these notes, made before the groups of EXTRA existed; seed -> start of the SHA-256
BYTES = {0: "2163a5f7756a1f75", 1: "841cbebfcbeb563c", 2: "a4c948d3f7dd0032"}


def strips(nuisance: Nuisance, seed: int = 0):
    return render_strip(NOTES, FINGERS, 1.0, nuisance, 48, 520, seed=seed)


@pytest.mark.parametrize("seed", BYTES)
def test_clips_of_the_default_run_keep_their_bytes(seed):
    made = strips(sample(numpy_rng(seed, "bytes")), seed)
    assert hashlib.sha256(made.tobytes()).hexdigest().startswith(BYTES[seed])


def test_groups_beyond_the_default_change_only_themselves():
    usual = sample(numpy_rng(5, "world"))
    assert usual.recording == CLEAN and usual.roam == 0 and usual.travel_time == 1
    for group in EXTRA:
        own = sample(numpy_rng(5, "world"), extra=[group])
        clean = {"travel_time": 1.0, "travel_power": 2.0, "roam": 0.0, "recording": CLEAN}
        assert replace(own, **clean) == usual
    both = [sample(numpy_rng(5, "world"), extra=groups) for groups in (EXTRA, EXTRA[:1])]
    assert both[0].travel_time == both[1].travel_time
    with pytest.raises(BadInput, match="no group of knobs"):
        sample(numpy_rng(5, "world"), extra=["weather"])


def test_sound_stays_at_the_end_of_any_travel():
    soft = make_notes([60], [0.5], [0.9], [20])
    bare = Nuisance(hands=False)
    for time, power in ((0.5, 1.0), (1.25, 2.2)):
        own = replace(bare, travel_time=time, travel_power=power)
        moving = np.abs(np.diff(render_strip(soft, None, 1.0, own).astype(int), axis=0)).max((1, 2))
        down = np.flatnonzero(moving[:16] > 4)
        assert down.max() <= 12 and abs(13 - down.min() - 0.16 * time * 25) < 2


def test_idle_hands_leave_the_notes_of_the_other_hand_alone():
    times = np.arange(100) / 25 + 0.02
    notes = make_notes([72], [0.5], [3.9], [80])
    calm, restless = (
        hand_joints(notes, np.array([7]), times, Nuisance(roam=roam), 1) for roam in (0.0, 1.0)
    )
    assert np.ptp(restless[:, :5, 0, 0]) > np.ptp(calm[:, :5, 0, 0]) + 40
    assert np.allclose(restless[10:95, 5:], calm[10:95, 5:])


@pytest.mark.parametrize("source_rate, seen", [(20.0, 20), (60.0, 25)])
def test_other_frame_rates_show_other_moments(source_rate, seen):
    nuisance = replace(Nuisance.none(), recording=Recording(source_rate=source_rate))
    made = render_strip(NOTES, FINGERS, 1.0, nuisance, 48, 520)
    assert len(made) == 25 and len(np.unique(made, axis=0)) == seen


def test_a_recording_is_the_same_twice_and_reaches_videos_from_above():
    for seed in range(4):
        nuisance = replace(Nuisance.none(), recording=sample_recording(numpy_rng(seed, "r"), 9.0))
        a, b = (render(NOTES, FINGERS, 0.3, "top", nuisance, (66, 330)).frames for _ in range(2))
        assert np.array_equal(a, b) and a.shape == (8, 66, 330, 3)
        clean = render(NOTES, FINGERS, 0.3, "top", Nuisance.none(), (66, 330)).frames
        assert not np.array_equal(a, clean)


def test_the_lag_of_recorded_videos_has_one_owner():
    assert WindowConfig().lag_rows == 0 and RECORDED.lag_rows == LAG_ROWS
    assert RECORDED.lag_ms == 80 and recorded_windows() is RECORDED
    given = {"0": 0, "80": 2, "-40": -1, "61": 2, "59.5": 1, "400": 10}
    assert {text: recorded_windows(text).lag_rows for text in given} == given


@pytest.mark.parametrize("lag", ["soon", "nan", "inf", "401", "-1e9", ""])
def test_a_lag_that_is_none_is_refused_in_one_line(lag, tmp_path, capsys):
    video = tmp_path / "video.mp4"
    video.write_bytes(b"")
    for command in (["perform", str(video), "-o", str(tmp_path / "out")], ["real", str(video)]):
        assert main([*command, f"--lag={lag}"]) == 2
        said = capsys.readouterr().err
        assert "-400 to 400" in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()
