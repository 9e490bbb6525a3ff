# SPDX-License-Identifier: Apache-2.0
"`cop ablation --parts`: rows, what is kept, pairing, tables, and both studies on tiny data."

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from test_apvg import played
from test_cli_manners import refused
from test_cmt import LIST, SMALL, TINY, invented
from test_cmt import scene as drawn_scene

from cop_repro.cli import _parts, _parts_apvg, _parts_vmusprod, main
from cop_repro.cli._parts import STUDIES, Plan, kept, load_plan, trained_row, training_table
from cop_repro.cli._parts_apvg import TRUE, interval_table, tables_of
from cop_repro.cli._parts_vmusprod import music_from, music_to, speed_effects
from cop_repro.core import CopError, ParamsError, from_dict, write_json
from cop_repro.data.clips import fill_store, index_row
from cop_repro.data.scenes import SceneList, SceneWork, make_window, write_scene_list
from cop_repro.evaluation.composition import FULL
from cop_repro.judges.vmcp import VmcpConfig, make_vmcp, save_vmcp
from cop_repro.model.compound import CompoundTransformer, save_compound
from cop_repro.model.keypoints import Animator, AnimatorConfig, save_animator
from cop_repro.model.roll import RollConfig, build_roll, save_roll
from cop_repro.systems import apvg_training, vmusprod
from cop_repro.systems.apvg_training import ApvgSettings
from cop_repro.systems.cmt import Scale, SceneSet, music_of
from cop_repro.systems.vmusprod import VMusProdSettings, networks
from cop_repro.training.loop import TrainConfig

SETTINGS = {"vmusprod": VMusProdSettings, "apvg": ApvgSettings}


# Rows


@pytest.mark.parametrize("system", STUDIES)
def test_rows_differ_in_their_networks_alone(system, root):
    plan = load_plan(root, system, (None, 8, 0))
    made = {row: from_dict(SETTINGS[system], plan.settings_of(row)) for row in plan.rows}
    first = vars(made[plan.first])
    for row, settings in made.items():
        differing = {name for name, value in vars(settings).items() if value != first[name]}
        assert differing == (set() if row == plan.first else {"net"}), row
    assert len({settings.net for settings in made.values()}) == len(made) >= 4


def test_the_rows_of_vmusprod_have_as_many_weights(root):
    plan = load_plan(root, "vmusprod", (None, 8, 0))
    nets = [from_dict(VMusProdSettings, plan.settings_of(row)).net for row in plan.rows]
    counts = [sum(p.numel() for p in networks(net).parameters()) for net in nets]
    assert plan.first == FULL and max(counts) < 1.01 * min(counts)


def test_steps_and_seed_are_those_of_the_command(root):
    plan = load_plan(root, "apvg", (7, 8, 3), wanted="no_graph")
    assert (plan.train.steps, plan.train.warmup_steps, plan.train.seed) == (7, 7, 3)
    assert list(plan.rows) == ["all_parts", "no_graph"]
    other = load_plan(root, "apvg", (8, 8, 3), wanted="no_graph")
    assert plan.folder({"a": "b"}) != other.folder({"a": "b"}) != other.folder({"a": "c"})


def test_a_first_row_that_lacks_something_is_refused(tmp_path):
    rows = {"no_motion": {"motion": False}, "full": {}}
    (tmp_path / "refs").mkdir()
    study = {"settings": {}, "train": {"steps": 1, "batch_size": 1, "learning_rate": 1.0}}
    (tmp_path / "refs" / "parts.yaml").write_text(
        yaml.safe_dump({"x": {**study, "rows": rows}}, sort_keys=False)
    )
    with pytest.raises(ParamsError, match="no_motion is the first row"):
        load_plan(tmp_path, "x", (None, 8, 0))


