# SPDX-License-Identifier: Apache-2.0
"Whether a rerun reproduces the committed numbers: honest differences pass, edited ones fail."

import copy
import json
import shutil
from dataclasses import asdict

import pytest
import yaml

from cop_repro.cli import main
from cop_repro.core import numpy_rng
from cop_repro.evaluation.claims import Result, read_results, write_results
from cop_repro.evaluation.reruns import compare_results, compare_verdicts, rerun_differences
from cop_repro.measure.provenance import Provenance


def result(row="cop_piano", value=1.0, label="embedded"):
    return asdict(
        Result(
            "table4",
            row,
            "si_sdr_spec",
            value,
            None,
            None,
            0 if value is None else 4,
            "dB",
            True,
            label,
            "default",
            "",
        )
    )


@pytest.mark.parametrize(
    "first, second, wrong",
    [
        ([result()], [result()], 0),
        ([result()], [], 1),
        ([], [result()], 1),
        ([result(), result("base", 2.0)], [result("base", 4.0)], 2),
        ([result()], [result(value=None, label="not run")], 1),
        ([result(value=None, label="not run")], [result(value=None, label="not run")], 0),
        ([result(label="paper")], [], 0),
        ([result(), result(value=9.0, label="paper")], [result()], 0),
    ],
)
def test_missing_numbers_are_disagreements(first, second, wrong):
    lines, found = compare_results(first, second, {})
    assert found == wrong
    assert "numbers compared" in lines[-1]
    assert "missing on one side" in lines[-1]


def test_compare_fails_where_results_are_missing(tmp_path, capsys):
    for name, rows in (("a", [result(), result("base")]), ("b", [result()])):
        write_results(tmp_path / f"{name}.json", [Result(**row) for row in rows], {})
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 1
    said = capsys.readouterr().out
    assert "only in first: table4/base/si_sdr_spec" in said
    assert said.strip().endswith(
        "1 numbers compared, 0 differ beyond tolerance, 0 metrics drift, 1 missing on one side"
    )
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "a.json")]) == 0


def test_agreeing_runs_may_differ_in_provenance(tmp_path, capsys):
    "Other commit, threads and device, equal numbers: the runs agree."
    for name, commit, threads in (("a", "0" * 40, 1), ("b", "1" * 40, 2)):
        made = Provenance("cop run evaluate", commit=commit, clean=True, threads=threads)
        line = Result(**result() | {"made_by": "evaluate-piano", "entry": "cop_piano"})
        write_results(tmp_path / f"{name}.json", [line], {"evaluate-piano": made})
    assert (tmp_path / "a.json").read_text() != (tmp_path / "b.json").read_text()
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    assert "1 numbers compared, 0 differ" in capsys.readouterr().out


@pytest.fixture
def committed(root):
    "The committed numbers, verdicts, and measured differences of honest reruns."
    reports = root / "reports"
    reruns = yaml.safe_load((root / "refs" / "reruns.yaml").read_text())["default"]["metrics"]
    return (
        read_results(reports / "results.json").lines,
        json.loads((reports / "verdicts.json").read_text()),
        reruns,
    )


def changed(results, metrics, change, most=16):
    "Results whose first `most` own rows of some metrics are changed."
    made, count = copy.deepcopy(results), 0
    for r in made:
        if r["label"] == "paper" or r["value"] is None or r["metric"] not in metrics:
            continue
        if count < most:
            r["value"], count = change(r["value"]), count + 1
    assert count == most, f"only {count} rows of {metrics}"
    return made


F1S = ("transcription_f1", "onset_f1", "note_f1", "event_f1", "frame_f1_micro")


@pytest.mark.parametrize(
    "metrics, change",
    [
        (("si_sdr_spec",), lambda x: x + 1),
        (("si_sdr_spec",), lambda x: x - 1),
        (("transcription_f1",), lambda x: 0.92 * x),
        (("mel_distance",), lambda x: 0.92 * x),
        (("chroma_similarity",), lambda x: 0.92 * x),
        (F1S, lambda x: 0.92 * x),
    ],
)
def test_many_changed_rows_fail(committed, metrics, change):
    results, _, reruns = committed
    assert compare_results(results, changed(results, metrics, change), reruns)[1] > 0


def test_an_honest_rerun_passes(committed):
    "Every number moves by the measured rms, all in one direction, and by as much at random."
    results, _, reruns = committed
    rng, again = numpy_rng(0, "honest"), copy.deepcopy(results)
    for r in again:
        if r["label"] != "paper" and r["value"] is not None:
            found = reruns.get(r["metric"], {"rms": 0.0})
            r["value"] += found["rms"] * (1 + rng.uniform(-1, 1))
    lines, wrong = compare_results(results, again, reruns)
    assert wrong == 0, lines


def test_every_number_has_a_measured_tolerance(committed):
    results, _, reruns = committed
    remade = {r["metric"] for r in results if r["label"] == "embedded" and r["table"] != "real"}
    assert remade <= set(reruns)
    assert all(0 <= m["rms"] <= m["row"] * 1.05 for m in reruns.values())


