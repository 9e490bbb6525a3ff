# SPDX-License-Identifier: Apache-2.0
"Five views: the start, what each view changes, resumption, refusals, and the shipped weights."

from dataclasses import replace

import numpy as np
import pytest
import torch

from cop_repro.benchmark.own_systems import FIVE, OwnSystem, view_predictor
from cop_repro.benchmark.views import (
    DEPTH_NOISES,
    PLAN,
    ViewPlan,
    _descending,
    _with_velocities,
    depth_rows,
    depth_velocities,
    make_lessons,
    row_crops,
    row_logits,
    score_views,
    train_views,
    view_items,
    view_scores,
    view_step_fn,
    view_stores,
    view_table,
)
from cop_repro.cli import main
from cop_repro.cli._views import SHIPPED
from cop_repro.core import LOWEST_PITCH, AssetMismatch, BadInput, ParamsError, file_hash
from cop_repro.data.clips import piano_items, read_manifest
from cop_repro.data.notes import make_notes
from cop_repro.data.performance import etudes
from cop_repro.data.rendering import (
    _SIZES,
    VIEWS,
    _Pinhole,
    descent_time,
    key_depth,
    render,
    render_strip,
)
from cop_repro.measure.music_metrics import pedal_frame_scores
from cop_repro.model.cop_piano import load_piano
from cop_repro.model.roll import RollConfig, build_roll, predict_logits, predict_roll
from cop_repro.model.views import (
    CROPS,
    SIDE_VIEWS,
    VIEW_SIZES,
    ViewRoll,
    lip_points,
    load_views,
    predict_view_roll,
    project,
    save_views,
    view_crops,
)
from cop_repro.training.loop import train

SMALL = ViewPlan({"train": 1, "test": 2}, {"train": 1.0, "test": 1.0}, steps=6, notes=8, frames=8)


@pytest.fixture(scope="module")
def predictor():
    torch.manual_seed(0)
    return build_roll(RollConfig(width=4)).eval()


@pytest.fixture(scope="module")
def works(root):
    return {score.work_id: score for score in etudes(root / "data" / "etudes")}


@pytest.fixture(scope="module")
def items(works):
    splits = zip(list(works.values())[1:4], ("train", "test", "test"))
    return [piano_items(work, split, 10.0, 1, seed=0)[0] for work, split in splits]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("views")


@pytest.fixture(scope="module")
def stores(items, works, predictor, place):
    return {
        split: view_stores(place, view_items(items, split, SMALL), works, predictor, {"a": "b"})
        for split in ("train", "test")
    }


def trained(model):
    "The same network with an output that is not zero."
    generator = torch.Generator().manual_seed(1)
    for trunk in (model.keys, model.pedal):
        with torch.no_grad():
            trunk.out.weight.normal_(generator=generator)
    return model.eval()


def noise(seed=0, frames=20):
    rng = np.random.default_rng(seed)
    sizes = VIEW_SIZES | {"top": (128, 640)}
    views = {v: rng.integers(0, 256, (frames, *sizes[v], 3), dtype=np.uint8) for v in VIEWS}
    return views, rng.integers(0, 256, (frames, 48, 520), dtype=np.uint8)


def test_cameras_are_those_of_the_renderer():
    for view in SIDE_VIEWS:
        assert VIEW_SIZES[view] == _SIZES[view]
        pixels = _Pinhole(view, _SIZES[view])(lip_points())[0] / 2
        assert np.allclose(project(view, lip_points()), pixels, atol=1e-9)
    assert VIEW_SIZES["pedal"] == _SIZES["pedal"]
    assert all(b <= VIEW_SIZES[v][0] and d <= VIEW_SIZES[v][1] for v, (_, b, _, d) in CROPS.items())


def test_at_the_start_it_is_the_predictor_in_every_bit(predictor):
    views, strips = noise()
    plain = predict_roll(predictor, strips)
    for names in (("top",), VIEWS[:4], VIEWS):
        seen = {name: views[name] for name in names}
        made = predict_view_roll(predictor, ViewRoll().eval(), strips, seen)
        for field in ("presence", "onset", "velocity", "pedal"):
            assert np.array_equal(getattr(made, field), getattr(plain, field)), (names, field)


