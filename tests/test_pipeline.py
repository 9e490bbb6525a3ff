# SPDX-License-Identifier: Apache-2.0
"The whole pipeline at smoke size, and the notebooks."

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cop_repro.evaluation.claims import LABELS


def cop(root, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", "cop_repro.cli", *arguments],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout[-3000:], done.stderr[-3000:])
    return done.stdout


@pytest.mark.slow
def test_smoke_pipeline(root):
    "Every stage of the DAG runs in a scratch copy, labelled smoke; a second run does nothing."
    cop(root, "profile", "smoke")
    scratch = root / "work" / "profiles" / "smoke"
    results = json.loads((scratch / "reports" / "results.json").read_text())
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
    again = cop(root, "profile", "smoke")
    assert "Running stage" not in again


@pytest.mark.slow
def test_notebooks_run(root):
    "Every lesson cell and every fact of every library notebook."
    done = subprocess.run(
        [
            Path(sys.executable).parent / "nbdev_test",
            "--skip_folder_re",
            "stages",
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
    results = json.loads((root / "reports" / "results.json").read_text())
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
    "dvc.lock names every stage's code; the real video was read with the shipped weights."
    from cop_repro.core import file_hash

    stages, prints = (
        yaml.safe_load((root / "dvc.lock").read_text())["stages"],
        yaml.safe_load((root / "fingerprints.yaml").read_text()),
    )
    declared = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]
    params = yaml.safe_load((root / "params.yaml").read_text())
    expected = set()
    for name, entry in declared.items():
        keys = params[name]["variants"] if "foreach" in entry else ()
        expected |= {f"{name}@{key}" for key in keys} or {name}
    assert set(stages) == expected
    for name, locked in stages.items():
        own = locked["cmd"].partition(" run ")[2].split()[0]
        assert locked["params"]["fingerprints.yaml"] == {own: prints[own]}, name
    real = json.loads((root / "reports" / "real.json").read_text())
    assert all(
        video["weights"]
        == {name: file_hash(root / "data" / "assets" / name) for name in video["weights"]}
        for video in real
    )
