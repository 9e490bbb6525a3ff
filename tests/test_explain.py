# SPDX-License-Identifier: Apache-2.0
"Where numbers come from: every line of the result file, and what `cop explain` says of it."

import hashlib
import json
import shutil
import subprocess

import pytest
import yaml

from cop_repro.cli import main
from cop_repro.cli._lineage import changed, lineage, locked_row, locked_stages, stage_of
from cop_repro.cli.explain import Number, Run, explain, find_number
from cop_repro.core import CopError
from cop_repro.evaluation.claims import Result, read_results, write_results
from cop_repro.measure.provenance import (
    UNKNOWN,
    Commit,
    Provenance,
    find_commit,
    keep_commit,
    params_hash,
)

COMMAND = "cop run evaluate --item piano"
NAME = "table4.cop_piano.si_sdr_spec"
ROWS = {
    "cop_piano": {"system": "cop", "models": {"piano": "train_piano/cop_piano/piano.safetensors"}},
    "no_guidance": {"system": "cop", "models": {"piano": "train_piano/none/piano.safetensors"}},
    "cop_shipped": {"system": "cop", "models": {"piano": "../data/assets/piano.safetensors"}},
}
MADE = Provenance(COMMAND, "c0de", "a" * 40, True, "0123", 0, 2, "cpu (AVX2)")


def line(row="cop_piano", value=1.5, label="embedded", metric="si_sdr_spec", **origin):
    place, bounds = ("table4", row, metric), (None, None) if value is None else (1.25, 1.75)
    n = 0 if value is None else 4
    return Result(*place, value, *bounds, n, "dB", True, label, "default", "judge 01", **origin)


LINES = [
    line(made_by="evaluate-piano", entry="cop_piano"),
    line(value=2.5, metric="mel_distance", made_by="evaluate-piano", entry="cop_piano"),
    line("no_guidance", made_by="evaluate-piano", entry="no_guidance"),
    line(value=3.35, label="paper", made_by="paper"),
    line("midi", 0.5, "paper", made_by="paper"),
    line("factorcl", None, "not run", made_by="not run"),
    line("old", entry="cop_piano"),
    line("real", made_by="real"),
]


def files(**hashes):
    "Inputs or outputs of a locked stage."
    return [{"path": path, "md5": md5} for path, md5 in hashes.items()]


def stage(command, deps, outs, params, notebook, code):
    locked = {"params.yaml": params, "fingerprints.yaml": {notebook: code}}
    return {"cmd": f"x cop run \n {command}", "deps": deps, "outs": outs, "params": locked}


