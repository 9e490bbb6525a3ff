# SPDX-License-Identifier: Apache-2.0
"Keyboards in perspective and in part, keys given by hand, and pictures that show no keyboard."

from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest

from cop_repro.core import BadInput, numpy_rng
from cop_repro.data.keyboard import (
    ALL_KEYS,
    BLACK_KEYS,
    KEY_MM,
    NUM_WHITE,
    carry,
    find_keyboard,
    key_centres,
    keyboard_at,
)
from cop_repro.data.notes import make_notes
from cop_repro.data.partial_keyboards import (
    Hints,
    find_part,
    find_visible,
    hidden_keys,
    parse_key,
    parse_keys,
)
from cop_repro.data.rendering import render, sample_nuisance

REAL = Path(__file__).parents[2] / "shared" / "real"


@cache
def scene():
    "A rendered clip with hands and noise."
    starts = np.arange(30) * 0.1
    notes = make_notes(np.arange(48, 78), starts, starts + 0.3, np.full(30, 80))
    look = sample_nuisance(numpy_rng(3, "scene"))
    return render(notes, None, 3.0, "top", look, (240, 640), frame_rate=3)


def key_error(corners, truth):
    "Largest sideways error of a corner, in white keys."
    return np.abs(corners - truth)[:, 0].max() / (np.linalg.norm(truth[1] - truth[0]) / NUM_WHITE)


def cut_to(first, end):
    "The scene cut to some white keys: frames, their left edge, and the corners of these keys."
    video = scene()
    edges = carry(video.corners, [[first, 0], [end, 0], [end, 1], [first, 1]])
    left, right = max(0, int(edges[:, 0].min()) - 3), int(edges[:, 0].max()) + 3
    return np.ascontiguousarray(video.frames[:, :, left:right]), left, edges


@pytest.mark.parametrize("keystone", [-0.2, 0.2])
def test_a_camera_to_one_side(keystone):
    video = scene()
    _, height, width, _ = video.frames.shape
    low, inset = (
        (0, abs(keystone) * height / 2) if keystone > 0 else (abs(keystone) * height / 2, 0)
    )
    source = np.float32([[0, 0], [width, 0], [width, height], [0, height]])
    target = np.float32([[0, low], [width, inset], [width, height - inset], [0, height - low]])
    matrix = cv2.getPerspectiveTransform(source, target)
    frames = np.stack([cv2.warpPerspective(f, matrix, (width, height)) for f in video.frames])
    truth = cv2.perspectiveTransform(video.corners[None].astype(np.float32), matrix)[0]
    assert key_error(find_keyboard(frames).corners, truth) < 0.5


@pytest.mark.parametrize("name", ["C2-C6", "E1-E7", "E1-G7"])  # 49, 73 and 76 keys; 61: the lesson
def test_small_keyboards_are_found_and_named(name):
    span = parse_keys(name)
    frames, left, edges = cut_to(*span)
    found = find_part(frames)
    assert found.span == span
    assert np.abs(found.corners[:, 0] + left - edges[:, 0]).max() < 6, "under half a white key"


def test_another_octave_can_be_given():
    frames, _, _ = cut_to(16, 45)  # C3 to C7, which would be taken for C2 to C6
    assert find_part(frames).span == (9, 38)
    assert find_visible(frames, Hints(keys="C3-C7")).span == (16, 45)


def test_too_few_keys_are_refused_with_the_number():
    frames, _, _ = cut_to(23, 34)
    with pytest.raises(BadInput, match="1[01] white keys|no keyboard"):
        find_visible(np.ascontiguousarray(frames[:, :, :200]))


def test_given_corners_are_corrected():
    video = scene()
    white_px = np.linalg.norm(video.corners[1] - video.corners[0]) / NUM_WHITE
    careless = video.corners + white_px * np.array([[0.5, 0.2], [-0.4, 0.3], [0.4, 0], [-0.3, 0.2]])
    found = keyboard_at(video.frames, careless)
    assert key_error(found.corners, video.corners) < 0.35 < key_error(careless, video.corners)


