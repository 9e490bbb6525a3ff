# SPDX-License-Identifier: Apache-2.0
"The keyboard finder: every key in its place, and a clear refusal where there is none."

from pathlib import Path

import numpy as np
import pytest

from cop_repro.core import BadInput, numpy_rng
from cop_repro.data import keyboard
from cop_repro.data.keyboard import (
    black_pattern,
    find_keyboard,
    median_frame,
    parse_corners,
    rectify,
)
from cop_repro.data.notes import make_notes
from cop_repro.data.rendering import (
    IS_BLACK,
    KEY_MM,
    NUM_WHITE,
    key_centres,
    render,
    sample_nuisance,
)

REAL = Path(__file__).parents[2] / "shared" / "real"
NOTES = make_notes(
    np.arange(48, 78), np.arange(30) * 0.1, np.arange(30) * 0.1 + 0.3, np.full(30, 80)
)


def scene(seed, size=(360, 640)):
    return render(
        NOTES, None, 3.0, "top", sample_nuisance(numpy_rng(seed, "scene")), size, frame_rate=3
    )


def key_error(corners, truth):
    "Largest sideways error of a corner, in white keys."
    return np.abs(corners - truth)[:, 0].max() / (np.linalg.norm(truth[1] - truth[0]) / NUM_WHITE)


@pytest.mark.parametrize("seed", [1, 5])  # 5: strong perspective, where an octave shift nearly fits
def test_finds_keys_in_a_scene(seed):
    video = scene(seed)
    found = find_keyboard(video.frames)
    assert key_error(found.corners, video.corners) < 0.4
    assert found.confidence > 0.7


def test_pattern_has_36_bars_in_groups_of_two_and_three():
    dark = black_pattern(5200) < 0
    bars = np.flatnonzero(dark[1:] & ~dark[:-1]), np.flatnonzero(dark[:-1] & ~dark[1:])
    assert len(bars[0]) == len(bars[1]) == 36
    middles = (bars[0] + bars[1]) / 200
    assert np.abs(middles - key_centres()[IS_BLACK] / KEY_MM).max() < 0.02
    assert (np.diff(bars[0]) > 150).sum() == 14, "a wide gap beside every group but the outermost"


def test_background_removes_a_moving_hand():
    still = np.full((9, 20, 30), 200, np.uint8)
    moving = still.copy()
    for i in range(9):
        moving[i, 5:9, 3 * i : 3 * i + 3] = 20
    assert np.array_equal(median_frame(moving), still[0])


def test_rectify_is_exact_on_an_aligned_picture():
    blocks = numpy_rng(0, "t").integers(0, 256, (8, 104), dtype=np.uint8)
    picture = blocks.repeat(2, 0).repeat(2, 1)
    strip = rectify(picture[None], np.array([[0.0, 0], [208, 0], [208, 16], [0, 16]]), 16, 208)
    assert strip.shape == (1, 16, 208)
    assert np.abs(strip[0].astype(int) - picture).max() <= 1


def test_rectify_averages_before_it_shrinks():
    lines = np.zeros((1, 64, 2080), np.uint8)
    lines[:, :, ::4] = 200
    strip = rectify(lines, np.array([[0.0, 0], [2080, 0], [2080, 64], [0, 64]]), 16, 520)
    assert np.abs(strip.astype(int) - 50).max() <= 1, (
        "a line a quarter of a pixel wide weighs a quarter"
    )


@pytest.mark.parametrize(
    "text",
    ["", "1,2 3,4", "0,0 0,4 9,4 9,0", "0,0 9,0 9,4 a,4", "0,0 9,0 9,4 nan,4", "1,1 1,1 1,1 1,1"],
)
def test_bad_corners(text):
    with pytest.raises(BadInput):
        parse_corners(text)


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((3, 120, 400)),
        np.zeros((0, 120, 400), np.uint8),
        np.zeros((3, 120, 400, 4), np.uint8),
        np.zeros((3, 8, 40), np.uint8),
        np.full((3, 120, 400), 90, np.uint8),
    ],
)
def test_unusable_frames(frames):
    with pytest.raises(BadInput):
        find_keyboard(frames)


def test_half_a_keyboard_is_refused():
    video = scene(1)
    with pytest.raises(BadInput, match="corners"):
        find_keyboard(video.frames[:, :, 300:])


@pytest.mark.parametrize("octaves,depth", [(-2, 1.0), (-1, 0.4), (2, 1.0)])
def test_a_start_octaves_aside_or_too_thin_ends_at_the_right_keys(monkeypatch, octaves, depth):
    "Hands that cover the keys for most of the clip lead to such starts."
    video = scene(1)
    right = find_keyboard(video.frames).corners
    astray = keyboard._moved_by_octave(right, 7 * octaves)
    astray[2:] = astray[[1, 0]] + depth * (astray[2:] - astray[[1, 0]])
    monkeypatch.setattr(keyboard, "_start_corners", lambda picture, candidate, span: astray)
    monkeypatch.setattr(keyboard, "_coarse", lambda picture, search: [(0.9,)])
    found = find_keyboard(video.frames)
    assert key_error(found.corners, video.corners) < 0.4


def every_twelfth_frame(path):
    import av

    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))[::12]
        return np.stack([frame.to_ndarray(format="gray") for frame in frames])


@pytest.mark.skipif(not REAL.is_dir(), reason="real recordings are not on this machine")
def test_real_recordings():
    found = find_keyboard(every_twelfth_frame(REAL / "pianoyt_nwwHuxHMIpc_0.mp4"))
    truth = np.array([[0, 2], [1840, 0], [1836, 197], [-1, 195]])
    assert np.abs(found.corners - truth).max() < 9, "a quarter of a white key"
    with pytest.raises(BadInput, match="no keyboard found"):
        find_keyboard(every_twelfth_frame(REAL / "vggsound_1uCzQCdCC1U_000170.mp4"))
