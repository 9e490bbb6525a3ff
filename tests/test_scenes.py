# SPDX-License-Identifier: Apache-2.0
"Scenes: what a video owes to its music, and what it must not know."

import json
from dataclasses import replace

import numpy as np
import pytest

from cop_repro.core import AssetMismatch, BadInput, numpy_rng
from cop_repro.data import scenes as module
from cop_repro.data.scenes import (
    NUM_BARS,
    SHAPES,
    SPLITS,
    WANTED,
    SceneConfig,
    SceneList,
    SceneWork,
    cut_window,
    draw_scene,
    frame_speeds,
    kind_of,
    load_scenes,
    load_windows,
    make_window,
    mode_score,
    parse_work,
    plan_scene,
    prepare_scenes,
    read_scene_list,
    write_scene_list,
)

COUNTS = tuple([10] * 17)


def random_window(seed: int, num_bars: int = NUM_BARS, kind: str = "chorale", **about):
    "Bars of every density, chords on some beats."
    rng, rows = numpy_rng(seed, "window"), []
    for bar in range(num_bars):
        for tick in rng.choice(16, rng.integers(1, 15), replace=False):
            for voice in range(rng.integers(1, 5)):
                rows.append((16 * bar + int(tick), int(rng.integers(50, 80)), 1, voice))
    return make_window(rows, num_bars, 120.0, f"bach/{seed}", kind, **about)


@pytest.fixture
def scenes() -> SceneList:
    works = {
        "bach/one": SceneWork("train", (0,), 100.0, 2),
        "bach/two": SceneWork("test", (0, 4), 120.0, -3),
        "bach/three": SceneWork("judge", (0, 8), 110.0, 5),
    }
    return SceneList(0, dict(sorted(works.items())), COUNTS)


def test_the_list_names_disjoint_works_of_all_kinds(root):
    scenes = read_scene_list(root / "data" / "scenes.json")
    assert set(SPLITS) == {work.split for work in scenes.works.values()}
    for number, split in enumerate(SPLITS):
        kinds = [kind_of(name) for name in scenes.of(split)]
        assert {kind: kinds.count(kind) for kind in WANTED} == {
            kind: counts[number] for kind, counts in WANTED.items()
        }
    masses = {}  # movements of one mass are in one split
    for name, work in scenes.works.items():
        if kind_of(name) == "mass":
            number = name.rsplit("_", 1)[-1] if "_" in name else name
            masses.setdefault(number.split(".")[0], set()).add(work.split)
    numbered = {number: splits for number, splits in masses.items() if number.isdigit()}
    assert numbered and all(len(splits) == 1 for splits in numbered.values())
    assert all(len(work.starts) == 2 for work in scenes.works.values() if work.split == "test")


def test_an_edited_list_is_refused(scenes, tmp_path):
    stored = write_scene_list(scenes)
    path = tmp_path / "scenes.json"
    path.write_text(json.dumps(stored))
    assert read_scene_list(path).works == scenes.works
    stored["works"]["bach/two"]["split"] = "train"
    path.write_text(json.dumps(stored))
    with pytest.raises(AssetMismatch, match="was edited"):
        read_scene_list(path)
    path.write_text(json.dumps({"seed": 0}))
    with pytest.raises(BadInput, match="no list of scenes"):
        read_scene_list(path)


@pytest.mark.parametrize("coupling", [0.0, 0.85, 1.0])
def test_key_and_melody_are_not_drawn(scenes, coupling):
    cfg, window = SceneConfig(coupling=coupling), random_window(0)
    plan = plan_scene(window, scenes, cfg)
    for semitones in range(-6, 6):
        assert plan_scene(window.transposed(semitones), scenes, cfg) == plan
    order = numpy_rng(0, "melody").permutation(len(window))  # all durations are equal
    assert plan_scene(replace(window, pitches=window.pitches[order]), scenes, cfg) == plan


def test_without_coupling_the_music_has_no_part(scenes):
    free = SceneConfig(coupling=0.0)
    one, other = random_window(0), random_window(1, kind="tune")
    other = replace(other, work_id=one.work_id)
    assert plan_scene(one, scenes, free) == plan_scene(other, scenes, free)
    assert plan_scene(one, scenes) != plan_scene(other, scenes)


def test_full_coupling_draws_density_strength_and_kind(scenes):
    for seed, kind in enumerate(SHAPES):
        window = random_window(seed, kind=kind)
        plan = plan_scene(window, scenes, SceneConfig(coupling=1.0), seed)
        order = np.argsort(window.density(), kind="stable")
        assert (np.diff(np.array(plan.speeds)[order]) >= 0).all()
        strong = window.strength()[:, ::4].ravel() >= 3
        assert [accent > 0 for accent in plan.accents] == strong.tolist()
        assert plan.shape == SHAPES[kind]


