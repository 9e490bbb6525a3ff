# SPDX-License-Identifier: Apache-2.0
"The ablation of stage 2: its rows, its statistics, and the command on tiny stores."

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from test_cli_manners import refused
from test_encoders import SMALL

from cop_repro.cli import main
from cop_repro.cli.ablation import _of_seed, _plans, flat, load_rows
from cop_repro.core import RATES, ParamsError, file_hash, load_weights, torch_rng
from cop_repro.data.clips import (
    Item,
    StripSize,
    piano_store,
    read_manifest,
    store_clip,
    write_manifest,
)
from cop_repro.data.performance import etudes
from cop_repro.evaluation import injectors, sound_ablation
from cop_repro.evaluation.injectors import injector_section
from cop_repro.evaluation.sound_ablation import (
    FinishedRun,
    ablation_section,
    flow_loss,
    load_sound,
    piano_training,
    play_clip,
    row_effect,
    sampling_changes,
    trained_piano,
    trained_renderer,
)
from cop_repro.model.codec import CodecConfig, make_codec, prepare_wav, save_codec
from cop_repro.model.controlformer import InjectedDiT
from cop_repro.model.cop_piano import load_piano
from cop_repro.model.dit import DiTConfig, MultiStreamDiT, StreamConfig, save_dit
from cop_repro.model.encoders import build_encoders, learn_words, save_encoders
from cop_repro.model.renderer import load_renderer
from cop_repro.model.roll import RollConfig, build_roll, load_roll, save_roll
from cop_repro.parameters import load_params, merge
from cop_repro.systems.cop import CopSystem
from cop_repro.training.features import encode_stores, soft_store
from cop_repro.training.stages import Place, train_piano

TEXT = "the sound of playing piano"


@pytest.fixture(scope="module")
def params(root):
    return load_params(root / "params.yaml")


def test_rows_change_what_they_name_and_nothing_else(root, params):
    rows, left_out = load_rows(root / "refs" / "ablation.yaml", params)
    assert next(iter(rows)) == "base" and not rows["base"]["changes"]
    assert not set(left_out) & set(rows) and set(left_out) <= {"whole_clip", "windows_2s"}
    for name, row in rows.items():
        before, after = flat(params), flat(row["params"])
        changed = {key for key in after if key not in before or after[key] != before[key]}
        assert changed == set(row["changes"]), name
        assert row["why"]
    assert rows["paper"]["params"]["train_piano"]["variants"]["cop_velocity"]["start"] == "noise"


def test_a_row_without_a_renderer_depends_on_none(root, params):
    rows, _ = load_rows(root / "refs" / "ablation.yaml", params, "paper,spread_0.3")
    assert list(rows) == ["base", "paper", "spread_0.3"]
    plans = {name: _plans(_of_seed(row["params"], 3, 7), root) for name, row in rows.items()}
    assert plans["paper"].renderer is None
    assert plans["base"].renderer == plans["spread_0.3"].renderer
    assert {(p.piano.train.seed, p.piano.train.steps) for p in plans.values()} == {(3, 7)}
    assert plans["base"].renderer.train.seed == 3


@pytest.mark.parametrize(
    "changes, why",
    [
        ({"train_piano": {"train": {"steps": 9}}}, "all rows share"),
        ({"train_piano": {"general_items": 0}}, "a row may change"),
        ({"train_roll": {"crop_s": 1.0}}, "a row may change"),
        ({"train_piano": {"dropout": {"rol": 0.1}}}, "did you mean 'roll'"),
        ({"train_piano": {"train": {"optimizer": "sgd"}}}, "optimizer"),
    ],
)
def test_wrong_rows_are_refused(changes, why, params, tmp_path):
    listed = {"base": {"why": "a"}, "wrong": {"why": "b", "changes": changes}}
    (tmp_path / "rows.yaml").write_text(yaml.safe_dump(listed))
    with pytest.raises(ParamsError, match=why):
        load_rows(tmp_path / "rows.yaml", params)


def test_a_row_that_asks_for_the_default_is_left_out(params, tmp_path):
    changes = {"train_piano": {"crop_s": params["train_piano"]["crop_s"]}}
    listed = {"base": {"why": "a"}, "same": {"why": "b", "changes": changes}}
    (tmp_path / "rows.yaml").write_text(yaml.safe_dump(listed))
    rows, left_out = load_rows(tmp_path / "rows.yaml", params)
    assert (list(rows), left_out) == (["base"], ["same"])