@pytest.fixture
def tree(tmp_path, root, monkeypatch):
    "A small finished run, with the parameters of the project."
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["evaluate"]["variants"] = {"piano": ROWS}
    for folder in ("reports", "refs", "profiles"):
        (tmp_path / folder).mkdir()
    (tmp_path / "settings.ini").touch()
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    prints = {"evaluate": "c0de", "train_piano": "7777", "prepare": "8888"}
    (tmp_path / "fingerprints.yaml").write_text(yaml.safe_dump(prints))
    measured = {"default": {"metrics": {"si_sdr_spec": {"row": 0.1}}}}
    (tmp_path / "refs" / "reruns.yaml").write_text(yaml.safe_dump(measured))
    known = {"evaluate-piano": MADE, "real": Provenance("cop real VIDEO", note="says nothing")}
    results = tmp_path / "reports" / "results.json"
    write_results(results, LINES, known)
    digest = hashlib.md5(results.read_bytes()).hexdigest()
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump(lock(params, digest)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lock(params, results):
    "A lock file: two stage-2 models, of which a row needs one."
    clips = {"features/clips": "c1.dir"}
    stages = {
        "prepare": stage(
            "prepare", files(**{"data/etudes": "e1"}), files(**clips), {}, "prepare", "8888"
        )
    }
    for name in ("cop_piano", "none"):
        made = {f"models/train_piano/{name}/piano.safetensors": f"m-{name}"}
        own = {"train_piano.crop_s": params["train_piano"]["crop_s"], "seed": 0}
        stages[f"train_piano@{name}"] = stage(
            f"train_piano --item {name}", files(**clips), files(**made), own, "train_piano", "7777"
        )
    needs = clips | {"models/train_piano": "p1.dir", "data/assets/piano.safetensors": "a1"}
    own = {"evaluate.variants.piano": ROWS, "evaluate.clips": params["evaluate"]["clips"]}
    rows = files(**{"models/evaluate/piano/rows": "r1.dir"})
    stages["evaluate_piano"] = stage(
        "evaluate --item piano", files(**needs), rows, own, "evaluate", "c0de"
    )
    given = files(**{"models/evaluate/piano/rows": "r1.dir", "reports/real.json": "f1"})
    made = files(**{"reports/results.json": results})
    stages["report"] = stage("report", given, made, {}, "report", "9999")
    return {"schema": "2.0", "stages": stages}


def explained(capsys, *arguments):
    assert main(["explain", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def relock(tree, change):
    "Another lock file."
    held = yaml.safe_load((tree / "dvc.lock").read_text())
    change(held["stages"])
    (tree / "dvc.lock").write_text(yaml.safe_dump(held))


def test_a_number_is_explained(tree, capsys):
    about = explained(capsys, NAME)
    assert (about["value"], about["ci_low"], about["ci_high"], about["n"]) == (1.5, 1.25, 1.75, 4)
    assert (about["label"], about["unit"], about["extractor"]) == ("embedded", "dB", "judge 01")
    assert about["paper"] == 3.35
    made = about["made_by"]
    assert made["command"] == COMMAND
    assert (made["commit"], made["clean"], made["params"]) == ("a" * 40, True, "0123")
    assert (made["seed"], made["threads"], made["device"]) == (0, 2, "cpu (AVX2)")
    assert about["entry"] == {"name": "cop_piano", "group": "piano", **ROWS["cop_piano"]}
    assert about["doubts"] == []
    assert about["differs"] == {"default": {}, "profile": {}}
    assert about["tolerance"] == pytest.approx(0.3)
    assert about["commands"] == [
        "make setup",
        "dvc repro evaluate_piano report",
        f"cop explain {NAME} --again",
    ]


def test_parents_are_those_of_the_row(tree, capsys):
    "Models of other rows of the same stage are none, nor is an asset that only they read."
    parents = explained(capsys, NAME)["parents"]
    assert [p["stage"] for p in parents] == ["evaluate_piano", "prepare", "train_piano@cop_piano"]
    assert [p["code"] for p in parents] == ["c0de", "8888", "7777"]
    assert parents[0]["given"] == {}
    assert parents[1] | {"notebook": ""} == {
        "stage": "prepare",
        "notebook": "",
        "code": "8888",
        "made": {"features/clips": "c1.dir"},
        "given": {"data/etudes": "e1"},
    }
    assert parents[2]["made"] == {"models/train_piano/cop_piano/piano.safetensors": "m-cop_piano"}
    stages = locked_stages(tree)
    row = locked_row(stages, "evaluate_piano", "cop_shipped")
    shipped = lineage(stages, stage_of(stages, COMMAND), row.foreign)
    assert shipped[0].given == {"data/assets/piano.safetensors": "a1"}
    assert [p.stage for p in shipped] == ["evaluate_piano", "prepare"]


def test_the_text_says_the_same(tree, capsys):
    assert main(["explain", NAME]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{NAME} = 1.5 dB [1.25, 1.75]\n")
    facts = (
        "3.35 dB",
        "judge 01",
        COMMAND,
        f"commit  {'a' * 40}\n",
        "threads 2\n",
        "as in params.yaml",
        "train_piano@cop_piano, code 7777",
        "made  models/train_piano/cop_piano/piano.safetensors  m-cop_piano",
        "given data/etudes  e1",
        f"cop explain {NAME} --again",
    )
    for fact in facts:
        assert fact in text, fact
    assert "careful" not in text


@pytest.mark.parametrize("name", ["table4/cop_piano/si_sdr_spec", "cop_piano.si_sdr_spec"])
def test_other_ways_to_write_a_name(tree, capsys, name):
    assert explained(capsys, name)["name"] == NAME


@pytest.mark.parametrize(
    "name, why",
    [
        ("table4.cop_pianx.si_sdr_spec", f"did you mean '{NAME}'?"),
        ("table4.cop_piano.si_sdr", "did you mean 'si_sdr_spec'?"),
        ("table4.cop_piano.x", "metrics of table4.cop_piano are si_sdr_spec, mel_distance"),
        ("x", "a name is TABLE.ROW.METRIC; tables are table4"),
        ("", "a name is TABLE.ROW.METRIC"),
        ("cop_piano", f"names 2 numbers: {NAME}, table4.cop_piano.mel_distance; write one"),
    ],
)
def test_unknown_and_ambiguous_names_are_refused(tree, capsys, name, why):
    assert main(["explain", name]) == 2
    said = capsys.readouterr().err
    assert why in said and said.count("\n") == 1


def test_numbers_that_nothing_here_computed(tree, capsys):
    printed = explained(capsys, "table4.midi.si_sdr_spec")
    assert (printed["value"], printed["paper"], printed["label"]) == (0.5, 0.5, "paper")
    assert (printed["commands"], printed["parents"], printed["tolerance"]) == ([], [], None)
    missing = explained(capsys, "table4.factorcl.si_sdr_spec")
    assert (missing["value"], missing["commands"]) == (None, [])
    assert missing["doubts"] == ["nothing was computed"]
    copied = explained(capsys, "table4.real.si_sdr_spec")
    assert copied["source"] == {"reports/real.json": "f1"}
    assert copied["commands"] == ["cop real VIDEO", "dvc repro report"]


def test_what_is_not_known_is_said(tree, capsys):
    about = explained(capsys, "table4.old.si_sdr_spec")
    assert about["made_by"]["code"] is None and about["made_by"]["command"] == COMMAND
    assert about["doubts"] == ["the scores do not say what made them: evaluate them again"]
    main(["explain", "table4.old.si_sdr_spec"])
    assert "threads unknown" in capsys.readouterr().out


def test_a_lock_of_another_run_is_said(tree, capsys):
    relock(tree, lambda s: s["evaluate_piano"]["params"]["fingerprints.yaml"].update(evaluate="b"))
    assert explained(capsys, NAME)["doubts"] == [
        "dvc.lock has evaluate_piano with code b: another run",
        "here the code of evaluate_piano is another",
    ]
    relock(tree, lambda stages: stages["report"].update(outs=[]))
    assert "is not the file of dvc.lock" in explained(capsys, NAME)["doubts"][0]
    (tree / "dvc.lock").unlink()
    about = explained(capsys, NAME)
    assert about["doubts"] == ["dvc.lock records no such stage here: parents are not known"]
    assert about["differs"] == {"default": None, "profile": None}
    (tree / "dvc.lock").write_text("[]")
    assert main(["explain", NAME]) == 2
    assert "dvc.lock is no lock file of DVC" in capsys.readouterr().err


def test_other_parameters_are_listed(tree, capsys):
    def change(stages):
        stages["train_piano@cop_piano"]["params"]["params.yaml"]["train_piano.crop_s"] = 9.0
        stages["train_piano@none"]["params"]["params.yaml"]["train_piano.crop_s"] = 7.0

    crop_s = yaml.safe_load((tree / "params.yaml").read_text())["train_piano"]["crop_s"]
    relock(tree, change)
    found = explained(capsys, NAME)["differs"]["default"]
    assert found == {"train_piano.crop_s": [9.0, crop_s]}
    main(["explain", NAME])
    assert f"train_piano.crop_s: 9.0 (there: {crop_s})" in capsys.readouterr().out


def test_values_of_a_profile_are_told_from_its_own(tree, capsys, monkeypatch):
    "What the profile says differs from params.yaml alone, a change by hand from both."
    shutil.copytree(tree, tree / "work" / "profiles" / "long", ignore=lambda *_: ["work"])
    (tree / "profiles" / "long.yaml").write_text("profile: long\ntrain_piano: {crop_s: 9.0}\n")
    place = tree / "work" / "profiles" / "long"
    held = read_results(place / "reports" / "results.json")
    lines = [Result(**found | {"profile": "long"}) for found in held.lines[:1]]
    write_results(place / "reports" / "results.json", lines, {"evaluate-piano": MADE})

    def change(stages):
        own = stages["train_piano@cop_piano"]["params"]["params.yaml"]
        own |= {"train_piano.crop_s": 9.0, "seed": 3}

    relock(place, change)
    about = explained(capsys, NAME, "--profile", "long")
    assert set(about["differs"]["default"]) == {"train_piano.crop_s"}
    assert about["differs"]["profile"] == {}
    assert about["commands"][1:] == [
        "cop profile long evaluate_piano report",
        f"cop explain {NAME} --profile long --again",
    ]
    assert main(["explain", NAME, "--profile", "lon"]) == 2
    assert "did you mean 'long'?" in capsys.readouterr().err
    shutil.rmtree(place)
    assert main(["explain", NAME, "--profile", "long"]) == 2
    assert "run `cop profile long` first" in capsys.readouterr().err


def test_changes_reach_into_mappings():
    assert changed({"a.b": {"c": 1, "d": [2]}}, {"a": {"b": {"c": 1, "d": [2]}}}) == {}
    assert changed({"a.b": {"c": 1}}, {"a": {"b": {"c": 2, "e": 3}}}) == {
        "a.b.c": (1, 2),
        "a.b.e": (None, 3),
    }
    assert changed({"a": {"b": {}}}, {}) == {"a.b": ({}, None)}


@pytest.mark.parametrize(
    "name, why",
    [
        (NAME, "features/clips is missing: run `dvc repro evaluate_piano` first"),
        ("table4.midi.si_sdr_spec", "no number of a row that this pipeline scores"),
    ],
)
def test_what_cannot_be_scored_again_is_refused(tree, capsys, name, why):
    assert main(["explain", name, "--again"]) == 2
    assert why in capsys.readouterr().err
    assert not (tree / "work").exists()


@pytest.mark.parametrize(
    "change, why",
    [
        (lambda held: held["lines"], "an object with made_by and lines is needed"),
        (lambda held: held | {"made_by": {}}, "made_by lacks 'evaluate-piano'"),
        (lambda held: held | {"made_by": {"paper": {}}}, "made_by needs entries with"),
        (lambda held: held | {"lines": [1]}, "lines needs entries with"),
    ],
)
def test_what_is_no_result_file_is_refused(tree, capsys, change, why):
    path = tree / "reports" / "results.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    for command in (["explain", NAME], ["compare", str(path), str(path)]):
        assert main(command) == 2
        assert why in capsys.readouterr().err


# The committed file


@pytest.fixture(scope="module")
def committed(root):
    return read_results(root / "reports" / "results.json")


@pytest.fixture
def known_lineages(monkeypatch):
    "Lines of one row descend from the same stages, which are looked up once."
    known = {}

    def remembered(stages, last, foreign=frozenset()):
        key = (last, *sorted(foreign))
        if key not in known:
            known[key] = lineage(stages, last, foreign)
        return known[key]

    monkeypatch.setattr("cop_repro.cli.explain.lineage", remembered)


def test_every_committed_line_can_be_explained(root, committed, known_lineages):
    run, rows = Run(root, root), {}
    for found in committed.lines:
        rows.setdefault((found["table"], found["row"]), []).append(found)
    names = set()
    for found in committed.lines:
        name = ".".join((found["table"], found["row"], found["metric"]))
        number = find_number(rows[found["table"], found["row"]], name)
        names.add(number.name)
        ours = found["label"] != "paper"
        assert number.line == found if ours else number.paper == found
        about = explain(run, Number(name, found, None), committed)
        if found["entry"] and found["value"] is not None:
            assert about["made_by"]["command"].startswith("cop run evaluate --item ")
            assert len(about["parents"]) > 1 and about["commands"] and about["tolerance"] > 0
        assert about["doubts"] or about["made_by"]["code"]
    assert len(names) > 400


def test_committed_lines_refer_to_what_they_are(root, committed):
    variants = yaml.safe_load((root / "params.yaml").read_text())["evaluate"]["variants"]
    groups = {entry: f"evaluate-{group}" for group, rows in variants.items() for entry in rows}
    for found in committed.lines:
        if found["label"] == "paper":
            assert found["made_by"] == "paper"
        elif found["value"] is None:
            assert found["made_by"] == "not run"
        elif found["entry"]:
            assert found["made_by"] in (groups[found["entry"]], UNKNOWN)
        else:
            assert found["made_by"] in ("real", "nuisance", "report")


def test_committed_rows_say_all_that_made_them(root, committed):
    "Command, code, commit, parameters, seed, threads and device, and the code of dvc.lock."
    stages = locked_stages(root)
    groups = yaml.safe_load((root / "params.yaml").read_text())["evaluate"]["variants"]
    unknown = sorted({r["entry"] for r in committed.lines if r["made_by"] == UNKNOWN})
    assert not unknown, "run `dvc repro` to score them again"
    for name in (f"evaluate-{group}" for group in groups):
        made = Provenance(**committed.made_by[name])
        assert made.complete and made.commit and made.clean, made
        locked = stages[stage_of(stages, made.command)]["params"]["fingerprints.yaml"]
        assert made.code == locked["evaluate"]


# What a process can observe


def test_the_state_of_a_tree_without_a_repository(tmp_path):
    assert find_commit(tmp_path).commit is None
    (tmp_path / "copy").mkdir()
    keep_commit(tmp_path, tmp_path / "copy")
    assert find_commit(tmp_path / "copy") == find_commit(tmp_path)


def test_a_machine_without_git(tmp_path, monkeypatch):
    def absent(*arguments, **options):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", absent)
    assert find_commit(tmp_path).clean is None


def test_the_order_of_parameters_does_not_count(root):
    params = yaml.safe_load((root / "params.yaml").read_text())
    backwards = dict(reversed(params.items()))
    assert params_hash(params) == params_hash(backwards) != params_hash(params | {"seed": 1})


def test_a_copy_of_a_tree_knows_its_commit(root, tmp_path):
    "The folder of a scratch copy is ignored, so that git would call it clean."
    assert find_commit(root / "cop_repro") == Commit(None, None)
    keep_commit(root, tmp_path)
    assert find_commit(tmp_path) == find_commit(root)


def test_unknown_is_refused_in_name(committed):
    with pytest.raises(CopError, match="did you mean"):
        find_number(committed.lines, "table4.cop_piano.si_sdr_spek")
