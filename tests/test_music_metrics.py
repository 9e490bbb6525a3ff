# SPDX-License-Identifier: Apache-2.0
"Golden values, parity with other libraries, and bad input of measure.music_metrics."

import math

import mir_eval
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from cop_repro.core import BadInput
from cop_repro.measure import music_metrics as m
from cop_repro.measure.registry import REGISTRY


def rng(seed=0):
    return np.random.default_rng(seed)


def notes(seed=0, count=60):
    r = rng(seed)
    onsets = np.sort(r.uniform(0, 15, count))
    return m.NoteArrays(
        r.integers(50, 70, count),
        onsets,
        onsets + r.uniform(0.06, 1, count),
        r.integers(10, 127, count),
    )


def moved(n, seed, spread):
    r = rng(seed)
    onsets = np.abs(n.onsets_s + r.normal(0, spread, len(n.pitches)))
    return m.NoteArrays(
        n.pitches,
        onsets,
        onsets + (n.offsets_s - n.onsets_s) * r.uniform(0.7, 1.3, len(n.pitches)),
        np.clip(n.velocities + r.integers(-20, 20, len(n.pitches)), 1, 127),
    )


def no_notes():
    none, never = np.zeros(0, int), np.zeros(0)
    return m.NoteArrays(none, never, never, none)


GT = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 0, 1], [0, 0, 0]], bool)
PRED = np.array([[1, 0, 0], [1, 0, 0], [0, 0, 0], [0, 1, 1], [0, 1, 0]], bool)


def test_frame_golden():
    assert [round(v, 4) for v in m.frame_scores(GT, PRED).values()] == [
        0.7,
        0.9,
        0.6,
        0.6667,
        0.75,
        0.75,
        0.6,
        0.75,
        0.6,
        0.75,
        0.5,
        0.6667,
    ]


@pytest.mark.parametrize("seed", range(4))
def test_frames_agree_with_sklearn(seed):
    ref, est = rng(seed).random((80, 12)) < 0.1, rng(seed + 9).random((80, 12)) < 0.1
    ours = m.frame_scores(ref, est)
    for kind in ("samples", "weighted", "micro"):
        other = precision_recall_fscore_support(ref, est, average=kind, zero_division=1)[:3]
        np.testing.assert_allclose(
            [ours[f"frame_{n}_{kind}"] for n in ("precision", "recall", "f1")], other, atol=1e-9
        )
    assert accuracy_score(ref, ref) == m.frame_scores(ref, ref)["frame_accuracy_micro"]


@pytest.mark.parametrize(
    "est", [PRED * 0.3, PRED[:, :2], PRED[0], PRED[:0], np.where(PRED, np.nan, 0)]
)
def test_bad_rolls(est):
    with pytest.raises(BadInput):
        m.frame_scores(GT, est)


@pytest.mark.parametrize("seed", range(3))
def test_notes_agree_with_mir_eval(seed):
    ref, est = notes(seed), moved(notes(seed), seed + 5, 0.04)
    scores = m.note_scores(ref, est)
    hz = mir_eval.util.midi_to_hz
    a, b = (
        (np.stack([n.onsets_s, n.offsets_s], 1), hz(n.pitches.astype(float))) for n in (ref, est)
    )
    expected = mir_eval.transcription.precision_recall_f1_overlap(*a, *b)[:3]
    np.testing.assert_allclose(
        [scores[f"note_{k}"] for k in ("precision", "recall", "f1")],
        expected,
        rtol=1e-9,
        atol=1e-12,
    )
    expected = mir_eval.transcription_velocity.precision_recall_f1_overlap(
        *a, ref.velocities, *b, est.velocities
    )[:3]
    np.testing.assert_allclose(
        [scores[f"note_velocity_{k}"] for k in ("precision", "recall", "f1")],
        expected,
        rtol=1e-9,
        atol=1e-12,
    )
    assert (
        scores["onset_f1"]
        == m.onset_scores(ref.onsets_s, ref.pitches, est.onsets_s, est.pitches)["onset_f1"]
    )
    assert abs(m.best_lag_onset_f1(ref, est, max_lag_s=0)[1] - scores["onset_f1"]) < 1e-12


def test_note_ends():
    ref, none = notes(), no_notes()
    assert set(m.note_scores(ref, ref).values()) == {1.0} == set(m.note_scores(none, none).values())
    assert set(m.note_scores(ref, none).values()) == {0.0} == set(m.note_scores(none, ref).values())
    assert m.onset_scores(ref.onsets_s, ref.pitches, [], [])["onset_f1"] == 0
    constant = m.NoteArrays(ref.pitches, ref.onsets_s, ref.offsets_s, np.full(60, 80))
    scores = m.note_scores(ref, constant)
    assert scores["note_f1"] == 1 and scores["note_velocity_f1"] < 0.5
    shuffled = m.NoteArrays(
        rng(1).permutation(ref.pitches), ref.onsets_s, ref.offsets_s, ref.velocities
    )
    assert m.note_scores(ref, shuffled)["onset_f1"] < 0.35
    one = m.NoteArrays(*[x[:1] for x in vars(ref).values()])
    assert m.note_scores(one, one)["note_velocity_f1"] == 1


