# SPDX-License-Identifier: Apache-2.0
"CMT and V-MusProd: requests of a video, control errors, training rows, chords and conditions."

from dataclasses import replace

import numpy as np
import pytest
import torch

from cop_repro.core import AssetMismatch, BadInput, numpy_rng, write_json
from cop_repro.data.scenes import (
    Scene,
    SceneConfig,
    SceneList,
    SceneWork,
    draw_scene,
    load_scenes,
    make_window,
    plan_scene,
    prepare_scenes,
    read_scene_list,
    write_scene_list,
)
from cop_repro.measure.visual_rhythm import VideoFeatures, bar_speed, scene_features
from cop_repro.model.compound import (
    Composing,
    CompoundConfig,
    CompoundTransformer,
    Controls,
    collate,
    encode_music,
    make_music,
    make_prefix,
    save_compound,
)
from cop_repro.systems import cmt as cmt_module
from cop_repro.systems.catalogue import SYSTEMS
from cop_repro.systems.cmt import (
    CMT,
    CMTSettings,
    Scale,
    SceneSet,
    Work,
    bars_for,
    cmt_makers,
    cmt_step,
    compose_piece,
    control_distance,
    control_errors,
    control_makers,
    densities,
    distance_to_real,
    exchanged,
    fit_cmt,
    held_out_loss,
    join_music,
    load_cmt,
    moved,
    music_notes,
    music_of,
    rank_correlation,
    score_row,
    symbolic_scores,
    training_rows,
    video_controls,
    window_of,
)
from cop_repro.systems.composing import COMPOSERS, check_composer
from cop_repro.systems.contract import SystemFiles
from cop_repro.systems.vmusprod import (
    ACCOMPANIMENT_CONDITION,
    CHORDS,
    MEASURED,
    MELODY,
    MELODY_CONDITION,
    MOTION,
    NO_CHORD,
    REST,
    Lesson,
    OneDecoder,
    View,
    VMusProd,
    VMusProdConfig,
    VMusProdSettings,
    accompaniment_condition,
    at_tokens,
    chord_tone_share,
    chords_of,
    compose_chords,
    compose_over,
    compose_part,
    compose_together,
    fit_vmusprod,
    harmony_scores,
    lesson_of,
    lessons_of,
    load_vmusprod,
    melody_change,
    melody_condition,
    motion_of,
    one_decoder_loss,
    save_vmusprod,
    scenery_of,
    start_vmusprod,
    vmusprod_loss,
    vmusprod_makers,
    vmusprod_step,
)
from cop_repro.training.loop import TrainConfig
from cop_repro.training.stages import Place

TINY = CompoundConfig(16, 1, 2, 32, (4, 4, 4, 8, 4, 4, 4), 4, 4, dropout=0.0)
SMALL = VMusProdConfig(width=16, depth=1, heads=2, hidden=32, dropout=0.0)
LIST = SceneList(0, {}, (0, *[10] * 8, *[0] * 8))


def invented(i, num_bars=8):
    "Bars of one to eight even onsets in three voices."
    draws = numpy_rng(0, "test", i)
    rows = []
    for bar in range(num_bars):
        for tick in draws.choice(8, draws.integers(1, 9), replace=False):
            chord = draws.choice([48, 52, 55, 60, 64, 67], draws.integers(1, 4), replace=False)
            rows += [(16 * bar + 2 * tick, p, 2, v) for v, p in enumerate(sorted(chord)[::-1])]
    return make_window(rows, num_bars, 120.0, f"bach/{i}")


def scene(i, coupling=1.0):
    window = invented(i)
    plan = plan_scene(window, LIST, SceneConfig(coupling=coupling))
    return Scene(window, plan, scene_features(draw_scene(plan)))


@pytest.fixture(scope="module")
def scenes():
    return [scene(i) for i in range(4)]


@pytest.fixture(scope="module")
def scale(scenes):
    return Scale.fit(scenes[:3])


