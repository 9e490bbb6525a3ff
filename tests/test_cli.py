# SPDX-License-Identifier: Apache-2.0
"""The command line: a rendered video in, five files out.

Damaged videos give one clear line, exit code 2 and nothing on disk.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from cop_repro.cli import main, parse
from cop_repro.core import load_weights, save_weights
from cop_repro.data.notes import read_midi
from cop_repro.data.performance import PIANISTS, assign_fingers, etudes, perform
from cop_repro.data.rendering import Nuisance, render
from cop_repro.data.video import iter_video, probe_video, write_video
from cop_repro.evaluation.claims import read_results
from cop_repro.measure.music_metrics import onset_scores


@pytest.fixture(scope="module")
def video(root, tmp_path_factory):
    "Four seconds of an étude at 30 fps, 640 x 192, and its notes."
    notes = perform(
        etudes(root / "data" / "etudes")[3], PIANISTS["crisp"], PIANISTS["crisp"], 1
    ).crop(1, 5)
    path = tmp_path_factory.mktemp("video") / "video.mp4"
    write_video(
        path,
        render(
            notes, assign_fingers(notes), 4.0, "top", Nuisance.none(), (192, 640), 30.0, seed=0
        ).frames,
        30.0,
    )
    return path, notes


@pytest.fixture(scope="module")
def performed(video, tmp_path_factory):
    "The folder of one performance with the default options."
    out = tmp_path_factory.mktemp("performed") / "out"
    assert main(["perform", str(video[0]), "-o", str(out)]) == 0
    return out


def test_perform(video, tmp_path, capsys):
    path, notes = video
    options = ["--seed", "3", "--lag", "0"]  # keys of a rendered video do not move early
    assert main(["perform", str(path), "-o", str(tmp_path / "out"), *options]) == 0
    out = tmp_path / "out"
    assert sorted(p.name for p in out.iterdir()) == [
        "notes.mid",
        "picture.png",
        "report.json",
        "sound.wav",
        "video.mp4",
    ]
    wav, rate = soundfile.read(out / "sound.wav")
    assert rate == 24000 and abs(len(wav) / rate - 4.0) < 0.05 and np.abs(wav).max() > 0.1
    info = probe_video(out / "video.mp4")
    assert (
        info.sample_rate
        and (info.width, info.height) == (640, 192)
        and abs(info.frame_rate - 30) < 0.1
    )
    report, found = json.loads((out / "report.json").read_text()), read_midi(out / "notes.mid")
    assert (
        report["notes"] == len(found) > len(notes) // 3 and report["keyboard"]["confidence"] > 0.3
    )
    assert report["lag_ms"] == 0 and report["key_motion"] is None  # a silent video
    near = sum(
        any(p == q and abs(a - b) < 0.1 for p, a in zip(found.pitches, found.onsets_s))
        for q, b in zip(notes.pitches, notes.onsets_s)
    )
    assert near > 0.5 * len(notes), f"{near} of {len(notes)} notes found on a clean video"


def test_perform_twice_is_the_same(video, performed, tmp_path):
    assert main(["perform", str(video[0]), "-o", str(tmp_path / "again")]) == 0
    for name in ("sound.wav", "notes.mid", "video.mp4", "picture.png"):
        assert (performed / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_corners_given_by_hand(video, performed, tmp_path):
    "The finder's corners, typed in, make the same performance; the report rates their match."
    found = json.loads((performed / "report.json").read_text())["keyboard"]
    assert (
        main(
            [
                "perform",
                str(video[0]),
                "-o",
                str(tmp_path / "typed"),
                "--corners",
                " ".join(f"{x},{y}" for x, y in found["corners"]),
            ]
        )
        == 0
    )
    typed = json.loads((tmp_path / "typed" / "report.json").read_text())["keyboard"]
    assert (
        np.abs(np.subtract(typed["corners"], found["corners"])).max() <= 0.5  # corrected, in pixels
        and abs(typed["confidence"] - found["confidence"]) < 0.1
    )
    one, other = (read_midi(folder / "notes.mid") for folder in (performed, tmp_path / "typed"))
    assert onset_scores(one.onsets_s, one.pitches, other.onsets_s, other.pitches)["onset_f1"] > 0.9


def refused(arguments: list[str], capsys, *words: str, folder: Path | None = None) -> str:
    assert main(arguments) == 2
    text = capsys.readouterr().err.strip()
    assert len(text.splitlines()) == 1 and all(w in text for w in words), text
    if folder is not None:
        assert not folder.exists() and not list(folder.parent.glob(f".{folder.name}*")), (
            "something half-written is left"
        )
    return text


def test_camera_on_its_side(video, performed, tmp_path):
    "A telephone held upright: the same keys are read."
    frames = list(iter_video(video[0], 30.0))
    write_video(tmp_path / "side.mp4", [np.ascontiguousarray(np.rot90(f)) for f in frames], 30.0)
    assert main(["perform", str(tmp_path / "side.mp4"), "-o", str(tmp_path / "side")]) == 0
    up, side = (read_midi(folder / "notes.mid") for folder in (performed, tmp_path / "side"))
    assert onset_scores(up.onsets_s, up.pitches, side.onsets_s, side.pitches)["onset_f1"] > 0.8


def test_camera_that_moves(video, tmp_path, capsys):
    frames = list(iter_video(video[0], 30.0))
    write_video(
        tmp_path / "pushed.mp4",
        [np.roll(f, 9 * (i > 75), axis=1) for i, f in enumerate(frames)],
        30.0,
    )  # by most of a key after 2.5 s
    refused(
        ["perform", str(tmp_path / "pushed.mp4"), "-o", str(tmp_path / "out")],
        capsys,
        "camera moves",
        "2 s",
        folder=tmp_path / "out",
    )


def test_damaged_videos(video, tmp_path, capsys):
    whole = video[0].read_bytes()
    cases = {
        "empty.mp4": b"",
        "text.mp4": b"not a video at all" * 10,
        "cut.mp4": whole[: len(whole) // 3],
    }
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        refused(
            ["perform", str(tmp_path / name), "-o", str(tmp_path / "out")],
            capsys,
            name,
            folder=tmp_path / "out",
        )
    refused(
        ["perform", str(tmp_path / "nothing.mp4"), "-o", str(tmp_path / "out")],
        capsys,
        "nothing.mp4",
        folder=tmp_path / "out",
    )
    soundfile.write(tmp_path / "sound.wav", np.zeros(24000), 24000)
    shutil.move(tmp_path / "sound.wav", tmp_path / "sound.mp4")
    refused(
        ["perform", str(tmp_path / "sound.mp4"), "-o", str(tmp_path / "out")],
        capsys,
        "sound.mp4",
        folder=tmp_path / "out",
    )


def test_no_keyboard(tmp_path, capsys):
    frames = np.random.default_rng(0).integers(0, 255, (30, 120, 320, 3), dtype=np.uint8)
    write_video(tmp_path / "noise.mp4", frames, 25.0)
    refused(
        ["perform", str(tmp_path / "noise.mp4"), "-o", str(tmp_path / "out")],
        capsys,
        "keyboard",
        "--corners",
        folder=tmp_path / "out",
    )
    refused(
        ["perform", str(tmp_path / "noise.mp4"), "-o", str(tmp_path / "out"), "--corners", "1,2 3"],
        capsys,
        "corners",
        folder=tmp_path / "out",
    )


def test_asset_of_another_split_or_codec(video, root, tmp_path, capsys):
    assets = tmp_path / "assets"
    shutil.copytree(root / "data" / "assets", assets)
    tensors, meta = load_weights(assets / "piano.safetensors")
    save_weights(assets / "piano.safetensors", tensors, {**meta, "split_hash": "0" * 16})
    refused(
        ["perform", str(video[0]), "-o", str(tmp_path / "out"), "--assets", str(assets)],
        capsys,
        "split",
        folder=tmp_path / "out",
    )
    save_weights(assets / "piano.safetensors", tensors, {**meta, "latents": "0" * 12})
    refused(
        ["perform", str(video[0]), "-o", str(tmp_path / "out"), "--assets", str(assets)],
        capsys,
        "learnt latents 000000000000",
        folder=tmp_path / "out",
    )
    (assets / "codec.safetensors").unlink()
    refused(
        ["perform", str(video[0]), "-o", str(tmp_path / "out"), "--assets", str(assets)],
        capsys,
        "codec.safetensors",
        folder=tmp_path / "out",
    )


def test_unknown_things(root, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(root)
    refused(["run", "train_everything"], capsys, "train_everything", "prepare")
    refused(["run", "prepare", "--params", "nothing.yaml"], capsys, "nothing.yaml")
    refused(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")], capsys, "a.json")
    (tmp_path / "bad.json").write_text("{}")
    refused(
        ["compare", str(tmp_path / "bad.json"), str(tmp_path / "bad.json")],
        capsys,
        "not a result file",
    )


def test_unknown_parameter_stops_a_stage(root, tmp_path, monkeypatch):
    "A misspelt key in a stage's section ends the run with its name."
    import yaml

    from cop_repro.core import ParamsError
    from cop_repro.model.roll import RollConfig
    from cop_repro.pipeline import open_stage

    params = yaml.safe_load((root / "params.yaml").read_text())
    params["train_roll"]["roll"]["widht"] = 3
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.chdir(root)
    with pytest.raises(ParamsError, match="widht"):
        open_stage("train_roll", str(tmp_path / "params.yaml")).config(RollConfig, "roll")


def test_committed_results_compare_with_themselves(root, capsys):
    path = str(root / "reports" / "results.json")
    assert main(["compare", path, path]) == 0 and " 0 differ" in capsys.readouterr().out


def test_doctor(root, monkeypatch, capsys):
    monkeypatch.chdir(root)
    main(["doctor"])
    assert "torch" in capsys.readouterr().out


def test_release_names_its_assets(capsys):
    assert main(["release", "codek.safetensors"]) == 2
    message = capsys.readouterr().err
    assert "no asset 'codek.safetensors' (did you mean 'codec.safetensors'?)" in message
    assert "assets are codec.safetensors, encoders.safetensors" in message


def test_release_writes_all_or_nothing(root, tmp_path, monkeypatch, capsys):
    "The last asset lacks its model or is damaged: the others are not replaced either."
    from cop_repro.cli import release

    assets, made = tmp_path / "data" / "assets", tmp_path / "work" / "profiles" / "mine"
    assets.mkdir(parents=True)
    (assets / "codec.safetensors").write_bytes(b"old")
    shutil.copy2(root / "params.yaml", tmp_path)
    for stage in ("codec", "judges"):
        (made / "models" / f"train_{stage}").mkdir(parents=True)
    codec, judges = (
        made / "models" / f"train_{n}" / f"{n}.safetensors" for n in ("codec", "judges")
    )
    save_weights(codec, {"w": torch.ones(2)}, {"asset": "codec"})
    called = []
    monkeypatch.setattr(release, "project_root", lambda: tmp_path)
    monkeypatch.setattr(
        release.subprocess, "run", lambda command, **options: called.append(command)
    )
    arguments = ["release", "--profile", "mine", "codec.safetensors", "judges.safetensors"]
    refused(arguments, capsys, "judges.safetensors", "nothing is released")
    judges.write_bytes(b"half")
    refused(arguments, capsys, "judges.safetensors", "not a readable safetensors file")
    assert (assets / "codec.safetensors").read_bytes() == b"old" and not called
    assert [path.name for path in assets.iterdir()] == ["codec.safetensors"]
    save_weights(judges, {"w": torch.ones(2)}, {})
    assert main(arguments) == 0
    about = load_weights(assets / "codec.safetensors")[1]
    source = "work/profiles/mine/models/train_codec/codec.safetensors"
    assert about["released_from"] == {"model": source}
    assert [command[:2] for command in called] == [["dvc", "add"], ["dvc", "push"]]


def test_real_clip(real_folder, tmp_path):
    "The real recording, its sound unused: keyboard found, notes written, as long as the video."
    video = next(real_folder.glob("pianoyt_*.mp4"))
    assert main(["perform", str(video), "-o", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (
        report["keyboard"]["confidence"] > 0.5
        and report["notes"] > 20
        and abs(report["duration_s"] - 10) < 0.1
    )


def test_race_car_is_no_piano(real_folder, tmp_path, capsys):
    refused(
        ["perform", str(next(real_folder.glob("vggsound_*.mp4"))), "-o", str(tmp_path / "out")],
        capsys,
        "keyboard",
        folder=tmp_path / "out",
    )


def test_readme_shows_the_committed_results(root, monkeypatch):
    monkeypatch.chdir(root)
    assert main(["readme", "--check"]) == 0


def test_readme_quotes_measured_numbers(root):
    "The paragraph below the claims says what the result file says."
    text = " ".join((root / "README.md").read_text().split())
    lines = read_results(root / "reports" / "results.json").lines
    ours = {(r["row"], r["metric"]): r["value"] for r in lines if r["label"] == "embedded"}
    for row, metrics in {
        "cop_piano": ("si_sdr_spec", "transcription_f1"),
        "no_guidance": ("si_sdr_spec", "transcription_f1"),
        "cop_shipped": ("si_sdr_spec", "transcription_f1"),
        "regression": ("si_sdr_spec", "transcription_f1"),
        "audeo_style": ("si_sdr_spec",),
        "audeo_style_different_piano": ("si_sdr_spec",),
    }.items():
        db = f"{ours[row, 'si_sdr_spec']:.1f} dB"
        f1 = f"{ours[row, 'transcription_f1']:.2f}"
        quoted = (f"{db} (`si_sdr_spec`) and a transcription F1 of {f1}", f"{db} and {f1}")
        wanted = quoted if len(metrics) == 2 else (f"{db} with",)
        assert any(words in text for words in wanted), row
    real = {r["metric"]: r["value"] for r in lines if r["row"] == "cop_perform"}
    assert f"onset F1 of {real['onset_f1']:.2f}, and {real['lag_onset_f1']:.2f} at" in text
    assert len((root / "README.md").read_text().splitlines()) <= 100


@pytest.mark.parametrize(
    "place, key, why",
    [
        ("train_general", "t2a_stepz", "t2a_steps"),
        ("evaluate", "clipz", "clips"),
        ("evaluate.variants.piano.cop_piano", "smaple", "sample"),
        ("", "sed", "seed"),
        ("train_piano.variants.cop_piano", "base_shar", "base_share"),
        ("evaluate.variants.general.base.sample", "cfg_strenght", "cfg_strength"),
        ("train_preference.variants.dpo.settings", "ancor", "anchor"),
        ("train_general.dit.audio", "widht", "width"),
        ("machines", "proceses", "processes"),
    ],
)
def test_unknown_and_missing_parameters(root, tmp_path, monkeypatch, place, key, why):
    "A misspelt key stops every stage of its section and names the key that was meant."
    import yaml

    from cop_repro.core import ParamsError
    from cop_repro.parameters import check_params
    from cop_repro.pipeline import open_stage

    monkeypatch.chdir(root)
    params = yaml.safe_load((root / "params.yaml").read_text())
    section = params
    for part in place.split(".") if place else ():
        section = section[part]
    section[key] = section.get(why, 1)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    stage = (
        place.split(".")[0]
        if place.split(".")[0] in ("train_general", "evaluate", "train_piano", "train_preference")
        else "prepare"
    )
    with pytest.raises(ParamsError, match=f"{key}.*did you mean '{why}'"):
        open_stage(stage, str(tmp_path / "params.yaml"))
    del section[key], params["train_roll"]["crop_s"]
    with pytest.raises(ParamsError, match="missing parameter 'train_roll.crop_s'"):
        check_params(params)


def test_a_row_of_the_evaluation_is_checked(root):
    from cop_repro.core import ParamsError
    from cop_repro.parameters import check_params, load_params

    params = load_params(root / "params.yaml")
    for row, why in (
        ({"system": "rol"}, "unknown system 'rol' .did you mean 'roll'"),
        ({"system": "roll", "task": "sing"}, "'roll' cannot be scored on 'sing'"),
        ({"system": "roll", "rendering": "dirty"}, "mine.rendering is 'dirty'"),
        ({"system": "cop", "settings": {"text": 1}}, "settings of system 'cop'.*'text'"),
        ({"models": {}}, "missing parameter 'system'"),
    ):
        params["evaluate"]["variants"]["read"]["mine"] = row
        with pytest.raises(ParamsError, match=why):
            check_params(params, "evaluate")


@pytest.mark.parametrize(
    "given",
    [
        ["seed1", "-S", "threads=1", "encode", "report"],
        ["-S", "threads=1", "seed1", "encode", "report"],
        ["seed1", "encode", "-S", "threads=1", "report"],
    ],
)
def test_options_of_a_profile_may_stand_anywhere(given):
    args = parse(["profile", *given])
    assert (args.name, args.targets, args.set) == ("seed1", ["encode", "report"], ["threads=1"])


def test_profiles_set_every_documented_switch(root):
    "Profiles set fields that params.yaml leaves at their default, and drop variants with null."
    from cop_repro.core import ParamsError
    from cop_repro.parameters import check_params, load_params, merge

    base = load_params(root / "params.yaml")
    over = {
        "train_piano": {
            "dropout": {"roll_given_both": 0.4},
            "variants": {
                "no_guidance": {"predictor_share": 0.5},
                "cop_piano": {"base_share": 1.0, "restart_fusion": True},
            },
        },
        "train_general": {
            "dropout": {"roll": 0.0},
            "dit": {"soft_clamp": 50.0, "audio": {"head_width": 32}},
        },
        "train_preference": {
            "variants": {"dpo": {"settings": {"reference": "live", "shared": False, "both": 1.0}}}
        },
        "evaluate": {
            "variants": {
                "piano": {"cop_piano": {"sample": {"num_steps": 4}}, "cop_shipped": None},
                "general": {"base": {"sample": {"method": "midpoint"}}},
            }
        },
        "train_encoders": {"encoders": {"strip_stride": 1, "embedded": {"text_dim": 48}}},
    }
    made = merge(base, over)
    check_params(made)
    assert made["train_piano"]["variants"]["cop_piano"] == {
        **base["train_piano"]["variants"]["cop_piano"],
        "base_share": 1.0,
        "restart_fusion": True,
    }
    assert made["evaluate"]["variants"]["piano"]["cop_piano"]["sample"] == {"num_steps": 4} and set(
        base["evaluate"]["variants"]["piano"]
    ) - {"cop_shipped"} == set(made["evaluate"]["variants"]["piano"])
    assert made["evaluate"]["variants"]["general"]["base"]["sample"] == {
        "cfg_strength": 2.0,
        "temperature": 1.0,
        "window_s": None,
        "method": "midpoint",
    }
    assert merge(base, {"train_general": {"init": None}})["train_general"]["init"] is None, (
        "null is a value outside the variants"
    )
    for wrong, why in (
        (
            {"train_piano": {"variants": {"cop_piano": {"tau": 1}}}},
            "train_piano.variants.cop_piano.tau",
        ),
        ({"evaluate": {"variants": {"piano": {"cop_pian": None}}}}, "did you mean 'cop_piano'"),
        ({"train_preference": {"variants": {"dpo": {"referenc": "live"}}}}, "referenc"),
    ):
        with pytest.raises(ParamsError, match=why):
            merge(base, wrong)


def test_a_profile_publishes_what_it_made(tmp_path):
    from cop_repro.cli._profiles import publish

    given = (
        "results.json",
        "tables.md",
        "verdicts.json",
        "verdicts.md",
        "tables/table4.tex",
        "figures/rolls.png",
        "profiles/seed1/verdicts.json",
        "real.json",
        "real_picture.png",
        "codecs.json",
        "nuisance.json",
    )
    for name in given:
        (tmp_path / "reports" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "reports" / name).write_text(name)
    publish(tmp_path / "reports", tmp_path / "out")
    assert sorted(
        p.relative_to(tmp_path / "out").as_posix()
        for p in (tmp_path / "out").rglob("*")
        if p.is_file()
    ) == sorted(given[:6])


def test_own_programs_are_found_without_activation(root, monkeypatch, capsys):
    import os
    import sys

    monkeypatch.chdir(root)
    monkeypatch.setenv("PATH", "/usr/bin")
    main(["lock"])
    assert os.environ["PATH"].split(os.pathsep) == [
        str(Path(sys.executable).parent),
        "/usr/bin",
    ] and shutil.which("dvc")
    main(["lock"])
    assert os.environ["PATH"].count(str(Path(sys.executable).parent)) == 1, "once"