def result(shift, noise):
    "Twelve clips of three works: the work decides most of a score, the shift a little."
    clips = []
    for i in range(12):
        value = 10.0 * (i // 4) + i % 4 + shift + noise[i]
        metrics = {"si_sdr_spec": value, "transcription_f1": 0.5, "mel_distance": 1.0}
        clips.append({"clip_id": f"c{i}", "work_id": f"w{i // 4}", "metrics": metrics})
    return {"clips": clips, "flow_loss": 1.0}


def test_a_difference_is_paired_by_clip():
    "Works differ by 10 dB, the row gains 0.5 dB: only pairing shows it."
    noise = np.random.default_rng(0).normal(size=(2, 3, 12)) * 0.1
    base = {str(s): result(0.0, noise[0, s]) for s in range(3)}
    row = {str(s): result(0.5, noise[1, s]) for s in range(3)}
    effect = row_effect(row, base, "si_sdr_spec")
    assert 0.3 < effect.low < effect.difference < effect.high < 0.7
    assert len(effect.by_seed) == 3 and 0 < effect.spread < 0.1
    assert effect.n == 12 and np.isclose(np.mean(effect.by_seed), effect.difference)
    unpaired = row | {"9": result(0.5, noise[1, 0])}
    assert row_effect(unpaired, base, "si_sdr_spec") == effect, "a seed without a partner counts"


def test_the_section_keeps_the_order_of_the_rows(tmp_path):
    quiet = np.zeros(12)
    report = {
        "rows": {name: {"why": "because", "changes": {}} for name in ("base", "b", "a")},
        "order": ["base", "b", "a"],
        "scored": {
            "a": {"0": result(-1.0, quiet)},
            "b": {"0": result(1.0, quiet)},
            "base": {"0": result(0.0, quiet)},
        },
        "steps": 5,
        "seeds": [0],
    }
    text, pictures = ablation_section(tmp_path, report, None)
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    assert [line.split("`")[1] for line in lines] == ["base", "b", "a"]
    assert "| 11.50 |  |  |" in lines[0]
    assert "| 12.50 | +1.00 [+1.00, +1.00] |  |" in lines[1], "one seed has no spread"
    assert pictures == ["ablation"] and (tmp_path / "ablation.png").stat().st_size > 0


def test_missing_stages_are_named(root, tmp_path, monkeypatch, capsys):
    for name in ("params.yaml", "settings.ini"):
        shutil.copy2(root / name, tmp_path / name)
    (tmp_path / "refs").mkdir()
    shutil.copy2(root / "refs" / "ablation.yaml", tmp_path / "refs")
    monkeypatch.chdir(tmp_path)
    refused(["ablation"], capsys, "features/clips/piano", "dvc repro prepare")
    refused(["ablation", "--sampling"], capsys, "train_piano@cop_velocity")
    refused(["ablation", "--rows", "pape"], capsys, "did you mean 'paper'")
    refused(["ablation", "--clips", "0"], capsys, "--clips is 0")
    shutil.copy2(root / "refs" / "injectors.yaml", tmp_path / "refs")
    refused(["ablation", "--injectors"], capsys, "dvc repro prepare")
    refused(["ablation", "--injectors", "--rows", "conca"], capsys, "did you mean 'concat'")


# The command, on two seconds of five études


def clip_items(root) -> tuple[list[Item], dict]:
    works = {score.work_id: score for score in etudes(root / "data" / "etudes")}
    plain = {"nuisance": 1.0, "start_s": 0.0, "timing": "crisp", "touch": "crisp"}
    items = []
    for i, work in enumerate(sorted(works)[:5]):
        split = "train" if i < 3 else "val"
        recipe = {**plain, "seed": i, "work": work}
        items.append(Item(f"c{i}", work, split, "piano", 2.0, TEXT, "piano", recipe=recipe))
    return items, works


def tiny_params(params: dict) -> dict:
    "The default parameters at sizes that train in seconds."
    train = {"steps": 2, "batch_size": 2, "warmup_steps": 1}
    made = merge(
        params,
        {
            "threads": 1,
            "train_renderer": {
                "renderer": {"width": 4, "kernel": 3, "dilations": [1]},
                "data": {"clips": 2, "duration_s": 2.0},
                "crop_s": 1.0,
                "train": train,
            },
            "train_piano": {
                "roll_stream": {"width": 8, "heads": 1},
                "crop_s": 1.0,
                "general_items": 1,
                "train": train,
            },
            "evaluate": {"sample": {"num_steps": 1}},
        },
    )
    return made


def save_models(models, store, split):
    "An untrained codec, encoders, stage-1 model and roll predictor."
    torch.manual_seed(0)
    codec = make_codec(CodecConfig(width=8, num_blocks=1)).eval()
    codec.fit_statistics(
        [prepare_wav(torch.from_numpy(store["wav"][:].astype(np.float32) / 32767))]
    )
    encoders = build_encoders(SMALL, learn_words([TEXT])).eval()
    streams = StreamConfig(16, 1, 16), StreamConfig(8, 1, 8)
    sizes = SMALL.embedded
    dit = DiTConfig(
        1,
        *streams,
        text_width=sizes.text_dim,
        video_features=sizes.image_dim,
        num_registers=2,
        max_positions=200,
        time_frequencies=4,
    )
    meta = {"split_hash": split, "latents": codec.latent_id}
    for name in ("codec", "encoders", "general", "roll"):
        (models / f"train_{name}").mkdir(parents=True)
    save_codec(models / "train_codec" / "codec.safetensors", codec, split)
    save_encoders(models / "train_encoders" / "encoders.safetensors", encoders, split)
    save_dit(models / "train_general" / "general.safetensors", MultiStreamDiT(dit), meta)
    predictor = build_roll(RollConfig(width=2, height=16, strip_width=104, pedal=True))
    save_roll(models / "train_roll" / "roll.safetensors", predictor, {"split_hash": split})
    return codec, encoders


@pytest.fixture(scope="module")
def finished(root, params, tmp_path_factory):
    "A checkout with a finished tiny run."
    folder = tmp_path_factory.mktemp("ablation")
    items, works = clip_items(root)
    for name in ("nbs", "cop_repro", "settings.ini"):
        (folder / name).symlink_to(root / name)
    (folder / "data").mkdir()
    (folder / "data" / "etudes").symlink_to(root / "data" / "etudes")
    write_manifest(folder / "data" / "manifest.json", items)
    split = read_manifest(folder / "data" / "manifest.json")[1]
    clips = folder / "features" / "clips" / "piano"
    store = piano_store(clips, items, works, StripSize(16, 104), 1, split_hash=split)
    codec, encoders = save_models(folder / "models", store, split)
    for name in ("piano", "general"):
        target = folder / "features" / "encoded" / name
        about = {"split_hash": split, "latents": codec.latent_id}
        encode_stores(target, [store], codec, encoders, 16, **about)
    predictor = load_roll(folder / "models" / "train_roll" / "roll.safetensors")[0]
    train = store.select(split="train")
    soft_store(folder / "features" / "rolls", predictor, store, train, split_hash=split)
    (folder / "params.yaml").write_text(yaml.safe_dump(tiny_params(params)))
    (folder / "refs").mkdir()
    rows = yaml.safe_load((root / "refs" / "ablation.yaml").read_text())
    kept = {name: rows[name] for name in ("base", "paper", "windows_2s")}
    kept["windows_2s"]["changes"]["evaluate"]["sample"]["overlap_s"] = 0.5
    (folder / "refs" / "ablation.yaml").write_text(yaml.safe_dump(kept, sort_keys=False))
    shutil.copy2(root / "refs" / "injectors.yaml", folder / "refs")
    return folder


def test_the_command_trains_each_model_once(finished, monkeypatch, capsys):
    monkeypatch.chdir(finished)
    command = ["ablation", "--seeds", "0", "1", "--clips", "2"]
    assert main(command) == 0
    made = json.loads((finished / "reports" / "ablation.json").read_text())
    assert made["order"] == ["base", "paper", "windows_2s"] and made["seeds"] == [0, 1]
    scored = made["scored"]
    models = {(n, s): r["model"] for n, seeds in scored.items() for s, r in seeds.items()}
    assert models["base", "0"] == models["windows_2s", "0"], "sampling needs no model of its own"
    assert len(set(models.values())) == 4
    assert len(list((finished / "work" / "ablation" / "renderers").iterdir())) == 2
    assert {c["clip_id"] for c in scored["base"]["0"]["clips"]} == {"c3", "c4"}
    assert np.isfinite([r["flow_loss"] for seeds in scored.values() for r in seeds.values()]).all()
    text, _ = ablation_section(finished / "figures", made, None)
    assert text.count("| `") == 3

    def no_training(*args, **options):
        raise AssertionError("a finished row is trained or scored again")

    monkeypatch.setattr(sound_ablation, "train", no_training)
    monkeypatch.setattr(sound_ablation, "play_clip", no_training)
    assert main(command) == 0
    assert json.loads((finished / "reports" / "ablation.json").read_text()) == made
    capsys.readouterr()


def test_a_row_trains_what_the_stage_trains(finished, tmp_path):
    "Renders in memory make the very weights that stored ones make."
    items, works = clip_items(finished)
    scores = [works[item.work_id] for item in items if item.split == "train"]
    run = FinishedRun(finished, tmp_path / "notes", lambda: scores)
    plans = _plans(_of_seed(load_params(finished / "params.yaml"), 0, 2), finished)
    renderer = trained_renderer(run, plans.renderer, tmp_path / "renderer", 0)
    ours = trained_piano(run, plans.piano, renderer, tmp_path / "ours", 0)
    soft_store(
        tmp_path / "rolls",
        load_roll(run.model("roll"))[0],
        run.clips,
        run.training_rows,
        renderer=load_renderer(renderer)[0],
        split_hash=run.split,
        renderer_hash=file_hash(renderer),
    )
    features = finished / "features"
    stores = {
        "clips": features / "clips" / "piano",
        "encoded": features / "encoded" / "piano",
        "general": features / "encoded" / "general",
        "rolls": tmp_path / "rolls",
    }
    place, plan = Place(stores, tmp_path / "run", tmp_path / "stage.safetensors"), plans.piano
    train_piano(
        place,
        run.model("general"),
        run.model("roll"),
        plan.stream,
        plan.guidance,
        plan.train,
        plan.crop_s,
        plan.general_items,
        plan.dropout,
        "cop_velocity",
        renderer=renderer,
    )
    mine, theirs = (load_weights(path)[0] for path in (ours, place.made))
    assert set(mine) == set(theirs)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert not (tmp_path / "ours" / "run").exists(), "checkpoints of a finished training remain"


def test_an_interrupted_row_resumes(finished, tmp_path, monkeypatch):
    "What a stopped training has done is not done again, and the weights are the same."
    run = FinishedRun(finished, tmp_path / "notes", list)
    params = load_params(finished / "params.yaml")
    changed = {"train_piano": {"variants": {"cop_velocity": {"start": "noise"}}}}
    plan = _plans(_of_seed(merge(params, changed), 0, 3), finished).piano
    whole = trained_piano(run, plan, None, tmp_path / "a" / "row", 0)
    original, steps = sound_ablation.guidance_step, []

    def stopping(*args):
        step_fn = original(*args)

        def step(number, part, parts):
            steps.append(number)
            if steps == [0, 1]:
                raise KeyboardInterrupt
            return step_fn(number, part, parts)

        return step

    monkeypatch.setattr(sound_ablation, "SAVE_EVERY", 1)
    monkeypatch.setattr(sound_ablation, "guidance_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        trained_piano(run, plan, None, tmp_path / "b" / "row", 0)
    resumed = trained_piano(run, plan, None, tmp_path / "b" / "row", 0)
    assert steps == [0, 1, 1, 2]
    mine, theirs = (load_weights(path)[0] for path in (whole, resumed))
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_clip_is_played_as_the_system_plays_it(finished, tmp_path):
    run = FinishedRun(finished, tmp_path, list)
    plans = _plans(_of_seed(load_params(finished / "params.yaml"), 0, 2), finished)
    noise = _plans(
        merge(
            load_params(finished / "params.yaml"),
            {"train_piano": {"variants": {"cop_velocity": {"start": "noise"}}}},
        ),
        finished,
    )
    model = trained_piano(run, noise.piano, None, tmp_path / "model", 0)
    performer, clip = load_sound(run, model, plans.sample), store_clip(run.clips, 3)
    played = play_clip(performer, clip, {"one": plans.sample}, 5)
    system = CopSystem(performer, seed=5).predict(clip)
    assert np.array_equal(played.wavs["one"], system.wav) and played.notes == system.notes
    assert len(played.wavs["one"]) == RATES.samples(2.0)


def test_every_injector_trains_plays_and_is_priced(finished, tmp_path, monkeypatch, capsys):
    "Three models of one parent, played as any model is; the cost of each is measured once."
    monkeypatch.chdir(finished)
    command = ["ablation", "--injectors", "--seeds", "0", "--clips", "2"]
    assert main(command) == 0
    made = json.loads((finished / "reports" / "injectors.json").read_text())
    assert made["order"] == ["extra_dit", "controlformer", "concat"]
    width, weights = 16, {name: cost["weights"] for name, cost in made["costs"].items()}
    assert weights["concat"] == 89 * width < weights["extra_dit"] < weights["controlformer"]
    assert all(cost["step_seconds"] > 0 for cost in made["costs"].values())
    text, pictures = injector_section(tmp_path, made)
    assert pictures == ["injectors"] and (tmp_path / "injectors.png").stat().st_size > 0
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    assert [line.split("`")[1] for line in lines] == made["order"]
    run = FinishedRun(finished, tmp_path, list)
    sample = _plans(load_params(finished / "params.yaml"), finished).sample
    clip = store_clip(run.clips, 3)
    for name in made["order"]:
        folder = finished / "work" / "ablation" / "models" / made["scored"][name]["0"]["model"]
        performer = load_sound(run, folder / "piano.safetensors", sample)
        assert performer.piano.dit.config == load_piano(folder / "piano.safetensors")[0].dit.config
        assert isinstance(performer.piano.dit, InjectedDiT) == (name != "extra_dit")
        sound = CopSystem(performer, seed=5).predict(clip).wav
        assert len(sound) == RATES.samples(2.0) and np.isfinite(sound).all()

    def no_training(*args, **options):
        raise AssertionError("a finished row is trained, scored or timed again")

    for module, call in ((sound_ablation, "train"), (injectors, "train")):
        monkeypatch.setattr(module, call, no_training)
    assert main(command) == 0
    assert json.loads((finished / "reports" / "injectors.json").read_text()) == made
    capsys.readouterr()


def test_rolls_of_other_clips_change_the_loss_of_a_network_that_uses_them(finished, tmp_path):
    "At the start no way of injecting the roll uses it; with moved weights every one does."
    run = FinishedRun(finished, tmp_path, list)
    params = load_params(finished / "params.yaml")
    rows = run.clips.select(split="val").tolist()
    for way in ("extra_dit", "controlformer", "concat"):
        changes = {"start": "noise", "injector": way}
        changed = {"train_piano": {"variants": {"cop_velocity": changes}}}
        model = piano_training(run, _plans(merge(params, changed), finished).piano, None, 0)[0]
        losses = {}
        for state in ("fresh", "moved"):
            losses[state] = [flow_loss(model.eval(), run.columns, rows, 1.0, s) for s in (0, 1)]
            with torch.no_grad():
                for p in model.dit.parameters():
                    p.add_(torch.randn(p.shape, generator=torch_rng(0, "stir")), alpha=0.1)
        assert losses["fresh"][0] == losses["fresh"][1], way
        assert losses["moved"][0] != losses["moved"][1], way


def test_the_sampling_study_scores_every_way(finished, tmp_path, monkeypatch, capsys):
    run = FinishedRun(finished, tmp_path, list)
    params = load_params(finished / "params.yaml")
    changed = {"train_piano": {"variants": {"cop_velocity": {"start": "noise"}}}}
    plans = _plans(_of_seed(merge(params, changed), 0, 1), finished)
    model = trained_piano(run, plans.piano, None, tmp_path / "model", 0)
    target = finished / "models" / "train_piano" / "cop_velocity"
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy2(model, target / "piano.safetensors")
    monkeypatch.chdir(finished)
    assert main(["ablation", "--sampling", "--clips", "1"]) == 0
    made = json.loads((finished / "reports" / "sampling.json").read_text())
    assert set(made["order"]) - set(sampling_changes()) == {"as in the tables"}
    cold, warm = (made["scored"][f"w 2, temperature {t}"][0]["metrics"] for t in (0, 1))
    assert cold != warm
    text, pictures = ablation_section(tmp_path, None, made)
    assert pictures == ["sampling"] and "| projected (APG), w 2 |" in text
    capsys.readouterr()