def test_edited_verdicts_fail(committed):
    _, verdicts, _ = committed
    assert compare_verdicts(verdicts, verdicts) == []
    words = {"reproduced": "not reproduced", "not reproduced": "reproduced", "mixed": "reproduced"}
    for i, v in enumerate(verdicts):
        edited = copy.deepcopy(verdicts)
        edited[i]["verdict"] = words.get(v["verdict"], "mixed")
        assert any("does not follow" in line for line in compare_verdicts(verdicts, edited))
    assert len(compare_verdicts(verdicts, verdicts[1:])) == 1


def test_reversed_effects_fail(committed):
    _, verdicts, _ = committed
    edited = copy.deepcopy(verdicts)
    line = next(v for v in edited if v["claim"] == "C5")["metrics"][0]
    line |= {"verdict": "not reproduced", "ci_low": -3.0, "ci_high": -1.0, "difference": -2.0}
    claim = next(v for v in edited if v["claim"] == "C5")
    claim["here"], claim["verdict"] = "not reproduced", "mixed"  # the other seed reproduces it
    assert compare_verdicts(verdicts, edited) == [
        "VERDICT C5 si_sdr_spec: 'reproduced' and 'not reproduced'"
    ]


def test_compare_takes_report_folders(root, tmp_path, capsys):
    folder = tmp_path / "reports"
    folder.mkdir()
    for name in ("results.json", "verdicts.json"):
        shutil.copy(root / "reports" / name, folder)
    assert main(["compare", str(root / "reports"), str(folder)]) == 0
    assert "0 verdicts contradict" in capsys.readouterr().out
    verdicts = json.loads((folder / "verdicts.json").read_text())
    (folder / "verdicts.json").write_text(json.dumps(verdicts[1:]))
    assert main(["compare", str(root / "reports"), str(folder)]) == 1
    assert "VERDICT C1 is in one run only" in capsys.readouterr().out


def test_differences_of_honest_runs_are_measured_on_our_own_rows():
    a = [result("x", 1.0), result("y", 2.0), result("z", 3.0, label="paper")]
    b = [result("x", 1.5), result("y", 1.5), result("z", 9.0, label="paper")]
    assert rerun_differences(a, b) == {"si_sdr_spec": {"row": 0.5, "relative": 0.5, "rms": 0.5}}


def test_tolerances_of_several_pairs_of_runs(tmp_path, monkeypatch, capsys):
    "With --widen the larger difference of each kind is kept; without, the last pair counts alone."
    monkeypatch.setattr("cop_repro.cli.compare.project_root", lambda *_: tmp_path)
    (tmp_path / "refs").mkdir()
    runs = {"a": (1.0, 2.0), "b": (1.5, 2.0), "c": (1.25, 2.25)}
    for name, (x, y) in runs.items():
        rows = [Result(**result("x", x)), Result(**result("y", y))]
        write_results(tmp_path / f"{name}.json", rows, {})

    def measured(second, *options):
        pair = [str(tmp_path / f"{name}.json") for name in ("a", second)]
        assert main(["compare", *pair, "--measure", second, *options]) == 0
        return yaml.safe_load((tmp_path / "refs" / "reruns.yaml").read_text())["default"]

    assert measured("b")["metrics"] == {"si_sdr_spec": {"row": 0.5, "relative": 0.5, "rms": 0.35}}
    both = measured("c", "--widen")
    assert both == {"about": "b; c", "metrics": measured("b")["metrics"]}
    assert measured("c")["metrics"]["si_sdr_spec"]["row"] == 0.25
    rows = [Result(**result("x", 1.0)), Result(**result("y", 9.0))]
    write_results(tmp_path / "d.json", rows, {})
    found = measured("d", "--widen")["metrics"]["si_sdr_spec"]
    assert found == {"row": 0.25, "relative": 0.25, "rms": 0.25, "rows": {"y": 7.0}}
    unstable = compare_results([result("x", 1.0)], [result("x", 7.0)], {"si_sdr_spec": found})[1]
    assert unstable == 1, "the other rows are compared as strictly as before"
    assert compare_results([result("y", 2.0)], [result("y", 9.0)], {"si_sdr_spec": found})[1] == 0
    rows = [Result(**result("x", 1.0)), Result(**result("y", 6.0))]
    write_results(tmp_path / "e.json", rows, {})
    assert measured("e", "--widen")["metrics"]["si_sdr_spec"] == found, "y stays by itself"
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--widen"]) == 2
    assert "--measure" in capsys.readouterr().err
    rows = [Result(**result("x", 1.0) | {"profile": "seed1"})]
    write_results(tmp_path / "f.json", rows, {})
    pair = [str(tmp_path / "a.json"), str(tmp_path / "f.json")]
    assert main(["compare", *pair, "--measure", "two profiles"]) == 2
    assert "two runs of one profile" in capsys.readouterr().err