def test_speeds_have_one_distribution_for_every_coupling(scenes):
    windows = [random_window(seed) for seed in range(60)]
    medians = [
        np.median([plan_scene(w, scenes, SceneConfig(coupling=c)).speeds for w in windows])
        for c in (0.0, 0.85)
    ]
    assert abs(np.log(medians[0] / medians[1])) < 0.25
    accents = [
        np.mean([np.array(plan_scene(w, scenes, SceneConfig(coupling=0.0)).accents) > 0])
        for w in windows
    ]
    assert abs(np.mean(accents) - 0.3) < 0.04


def test_mode_is_invariant_to_the_root():
    major = make_window([(i, p, 4, 0) for i, p in enumerate((60, 64, 67, 72, 65, 67, 60))], 1)
    minor = make_window([(i, p, 4, 0) for i, p in enumerate((60, 63, 67, 72, 65, 68, 60))], 1)
    assert mode_score(major) > 0.05 > -0.05 > mode_score(minor)
    assert np.isclose(mode_score(major), mode_score(major.transposed(5)))
    assert mode_score(make_window([], 1)) == 0


def test_a_stop_stands_still_and_keeps_the_bars_mean_speed(scenes):
    plan = replace(
        plan_scene(random_window(3), scenes), accents=(0, 1, 0, 0) + (0,) * 28, speeds=(1.0,) * 8
    )
    speeds = frame_speeds(plan)
    assert (speeds[13:16] == 0).all() and (speeds[:12] > 1).all()  # the beat is at .5 s
    assert np.isclose(speeds[:50].mean(), 1)
    frames = draw_scene(plan, SceneConfig(noise=0.0))
    assert np.array_equal(frames[13], frames[14]) and not np.array_equal(frames[20], frames[21])


def test_a_cut_changes_the_picture(scenes):
    plan = replace(plan_scene(random_window(3), scenes), accents=(0, 2) + (0,) * 30)
    frames = draw_scene(plan, SceneConfig(noise=0.0)).astype(int)
    change = np.abs(np.diff(frames, axis=0)).mean((1, 2, 3))
    assert change.argmax() == 11  # between frames 11 and 12: the beat is at .5 s
    assert change[11] > 2 * np.median(change)


def test_scenes_come_back_from_disk(scenes, tmp_path, monkeypatch):
    def parsed(work_id: str):
        return replace(random_window(len(work_id), 16), work_id=work_id), ""

    monkeypatch.setattr(module, "parse_work", parsed)
    prepare_scenes(
        tmp_path, scenes, ("test", "judge"), lambda frames: {"mean": frames.mean((1, 2))}
    )
    windows, drawn = load_windows(tmp_path, "test", scenes), load_scenes(tmp_path, "test", scenes)
    assert [(w.work_id, w.start_bar, w.tempo_bpm) for w in windows] == [
        ("bach/two", 0, 120.0),
        ("bach/two", 4, 120.0),
    ]
    expected = scenes.works["bach/two"].window(parsed("bach/two")[0], 4)
    assert np.array_equal(windows[1].pitches, expected.pitches)
    assert len(drawn) == 1 and drawn[0].plan == plan_scene(drawn[0].window, scenes)
    assert np.allclose(drawn[0].features["mean"], draw_scene(drawn[0].plan).mean((1, 2)))
    assert len(load_scenes(tmp_path, "judge", scenes)) == 2
    other = replace(scenes, works={**scenes.works, "bach/new": scenes.works["bach/one"]})
    with pytest.raises(AssetMismatch, match="prepare the scenes again"):
        load_scenes(tmp_path, "test", other)


def test_a_real_work_is_parsed_on_the_grid():
    work, _ = parse_work("bach/bwv66.6.mxl")
    assert set(work.voices) == {0, 1, 2, 3} and set(work.roles) == {0, 1, 2}
    part = cut_window(work, 2, 4, 90.0)
    assert part.density().tolist() == work.density()[2:6].tolist()
    assert part.duration_s == 4 * 4 * 60 / 90 and part.start_bar == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: make_window([(0, 60, 1, 0)], 1, 300.0), "40 to 240"),
        (lambda s: make_window([(16, 60, 1, 0)], 1), "another grid"),
        (lambda s: make_window([(0, 10, 1, 0)], 1), "MIDI 21 to 108"),
        (lambda s: make_window([], 0), "at least 1"),
        (lambda s: cut_window(random_window(0), 4, 8), "bars 4 to 12"),
        (lambda s: plan_scene(random_window(0), s, SceneConfig(coupling=1.5)), "coupling of 1.5"),
        (lambda s: s.of("exam"), "no split 'exam'"),
        (lambda s: kind_of("joplin/maple_leaf_rag"), "none of the folders"),
        (lambda s: parse_work("bach/none.mxl"), "no readable work"),
    ],
)
def test_bad_input_is_named(scenes, call, message):
    with pytest.raises(BadInput, match=message):
        call(scenes)
