# SPDX-License-Identifier: Apache-2.0
"The whole pipeline at smoke size, and the notebooks."

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cop_repro.cli import main
from cop_repro.evaluation.claims import LABELS, read_results


def cop(root, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", "cop_repro.cli", *arguments],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout[-3000:], done.stderr[-3000:])
    return done.stdout


@pytest.mark.slow(12)
def test_smoke_pipeline(root):
    "Every stage of the DAG runs in a scratch copy, labelled smoke; a second run does nothing."
    cop(root, "profile", "smoke")
    scratch = root / "work" / "profiles" / "smoke"
    file = read_results(scratch / "reports" / "results.json")
    results = file.lines
    tables = yaml.safe_load((root / "refs" / "tables.yaml").read_text())["tables"]
    assert {r["label"] for r in results} <= set(LABELS)
    assert {r["table"] for r in results} <= set(tables)
    assert {r["label"] for r in results if r["profile"] == "smoke" and r["value"] is not None} == {
        "smoke"
    }
    rows = {(r["table"], r["row"]) for r in results}
    assert {
        ("table4", "audeo_style"),
        ("table4", "no_guidance"),
        ("table4", "cop_piano"),
        ("table5", "cop_velocity"),
        ("table5", "cop_velocity_dpo"),
        ("roll", "video2roll"),
    } <= rows
    assert all(
        (scratch / "reports" / "figures" / f"{n}.png").stat().st_size > 5000
        for n in ("mel_spectrograms", "rolls", "headlines")
    )
    evaluated = [r for r in results if r["entry"] and r["value"] is not None]
    assert all(file.origin(r).complete and file.origin(r).commit for r in evaluated)
    number = ("roll.video2roll.onset_f1", "--profile", "smoke", "--again", "--json")
    about = json.loads(cop(root, "explain", *number))
    assert about["again"]["agrees"] and about["doubts"] == []
    again = cop(root, "profile", "smoke")
    assert "Running stage" not in again


@pytest.mark.slow(6)
def test_notebooks_run(root):
    "Every lesson cell and every fact of every library notebook."
    done = subprocess.run(
        [
            Path(sys.executable).parent / "nbdev_test",
            "--skip_folder_re",
            "stages|course",  # `make test-course` executes lessons with their solutions
            "--n_workers",
            "2",
            "--do_print",
        ],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


def test_committed_results_are_complete(root):
    "The tracked result file: its schema, its labels, its tables."
    results = read_results(root / "reports" / "results.json").lines
    keys = {
        "table",
        "row",
        "metric",
        "value",
        "ci_low",
        "ci_high",
        "n",
        "unit",
        "higher_is_better",
        "label",
        "profile",
        "extractor",
        "clips",
        "made_by",
        "entry",
    }
    assert all(set(r) == keys for r in results)
    ours = {(r["table"], r["row"], r["metric"]): r for r in results if r["label"] == "embedded"}
    for table, row in (
        ("table4", "audeo_style"),
        ("table4", "no_guidance"),
        ("table4", "cop_piano"),
        ("table5", "cop_velocity"),
        ("table5", "cop_velocity_dpo"),
        ("controls", "noise"),
        ("controls", "codec"),
    ):
        found = ours[(table, row, "si_sdr_spec")]
        assert found["ci_low"] < found["value"] < found["ci_high"] and found["n"] >= 20
    assert ours[("roll", "video2roll", "onset_f1")]["n"] >= 20


def test_committed_results_come_from_the_committed_code(root):
    "dvc.lock names the code of every stage, older code is listed; the real video's weights ship."
    from cop_repro.core import file_hash

    stages, prints = (
        yaml.safe_load((root / "dvc.lock").read_text())["stages"],
        yaml.safe_load((root / "fingerprints.yaml").read_text()),
    )
    declared = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]
    params = yaml.safe_load((root / "params.yaml").read_text())
    older = yaml.safe_load((root / "refs" / "accepted_code.yaml").read_text())
    assert all(code != prints[own] for own, code in older.items()), "a debt that is paid"
    assert not older or "refs/accepted_code.yaml" in (root / "LIMITATIONS.md").read_text()
    expected = set()
    for name, entry in declared.items():
        foreach = "foreach" in entry
        expected |= {f"{name}@{key}" for key in params[name]["variants"]} if foreach else {name}
    assert set(stages) == expected
    for name, locked in stages.items():
        own = locked["cmd"].partition(" run ")[2].split()[0]
        code = {own: older.get(own, prints[own])}
        assert locked["params"]["fingerprints.yaml"] == code, name
    real = json.loads((root / "reports" / "real.json").read_text())
    assert all(
        video["weights"]
        == {name: file_hash(root / "data" / "assets" / name) for name in video["weights"]}
        for video in real
    )


def test_a_profile_takes_changes_of_parameters(root):
    from cop_repro.cli._profiles import profile_params
    from cop_repro.core import ParamsError

    plain = profile_params(root, "smoke")
    changed = profile_params(root, "smoke", ["threads=1", "train_roll.train.steps=3"])
    assert (plain["threads"], changed["threads"]) == (2, 1)
    assert changed["train_roll"]["train"]["steps"] == 3
    assert changed["train_piano"] == plain["train_piano"]
    for wrong, why in (("threads", "section.key=value"), ("thread=1", "threads"), ("a..b=1", "-S")):
        with pytest.raises(ParamsError, match=why):
            profile_params(root, "smoke", [wrong])


@pytest.mark.parametrize(
    "options, why",
    [
        (["--as", "../x"], "no path"),
        (["--as", ".."], "no path"),
        (["--as", "other", "--publish"], "as it is written"),
        (["-S", "threads=1", "--publish"], "as it is written"),
    ],
)
def test_a_changed_profile_is_not_published(root, monkeypatch, capsys, options, why):
    monkeypatch.chdir(root)
    assert main(["profile", "smoke", *options]) == 2
    assert why in capsys.readouterr().err


def test_losses_are_means_over_spans(tmp_path):
    import numpy as np

    from cop_repro.pipeline import PLOT_POINTS, Stage

    stage = Stage("train_toy", {"train_toy": {}, "seed": 0}, "small", tmp_path)
    losses = np.arange(10 * PLOT_POINTS, dtype=float)
    sparse = np.where(losses % 20 == 0, losses, np.nan)
    stage.losses(losses, sparse=sparse)
    rows = json.loads((tmp_path / "reports" / "losses" / "train_toy-small.json").read_text())
    assert [r["step"] for r in rows] == list(range(10, 10 * PLOT_POINTS + 1, 10))
    assert rows[0] == {"step": 10, "loss": 4.5, "sparse": 0.0}
    assert rows[1]["sparse"] is None
    stage.losses(losses[:3])
    rows = json.loads((tmp_path / "reports" / "losses" / "train_toy-small.json").read_text())
    assert [r["loss"] for r in rows] == [0.0, 1.0, 2.0]