def test_velocity():
    ref = notes()
    est = m.NoteArrays(
        ref.pitches, ref.onsets_s, ref.offsets_s, np.clip(ref.velocities + 10, 0, 127)
    )
    scores = m.velocity_scores(ref, est)
    assert (
        scores["velocity_matched"] == 60
        and 9 < scores["velocity_mae"] <= 10
        and scores["velocity_r"] > 0.99
    )
    apart = m.NoteArrays(ref.pitches, ref.onsets_s + 40, ref.offsets_s + 40, ref.velocities)
    assert (
        math.isnan(m.velocity_scores(ref, apart)["velocity_mae"])
        and m.velocity_scores(ref, apart)["velocity_matched"] == 0
    )
    none = no_notes()
    assert m.velocity_scores(ref, none)["velocity_matched"] == 0


@pytest.mark.parametrize(
    "change, said",
    [
        (dict(pitches=440 * np.ones(60)), "Hz"),
        (dict(onsets_s=notes().onsets_s * 1e5), "milliseconds"),
        (dict(offsets_s=notes().onsets_s), "durations"),
        (dict(velocities=np.full(60, 300)), "0-127"),
        (dict(onsets_s=notes().onsets_s - 20), "count from 0"),
        (dict(pitches=np.zeros(3)), "pitches"),
        (dict(onsets_s=np.full(60, np.nan)), "finite"),
        (dict(velocities=np.zeros(3)), "velocities"),
    ],
)
def test_bad_notes(change, said):
    with pytest.raises(BadInput, match=said):
        m.note_scores(notes(), m.NoteArrays(**{**vars(notes()), **change}))


def test_best_lag():
    ref = notes()
    for lag in (-0.37, 0, 0.05, 0.8):
        start = ref.onsets_s + 1
        base, est = (
            m.NoteArrays(ref.pitches, t, t + 0.1, ref.velocities) for t in (start, start + lag)
        )
        found, f1 = m.best_lag_onset_f1(base, est)
        assert abs(found - lag) < 1e-9 and f1 == 1
    none = no_notes()
    assert m.best_lag_onset_f1(none, none) == (0, 1) and m.best_lag_onset_f1(ref, none) == (0, 0)
    with pytest.raises(BadInput):
        m.best_lag_onset_f1(ref, ref, step_s=0)


def test_random_notes():
    pool = notes()
    drawn = m.random_notes(pool, 15, rng(3))
    assert (
        len(drawn.pitches) == 60
        and set(drawn.pitches) <= set(pool.pitches)
        and drawn.onsets_s.max() < 15
    )
    np.testing.assert_array_equal(drawn.onsets_s, m.random_notes(pool, 15, rng(3)).onsets_s)
    assert (
        m.note_scores(pool, drawn)["onset_f1"] < 0.15
        and len(m.random_notes(pool, 10, rng(), density=0).pitches) == 0
    )
    with pytest.raises(BadInput):
        m.random_notes(no_notes(), 10, rng())


def test_pedal():
    spans = [[0, 1], [2, 3]]
    assert m.pedal_frames(spans, 4, 2).tolist() == [
        True,
        True,
        False,
        False,
        True,
        True,
        False,
        False,
    ]
    assert m.pedal_event_scores(spans, [[0.05, 1.3], [2.1, 3]]) == {
        "pedal_event_precision": 0.75,
        "pedal_event_recall": 0.75,
        "pedal_event_f1": 0.75,
    }
    assert (
        m.pedal_event_scores([], spans)["pedal_event_f1"] == 0
        and m.pedal_frame_scores([0, 0], [0, 0])["pedal_frame_f1"] == 1
    )
    for wrong in ([[2, 1]], [1, 2, 3], [[np.nan, 1]]):
        with pytest.raises(BadInput):
            m.pedal_event_scores(spans, wrong)
    with pytest.raises(BadInput):
        m.pedal_frame_scores([1, 0], [1])


TICKS, PITCHES, LENGTHS = (
    [0, 24, 48, 72, 96, 120, 168],
    [60, 62, 64, 65, 67, 66, 72],
    [24, 24, 24, 24, 24, 12, 24],
)


