# SPDX-License-Identifier: Apache-2.0
"Guards of the event clips: sound meets video, captions are true, bad input is refused."

import numpy as np
import pytest

from cop_repro.core import BadInput
from cop_repro.data.foley import FOLEY_CLASSES, contact, foley_clip, t2a_clip


@pytest.mark.parametrize("label", FOLEY_CLASSES)
def test_clip_is_repeatable_and_moves(label):
    a, b = foley_clip(label, 11, 2.0), foley_clip(label, 11, 2.0)
    assert np.array_equal(a.wav, b.wav) and np.array_equal(a.frames, b.frames) and a.text == b.text
    assert (
        a.wav.shape == (48_000,) and a.wav.dtype == np.float32 and a.frames.shape == (50, 64, 64, 3)
    )
    hit = int(a.events_s[0] * 25)
    motion = np.abs(np.diff(a.frames.astype(int), axis=0)).mean((1, 2, 3))
    assert motion[max(hit - 4, 0) : hit + 3].max() > 0.3


@pytest.mark.parametrize("label", [c for c in FOLEY_CLASSES if c != "engine rev"])
def test_sound_starts_at_contact(label):
    for seed in range(3):
        clip = foley_clip(label, seed, 2.0)
        a = round(clip.events_s[0] * 24_000)
        before, after = clip.wav[max(a - 2400, 0) : a], clip.wav[a : a + 2400]
        assert np.abs(after).max() > 2 * np.abs(before).max()


def test_words_are_true():
    clips = [foley_clip("hand clap", seed, 3.0) for seed in range(24)]
    peak = lambda word: [np.abs(c.wav).max() for c in clips if word in c.text]
    rate = lambda word: [len(c.events_s) for c in clips if word in c.text]
    assert peak("loudly") and peak("softly") and min(peak("loudly")) > max(peak("softly"))
    assert rate("quickly") and rate("slowly") and min(rate("quickly")) > max(rate("slowly"))


def test_captions_without_video():
    clips = [t2a_clip(seed, 1.0) for seed in range(40)]
    assert len({c.label for c in clips}) > 10 and all(
        c.frames is None and c.text and np.isfinite(c.wav).all() for c in clips
    )
    assert np.array_equal(t2a_clip(7, 1.0).wav, clips[7].wav)


def test_contact_limits():
    assert contact(np.array([0.0, 1.0, 9.0]), np.array([1.0])).tolist() == [0, 1, 0]
    assert contact(np.array([0.5]), np.zeros(0)).tolist() == [0]


@pytest.mark.parametrize(
    "call",
    [
        lambda: foley_clip("dragon", 0),
        lambda: foley_clip("bell ring", 0, 0),
        lambda: t2a_clip(0, float("nan")),
    ],
)
def test_nonsense_is_refused(call):
    with pytest.raises(BadInput):
        call()