def test_every_level_uses_the_views_that_it_allows(predictor):
    views, strips = noise()
    logits, asked = predict_logits(predictor, strips), []

    def plain(frames):
        asked.append(1)
        return logits

    roll = view_predictor(plain, trained(ViewRoll()), lambda frames: strips)
    one, two, three = (roll({v: views[v] for v in names}) for names in (("top",), VIEWS[:4], VIEWS))
    assert np.array_equal(one.onset, three.onset) and np.array_equal(one.presence, three.presence)
    assert np.array_equal(one.pedal, two.pedal) and not np.array_equal(two.pedal, three.pedal)
    assert np.array_equal(two.velocity, three.velocity)
    other = roll({**views, "pedal": noise(1)[0]["pedal"]})
    assert not np.array_equal(other.pedal, three.pedal)
    assert np.array_equal(other.velocity, three.velocity)
    assert roll(dict(views)) is three  # kept while the pictures are the same


def test_views_that_do_not_fit_are_refused():
    (views, strips), model = noise(), ViewRoll()
    with pytest.raises(BadInput, match=r"view 'front' has pictures of \(96, 319\)"):
        view_crops(model, strips, views | {"front": views["front"][:, :, 1:]})
    with pytest.raises(BadInput, match="left, front is missing"):
        view_crops(model, strips, {"right": views["right"]})
    with pytest.raises(BadInput, match="'pedal' has 19 frames, the top view 20"):
        view_crops(model, strips, views | {"pedal": views["pedal"][1:]})
    with pytest.raises(BadInput, match="no side view 'pedal'"):
        project("pedal", lip_points())


def test_other_weights_are_refused(tmp_path, predictor, root):
    path = tmp_path / "views.safetensors"
    save_views(path, [ViewRoll()], predictor)
    assert load_views(path, predictor)[1]["asset"] == "views"
    with pytest.raises(AssetMismatch, match="trained beside roll predictor"):
        load_views(path, build_roll(RollConfig(width=4)))
    with pytest.raises(AssetMismatch, match="holds sides, not 'top'"):
        load_views(path, predictor, "top")
    with pytest.raises(AssetMismatch, match="not views"):
        load_views(root / "data" / "assets" / "piano.safetensors", predictor)


def test_a_resumed_training_has_the_same_weights(stores, tmp_path):
    lessons, cfg = make_lessons(ViewRoll(), stores["train"]), replace(SMALL.training, save_every=3)

    def run(folder, stop=None):
        torch.manual_seed(2)
        model = ViewRoll()
        step_fn = view_step_fn(model, lessons, SMALL)
        result = train({"views": model}, step_fn, cfg, tmp_path / folder, stop=stop)
        return model.state_dict(), result

    whole, _ = run("whole")
    run("parts", stop=lambda history: len(history["loss"]) == 3)
    again, result = run("parts")
    assert result.resumed_from == 3 and result.step == 6
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_test_clips_teach_nothing(stores, place, items, works, predictor):
    with pytest.raises(BadInput, match="only train is allowed"):
        train_views("sides", stores["test"], SMALL, place / "x")
    with pytest.raises(BadInput, match="holds other clips"):
        view_stores(place, view_items(items, "train", SMALL), works, predictor, {"a": "c"})
    with pytest.raises(ParamsError, match="1 to 400 clips"):
        ViewPlan({"train": 401}, {"train": 5.0})
    with pytest.raises(BadInput, match="manifest has no rendered piano clip of split 'val'"):
        view_items(items, "val", PLAN)
    with pytest.raises(BadInput, match="plan has no clips of split 'test'"):
        view_items(items, "test", replace(SMALL, clips={"train": 1}))


def test_rows_of_a_table(stores):
    scored = score_views(stores["test"], {"five views": ViewRoll().eval()})
    assert list(scored) == [
        *("roll predictor alone", "five views", "blank views", "top view repeated"),
        *("views of another clip", "pedal view of another clip", "depth of the keys, exact"),
        *("depth of the keys, noise 0.03", "depth of the keys, noise 0.06"),
    ]
    assert view_table(scored, "five views").count("minus five views") == 8
    with pytest.raises(BadInput, match="of one work"):
        score_views([OneWork(stores["test"][0])], {"five views": ViewRoll().eval()})


class OneWork:
    "A store whose clips are all of one work."

    def __init__(self, store):
        self.store, self.index = store, [{**e, "work_id": "a"} for e in store.index]

    def __len__(self):
        return len(self.index)

    def __getitem__(self, name):
        return self.store[name]