def test_symbolic_golden():
    values = (
        m.pitch_entropy(PITCHES),
        m.pitch_entropy(PITCHES, 12),
        m.scale_consistency(PITCHES),
        m.empty_beat_rate(TICKS, LENGTHS, 24),
        m.grooving_similarity(TICKS, 96, 96, "adjacent", num_bars=3),
    )
    assert [round(v, 6) for v in values] == [2.807355, 2.521641, 0.857143, 0.111111, 0.979167]
    assert m.grooving_similarity([0, 4, 8, 12, 16, 20, 22, 24, 30], 16, 16, "adjacent") == 0.8125


def test_windows_reach_the_last_bar():
    "Every onset lies in a window, whatever window and hop; four bars: (0 + 0 + 0 + 2) / 4."
    ticks, pitches = 24 * np.arange(16), [60] * 12 + [60, 62, 64, 65]
    assert m.windowed_entropy(pitches, ticks, 96, 96) == 0.5
    assert m.windowed_entropy(pitches, ticks, 192, 192) == pytest.approx(
        (0 + m.pitch_entropy(pitches[8:], 12)) / 2
    )
    alone = [
        m.windowed_entropy([60, 61], [0, last], window, hop)
        for last, window, hop in ((95, 96, 96), (96, 96, 96), (100, 60, 60))
    ]
    assert alone == [1, 0, 0] and m.windowed_entropy([60, 60, 62], [0, 96, 97], 96, 96) == 0.5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(5))