def test_wrong_arguments_are_one_line(root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(root)

    def work(*args, **options):
        raise AssertionError("the work has begun before the arguments were checked")

    for module in (_parts_apvg, _parts_vmusprod):
        monkeypatch.setattr(module, "study", work)
    command = ["ablation", "-o", tmp_path / "a.json", "--parts"]
    with pytest.raises(SystemExit) as stopped:
        main([*map(str, command), "apv"])
    text = capsys.readouterr().err
    assert stopped.value.code == 2 and len(text.splitlines()) == 1 and "'apvg'" in text
    refused([*command, "apvg", "--rows", "no_grap"], capsys, "did you mean 'no_graph'")
    refused([*command, "apvg", "--rows", "all_parts"], capsys, "a row beside all_parts")
    refused([*command, "apvg", "--clips", "1"], capsys, "--clips is 1", "2")
    refused([*command, "apvg", "--scenes", "9"], capsys, "--scenes is for --parts vmusprod")
    refused([*command, "vmusprod", "--scenes", "4"], capsys, "--scenes is 4", "5")
    refused(["ablation", "--parts", "apvg", "-o", tmp_path / "a.md"], capsys, "JSON")
    assert not any(tmp_path.iterdir())


def test_missing_features_are_named_with_their_stage(root, tmp_path, monkeypatch, capsys):
    checkout(root, tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    shutil.copy2(root / "data" / "scenes.json", tmp_path / "data")
    refused(["ablation", "--parts", "vmusprod"], capsys, "dvc repro prepare_scenes")
    refused(["ablation", "--parts", "apvg"], capsys, "dvc repro prepare")


# What is kept


def outcome(resumed=0):
    result = SimpleNamespace(resumed_from=resumed)
    return SimpleNamespace(parameters=12, measured={"loss": float("nan")}, result=result)


def test_a_trained_row_is_not_trained_again(tmp_path):
    calls = []

    def fit(scratch, made):
        calls.append(scratch)
        made.write_bytes(b"weights")
        return outcome()

    weights, about = trained_row(tmp_path, "full", fit)
    assert about["parameters"] == 12 and about["measured"] == {"loss": None}
    assert about["cpu_seconds"] >= 0
    assert trained_row(tmp_path, "full", fit) == (weights, about) and len(calls) == 1
    weights.unlink()
    trained_row(tmp_path, "full", fit)
    assert len(calls) == 2 and calls[0] == calls[1]


def test_a_resumed_training_states_no_cost(tmp_path):
    def fit(scratch, made):
        made.write_bytes(b"weights")
        return outcome(resumed=50)

    assert trained_row(tmp_path, "full", fit)[1]["cpu_seconds"] is None


def test_what_is_kept_is_what_was_computed(tmp_path):
    path = tmp_path / "a" / "b.json"
    assert kept(path, lambda: {"x": (1.5, float("nan"))}) == {"x": [1.5, None]}
    assert kept(path, lambda: 1 / 0) == {"x": [1.5, None]}


def test_music_survives_its_file():
    music = music_of(invented(1))
    stored = json.loads(json.dumps(music_to(music)))
    assert music_from(stored) == music


# Tables


def lines(row, shift, seed=0):
    "Twelve clips of four works: the work decides most of a score."
    works = np.repeat(np.random.default_rng(seed).uniform(0.2, 0.8, 4), 3)
    metrics = ("frame_f1", "onset_f1", "motion_error")
    return [
        {"row": row, "clip_id": f"c{i}", "work_id": f"w{i // 3}"}
        | dict.fromkeys(metrics, v + shift)
        for i, v in enumerate(works)
    ]


def test_differences_are_paired_by_clip():
    turned = lines("no_graph", -0.1)[::-1]  # clips may come in any order
    means, effects = tables_of(lines("all_parts", 0) + turned, "all_parts")
    assert list(effects) == ["no_graph"]
    np.testing.assert_allclose(effects["no_graph"]["onset_f1"], -0.1)
    mean, low, high = means["all_parts"]["onset_f1"]
    assert high - low > 0.1, "works differ far more than rows"
    table = interval_table(effects, signed=True)
    assert table.splitlines()[2].startswith("| no_graph | -0.100 [-0.100, -0.100] |")
    with pytest.raises(CopError, match="no_graph"):
        tables_of(lines("all_parts", 0) + turned[1:], "all_parts")


def test_the_training_table_has_a_cell_for_everything():
    rows = {
        "full": {"parameters": 2000, "cpu_seconds": 3.6, "measured": {"loss_a": 1.0}},
        "one": {"parameters": 1999, "cpu_seconds": None, "measured": {"loss_b": 2.0}},
    }
    text = training_table(rows).splitlines()
    assert text[0] == "| row | weights | CPU-seconds | loss a | loss b |"
    assert text[2:] == ["| full | 2,000 | 4 | 1 | - |", "| one | 1,999 | - | - | 2 |"]


@pytest.fixture(scope="module")
def scenes():
    return [drawn_scene(i) for i in range(6)]


def test_following_the_speed_is_compared_with_the_full_model(scenes):
    test = SceneSet.of(scenes, Scale.fit(scenes))
    real = [music_of(scene.window) for scene in scenes]
    other = real[1:] + real[:1]
    effects = speed_effects({FULL: real, "same": real, "moved": other, "real": real}, test)
    assert set(effects) == {"same", "moved"} and effects["same"] == (0, 0, 0)
    value, low, high = effects["moved"]
    assert low <= value <= high < 0


# The command on tiny data


def checkout(root, folder, **studies):
    "What the command needs of a checkout, with small rows."
    for name in ("params.yaml", "settings.ini"):
        shutil.copy2(root / name, folder / name)
    listed = yaml.safe_load((root / "refs" / "parts.yaml").read_text())
    for system, net in studies.items():
        listed[system]["settings"]["net"] = net
        listed[system]["train"] |= {"steps": 2, "batch_size": 2, "warmup_steps": 1}
    (folder / "refs").mkdir()
    (folder / "refs" / "parts.yaml").write_text(yaml.safe_dump(listed, sort_keys=False))


def run_twice(command, folder, monkeypatch, *computations):
    "The report of a command that computes once and, the second time, reads."
    monkeypatch.chdir(folder)
    output = folder / "reports" / "parts" / f"{command[2]}.json"
    assert main(command) == 0
    made, text = json.loads(output.read_text()), output.with_suffix(".md").read_text()

    def computed(*args, **options):
        raise AssertionError("a finished row is computed again")

    for module, name in computations:
        monkeypatch.setattr(module, name, computed)
    assert main(command) == 0
    assert json.loads(output.read_text()) == made and output.with_suffix(".md").read_text() == text
    return made, text


def test_the_parts_of_vmusprod(root, scenes, tmp_path, monkeypatch):
    net = {"width": SMALL.width, "depth": 1, "heads": 2, "hidden": 32}
    checkout(root, tmp_path, vmusprod=net)
    (tmp_path / "features" / "music_scenes").mkdir(parents=True)
    for split in ("train", "val", "test"):
        (tmp_path / "features" / "music_scenes" / f"{split}.safetensors").write_bytes(b"x")
    works = {f"bach/{i}": SceneWork("test", (0,), 120.0, 0) for i in range(6)}
    listed = SceneList(0, works, LIST.density_counts)
    write_json(tmp_path / "data" / "scenes.json", write_scene_list(listed))
    assets = tmp_path / "data" / "assets"
    judge = make_vmcp(VmcpConfig(16, 16, 1, 2, 8))
    judge.split_hash = listed.split_hash
    save_vmcp(assets / "vmcp.safetensors", judge)
    about = {"kind": "cmt", "scenes": listed.split_hash, "scale": Scale.fit(scenes).described()}
    save_compound(assets / "cmt.safetensors", CompoundTransformer(TINY), about)
    second = [
        make_window([(0, 60, 4, 0), (8, 64, 4, 0)], 8, 120.0, f"bach/{i}", start_bar=8)
        for i in range(6)
    ]
    windows = [scene.window for scene in scenes] + second
    monkeypatch.setattr(_parts_vmusprod, "load_windows", lambda *_: windows)
    for module in (_parts_vmusprod, vmusprod):
        monkeypatch.setattr(module, "load_scenes", lambda *_: scenes)
    command = [
        "ablation",
        "--parts",
        "vmusprod",
        "--scenes",
        "5",
        "--rows",
        "no_motion,one_decoder",
    ]
    again = ((_parts_vmusprod, "fit_vmusprod"), (_parts_vmusprod, "composed_rows"))
    made, text = run_twice(command, tmp_path, monkeypatch, *again)
    assert made["order"] == [FULL, "no_motion", "one_decoder", "real"] and made["n"] == 5
    assert made["label"] == "embedded" and made["seed"] == 0 and made["train"]["steps"] == 2
    assert len(made["rows"][FULL]["chord_tones"]) == len(made["rows"]["real"]["ranks"]) == 5
    assert set(made["effects"]) == {"no_motion", "one_decoder"}
    assert {"average_rank", "speed_correlation"} < set(made["effects"]["no_motion"])
    assert text.count("| one_decoder |") == 3 and "on 5 test scenes" in text
    assert made["made_by"]["seed"] == 0


def test_the_parts_of_apvg(root, tmp_path, monkeypatch):
    net = {"hidden": 8, "width": 8, "coarse": 4, "unet": 4}
    checkout(root, tmp_path, apvg=net)
    size, assets = (48, 520), tmp_path / "data" / "assets"
    clips = [played("t", [60, 64], size=size), played("v", [62], "val", size)]
    clips += [played(name, keys, "test", size) for name, keys in (("x", [57]), ("y", [72, 76]))]
    index = [index_row(c, "clean" if c.split == "test" else "nuisance") for c in clips]
    columns = {"wav": ((48_000,), "int16"), "strips": ((50, *size), "uint8")}

    def make(i):
        wav = (clips[i].wav * 32767).round().astype(np.int16)
        return {"wav": wav, "strips": clips[i].strips}

    folder = tmp_path / "features" / "clips" / "piano"
    fill_store(folder, index, columns, make, range(4), 1, split_hash="toy")
    torch.manual_seed(0)
    start = Animator(AnimatorConfig(**net))
    save_animator(assets / "apvg.safetensors", start, {"split_hash": "toy"})
    predictor = build_roll(RollConfig(width=2))
    save_roll(assets / "cycle_roll.safetensors", predictor, {"split_hash": "toy"})
    command = ["ablation", "--parts", "apvg", "--rows", "no_graph,no_heatmaps"]
    again = ((apvg_training, "train"), (_parts_apvg, "load_cycle_systems"))
    made, text = run_twice(command, tmp_path, monkeypatch, *again)
    weights = [made["rows"][row]["parameters"] for row in ("all_parts", "no_graph", "no_heatmaps")]
    assert weights == sorted(set(weights), reverse=True)
    assert len(made["scored"]) == 2 * 4 and made["means"][TRUE]["motion_error"][0] == 0
    assert set(made["effects"]) == {"no_graph", "no_heatmaps", TRUE}
    assert text.count("| no_graph |") == 3 and "on 2 test clips of 2 works" in text
    (run,) = (tmp_path / "work" / "parts" / "apvg").iterdir()
    targets = [run / "checkpoints" / row / "targets" for row in made["rows"]]
    assert [path.is_symlink() for path in targets] == [False, True, True]


def test_a_killed_study_goes_on_with_the_row_it_was_at(tmp_path, monkeypatch):
    "The first row is kept, and the second one resumes in its own folder."
    plan = Plan("x", tmp_path, {"net": {}}, TrainConfig(1, 1, 1.0), {"a": {}, "b": {}}, 2, "code")
    folder, tried = plan.folder({}), []

    def fit(scratch, made):
        tried.append(scratch.name)
        if len(tried) == 2:
            raise KeyboardInterrupt
        made.write_bytes(b"weights")
        return outcome(resumed=int(len(tried) == 3))

    with pytest.raises(KeyboardInterrupt):
        for row in plan.rows:
            _parts.trained_row(folder, row, fit)
    found = {row: _parts.trained_row(folder, row, fit)[1] for row in plan.rows}
    assert tried == ["a", "b", "b"] and found["b"]["cpu_seconds"] is None
