# SPDX-License-Identifier: Apache-2.0
"Facts about scores, pianists, splits and fingers that must never change."

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cop_repro.core import BadInput
from cop_repro.data.notes import notes_to_roll, roll_to_notes
from cop_repro.data.performance import (
    DEFAULT_WORKS,
    MIN_GAP_S,
    PIANISTS,
    Pianist,
    assign_fingers,
    corpus_scores,
    etudes,
    group_works,
    make_score,
    parse_etude,
    perform,
    score_from_dict,
    score_to_dict,
    split_hands,
    split_hash,
    split_works,
    touch_statistics,
)

ETUDES = Path(__file__).parents[1] / "data" / "etudes"


@pytest.fixture(scope="module")
def scores():
    return etudes(ETUDES)


def test_default_works_are_distinct_and_many():
    assert (
        len(set(DEFAULT_WORKS)) == len(DEFAULT_WORKS) >= 80
        and sum(w.startswith("bwv") for w in DEFAULT_WORKS) >= 70
    )


def test_etudes_cover_the_keyboard_and_survive_a_cache(scores):
    assert len(scores) == 14 and {p for s in scores for p in s.pitches.tolist()} == set(
        range(21, 109)
    )
    for score in scores:
        assert score_from_dict(json.loads(json.dumps(score_to_dict(score)))) == score
    with pytest.raises(BadInput):
        score_from_dict({"work_id": "x"})


def test_two_settings_of_one_tune_stay_together():
    book = corpus_scores(("bwv9.7", "bwv86.6", "bwv84.5", "bwv88.7", "bwv66.6"))
    groups = group_works(book)
    assert groups == (("bwv66.6",), ("bwv84.5", "bwv88.7"), ("bwv86.6", "bwv9.7"))
    split = split_works(groups, 0, {"train": 0.5, "test": 0.5})
    assert (
        split["bwv9.7"] == split["bwv86.6"]
        and split["bwv84.5"] == split["bwv88.7"]
        and len(split_hash(split)) == 16
    )


def test_titles_group_too(scores):
    twin = replace(
        scores[3],
        work_id="twin",
        pitches=scores[5].pitches,
        onsets_q=scores[5].onsets_q,
        durations_q=scores[5].durations_q,
        hands=scores[5].hands,
    )
    assert any({"twin", scores[3].work_id} <= set(g) for g in group_works([*scores, twin]))
    with pytest.raises(BadInput):
        group_works([scores[0], scores[0]])


@pytest.mark.parametrize("seed", range(5))
def test_split_is_a_partition(scores, seed):
    split = split_works(group_works(scores), seed)
    assert set(split) == {s.work_id for s in scores} and set(split.values()) == {
        "train",
        "val",
        "test",
    }


def test_split_shares_of_a_large_set():
    groups = [(f"w{i}",) for i in range(70)] + [
        tuple(f"g{j}{i}" for i in range(3)) for j in range(10)
    ]
    split = split_works(groups, 0)
    assert [sum(v == s for v in split.values()) for s in ("train", "val", "test")] == [80, 8, 12]


@pytest.mark.parametrize("timing", PIANISTS)
@pytest.mark.parametrize("seed", [0, 1])
def test_performances_are_playable(scores, timing, seed):
    for score in scores:
        notes = perform(score, PIANISTS[timing], PIANISTS[timing], seed)
        order = np.lexsort((notes.onsets_s, notes.pitches))
        gap = (notes.onsets_s[order][1:] - notes.offsets_s[order][:-1])[
            np.diff(notes.pitches[order]) == 0
        ]
        assert not len(gap) or gap.min() >= MIN_GAP_S - 1e-9
        assert (
            len(notes) >= 0.99 * len(score)
            and notes.velocities.min() >= 20
            and notes.velocities.max() <= 120
        )
        assert len(roll_to_notes(notes_to_roll(notes, notes.end_s + 0.1))) == len(notes)


def test_pairs_share_onsets_and_differ_in_touch(scores):
    for score in scores:
        a, b = (perform(score, PIANISTS["neutral"], PIANISTS[p], 7) for p in ("lyrical", "crisp"))
        assert np.array_equal(a.onsets_s, b.onsets_s) and np.array_equal(a.pitches, b.pitches)
        a, b = touch_statistics(a), touch_statistics(b)
        assert (
            b["velocity_mean"] - a["velocity_mean"] > 20
            and a["pedal_share"] - b["pedal_share"] > 0.7
            and a["articulation"] > b["articulation"]
        )


def test_mechanical_pianist_is_the_written_score():
    score = make_score(
        "four",
        [(60 + i, float(i), 1.0, 1) for i in range(4)],
        title="",
        composer="",
        source="etude",
        tempo_bpm=60.0,
    )
    machine = Pianist(
        rubato=0,
        jitter_s=0,
        spread_s=0,
        final_ritard=0,
        level=64,
        swell=0,
        terrace=0,
        accent=0,
        melody=0,
        grain=0,
        articulation=0.5,
        pedal=0,
    )
    notes = perform(score, machine, machine, 0)
    assert (
        np.allclose(np.diff(notes.onsets_s), np.diff(notes.onsets_s)[0])
        and set(notes.velocities) == {64}
        and not len(notes.pedal)
    )
    assert 0.95 <= np.diff(notes.onsets_s)[0] <= 1.06


def test_fingers_are_usable(scores):
    for score in scores:
        notes = perform(score, PIANISTS["neutral"], PIANISTS["crisp"], 0)
        fingers, hands = assign_fingers(notes), split_hands(notes)
        assert ((fingers >= 5) == (hands == 1)).all() and fingers.min() >= 0 and fingers.max() <= 9
        together = [np.flatnonzero(np.abs(notes.onsets_s - t) < 0.005) for t in notes.onsets_s[::7]]
        doubled = sum(len(set(fingers[c])) < len(c) for c in together)
        assert doubled <= 0.02 * len(together)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- 1",
        "{title: a}",
        "{title: a, tempo_bpm: 60, beats_per_bar: 4, right: ['H4:4'], left: []}",
        "{title: a, tempo_bpm: x, beats_per_bar: 4, right: ['C4:4'], left: []}",
        "{title: a, tempo_bpm: 60, beats_per_bar: 4, right: ['C4:3'], left: []}",
        "{title: a, tempo_bpm: 60, beats_per_bar: 4, right: ['C4:1/0'], left: []}",
        "title: [",
        "{title: a, tempo_bpm: 60, beats_per_bar: 4, right: [], left: []}",
    ],
)
def test_broken_etudes(text):
    with pytest.raises(BadInput):
        parse_etude(text, "broken")


def test_missing_sources(tmp_path):
    with pytest.raises(BadInput):
        etudes(tmp_path)
    with pytest.raises(BadInput):
        corpus_scores(["bwv99999"])