def untrained(seed=0):
    torch.manual_seed(seed)
    return CompoundTransformer(TINY).eval()


def golden():
    ticks, pitches = [0, 0, 4, 8, 8, 8, 16, 20, 24, 28], [60, 64] * 5
    return make_music(ticks, pitches, [4] * 10, [1] * 10, 2)


def test_golden_distance():
    "Requests [3, 4], strength 3 at tick 0 where the music has 2: distance 1/32, score 32."
    controls = Controls(np.array([3, 4]), np.zeros(32, np.int64))
    controls.strength[0] = 3
    assert densities(golden()).tolist() == [3, 4]
    assert control_distance(controls, golden()) == 0.03125
    errors = control_errors(controls, golden())
    assert errors == {"density_error": 0.0, "strength_error": pytest.approx(1 / 3)}
    doubled = Controls(np.array([6, 8]), np.zeros(32, np.int64))
    assert control_errors(doubled, golden())["density_error"] == pytest.approx(0.5)
    assert np.isnan(control_errors(doubled, golden())["strength_error"])


def test_percentiles_are_those_of_the_training_videos(scenes, scale):
    "A faster test video requests more; its own ranks play no part."
    features = VideoFeatures(**scenes[3].features)
    fast = replace(features, flow=features.flow * 3, directogram=features.directogram * 3)
    at_first, faster = (video_controls(f, 120.0, scale).density for f in (features, fast))
    assert faster.mean() > at_first.mean() + 0.5
    assert (faster >= at_first).all()
    more = Scale.fit([*scenes[:3], replace(scenes[3], features=vars(fast))])
    assert not np.array_equal(more.speed.knots, scale.speed.knots)


def test_requests_follow_rank_and_music(scenes, scale):
    features = VideoFeatures(**scenes[0].features)
    controls = video_controls(features, 120.0, scale)
    assert len(controls.density) == 8
    assert rank_correlation(bar_speed(features, 120.0, 8), controls.density * 1.0) > 0.9
    assert set(controls.density) <= set(scale.densities)
    assert set(controls.strength) <= {0, *scale.strengths}
    true = np.concatenate([s.window.density() for s in scenes[:3]])
    assert abs(np.mean(scale.densities) - true.mean()) < 0.5
    again = Scale.from_description(scale.described())
    assert np.array_equal(video_controls(features, 120.0, again).strength, controls.strength)


