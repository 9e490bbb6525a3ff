# SPDX-License-Identifier: Apache-2.0
"Visual rhythm: motion of known speed, cuts, pulses of known tempo, odd videos."

import math

import cv2
import numpy as np
import pytest

from cop_repro.core import BadInput, numpy_rng
from cop_repro.data.video import write_video
from cop_repro.measure.visual_rhythm import (
    COLOURS,
    EDGES,
    PercentileClasses,
    VideoFeatures,
    bar_speed,
    estimate_tempo,
    per_bar,
    saliency,
    scene_features,
    video_features,
    video_features_of,
    visual_beats,
)


def texture(seed: int, side: int) -> np.ndarray:
    noise = numpy_rng(seed, "texture").standard_normal((side, side))
    smooth = cv2.GaussianBlur(np.tile(noise, (3, 3)), (0, 0), side / 25)[side:-side, side:-side]
    return np.clip(128 + 45 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def moving(count: int, speed: float, side: int = 64, seed: int = 0) -> np.ndarray:
    "A periodic texture that moves to the right by `speed` pixels a frame."
    tile = np.tile(texture(seed, 2 * side), (1, 2))
    far = [(speed * k) % (2 * side) for k in range(count)]
    frames = [
        cv2.warpAffine(
            tile, np.array([[1.0, 0, 2 * side - d], [0, 1, 0]]), (side, side), flags=17
        )  # linear, inverse map
        for d in far
    ]
    return np.repeat(np.stack(frames)[..., None], 3, 3)


def features_of(directogram: np.ndarray) -> VideoFeatures:
    count = -(-len(directogram) // 5)
    return VideoFeatures(
        directogram.sum(1), directogram, np.zeros((count, 12)), np.zeros((count, 22))
    )


@pytest.mark.parametrize("speed", [0.5, 1.0, 2.0])
def test_speed_is_measured_in_pixels_of_64(speed):
    small = video_features(moving(12, speed))
    large = video_features(moving(12, 4 * speed, side=256))
    for features in (small, large):
        assert abs(np.median(features.flow) / speed - 1) < 0.25
        assert (features.directogram.argmax(1) == 0).all()
    back = video_features(moving(12, speed)[:, :, ::-1])
    assert (back.directogram.argmax(1) == 4).all()


def test_a_cut_does_not_count_as_motion():
    shots = np.concatenate([moving(15, 0.5, seed=1), moving(15, 0.5, seed=2)])
    whole = video_features(shots)
    assert abs(whole.flow[15] / np.median(whole.flow) - 1) < 0.5


def test_saliency_by_hand():
    directogram = np.zeros((4, 8))
    directogram[:, 0], directogram[:, 3] = (1, 3, 2, 0), (2, 1, 1, 1.5)
    assert saliency(directogram).tolist() == [0, 1, 1, 2]


@pytest.mark.parametrize("period", [10, 12, 15, 18])
def test_tempo_of_a_pulse(period):
    steps = np.zeros((400, 8))
    steps[:, 2] = 1.0 - (np.arange(400) % period < 3)
    expected = 60 * 25 / period
    assert abs(estimate_tempo(saliency(steps)) / expected - 1) < 0.02
    beats = visual_beats(features_of(steps), expected)
    assert set(beats.ticks % 4) == {0} and (beats.frames % period == 0).all()
    assert len(np.unique(beats.ticks)) == len(beats.ticks)


def test_what_stands_still_has_no_rhythm():
    still = video_features(np.full((50, 48, 36, 3), 90, np.uint8))
    assert not still.flow.any() and math.isnan(estimate_tempo(saliency(still.directogram)))
    assert len(visual_beats(still, 120).frames) == 0
    assert bar_speed(still, 120).tolist() == [0.0]


def test_bars_cover_the_video():
    values = np.arange(110.0)
    assert per_bar(values, 120).tolist() == [24.5, 74.5, 104.5]
    assert per_bar(values, 120, num_bars=4).tolist() == [24.5, 74.5, 104.5, 109.0]
    assert per_bar(np.ones((99, 2)), 60).shape == (1, 2)


def test_rate_and_sound_of_a_file_do_not_matter(tmp_path):
    speeds = []
    for rate in (25, 50):
        frames = np.concatenate(
            [moving(2 * rate, 12 / rate, 96), moving(2 * rate, 60 / rate, 96, seed=1)]
        )
        write_video(tmp_path / f"{rate}.mp4", frames, rate)
        speeds.append(bar_speed(video_features_of(tmp_path / f"{rate}.mp4"), 120))
    assert len(speeds[0]) == 2 and speeds[0][1] > 3 * speeds[0][0]
    assert np.allclose(speeds[0], speeds[1], rtol=0.25)


def test_colours_and_edges():
    arrays = scene_features(moving(11, 1.0))
    assert arrays["colour"].shape == (3, len(COLOURS))
    assert arrays["picture"].shape == (3, len(EDGES))
    assert np.allclose(arrays["picture"][:, :18].sum(1), 1, atol=1e-4)
    assert np.array_equal(VideoFeatures(**arrays).flow, arrays["flow"])


def test_classes_depend_on_training_values_alone():
    scale = PercentileClasses.fit(np.linspace(0, 1, 340))
    alone = scale.classes(np.array([0.3]))
    assert scale.classes(np.array([0.3, 9.0, 9.0, 9.0]))[0] == alone[0] == 5
    assert np.bincount(scale.classes(np.linspace(0, 1, 340))).tolist() == [20] * 17


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: video_features(np.zeros((1, 64, 64, 3), np.uint8)), "show no rhythm"),
        (lambda: video_features(np.zeros((9, 64, 64, 3))), "uint8"),
        (lambda: video_features(np.zeros((9, 64, 64), np.uint8)), "uint8"),
        (lambda: per_bar(np.ones(50), 30.0), "tempo of 30"),
        (lambda: PercentileClasses.fit(np.ones(5)), "5 values for 17 classes"),
        (lambda: estimate_tempo(np.ones(50), 200, 100), "low < high"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(BadInput, match=message):
        call()


def test_recorded_videos_have_sensible_curves(real_folder):
    for name in ("pianoyt_nwwHuxHMIpc_0.mp4", "vggsound_1uCzQCdCC1U_000170.mp4"):
        features = video_features_of(real_folder / name, 0, 4)
        assert len(features) == 100 and np.isfinite(features.flow).all()
        assert 0 < np.median(features.flow) < 8
        assert 40 <= estimate_tempo(saliency(features.directogram)) <= 240