def test_symbolic_agrees_with_muspy(seed):
    import muspy

    r = rng(seed)
    onsets, lengths, pitches = (
        np.sort(r.integers(0, 2000, 40)),
        r.integers(1, 60, 40),
        r.integers(30, 100, 40),
    )
    music = muspy.Music(
        resolution=24,
        tracks=[
            muspy.Track(
                notes=[
                    muspy.Note(int(t), int(p), int(d)) for t, p, d in zip(onsets, pitches, lengths)
                ]
            )
        ],
    )
    bars = int((onsets + lengths).max() // 96 + 1)
    ours = (
        m.pitch_entropy(pitches),
        m.pitch_entropy(pitches, 12),
        m.scale_consistency(pitches),
        m.empty_beat_rate(onsets, lengths, 24),
        m.grooving_similarity(onsets, 96, 96, "adjacent", bars),
    )
    theirs = (
        muspy.pitch_entropy(music),
        muspy.pitch_class_entropy(music),
        muspy.scale_consistency(music),
        muspy.empty_beat_rate(music),
        muspy.groove_consistency(music, 96),
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def test_symbolic_undefined_and_bad():
    assert all(
        map(
            math.isnan,
            (
                m.scale_consistency([]),
                m.pitch_entropy([]),
                m.empty_beat_rate([], [], 24),
                m.average_inter_onset_interval([1]),
                m.grooving_similarity([0], 96, 16, "all"),
                m.windowed_entropy([], [], 96, 96),
                m.control_error([0, 0], [1, 1]),
            ),
        )
    )
    for wrong in (
        lambda: m.pitch_entropy([200, 300]),
        lambda: m.pitch_entropy([128], 12),
        lambda: m.scale_consistency([500]),
        lambda: m.windowed_entropy([128], [0], 96, 96),
        lambda: m.pitch_entropy([-1]),
        lambda: m.pitch_entropy([60], 7),
        lambda: m.scale_consistency([np.nan]),
        lambda: m.empty_beat_rate([0], [], 24),
        lambda: m.grooving_similarity(TICKS, 96, 0, "all"),
        lambda: m.grooving_similarity(TICKS, 96, 16, "all", 1),
        lambda: m.windowed_entropy([60], [0], 0, 1),
        lambda: m.rhythm_density([0], 0),
        lambda: m.control_error([1], [1, 2]),
        lambda: m.empty_beat_rate([0.5], [1], 24),
    ):
        with pytest.raises(BadInput):
            wrong()


def paths(size, length, row):
    "All paths over the columns of a segment from a row, by steps (1, 1), (1, 2), (2, 1)."
    found, open_paths = [], [[(row, 0)]]
    while open_paths:
        path = open_paths.pop()
        n, c = path[-1]
        if c == length - 1:
            found.append(path)
        open_paths += [
            path + [(n + i, c + j)]
            for i, j in ((1, 1), (1, 2), (2, 1))
            if n + i < size and c + j < length
        ]
    return found


def best_family(part, row=0):
    "Score and cells of the best family of paths that do not share a row, by trying them all."
    size, length = part.shape
    if row >= size:
        return 0.0, []
    choices = [best_family(part, row + 1)]
    for path in paths(size, length, row):
        rest, cells = best_family(part, path[-1][0] + 1)
        choices.append((sum(part[c] for c in path) + rest, [path, *cells]))
    return max(choices, key=lambda c: c[0])


def oracle_fitness(part):
    "Fitness of a segment from the best family: harmonic mean of normalised score and coverage."
    size, length = part.shape
    total, family = best_family(part)
    cells, covered = sum(map(len, family)), sum(p[-1][0] - p[0][0] + 1 for p in family)
    if not cells:
        return 0.0
    quality, extent = max(0.0, (total - length) / cells), max(0.0, (covered - length) / size)
    return 2 * quality * extent / (quality + extent) if quality + extent > 0 else 0.0


@pytest.mark.parametrize("seed", range(12))
def test_fitness_is_that_of_the_best_family(seed):
    "Random matrices against brute force over all families of paths."
    r = rng(seed)
    ssm = np.where(r.random((9, 9)) < 0.7, r.random((9, 9)), -2.0)
    np.fill_diagonal(ssm, 1.0)
    for start, length in ((0, 3), (2, 4), (4, 5), (1, 2)):
        assert m.segment_fitness(ssm, start, length) == pytest.approx(
            oracle_fitness(ssm[:, start : start + length]), rel=1e-9, abs=1e-12
        )


@pytest.mark.parametrize(
    "cells",
    [
        [(2, 0), (4, 1), (5, 2)],
        [(3, 0), (4, 2)],
        [(2, 0), (3, 1), (5, 2), (6, 3)],
        [(3, 0), (4, 2), (5, 3)],
    ],
)
def test_fitness_follows_slower_and_faster_repeats(cells):
    "A repeat that only the steps (2, 1) or (1, 2) can follow counts as one path."
    length = cells[-1][1] + 1
    part = np.full((9, length), -2.0)
    part[range(length), range(length)] = 1.0
    cells = [(n + length - 2, c) for n, c in cells]
    for cell in cells:
        part[cell] = 1.0
    covered, total = cells[-1][0] - cells[0][0] + 1, len(cells)
    quality, extent = total / (length + total), covered / 9
    ssm = np.full((9, 9), -2.0)
    ssm[:, :length] = part
    assert (
        m.segment_fitness(ssm, 0, length)
        == pytest.approx(2 * quality * extent / (quality + extent), rel=1e-12)
        == oracle_fitness(part)
    )


def test_structure():
    for copies, length in ((2, 3), (3, 4), (5, 2)):
        ssm = np.kron(np.ones((copies, copies)), np.where(np.eye(length), 1.0, -2.0))
        assert abs(m.segment_fitness(ssm, 0, length) - (copies - 1) / copies) < 1e-12
        assert abs(best_family(ssm[:, :length])[0] - copies * length) < 1e-12
    random = np.where(rng().random((16, 16)) < 0.4, rng(1).random((16, 16)), -2.0)
    random = np.maximum(random, random.T)
    np.fill_diagonal(random, 1)
    assert 0 <= m.structure_indicator(random, 2, 5) <= 1
    assert (
        m.structure_indicator(np.ones((1, 1)), 1, 1) == 0 == m.structure_indicator(random, 17, 20)
    )
    for wrong in ((np.ones((2, 3)), 1, 1), (np.ones((3, 3)), 2, 1)):
        with pytest.raises(BadInput):
            m.structure_indicator(*wrong)
    with pytest.raises(BadInput):
        m.self_similarity(no_notes())


def test_retrieval():
    similarity = rng().normal(size=(30, 30))
    ranks = (similarity > np.diag(similarity)[:, None]).sum(1) + 1
    scores = m.retrieval_scores(similarity)
    assert (
        scores["retrieval_average_rank"] == ranks.mean()
        and scores["retrieval_p5"] == (ranks <= 5).mean()
        and scores["retrieval_p10_chance"] == 1 / 3
    )
    assert m.retrieval_scores(np.eye(30))["retrieval_p1"] == 1
    flat = m.retrieval_scores(np.zeros((30, 30)))
    assert flat["retrieval_average_rank"] == 15.5 and abs(flat["retrieval_p5"] - 5 / 30) < 1e-12
    assert m.retrieval_scores([[0, 1, 2.0]], [2], (1,))["retrieval_p1"] == 1
    for kwargs in (
        dict(similarity=np.ones((2, 3))),
        dict(similarity=np.ones((3, 3)), targets=[0]),
        dict(similarity=np.ones((3, 3)), ks=(5,)),
        dict(similarity=np.full((3, 3), np.nan)),
        dict(similarity=np.ones((2, 3)), targets=[0, 9], ks=(1,)),
    ):
        with pytest.raises(BadInput):
            m.retrieval_scores(**kwargs)


def test_registry_covers_results():
    ref = notes()
    produced = (
        m.frame_scores(GT, PRED)
        | m.note_scores(ref, ref)
        | m.velocity_scores(ref, ref)
        | m.pedal_event_scores([], [])
        | m.pedal_frame_scores([1], [1])
    )
    assert set(produced) <= set(REGISTRY.metrics)
