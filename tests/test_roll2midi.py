# SPDX-License-Identifier: Apache-2.0
"Audeo's two networks: sizes, the adversarial step, both trainings, files and rows."

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cop_repro.core import AssetMismatch, BadInput, ParamsError, from_dict, load_weights, numpy_rng
from cop_repro.data.clips import Clip, fill_store
from cop_repro.data.notes import make_notes, notes_to_roll
from cop_repro.evaluation.evaluate import RowEntry, make_row
from cop_repro.evaluation.scoring import score_performance
from cop_repro.model.roll import RollConfig, Video2Roll, build_roll, save_roll
from cop_repro.parameters import load_params
from cop_repro.systems.catalogue import trainable
from cop_repro.systems.contract import SystemFiles
from cop_repro.systems.roll2midi import (
    PatchDiscriminator,
    Roll2Midi,
    Roll2MidiConfig,
    Roll2MidiSettings,
    Video2RollReading,
    Video2RollSettings,
    adversarial_losses,
    balanced_frames,
    best_threshold,
    five_frame_windows,
    frame_f1,
    key_frames,
    load_roll2midi,
    load_video2roll,
    repaired_logits,
    roll2midi_step_fn,
    shrunk,
    thresholded_roll,
    video2roll_logits,
    video2roll_step_fn,
)
from cop_repro.training.loop import TrainConfig, train
from cop_repro.training.stages import Place

STRIPS = RollConfig(width=2, height=16, strip_width=208)  # of the predictor that a run has
FRAMES, SIZE = 30, (16, 208)
NOTES = make_notes([60, 64], [0.2, 0.5], [0.8, 1.0], [70, 80])


def weights(net):
    return sum(p.numel() for p in net.parameters())


def players(channels=4):
    torch.manual_seed(0)
    return Roll2Midi(Roll2MidiConfig(channels)), PatchDiscriminator(channels, 0.1)