def test_depths_of_keys_determine_soft_velocities(stores):
    "Curves are the renderer's; exact depths determine soft notes, and no depths leave the prior."
    soft, loud = np.arange(25, 46), np.arange(60, 110, 5)
    played = np.concatenate([soft, loud])
    times = 0.5 + np.arange(len(played)) + 0.013
    notes = make_notes(np.full(len(played), 60), times, times + 0.2, played)
    at = np.arange(25 * len(played)) / 25 + 0.02
    depth = key_depth(notes, at)[:, 60 - LOWEST_PITCH]
    descent = descent_time(played)
    for onset, down in zip(times, descent):
        near = (at > onset - 0.3) & (at < onset + 0.1)
        assert np.allclose(depth[near], _descending(at[near] - onset, down), atol=1e-6)
    rng = np.random.default_rng(0)
    exact, rough = (depth_velocities(notes, noise, played, rng) for noise in (0.0, 0.1))
    assert np.abs(exact - played)[: len(soft)].max() <= 1
    assert np.abs(exact - played).mean() < np.abs(rough - played).mean()
    known = [depth_velocities(notes, 1e3, prior, rng) for prior in (soft, loud)]  # nothing is seen
    assert np.ptp(known[0]) == 0 and abs(known[0][0] - soft.mean()) < 2
    assert abs(known[1][0] - loud.mean()) < 2


def test_velocities_of_depths_leave_the_notes(stores):
    store = stores["test"][0]
    rows = depth_rows(store, 0, row_logits(store, 0), np.arange(30, 100))
    alone = view_scores(store, 0, row_logits(store, 0))
    assert len(rows) == len(DEPTH_NOISES)
    for scores in rows.values():
        assert scores["onset_f1"] == alone["onset_f1"]
    made = make_notes([60, 60, 64], [0.0, 1.0, 0.0], [0.5, 1.5, 0.5], [10, 20, 30])
    true = make_notes([60, 62], [0.04, 0.0], [0.5, 0.5], [99, 1])
    assert _with_velocities(made, true).velocities.tolist() == [99, 30, 20]


def test_declared_views_are_those_of_the_level():
    assert OwnSystem(None, 0, FIVE, views=VIEWS).declared() == {
        "L1": ["top"],
        "L2": ["top", "left", "right", "front"],
        "L3": list(VIEWS),
        "L4": list(VIEWS),
    }


def test_the_command_names_what_is_wrong(root, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(root)
    command = ["bench", "views", "-o", str(tmp_path)]
    assert main([*command, "--train", "--clips", "0"]) == 2
    assert "1 to 400 clips" in capsys.readouterr().err
    assert main([*command, "--train", "--steps", "0"]) == 2
    assert "steps is 0" in capsys.readouterr().err
    for option in ("--clips", "--steps"):
        assert main([*command, option, "20"]) == 2
        assert "give --train too" in capsys.readouterr().err


@pytest.fixture(scope="module")
def shipped(root):
    "The shipped predictor with the shipped network."
    assets = root / "data" / "assets"
    predictor = load_piano(assets / "piano.safetensors")[0].predictor
    return predictor, *load_views(assets / SHIPPED, predictor)


def test_shipped_weights_are_of_the_split_of_the_manifest(root, shipped):
    _, model, meta = shipped
    assert meta["split_hash"] == read_manifest(root / "data" / "manifest.json")[1]
    assert model.cfg.source == "sides" and set(meta["configs"]) == {"sides", "top"}
    assert file_hash(root / "data" / "assets" / SHIPPED)


def test_the_pedal_is_read_from_its_view(shipped):
    predictor, model, _ = shipped
    notes = make_notes([60, 64], [0.3, 2.0], [1.0, 3.4], [70, 60], [(0.6, 1.4), (2.2, 3.0)])
    other = notes.replace(pedal=np.array([(0.0, 0.4), (1.6, 2.0), (3.2, 3.9)]))
    strips = render_strip(notes, None, 4.0, height=48, width=520)
    scores = []
    for shown in (notes, other):
        views = {"pedal": render(shown, None, 4.0, "pedal").frames}
        roll = predict_view_roll(predictor, model, strips, views)
        found = pedal_frame_scores(pedal_truth(notes), roll.pedal >= 0.5)
        scores.append(found["pedal_frame_f1"])
    assert scores[0] > 0.9 and scores[1] < 0.5


def pedal_truth(notes):
    times = np.arange(100) / 25
    return sum((times >= down) & (times < up) for down, up in notes.pedal).astype(bool)


def test_stored_crops_are_those_of_the_views(stores):
    store = stores["train"][0]
    crops = row_crops(store, 0, "sides")
    assert {view: x.shape[1:] for view, x in crops.items()} == {
        view: (b - a, d - c) for view, (a, b, c, d) in CROPS.items()
    }
    assert row_logits(store, 0).presence.shape == (1, 25, 88)