def still(frames):
    return VideoFeatures(
        np.zeros(frames, np.float32),
        np.zeros((frames, 8), np.float32),
        np.zeros((frames // 5, 12), np.float32),
        np.zeros((frames // 5, 22), np.float32),
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda scale: bars_for(3.9, 100.0), "two bars"),
        (lambda scale: bars_for(0.04, 240.0), "two bars"),
        (lambda scale: bars_for(60.0, 39.9), "40 to 240"),
        (lambda scale: bars_for(60.0, 240.1), "40 to 240"),
        (lambda scale: video_controls(still(250), 120.0, scale), "nothing moves"),
        (lambda scale: video_controls(still(40), 120.0, scale), "two bars"),
        (lambda scale: window_of(golden(), 30.0), "tempo"),
        (lambda scale: control_errors(Controls.none(3), golden()), "2 bars of music for 3"),
        (lambda scale: training_rows([Work(golden(), 1)]), "no window"),
    ],
)
def test_what_cannot_be_composed_for_is_one_line(scale, wrong, message):
    with pytest.raises(BadInput, match=message) as error:
        wrong(scale)
    assert "\n" not in str(error.value)


def test_bars_of_a_video():
    assert [bars_for(s, 120.0) for s in (4.0, 4.02, 5.0, 6.0, 3600.0)] == [2, 2, 3, 3, 1800]


def test_long_pieces_are_made_of_windows():
    controls = Controls(np.tile([1, 8, 3], 7), np.zeros(21 * 16, np.int64))
    how = Composing(1.0, (1, 2))
    long = compose_piece(untrained(), controls, how, seed=5)
    assert long.num_bars == 21 and long.ticks.max() < 21 * 16
    assert compose_piece(untrained(), controls.bars(0, 8), how, 5) == long.bars(0, 8)
    other_end = Controls(np.append(controls.density[:-1], 16), controls.strength)
    same = compose_piece(untrained(), other_end, how, 5)
    assert same.bars(0, 16) == long.bars(0, 16), "what is written does not depend on what follows"
    assert compose_piece(untrained(), controls, how, 6) != long


def test_each_scene_is_given_another_one():
    for count in (2, 7, 24):
        partners = exchanged(count)
        assert sorted(partners) == list(range(count))
        assert all(i != other for i, other in enumerate(partners))
    assert exchanged(24) == exchanged(24) != exchanged(24, seed=1)


def test_an_untrained_model_does_not_follow(scenes, scale):
    test = SceneSet.of(scenes, scale)
    system = CMT(untrained(), scale)
    make = cmt_makers(system, test, controls=(1.0,))["cmt_1"]
    many = [Controls(np.full(8, 16), np.zeros(128, np.int64)), test.bars(0)]
    wide = compose_piece(system.model, many[0], Composing(1.0), 0)
    assert control_errors(many[0], wide)["density_error"] > 0.5
    assert make(0) == make(0)


def test_rows_without_a_model(scenes, scale):
    test = SceneSet.of(scenes, scale)
    train = [music_of(invented(i)) for i in range(10, 30)]
    made = control_makers(test, train)
    best = made["match"](1)
    assert control_distance(test.bars(1), best) == min(
        control_distance(test.bars(1), m) for m in train
    )
    real = [made["real"](i) for i in range(4)]
    scores = score_row(real, test)
    assert scores["onset_f1"] == 1
    one = symbolic_scores(golden(), 120.0)
    assert not any(scores[f"{name}_distance"] for name in distance_to_real([one], [one]))
    assert scores["speed_correlation"] > 0.8, "coupled scenes: speed is density"
    shuffled = score_row(real[1:] + real[:1], test)
    assert shuffled["density_error"] > scores["density_error"]
    assert shuffled["onset_f1"] < 0.5


def test_windows_of_scores(scenes):
    music = music_of(scenes[0].window)
    assert set(music.voices) <= {1, 2, 3}
    assert densities(music).tolist() == scenes[0].window.density().tolist()
    back = window_of(music, 120.0)
    assert music_notes(music, 120.0).onsets_s.tolist() == back.notes().onsets_s.tolist()
    assert moved(music, 60) == music, "a key that the piano lacks"
    assert (moved(music, 2).pitches == music.pitches + 2).all()
    two = join_music([(0, music), (8, music)], 16)
    assert two.bars(8, 8) == music == two.bars(0, 8)


def test_kinds_count_alike():
    works = [Work(music_of(invented(i, 20)), 1) for i in range(3)]
    works.append(Work(music_of(invented(9, 9)), 2))
    rows = training_rows(works)
    kinds = [works[i].genre for i, _ in rows]
    assert kinds.count(1) == kinds.count(2) == 39
    assert all(bar + 8 <= works[i].music.num_bars for i, bar in rows)


def test_training_lowers_the_loss_and_repeats():
    works = [Work(music_of(invented(i)), 1) for i in range(6)]
    windows = works[:2]

    def trained():
        model = untrained()
        step_fn = cmt_step(model, works, CMTSettings(TINY), TrainConfig(12, 4, 1e-2))
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        losses = []
        for step in range(12):
            optimizer.zero_grad()
            loss, _ = step_fn(step, 0, 1)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return model, losses

    (model, losses), (_, again) = trained(), trained()
    assert losses == again
    assert held_out_loss(model, windows) < held_out_loss(untrained(), windows) - 0.2
    halves = held_out_loss(model, windows, batch_size=1)
    assert halves == pytest.approx(held_out_loss(model, windows), abs=1e-5)


def test_files_of_cmt(tmp_path, scale):
    path = tmp_path / "cmt.safetensors"
    save_compound(path, untrained(), {"kind": "cmt", "scenes": "a", "scale": scale.described()})
    assert load_cmt(path, "a").scale.densities == scale.densities
    with pytest.raises(AssetMismatch, match="list of scenes a"):
        load_cmt(path, "b")
    save_compound(path, untrained(), {"kind": "lesson"})
    with pytest.raises(AssetMismatch, match="without a scale"):
        load_cmt(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "Four chorales as scenes, and where a stage would train."
    folder = tmp_path_factory.mktemp("scenes")
    names = {"bach/bwv156.6.mxl": "val", "bach/bwv416.mxl": "train", "bach/bwv394.mxl": "train"}
    names["bach/bwv108.6.mxl"] = "train"
    works = {n: SceneWork(s, (0,), 112.0, 0) for n, s in sorted(names.items())}
    listed = SceneList(0, works, LIST.density_counts)
    write_json(folder / "list.json", write_scene_list(listed))
    prepare_scenes(folder, listed, ("train", "val"), scene_features)
    stores = {"scenes": folder, "scene_list": folder / "list.json"}
    return Place(stores, folder / "scratch", folder / "made.safetensors"), listed.split_hash


CFG = TrainConfig(2, 2, 1e-2, report_every=1)
FILES = SystemFiles("split")


def test_cmt_is_fitted_on_training_works(place):
    place, scenes = place
    trained = fit_cmt(place, CMTSettings(TINY), CFG, FILES)
    assert trained.result.step == 2 and trained.parameters > 0
    assert trained.measured["unigram_loss"] > trained.measured["unigram_loss_given_type"] > 0
    system = load_cmt(place.made, scenes)
    drawn = load_scenes(
        place.stores["scenes"], "train", read_scene_list(place.stores["scene_list"])
    )
    assert system.scale.described() == Scale.fit(drawn).described()
    with pytest.raises(AssetMismatch, match="list of scenes"):
        load_cmt(place.made, "another")
    again = fit_cmt(replace(place, scratch=place.scratch / "b"), CMTSettings(TINY), CFG, FILES)
    assert again.result.losses.tolist() == trained.result.losses.tolist()


def test_vmusprod_is_fitted_on_training_scenes(place):
    place, scenes = replace(place[0], scratch=place[0].scratch / "v"), place[1]
    trained = fit_vmusprod(place, VMusProdSettings(SMALL), CFG, FILES)
    assert trained.measured["lessons"] == trained.measured["scenes"] == 3
    assert set(trained.measured) - {"lessons", "scenes"} == {
        "held_out_chords",
        "held_out_melody",
        "held_out_accompaniment",
    }
    assert load_vmusprod(place.made, scenes)[0].config == SMALL


def test_training_goes_on_from_a_finished_model(place):
    place, scenes = place
    fit_cmt(place, CMTSettings(TINY), CFG, FILES)
    files = replace(FILES, models=(("start", place.made),))
    there = replace(place, scratch=place.scratch / "c", made=place.scratch / "more.safetensors")
    slow = replace(CFG, steps=1, learning_rate=1e-12)
    again = fit_cmt(there, CMTSettings(TINY), slow, files)
    first, more = load_cmt(place.made, scenes).model, load_cmt(there.made, scenes).model
    for a, b in zip(first.parameters(), more.parameters()):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert again.result.step == 1
    with pytest.raises(AssetMismatch, match="start: null"):
        fit_cmt(there, CMTSettings(replace(TINY, depth=2)), CFG, files)
    with pytest.raises(AssetMismatch, match="start: null"):
        start = place.scratch / "v.safetensors"
        save_vmusprod(start, VMusProd(SMALL), {"scenes": scenes, "split_hash": scenes})
        start_vmusprod(replace(SMALL, depth=2), 0, start, scenes)


def test_composers_have_a_registry_of_their_own():
    for name, fit in (("cmt", fit_cmt), ("vmusprod", fit_vmusprod)):
        assert COMPOSERS[name].fit is fit and name not in SYSTEMS
    with pytest.raises(BadInput, match="systems are cmt, vmusprod"):
        check_composer("cop")


def beat(*pitches, bass=None):
    pitches = [*pitches, *([] if bass is None else [bass])]
    n = len(pitches)
    return CHORDS[chords_of(make_music([0] * n, pitches, [4] * n, [1] * n, 1))[0]]


def test_golden_chords():
    assert beat(60, 64, 67) == "C:maj"
    assert beat(69, 72, 76) == "A:min"
    assert beat(60, 64, 67, 69, bass=57) == "A:min"
    assert chords_of(make_music([4], [60], [4], [1], 1))[0] == NO_CHORD
    assert CHORDS[NO_CHORD] == "N" and len(set(CHORDS)) == 85
    for up in range(12):
        assert beat(60 + up, 63 + up, 66 + up).split(":")[1] == "dim"
        root = CHORDS[up].split(":")[0]
        assert beat(60 + up, 64 + up, 67 + up, 70 + up) == f"{root}:7"


def lesson(i):
    music = music_of(invented(i))
    rng = np.random.default_rng(i)
    return Lesson(music, rng.standard_normal((32, MEASURED)), rng.standard_normal((32, 34)))


def vmusprod(seed=0, **cfg):
    torch.manual_seed(seed)
    return VMusProd(replace(SMALL, **cfg)).eval()


def test_no_decoder_is_unconditional():
    "Each decoder's predictions change with each of its conditions."
    model = vmusprod()
    music = lesson(0).music
    melody, rest = music.select(MELODY), music.select(REST)
    chords, motion = chords_of(music), np.zeros((32, MOTION))
    other = np.where(chords == NO_CHORD, 0, (chords + 1) % 84)

    def logits(decoder, part, voices, condition):
        rows = encode_music(part)
        batch = collate([rows], [make_prefix(0, voices)], [at_tokens(condition, rows)])
        with torch.no_grad():
            return decoder(batch.prefix, batch.rows, batch.ticks, batch.progress, batch.condition)

    def tune(c, m):
        return logits(model.melody, melody, MELODY, melody_condition(c, m))

    def below(c, m, t):
        return logits(model.accompaniment, rest, REST, accompaniment_condition(c, m, t))

    assert not torch.allclose(tune(chords, motion), tune(other, motion), atol=1e-3)
    assert not torch.allclose(tune(chords, motion), tune(chords, motion + 1), atol=1e-3)
    base = below(chords, motion, melody)
    for changed in (
        below(other, motion, melody),
        below(chords, motion + 1, melody),
        below(chords, motion, moved(melody, 1)),
    ):
        assert not torch.allclose(base, changed, atol=1e-3)
    true, scenery = torch.from_numpy(chords)[None], torch.zeros(1, 32, 34)
    with torch.no_grad():
        a, b = model.chords(true, scenery), model.chords(true, scenery + 1)
    assert not torch.allclose(a, b, atol=1e-3)


def test_chords_are_predicted_from_the_past():
    model = vmusprod()
    chords, scenery = torch.randint(0, 85, (1, 20)), torch.randn(1, 20, 34)
    later = chords.clone()
    later[0, 12:] = 3
    with torch.no_grad():
        a, b = model.chords(chords, scenery), model.chords(later, scenery)
    assert torch.equal(a[:, :13], b[:, :13]) and not torch.allclose(a[:, 13:], b[:, 13:])


def test_conditions_stand_at_their_beats():
    music = make_music([0, 20], [60, 62], [4, 4], [1, 1], 2)
    rows = encode_music(music)
    beats = np.arange(-1.0, 8)[:, None]  # the first row lies before the first beat
    assert at_tokens(beats, rows)[:, 0].tolist() == [-1, 0, 0, 0, 4, 5, 5, 7]
    second = encode_music(music.bars(1, 1))
    assert at_tokens(beats, second, 1)[:, 0].tolist() == [3, 4, 5, 5, 7]
    motion = np.zeros((8, MOTION))
    condition = melody_condition(chords_of(music), motion)
    assert condition.shape == (9, MELODY_CONDITION)
    assert condition[5, 25:50].tolist() == condition[6, :25].tolist(), "the next beat's chord"
    assert not condition[0, :25].any() and condition[0, 25:50].any(), "before the first beat"
    wide = accompaniment_condition(chords_of(music), motion, music)
    assert wide.shape == (9, ACCOMPANIMENT_CONDITION)


def test_the_next_bar_is_read_before_it_begins():
    "Classes of speed: of the bar, and of the next one; before the first bar, the first one."
    model, motion = vmusprod(), np.zeros((12, MEASURED))
    motion[4:8, 0], motion[8:, 0] = 1.0, -2.0
    classes = model.seen(motion, np.zeros((12, 34)))[0][:, :17].argmax(1)
    assert classes[8] < classes[0] < classes[4], "faster bars have higher classes"
    read = melody_condition(np.zeros(12, np.int64), model.seen(motion, np.zeros((12, 34)))[0])
    after = read[:, 50 + MOTION :].argmax(1)
    assert after.tolist() == [classes[0], *[classes[4]] * 4, *[classes[8]] * 8]
    assert not read[0, 50 : 50 + MOTION].any()


def test_ranks_of_speeds_are_those_of_the_training_videos():
    model, rng = vmusprod(), np.random.default_rng(0)
    motions = [rng.standard_normal((32, MEASURED)) for _ in range(8)]
    model.fit_motion(motions)
    seen = [model.seen(motion, np.zeros((32, 34)))[0] for motion in motions]
    counts = np.concatenate(seen)[::4, :17].sum(0)
    assert counts.sum() == 64 and counts.max() - counts.min() <= 2, "classes equally often"
    rest = np.concatenate(seen)[:, 17:]
    assert np.allclose(rest.mean(0), 0, atol=1e-5) and np.allclose(rest.std(0), 1, atol=1e-4)


def test_the_first_bar_reads_the_condition():
    "The number of onsets of the first bar is decided before any token exists."
    model = vmusprod()
    motion = np.zeros((32, MEASURED))
    first = []
    for speed in (-3.0, 1.5):
        motion[:, 0] = speed
        given = melody_condition(np.zeros(32, np.int64), model.seen(motion, np.zeros((32, 34)))[0])
        prefix = make_prefix(0, MELODY)[None]
        with torch.no_grad():
            first.append(model.melody.start(prefix, torch.from_numpy(given[:1]).float())[0])
    assert not torch.allclose(*first, atol=1e-3)


def test_windows_begin_anywhere_and_may_lack_their_motion():
    lessons, model = [lesson(i) for i in range(2)], vmusprod()
    whole = vmusprod_loss(model, lessons)[1]
    assert vmusprod_loss(model, lessons, [View(), View()])[1] == whole
    cut = vmusprod_loss(model, lessons, [View(3), View(5)])[1]
    assert cut["chords"] == whole["chords"] and cut["melody"] != whole["melody"]
    still = [replace(l, motion=l.motion + 9) for l in lessons]
    blind = [View(motion=False)] * 2
    assert vmusprod_loss(model, lessons, blind)[1] == vmusprod_loss(model, still, blind)[1]
    heavy = vmusprod_loss(model, lessons, bar_weight=12.0)[1]
    assert heavy["melody"] > whole["melody"] and heavy["chords"] == whole["chords"]


def test_ablations_hide_what_they_say():
    motion, scenery = np.ones((4, MEASURED)), np.ones((4, 34))
    seen = {
        name: vmusprod(**{name: False}).seen(motion, scenery)
        for name in ("motion", "colour", "semantics")
    }
    assert not seen["motion"][0].any() and seen["motion"][1].all()
    assert seen["colour"][0][:, :17].sum(1).tolist() == [1] * 4
    assert not seen["colour"][1][:, :12].any() and seen["colour"][1][:, 12:].all()
    assert not seen["semantics"][1][:, 12:].any() and seen["semantics"][1][:, :12].all()


def test_parts_in_their_order():
    model, music = vmusprod(), lesson(1).music
    chords, motion = chords_of(music), np.zeros((32, MOTION))
    melody = compose_part(model.melody, melody_condition(chords, motion), MELODY, 4)
    piece = compose_over(model, chords, motion, 4)
    assert piece.select(MELODY) == melody and set(piece.voices) <= {1, 2, 3}
    assert piece.num_bars == 8
    made = compose_chords(model, np.zeros((40, 34)), 1)
    assert made.shape == (40,) and 0 <= made.min() and made.max() < 85
    assert np.array_equal(made, compose_chords(model, np.zeros((40, 34)), 1))
    assert melody_change(melody, melody) == 0
    other = compose_part(model.melody, melody_condition(chords, motion), MELODY, 5)
    assert melody_change(melody, other) > 0.5


def test_chord_tones():
    tune = make_music([0, 4, 8, 12], [60, 64, 67, 62], [4] * 4, [1] * 4, 1)
    assert chord_tone_share(tune, np.zeros(4, np.int64)) == 0.75
    assert np.isnan(chord_tone_share(tune.select([2]), np.zeros(4, np.int64)))


def test_training_vmusprod():
    lessons, model = [lesson(i) for i in range(4)], vmusprod()
    before = vmusprod_loss(model, lessons)[1]
    step_fn = vmusprod_step(model, lessons, VMusProdSettings(SMALL), TrainConfig(15, 4, 1e-2))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(15):
        optimizer.zero_grad()
        step_fn(step, 0, 1)[0].backward()
        optimizer.step()
    after = vmusprod_loss(model.eval(), lessons)[1]
    assert all(after[name] < before[name] for name in before)


def test_scenes_become_lessons(scenes):
    made = lesson_of(scenes[0])
    assert made.motion.shape == (32, MEASURED) and made.scenery.shape == (32, 34)
    features = VideoFeatures(**scenes[0].features)
    assert np.array_equal(motion_of(features, 120.0, 8), made.motion)
    assert np.array_equal(scenery_of(features, 120.0, 8), made.scenery)
    window = scenes[0].window
    low = replace(scenes[0], window=replace(window, voices=window.voices + 1))
    with pytest.raises(BadInput, match="no melody voice"):
        lesson_of(low)


def test_windows_without_a_melody_are_left_out(scenes):
    silent = scenes[0].window
    lower = silent.roles > 0
    columns = ("onset_ticks", "duration_ticks", "pitches")
    rest = {name: getattr(silent, name)[lower] for name in columns}
    window = replace(silent, voices=np.full(lower.sum(), 2), **rest)
    scene = replace(scenes[0], window=window)
    with pytest.raises(BadInput, match="no melody voice"):
        lesson_of(scene)
    assert len(lessons_of([*scenes[:2], scene])) == 2


def one_decoder():
    torch.manual_seed(0)
    return OneDecoder(replace(SMALL, decoders=1)).eval()


def recorded(monkeypatch, owner, name):
    "Results of all later calls of a function, in their order."
    found, plain = [], getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *x: found.append(plain(*x)) or found[-1])
    return found


def test_one_decoder_draws_chords_as_it_learns_them(monkeypatch):
    "Logits while composing are those of the finished piece, and chords and notes act on them."
    model, view = one_decoder(), np.zeros((32, 34))
    motion = np.random.default_rng(0).standard_normal((32, MOTION))
    drawn = recorded(monkeypatch, model, "chord_logits")
    rows = recorded(monkeypatch, cmt_module, "compose")
    music, chords = compose_together(model, motion, view, seed=1)
    assert len(drawn) == len(chords) == 32 and set(np.unique(music.voices)) <= {1, 2, 3}
    monkeypatch.setattr(model, "seen", lambda *_: (motion, view))
    monkeypatch.setattr("cop_repro.systems.vmusprod.chords_of", lambda _: chords)
    monkeypatch.setattr("cop_repro.systems.vmusprod.encode_music", lambda _: rows[0])
    count = len(drawn)
    with torch.no_grad():
        losses = one_decoder_loss(model, [Lesson(music, np.zeros((32, MEASURED)), view)])[1]
    torch.testing.assert_close(drawn[count], torch.cat(drawn[:count]), rtol=1e-4, atol=1e-4)
    assert set(losses) == {"music", "chords"}
    again, same = compose_together(model, motion, view, seed=1, chords=chords.copy())
    assert (same == chords).all() and again == music
    others, _ = compose_together(model, motion, view, seed=1, chords=(chords + 5) % 84)
    assert others != music


def test_one_decoder_learns_from_any_bar_and_long_pieces_have_all_chords():
    model, lessons = one_decoder(), [lesson(0), lesson(1)]
    whole = one_decoder_loss(model, lessons)[1]
    assert one_decoder_loss(model, lessons, [View(), View()])[1] == whole
    cut = one_decoder_loss(model, lessons, [View(3), View(7)])[1]
    assert cut != whole and all(np.isfinite(list(cut.values())))
    music, chords = compose_together(model, np.zeros((52, MOTION)), np.zeros((52, 34)), 0)
    assert music.num_bars == 13 and len(chords) == 52


def test_one_decoder_is_fitted_and_read_again(place):
    place, scenes = replace(place[0], scratch=place[0].scratch / "one"), place[1]
    cfg = replace(SMALL, decoders=1)
    trained = fit_vmusprod(place, VMusProdSettings(cfg), CFG, FILES)
    assert {"held_out_music", "held_out_chords"} <= set(trained.measured)
    again = load_vmusprod(place.made, scenes)[0]
    assert isinstance(again, OneDecoder) and again.config == cfg
    scores = harmony_scores(again, [lesson(0), lesson(1)])
    assert all(0 <= value <= 1 for value in scores.values())


def test_rows_of_vmusprod(scenes, scale):
    test, model = SceneSet.of(scenes[:2], scale), vmusprod()
    makers = vmusprod_makers(model, test)
    own, shuffled = makers["vmusprod"](0), makers["vmusprod_shuffled"](0)
    assert makers["vmusprod_no_motion"](0) != own and model.config.motion
    assert own.num_bars == shuffled.num_bars == 8 and own != shuffled
    assert own == makers["vmusprod"](0)
    scores = harmony_scores(model, [lesson(0), lesson(1)])
    assert set(scores) == {"chord_tones", "chord_tones_of_others", "melody_change"}
    assert all(0 <= value <= 1 for value in scores.values())


def test_files_of_vmusprod(tmp_path):
    path, model = tmp_path / "v.safetensors", vmusprod()
    save_vmusprod(path, model, {"scenes": "a"})
    again, _ = load_vmusprod(path, "a")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))
    with pytest.raises(AssetMismatch, match="list of scenes a"):
        load_vmusprod(path, "b")
    save_compound(path, untrained(), {"kind": "cmt"})
    with pytest.raises(AssetMismatch, match="not V-MusProd"):
        load_vmusprod(path)