def toy_rolls(count=4, frames=24, keys=88, seed=0):
    "Soft rolls whose keys flicker, and the true ones."
    rng = numpy_rng(seed, "toy rolls")
    true = np.repeat(rng.random((count, frames // 12, keys)) < 0.1, 12, 1).astype(np.float32)
    seen = 0.7 * true * (rng.random(true.shape) > 0.3) + 0.2 * rng.random(true.shape)
    return seen.astype(np.float32), true


def test_published_sizes():
    "Weights and shapes of arXiv 2006.14348, by the parameters that a user would write."
    net = {"channels": 64, "dropout": 0.5, "spread": 0.02, "residual": False}
    settings = from_dict(Roll2MidiSettings, {"net": net})
    v2r = from_dict(Video2RollSettings, {"width": 64}).config(STRIPS)
    with torch.device("meta"):
        generator, judge = Roll2Midi(settings.net), PatchDiscriminator(64)
        small = Roll2Midi(Roll2MidiConfig(8)), PatchDiscriminator(8)
        video2roll = build_roll(v2r)
    assert weights(generator) == 25_103_665
    assert weights(judge) == 1_554_433
    assert [weights(net) for net in small] == [393_175, 24_961]
    assert isinstance(video2roll, Video2Roll)
    assert weights(video2roll) == 12_718_424
    for keys, patches in ((51, (7, 13)), (88, (11, 13))):
        blank = torch.zeros(2, 1, keys, 100, device="meta")
        assert generator(blank).shape == blank.shape
        assert judge(blank).shape == (2, 1, *patches)


def test_pianoyt_has_51_keys():
    cfg = Video2RollSettings(first_key=15, num_keys=51).config(STRIPS)
    assert (cfg.first_key, cfg.num_keys) == (15, 51)
    assert not cfg.velocity
    logits = video2roll_logits(build_roll(cfg).eval(), np.zeros((3, *SIZE), np.uint8))
    assert logits.shape == (3, 88)
    assert (logits[:, :15] < -8).all()


def test_each_player_has_a_gradient_for_its_own_loss_alone():
    generator, judge = players()
    soft, true = (torch.from_numpy(x).mT[:, None] for x in toy_rolls())
    losses = adversarial_losses(generator, judge, soft, true, 0.001)
    losses["generator"].backward(retain_graph=True)
    assert all(p.grad is None for p in judge.parameters())
    assert any(p.grad.abs().sum() > 0 for p in generator.parameters())
    before = [p.grad.clone() for p in generator.parameters()]
    losses["discriminator"].backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(before, generator.parameters()))
    assert any(p.grad.abs().sum() > 0 for p in judge.parameters())


def two_optimisers(soft, true, rate, weight):
    "The textbook form: two networks, two optimisers, the opponent's gradients thrown away."
    generator, judge = players()
    adams = [torch.optim.Adam(net.parameters(), rate) for net in (generator, judge)]
    made = generator(soft)
    error = torch.nn.functional.mse_loss(made, true)
    fooled = (judge(made) - 1).square().mean()
    adams[0].zero_grad()
    ((1 - weight) * error + weight * fooled).backward()
    real, false = judge(true), judge(made.detach())
    adams[1].zero_grad()
    (0.5 * ((real - 1).square().mean() + false.square().mean())).backward()
    for adam in adams:
        adam.step()
    return generator, judge


def test_one_loss_takes_the_step_of_two_optimisers(tmp_path):
    """Weights after one step of the training loop, to 1e-6.

    Adam's first step is the sign of a gradient, so weights whose gradient is rounding noise are
    left out.
    """
    soft, true = toy_rolls(count=2)
    cfg = TrainConfig(1, 2, 1e-3, decay="constant", clip_norm=None)
    settings = Roll2MidiSettings(frames=24, adversarial=0.3)
    generator, judge = players()
    step_fn = roll2midi_step_fn(generator, judge, soft, true, cfg, settings)
    train({"generator": generator, "discriminator": judge}, step_fn, cfg, tmp_path)
    pair, compared = [torch.from_numpy(x).mT[:, None] for x in (soft, true)], 0
    for ours, textbook in zip((generator, judge), two_optimisers(*pair, 1e-3, 0.3)):
        for (name, a), b in zip(ours.named_parameters(), textbook.parameters()):
            clear = b.grad.abs() > 1e-6
            assert torch.allclose(a[clear], b[clear], atol=1e-6), name
            compared += clear.sum().item()
    assert compared > 0.8 * (weights(generator) + weights(judge))


def test_the_steps_lower_what_they_should(tmp_path):
    "The error of the rolls, and the discriminator's; unseen rolls are repaired."
    soft, true = toy_rolls(count=8, keys=16)
    torch.manual_seed(0)
    nets = {"generator": Roll2Midi(Roll2MidiConfig(8)), "discriminator": PatchDiscriminator(8)}
    cfg = TrainConfig(50, 4, 1e-2, decay="cosine", clip_norm=None)
    step_fn = roll2midi_step_fn(*nets.values(), soft, true, cfg, Roll2MidiSettings(frames=24))
    logs = train(nets, step_fn, cfg, tmp_path).logs
    for name in ("mse", "discriminator"):
        assert logs[name][-5:].mean() < 0.8 * logs[name][:5].mean(), name
    seen, truth = toy_rolls(count=4, keys=16, seed=1)
    logits = np.log(seen / (1 - seen))
    with torch.no_grad():
        fixed = nets["generator"].logits(torch.from_numpy(seen).mT[:, None])[:, 0].mT.numpy()
    before, after = (frame_f1(x, truth > 0, best_threshold(x, truth > 0)) for x in (logits, fixed))
    assert after > before + 0.02
    assert step_fn(3, 0, 1)[0] == step_fn(3, 0, 1)[0]  # a pure function of the step


def test_a_prediction_does_not_depend_on_the_batch_it_comes_in():
    "Batch statistics are those of training: a clip alone is repaired as beside others."
    model = players()[0].eval()
    soft = torch.from_numpy(toy_rolls()[0])
    with torch.no_grad():
        together = model.logits(soft.mT[:, None])[:, 0].mT
    alone = repaired_logits(model, torch.logit(soft[0], 1e-6))
    assert torch.allclose(alone, together[0], atol=1e-4)


def test_frames_are_balanced_over_keys_and_silence():
    rolls = np.zeros((2, 40, 88), bool)
    rolls[0, :39, 30] = True
    rolls[1, 5, [50, 51]] = True
    groups = key_frames(rolls)
    assert [len(g) for g in groups] == [39, 1, 1, 40]
    drawn = balanced_frames(groups, 2000, numpy_rng(0, "test"))
    found = [np.mean([rolls[c, t, key] for c, t in drawn]) for key in (30, 50)]
    assert found == pytest.approx([0.25, 0.5], abs=0.04)  # keys 50 and 51 share their only frame
    silent = np.mean([not rolls[c, t].any() for c, t in drawn])
    assert silent == pytest.approx(0.25, abs=0.04)


def test_the_threshold_is_where_frames_are_best():
    truth = toy_rolls()[1] > 0
    logits = np.where(truth, -0.5, -3.0)
    cut = best_threshold(logits, truth)
    assert frame_f1(logits, truth, cut) == 1 > frame_f1(logits, truth, 0.5)
    roll = thresholded_roll(torch.from_numpy(logits[0]).float(), cut)
    assert np.array_equal(roll.presence >= 0.5, truth[0])
    rises = truth[0] & ~np.vstack([np.zeros((1, 88), bool), truth[0][:-1]])
    assert np.array_equal(roll.onset > 0.5, rises)


def test_strips_are_averaged_or_refused():
    strips = np.arange(2 * 3 * 4 * 6, dtype=np.uint8).reshape(2, 3, 4, 6)
    small = shrunk(strips, (2, 3))
    assert small.shape == (2, 3, 2, 3)
    assert small[0, 0, 0, 0] == round(strips[0, 0, :2, :2].mean())
    for size in ((3, 3), (2, 2), (8, 12)):
        with pytest.raises(BadInput, match="`shrink` must divide"):
            shrunk(strips, size)
    window = five_frame_windows(strips, [(1, 0)], (4, 6))
    assert torch.equal(window[0, 0], window[0, 2])  # the edge frame is repeated


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    "Six training and two validation clips; a key that is down darkens its part of the strip."
    rng = numpy_rng(0, "toy videos")
    held = np.repeat(rng.random((8, FRAMES // 10, 11)) < 0.3, 10, 1)
    shadow = np.kron(held, np.ones(20))[:, :, None, : SIZE[1]].repeat(SIZE[0], 2)
    strips = np.clip(220 - 150 * shadow + rng.normal(0, 5, shadow.shape), 0, 255).astype(np.uint8)
    index = [
        {"clip_id": str(i), "split": "val" if i > 5 else "train", "rendering": "nuisance"}
        for i in range(8)
    ]
    columns = {"strips": ((FRAMES, *SIZE), "uint8"), "presence": ((FRAMES, 88), "float16")}

    def row(i):
        return {"strips": strips[i], "presence": np.repeat(held[i], 8, 1)}

    folder = tmp_path_factory.mktemp("roll2midi") / "clips"
    return fill_store(folder, index, columns, row, range(8), 1, split_hash="s")


def run_of(folder, store, name, start):
    place = Place({"clips": store.folder}, folder / f"scratch {name}", folder / name)
    return place, SystemFiles("s", *[Path("not used")] * 3, (("start", start),))


# Fewer than 8 channels crash the backward pass of PyTorch 2.11 on processors with AVX2 alone.
VIDEO2ROLL = Video2RollSettings(width=8, shrink=1, validation_clips=2)
ROLL2MIDI = Roll2MidiSettings(Roll2MidiConfig(4), frames=20, validation_clips=2)
STEPS = TrainConfig(3, 4, 1e-3, clip_norm=None)


@pytest.fixture(scope="module")
def trained(store, tmp_path_factory):
    "Files of both networks, trained as the stage trains them, and what `fit` returned."
    folder = tmp_path_factory.mktemp("trained")
    save_roll(folder / "keys.safetensors", build_roll(STRIPS), {"split_hash": "s"})
    place, files = run_of(folder, store, "video2roll.safetensors", folder / "keys.safetensors")
    first = trainable("video2roll").fit(place, VIDEO2ROLL, STEPS, files)
    place, files = run_of(folder, store, "roll2midi.safetensors", place.made)
    second = trainable("roll2midi").fit(place, ROLL2MIDI, STEPS, files)
    return folder, first, second


def test_both_are_trained_one_on_the_rolls_of_the_other(trained):
    folder, first, second = trained
    model, threshold = load_video2roll(folder / "video2roll.safetensors", "s")
    assert (model.cfg.height, model.cfg.strip_width) == SIZE
    assert first.parameters == weights(model)
    assert first.result.step == second.result.step == 3
    assert first.measured["threshold"] == threshold
    assert 0 <= first.measured["validation_frame_f1"] <= 1
    assert second.measured["validation_frame_f1_before"] == first.measured["validation_frame_f1"]
    assert set(second.result.logs) >= {"generator", "discriminator", "mse", "fooled"}
    tensors, meta = load_weights(folder / "roll2midi.safetensors")
    assert meta["split_hash"] == "s"
    assert meta["threshold"] == second.measured["threshold"]
    repair, _ = load_roll2midi(
        folder / "roll2midi.safetensors", "s", folder / "video2roll.safetensors"
    )
    assert all(torch.equal(v, tensors[k]) for k, v in repair.state_dict().items())
    assert not repair.training


def test_a_given_threshold_is_kept(trained, store, tmp_path):
    place, files = run_of(tmp_path, store, "a.safetensors", trained[0] / "keys.safetensors")
    fixed = replace(VIDEO2ROLL, threshold=0.4, loss="mse", balanced=False)
    made = trainable("video2roll").fit(place, fixed, STEPS, files)
    assert made.measured["threshold"] == 0.4
    assert load_video2roll(place.made, "s")[1] == 0.4


def test_losses_differ_and_rows_are_a_function_of_the_step(store):
    rows = store.select(split="train")
    torch.manual_seed(0)
    model = build_roll(VIDEO2ROLL.config(STRIPS)).eval()
    steps = [
        video2roll_step_fn(model, store.columns, rows, STEPS, replace(VIDEO2ROLL, **kind))
        for kind in ({}, {"loss": "mse"}, {"balanced": False})
    ]
    losses = [step_fn(0, 0, 1)[0].item() for step_fn in steps]
    assert len(set(losses)) == 3
    assert losses[1] < 1
    assert steps[0](0, 0, 1)[0].item() == losses[0]


def test_what_cannot_be_trained_is_refused(trained, store, tmp_path):
    keys, video2roll = (trained[0] / f"{n}.safetensors" for n in ("keys", "video2roll"))
    fit = trainable("roll2midi").fit
    place, files = run_of(tmp_path, store, "x.safetensors", video2roll)
    with pytest.raises(ParamsError, match="two players must not be clipped"):
        fit(place, ROLL2MIDI, replace(STEPS, clip_norm=1.0), files)
    with pytest.raises(AssetMismatch, match="holds a key_roll predictor"):
        fit(place, ROLL2MIDI, STEPS, replace(files, models=(("start", keys),)))
    with pytest.raises(AssetMismatch, match="this run uses t"):
        fit(place, ROLL2MIDI, STEPS, replace(files, split="t"))
    with pytest.raises(BadInput, match="30 frames are shorter than a window of 100"):
        fit(place, replace(ROLL2MIDI, frames=100), STEPS, files)
    with pytest.raises(ParamsError, match="needs a model 'start'"):
        fit(place, ROLL2MIDI, STEPS, replace(files, models=()))
    odd = replace(VIDEO2ROLL, shrink=3)
    with pytest.raises(ParamsError, match="at least 1 and 16x104 are needed"):
        trainable("video2roll").fit(place, odd, STEPS, replace(files, models=(("start", keys),)))
    for wrong in (
        lambda: Video2RollSettings(threshold=0.0),
        lambda: Video2RollSettings(shrink=0),
        lambda: Roll2MidiSettings(frames=4),
        lambda: Roll2MidiSettings(adversarial=-0.1),
        lambda: Roll2MidiConfig(channels=10),
        lambda: Roll2MidiConfig(dropout=1.0),
        lambda: Roll2MidiConfig(spread=0.0),
    ):
        with pytest.raises(ParamsError):
            wrong()


def test_no_validation_clip_no_threshold(store, trained, tmp_path):
    entries = [{**entry, "split": "train"} for entry in store.index]
    shapes = {k: (v.shape[1:], str(v.dtype)) for k, v in store.columns.items()}

    def row(i):
        return {name: values[i] for name, values in store.columns.items()}

    only = fill_store(tmp_path / "clips", entries, shapes, row, range(8), 1, split_hash="s")
    place, files = run_of(tmp_path, only, "x.safetensors", trained[0] / "keys.safetensors")
    with pytest.raises(BadInput, match="holds no validation clip.*give `threshold` a number"):
        trainable("video2roll").fit(place, VIDEO2ROLL, STEPS, files)


@pytest.fixture()
def row(trained, tmp_path):
    "A function that makes a row of a system from the trained files."
    names = ("video2roll", "roll2midi")

    def make(system, **settings):
        models = {name: f"{name}.safetensors" for name in names}
        files = SystemFiles("s", *[Path("not used")] * 3)
        entry = RowEntry(system, models, settings=settings)
        return make_row(entry, files, trained[0], {})

    return make


def clip_of(store, number):
    return Clip(
        str(number),
        "w",
        "test",
        "piano",
        FRAMES / 25,
        wav=np.zeros(FRAMES * 960, np.float32),
        notes=NOTES,
        strips=store["strips"][number],
    )


def test_rows_of_the_cascade(row, store, monkeypatch):
    "Names, declared outputs, scores in three averagings; a clip is read once for all its rows."
    reads = []
    original = Video2Roll.forward
    monkeypatch.setattr(
        Video2Roll, "forward", lambda self, *x: reads.append(1) or original(self, *x)
    )
    made = row("roll2midi")
    systems = pickle.loads(pickle.dumps(made)).load()
    suffixes = ["", "same_soundfont", "different_piano"]
    without = ["without_r2m", "without_r2m_same_soundfont", "without_r2m_different_piano"]
    assert list(systems) == suffixes + without
    clip = clip_of(store, 7)
    made = {suffix: system.predict(clip) for suffix, system in systems.items()}
    assert len(reads) == 1
    assert all(len(p.wav) == len(clip.wav) for p in made.values())
    assert len({p.roll.presence.tobytes() for p in made.values()}) == 2
    systems[""].predict(clip_of(store, 6))
    assert len(reads) == 2
    rolls = row("video2roll").load()
    assert list(rolls) == ["", "roll2midi"]
    assert rolls[""].outputs == {"roll", "notes"}
    (scored,) = score_performance(rolls["roll2midi"], clip, clip, 0)
    names = [
        f"frame_{ratio}_{mean}"
        for ratio in ("precision", "recall", "accuracy", "f1")
        for mean in ("samples", "weighted", "micro")
    ]
    assert set(names) <= set(scored["metrics"])
    assert scored["wav"] is None


def test_a_certain_video2roll_plays_the_true_notes(store):
    "Logits of the true roll give its notes, at the rows where they begin."
    reading = Video2RollReading(None, 0.4)
    clip = clip_of(store, 0)
    true = notes_to_roll(NOTES, clip.duration_s).presence
    reading._clip, reading._logits = clip, torch.from_numpy(8 * true - 4)
    roll = thresholded_roll(reading.logits(clip), reading.threshold)
    assert np.array_equal(roll.presence >= 0.5, true >= 0.5)
    with pytest.raises(BadInput, match="no keyboard strips"):
        reading.logits(replace(clip, strips=None))


def test_rows_of_files_that_do_not_belong_together_are_refused(row, trained, store, tmp_path):
    folder = trained[0]
    with pytest.raises(ParamsError, match="takes no settings"):
        row("roll2midi", frames=50).load()
    with pytest.raises(ParamsError, match="takes no settings"):
        row("video2roll", width=8).load()
    with pytest.raises(ParamsError, match="did you mean 'shrink'"):
        row("video2roll", shrnk=2)
    torch.manual_seed(1)
    other = build_roll(VIDEO2ROLL.config(STRIPS))
    save_roll(tmp_path / "other.safetensors", other, {"split_hash": "s", "threshold": 0.5})
    with pytest.raises(AssetMismatch, match="another Video2Roll than other.safetensors"):
        load_roll2midi(folder / "roll2midi.safetensors", "s", tmp_path / "other.safetensors")
    with pytest.raises(AssetMismatch, match="this run uses t"):
        load_roll2midi(folder / "roll2midi.safetensors", "t")
    with pytest.raises(AssetMismatch, match="holds 'roll', not a Roll2Midi"):
        load_roll2midi(folder / "video2roll.safetensors", "s")
    with pytest.raises(AssetMismatch, match="holds a key_roll predictor"):
        load_video2roll(folder / "keys.safetensors", "s")


def test_the_default_run_trains_them_within_its_budget(root):
    "Roll2Midi builds on the Video2Roll of the same run, and rows are loaded from both."
    params = load_params(root / "params.yaml")
    variants = params["train_systems"]["variants"]
    assert variants["roll2midi"]["start"] == "train_systems/video2roll/system.safetensors"
    settings = {
        name: from_dict(trainable(name).settings, variants[name]["settings"])
        for name in ("video2roll", "roll2midi")
    }
    assert settings["roll2midi"].adversarial == 0.001
    for name in ("video2roll", "roll2midi"):
        assert from_dict(TrainConfig, variants[name]["train"]).clip_norm is None
    rows = params["evaluate"]["variants"]["read"]
    assert rows["audeo_full"]["models"] == rows["video2roll_paper"]["models"]
    strips = from_dict(RollConfig, params["train_roll"]["roll"])
    sizes = settings["video2roll"].config(strips)
    with torch.device("meta"):
        assert weights(build_roll(sizes)) < 4e6
    assert json.dumps(variants["roll2midi"])  # plain data