@pytest.mark.parametrize("text", ["", "H2", "C#2", "22", "109", "C9"])
def test_what_is_no_white_key(text):
    with pytest.raises(BadInput, match="not a white key"):
        parse_key(text)


def test_hints_that_contradict_the_picture_or_each_other():
    video = scene()
    with pytest.raises(BadInput, match="two keys"):
        parse_keys("C2")
    with pytest.raises(BadInput, match="two octaves"):
        parse_keys("C4-G4")
    with pytest.raises(BadInput, match="stands alone"):
        Hints(keys="C2-C7", lowest="C2")
    with pytest.raises(BadInput, match="all 88 keys"):
        find_visible(video.frames, Hints(lowest="C2"))
    with pytest.raises(BadInput, match="lie in the picture"):
        find_visible(video.frames, Hints(corners="600,10 1200,10 1200,90 600,90"))
    with pytest.raises(BadInput, match="clockwise"):
        find_visible(video.frames, Hints(corners="0,0 600,90 600,0 0,90"))


def drawn_keyboard(height=60, width=480):
    "A keyboard of flat greys."
    picture, unit = np.full((height, width), 250, np.uint8), width / NUM_WHITE
    for white in range(1, NUM_WHITE):
        picture[:, round(white * unit)] = 120
    for centre in key_centres()[BLACK_KEYS] / KEY_MM:
        left, right = round((centre - 0.29) * unit), round((centre + 0.29) * unit)
        picture[: round(0.62 * height), left:right] = 15
    return picture


def test_a_screen_with_falling_notes_is_called_one():
    rng, sky = numpy_rng(0, "falling"), np.full((600, 480), 20, np.uint8)
    for _ in range(120):
        top, left = rng.integers(0, 560), round(rng.integers(0, 50) * 480 / NUM_WHITE)
        sky[top : top + rng.integers(10, 60), left : left + 9] = 180
    frames = [np.vstack([np.roll(sky, 6 * i, 0)[:120], drawn_keyboard()]) for i in range(12)]
    with pytest.raises(BadInput, match="falling notes"):
        find_visible(np.stack(frames))


def zebra():
    "Bars of one width in perspective."
    bars = np.repeat(np.where(np.arange(240) % 12 < 6, 20, 230)[None], 64, 0).astype(np.uint8)
    corners = np.float32([[0, 0], [240, 0], [240, 64], [0, 64]])
    narrow = np.float32([[40, 0], [200, 0], [240, 64], [0, 64]])
    return cv2.warpPerspective(bars, cv2.getPerspectiveTransform(corners, narrow), (240, 64))


def stairs():
    "Horizontal edges."
    return np.repeat(np.where(np.arange(64) % 12 < 5, 20, 230)[:, None], 240, 1).astype(np.uint8)


@pytest.mark.parametrize("picture", [pytest.param(zebra, marks=pytest.mark.slow(3)), stairs])
def test_no_keyboard_in_other_patterns(picture):
    noise = numpy_rng(0, "noise").normal(0, 3, (3, 64, 240))
    frames = np.clip(picture() + noise, 0, 255).astype(np.uint8)
    with pytest.raises(BadInput, match="no keyboard found"):
        find_visible(frames)


def test_hidden_keys_repeat_whole_octaves():
    "Columns numbered by their white key: hidden ones show a key of the same name."
    strips = np.repeat(np.arange(NUM_WHITE, dtype=np.uint8), 12)[None, None].repeat(4, 1)
    hidden = hidden_keys(strips, (9, 38))
    shown = hidden.fill(strips)[0, 0].astype(int)
    own = strips[0, 0].astype(int)
    assert ((shown - own) % 7 == 0).all()
    assert shown.min() == 9 and shown.max() == 37
    assert hidden.keys.sum() == 88 - 49
    assert hidden_keys(strips, ALL_KEYS) is None


@pytest.mark.skipif(not REAL.is_dir(), reason="real recordings are not on this machine")
def test_ten_real_keys_are_too_few():
    from cop_repro.systems.cop import sample_frames

    with pytest.raises(BadInput, match="1[01] white keys from G"):
        find_visible(sample_frames(REAL / "phone_ten_keys.mp4", 4.0))
