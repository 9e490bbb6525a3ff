# SPDX-License-Identifier: Apache-2.0
"`cop bench`: what is exported is read back, all faults are listed, scores notice what is missing."

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import mido
import numpy as np
import pytest
import soundfile

from cop_repro.benchmark import exchange
from cop_repro.benchmark.checks import benchmark_faults, import_benchmark, note_faults
from cop_repro.benchmark.exchange import (
    ExportPlan,
    export_benchmark,
    from_ticks,
    on_grid,
    plan_export,
    read_benchmark,
    to_ticks,
    write_grid_midi,
)
from cop_repro.benchmark.protocol import LEVELS, SCHEMAS, Faulty, schema_faults
from cop_repro.benchmark.scores import (
    bench_style_judge,
    headlines,
    result_name,
    score_folder,
    style_accuracy,
    write_result,
)
from cop_repro.benchmark.submissions import check_submission, declare, write_submission
from cop_repro.cli import main
from cop_repro.core import BadInput
from cop_repro.data.clips import Item, pair_items, piano_items, read_manifest
from cop_repro.data.notes import make_notes, read_midi
from cop_repro.data.performance import etudes
from cop_repro.data.video import write_video

SECONDS, SPLIT = 2.0, "0123456789abcdef"
VIEWS = ("top", "left", "right", "front", "pedal")


def small_views(item, score=None):
    "Black pictures of all cameras; rendering them is tested elsewhere."
    names = VIEWS if item.domain == "piano" else ("video",)
    return {name: np.zeros((round(25 * SECONDS), 32, 48, 3), np.uint8) for name in names}


@pytest.fixture(scope="module")
def scores(root):
    return {score.work_id: score for score in etudes(root / "data" / "etudes")}


@pytest.fixture(scope="module")
def plan(scores):
    works = list(scores.values())
    piano = tuple(piano_items(score, "test", SECONDS, 1, seed=0)[2] for score in works[:3])
    bells = tuple(
        Item(
            f"bell/{i}",
            f"bell/{i}",
            "test",
            "foley",
            SECONDS,
            label="bell ring",
            recipe={"seed": i},
        )
        for i in range(2)
    )
    pairs = tuple(pair_items(works[3], SECONDS, seed=0))
    judge = tuple(
        item
        for score in works[4:6]
        for item in piano_items(score, "val", SECONDS, 1, seed=0)
        if item.recipe["touch"] in ("crisp", "lyrical")
    )
    return ExportPlan("test", SPLIT, piano, bells, pairs, judge)


@pytest.fixture(scope="module")
def folder(plan, scores, tmp_path_factory):
    "An exported folder with small black videos."
    made = tmp_path_factory.mktemp("bench") / "benchmark"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exchange, "clip_views", small_views)
        export_benchmark(plan, scores, made)
    return made


@pytest.fixture(scope="module")
def bench(folder):
    return read_benchmark(folder)


@pytest.fixture(scope="module")
def true(bench):
    "The true notes, each clip with a pedal."
    return {name: bench.notes(name) for name in bench.ids("piano")}


def submitted(place, bench, notes=None, sounds=None, levels=("L1", "L2", "L3"), **about):
    write_submission(place, declare("a system", bench, levels, **about), notes, sounds)
    return place


def faults_of(place, bench) -> list[str]:
    with pytest.raises(Faulty) as caught:
        check_submission(place, bench)
    return caught.value.faults


# Exchange.


def test_notes_return_exactly(tmp_path):
    "At 480 ticks a beat, in any order of repeated notes, touching spans and very short notes."
    r = np.random.default_rng(0)
    for _ in range(20):
        on = r.uniform(0, 9, 60)
        notes = make_notes(
            r.integers(21, 109, 60), on, on + r.exponential(0.2, 60) + 1e-4, r.integers(1, 128, 60)
        )
        cuts = np.sort(r.uniform(0, 10, 8)).reshape(-1, 2)
        notes = on_grid(notes.replace(pedal=cuts))
        write_grid_midi(notes, tmp_path / "a.mid")
        assert read_midi(tmp_path / "a.mid") == notes
        assert from_ticks(json.loads(json.dumps(to_ticks(notes)))) == notes
        write_grid_midi(read_midi(tmp_path / "a.mid"), tmp_path / "b.mid")
        assert (tmp_path / "a.mid").read_bytes() == (tmp_path / "b.mid").read_bytes()
    assert mido.MidiFile(tmp_path / "a.mid").ticks_per_beat == 480


def test_export_has_every_file(folder, plan, bench):
    assert benchmark_faults(folder) == []
    assert sorted(p.name for p in folder.iterdir()) == [
        *("DATACARD.md", "clips", "manifest.json", "schema", "style", "style_judge"),
        "style_pairs.json",
    ]
    assert len(bench.ids("piano")) == 3 and len(bench.ids("general")) == 2
    name = bench.ids("piano")[0]
    files = {p.name for p in (folder / "clips" / name).iterdir()}
    assert files == {*(f"{v}.mp4" for v in VIEWS), "L1.mid", "L2.mid", "L3.mid"} | {
        "sound.wav",
        "annotation.json",
    }
    info = soundfile.info(folder / "clips" / name / "sound.wav")
    assert (info.samplerate, info.channels, info.frames) == (24_000, 1, 48_000)
    card = (folder / "DATACARD.md").read_text()
    assert "| clips of the levels | 3 of 3 works |" in card and SPLIT in card


def test_levels_of_the_truth(folder, bench, true):
    for name, notes in true.items():
        one, two, three = (read_midi(folder / "clips" / name / f"L{m}.mid") for m in (1, 2, 3))
        assert set(one.velocities) == {64} and not len(one.pedal)
        assert two == three.replace(pedal=()) and three == notes


def test_exported_schemas_are_enough_without_this_package(folder):
    "A third party checks our files with the schemas beside them."
    schema = {p.name.split(".")[0]: json.loads(p.read_text()) for p in folder.glob("schema/*")}
    assert set(schema) == set(SCHEMAS)
    jsonschema.validate(json.loads((folder / "manifest.json").read_text()), schema["manifest"])
    jsonschema.validate(
        json.loads((folder / "style_pairs.json").read_text()), schema["style_pairs"]
    )
    for path in folder.rglob("annotation.json"):
        jsonschema.validate(json.loads(path.read_text()), schema["annotation"])


def test_pairs_share_videos_and_differ_in_touch(folder, bench):
    [pair] = json.loads((folder / "style_pairs.json").read_text())["pairs"]
    one, two = (folder / "style" / pair["clips"][touch] for touch in ("crisp", "lyrical"))
    assert (one / "left.mp4").read_bytes() == (two / "left.mp4").read_bytes()
    notes = [read_midi(place / "L3.mid") for place in (one, two)]
    assert np.array_equal(notes[0].pitches, notes[1].pitches)
    assert not np.array_equal(notes[0].velocities, notes[1].velocities)


def test_import_is_a_recorded_set(folder, true, tmp_path):
    from cop_repro.data.real_sets import folder_items, load_real_clip

    assert import_benchmark(folder, tmp_path / "set") == true
    items = folder_items(tmp_path / "set", duration_s=SECONDS)
    assert {item.work_id for item in items} == set(true)
    clip = load_real_clip(items[0], tmp_path / "set")
    assert clip.notes == true[items[0].work_id] and len(clip.wav) == 48_000


def test_plan_of_the_shipped_manifest(root):
    items, split_hash = read_manifest(root / "data" / "manifest.json")
    plan = plan_export(items, split_hash)
    assert {item.split for item in (*plan.piano, *plan.general)} == {"test"}
    assert {item.split for item in plan.pairs} == {"train"}
    assert {item.split for item in plan.judge} == {"val"}
    assert {item.recipe["touch"] for item in plan.judge} == {"crisp", "lyrical"}
    assert all(item.recipe["nuisance"] for item in plan.piano)
    assert not plan_export(items, split_hash, "val").judge, "no judge hears the clips it judges"
    few = plan_export(items, split_hash, limit=2)
    assert (len(few.piano), len(few.general), len(few.pairs)) == (2, 2, 4)
    with pytest.raises(BadInput, match="no clip of split"):
        plan_export(items, split_hash, "dev")


def test_all_faults_of_an_export(folder, tmp_path):
    spoilt = shutil.copytree(folder, tmp_path / "spoilt")
    a, b, c = sorted((spoilt / "clips").glob("etude*"))
    (a / "pedal.mp4").unlink()
    (a / "extra.txt").write_text("?")
    soundfile.write(b / "sound.wav", np.full((9, 2), np.nan), 16_000, subtype="FLOAT")
    entry = json.loads((c / "annotation.json").read_text())
    entry["notes"]["velocities"][0] = 200
    (c / "annotation.json").write_text(json.dumps(entry))
    write_video(c / "top.mp4", np.zeros((10, 32, 48, 3), np.uint8))
    (spoilt / "clips" / "stranger").mkdir()
    shutil.rmtree(spoilt / "style" / sorted(p.name for p in (spoilt / "style").iterdir())[0])
    found = benchmark_faults(spoilt)
    for said in (
        f"{a.name}: pedal.mp4 is missing",
        f"{a.name}: extra.txt is not listed",
        f"{b.name}: sound.wav has 16000 Hz",
        f"{b.name}: sound.wav has 2 channels",
        f"{b.name}: sound.wav holds NaN",
        f"{c.name}: annotation.json: notes.velocities[0]: 200 is greater",
        f"{c.name}: top.mp4 is not the file",
        "clips/stranger is not in the manifest",
        "style/",
    ):
        assert any(said in line for line in found), said
    with pytest.raises(Faulty):
        import_benchmark(spoilt, tmp_path / "set")
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    "change, said",
    [
        ({"onset_ticks": [50, 10]}, "note 1 is out of order"),
        ({"offset_ticks": [20, 60]}, "note 0 ends before it begins"),
        ({"pitches": [60, 60], "offset_ticks": [70, 90]}, "pitch 60 is struck at tick 60"),
        ({"offset_ticks": [50, 2000]}, "note 1 lies beyond the end"),
        ({"velocities": [64]}, "different lengths"),
        ({"pedal_ticks": [[5, 5]]}, "pedal spans are out of order"),
        ({"pedal_ticks": [[5, 50], [40, 60]]}, "pedal spans are out of order"),
        ({"pedal_ticks": [[5, 5000]]}, "the pedal goes beyond"),
    ],
)
def test_faults_of_notes(change, said):
    good = {"pitches": [60, 64], "onset_ticks": [30, 60], "offset_ticks": [50, 90]}
    good |= {"velocities": [64, 64], "pedal_ticks": []}
    assert note_faults(good, 1920) == []
    assert any(said in line for line in note_faults(good | change, 1920))


# Submissions.


def test_truth_is_accepted_and_scores_one(bench, folder, true, tmp_path):
    made = score_folder(submitted(tmp_path / "s", bench, true), folder)
    assert headlines(made) == {"L1": 1.0, "L2": 1.0, "L3": 1.0}
    assert schema_faults(made, "result") == []
    by_name = {line["metric"]: line for line in made["lines"]}
    assert by_name["velocity_mae"]["value"] == 0 and by_name["onset_f1"]["n"] == 3
    assert made["scored"]["piano"]["works"] == 3
    assert all(value == 1 for value in made["per_clip"]["L1"]["onset_f1"].values())


def test_a_level_notices_its_own_output_only(bench, folder, true, tmp_path):
    flat = {n: t.replace(velocities=np.full(len(t), 64)) for n, t in true.items()}
    made = headlines(score_folder(submitted(tmp_path / "flat", bench, flat), folder))
    assert made["L1"] == 1 and made["L2"] < 1
    dry = {n: t.replace(pedal=()) for n, t in true.items()}
    assert any(len(t.pedal) for t in true.values())
    made = headlines(score_folder(submitted(tmp_path / "dry", bench, dry), folder))
    assert made["L1"] == made["L2"] == 1 and made["L3"] < 1


def test_an_undefined_metric_says_so(bench, folder, true, tmp_path):
    flat = {n: t.replace(velocities=np.full(len(t), 64)) for n, t in true.items()}
    made = score_folder(submitted(tmp_path / "flat", bench, flat), folder)
    line = next(line for line in made["lines"] if line["metric"] == "velocity_r")
    assert line["value"] is None and "undefined" in line["note"]


def test_sounds(bench, folder, root, tmp_path):
    from cop_repro.judges.extractors import embedded_extractor

    judges = embedded_extractor(root / "data" / "assets" / "judges.safetensors")
    for level, track in (("L4", "piano"), ("general", "general")):
        sounds = {name: bench.sound(name) for name in bench.ids(track)}
        place = submitted(tmp_path / level, bench, None, sounds, [level])
        made = {line["metric"]: line for line in score_folder(place, folder, judges)["lines"]}
        assert list(made) == list(LEVELS[level].metrics)
        if level == "L4":
            assert made["si_sdr_spec"]["value"] == 100 and made["mel_distance"]["value"] == 0
            assert made["style_accuracy"]["extractor"].startswith("style judge")
            assert made["transcription_f1"]["extractor"].startswith("basic-pitch")
        else:
            assert made["event_f1"]["value"] == 1 and made["kl"]["value"] == 0
            assert made["clip_score"]["value"] is not None
            assert "embedded judges" in made["clip_score"]["extractor"]


@pytest.mark.parametrize(
    "probability, pianist, right",
    [(0.9, "crisp", 1), (0.9, "lyrical", 0), (0.1, "lyrical", 1), (0.1, "neutral", math.nan)],
)
def test_style_accuracy(probability, pianist, right):
    class Judge:
        preferred, other = "crisp", "lyrical"

        def __call__(self, wav):
            return probability

    found = style_accuracy(Judge(), np.zeros(48_000), pianist)
    assert found == right or (math.isnan(found) and math.isnan(right))


def test_the_style_judge_is_deaf_to_what_nobody_hears(bench):
    judge = bench_style_judge(bench)
    wav = bench.sound(bench.ids("piano")[0])
    hiss = 1e-4 * np.random.default_rng(0).standard_normal(len(wav))
    plain = judge(wav)
    assert judge(wav + hiss) == pytest.approx(plain, abs=0.02)
    assert judge(0.1 * wav) == pytest.approx(plain, abs=1e-3)


def test_a_video_with_sound_is_a_submission(bench, true, tmp_path):
    place = submitted(tmp_path / "s", bench, None, {}, ["general"])
    for name in bench.ids("general"):
        frames = np.zeros((round(25 * SECONDS), 32, 32, 3), np.uint8)
        write_video(place / f"{name}.mp4", frames, wav=bench.sound(name))
    made = check_submission(place, bench)
    assert all(made.wav(name, SECONDS).shape == (48_000,) for name in bench.ids("general"))
    write_video(place / f"{name}.mp4", frames)
    assert "has no sound" in faults_of(place, bench)[0]
    write_video(place / f"{name}.mp4", frames, wav=np.zeros(44_100), sample_rate=22_050)
    assert any("22050 Hz" in line for line in faults_of(place, bench))


def test_lengths_within_a_sample(bench, tmp_path):
    for extra, good in ((-2, False), (-1, True), (0, True), (1, True), (2, False)):
        sounds = {name: np.zeros(48_000 + extra) for name in bench.ids("general")}
        place = submitted(tmp_path / str(extra), bench, None, sounds, ["general"])
        if good:
            assert check_submission(place, bench).wav(next(iter(sounds)), SECONDS).shape == (
                48_000,
            )
        else:
            assert len(faults_of(place, bench)) == 2


def test_every_fault_is_listed(bench, true, tmp_path):
    sounds = {name: bench.sound(name) for name in true}
    place = submitted(tmp_path / "s", bench, true, sounds, ["L1", "L4"])
    a, b, c = sorted(true)
    (place / f"{a}.mid").rename(place / f"{a}x.mid")
    (place / f"{b}.wav").unlink()
    (place / "other.wav").write_bytes(b"RIFF")
    (place / f"{c}.mid").write_bytes(b"no MIDI")
    soundfile.write(place / f"{c}.wav", np.full(48_000, np.inf), 24_000, subtype="FLOAT")
    (place / "notes.json").write_text("{}")
    about = json.loads((place / "submission.json").read_text())
    about |= {"split_hash": "f" * 16, "views": {"L1": ["pedal"]}}
    (place / "submission.json").write_text(json.dumps(about))
    found = faults_of(place, bench)
    for said in (
        "another split",
        "L1 allows top; pedal is declared",
        "L4 is submitted, and its views are not declared",
        f"{a}x.mid: no clip has that id (did you mean",
        f"{a}.mid is missing",
        f"{b}.wav (or .mp4) is missing",
        "other.wav: no clip has that id",
        f"{c}.mid is not a readable MIDI file",
        f"{c}.wav holds NaN or infinite",
        "notes.json is no file of a submission",
    ):
        assert any(said.split(" (did")[0] in line for line in found), (said, found)
    assert len(found) == 10


@pytest.mark.parametrize(
    "change, said",
    [
        ({"levels": []}, "should be non-empty"),
        ({"levels": ["L1", "L1"]}, "non-unique"),
        ({"levels": ["L7"]}, "'L7' is not one of"),
        ({"mode": "open"}, "'open' is not one of"),
        ({"seeds": [0.5]}, "0.5 is not of type 'integer'"),
        ({"system": ""}, "should be non-empty"),
        ({"system": "x" * 101}, "is too long"),
        ({"url": "javascript:alert(1)"}, "does not match"),
        ({"parameters": -1}, "less than the minimum"),
        ({"parameters": math.nan}, "finite number"),
        ({"surprise": 1}, "'surprise' was unexpected"),
        ({"format": "cop-bench/1"}, "was expected"),
        ({"given": {"L1": 0}}, "cascade builds on its own"),
        ({"mode": "oracle"}, "mode oracle needs"),
        ({"mode": "oracle", "given": {"L2": 2, "L3": 2}}, "only a lower level"),
    ],
)
def test_faults_of_a_declaration(bench, true, tmp_path, change, said):
    place = submitted(tmp_path / "s", bench, true)
    about = json.loads((place / "submission.json").read_text()) | change
    (place / "submission.json").write_text(json.dumps(about))
    assert any(said in line for line in faults_of(place, bench))


def test_declarations_that_are_no_json(bench, true, tmp_path):
    place = submitted(tmp_path / "s", bench, true)
    (place / "submission.json").write_text("{")
    assert "not a readable JSON file" in faults_of(place, bench)[0]
    (place / "submission.json").write_text("[1]")
    assert "is not of type 'object'" in faults_of(place, bench)[0]
    (place / "submission.json").unlink()
    assert faults_of(place, bench) == ["submission.json is missing"]
    with pytest.raises(BadInput, match="no folder"):
        check_submission(tmp_path / "none", bench)


def strikes(path, *events):
    track = mido.MidiTrack(
        [mido.Message(kind, note=60, velocity=64, time=time) for kind, time in events]
    )
    mido.MidiFile(type=0, ticks_per_beat=480, tracks=[track]).save(path)


def test_overlapping_notes_are_a_fault_and_repeated_ones_are_not(bench, true, tmp_path):
    place = submitted(tmp_path / "s", bench, true)
    a, b, c = sorted(true)
    strikes(place / f"{a}.mid", ("note_on", 0), ("note_on", 9), ("note_off", 9), ("note_off", 9))
    strikes(place / f"{b}.mid", ("note_on", 0), ("note_off", 9), ("note_on", 0), ("note_off", 9))
    write_grid_midi(make_notes([60], [5.0], [6.0], [64]), place / f"{c}.mid")
    found = faults_of(place, bench)
    assert len(found) == 2
    assert "pitch 60 is struck at tick 9 while down" in found[0] and "beyond the clip" in found[1]


def test_an_oracle_keeps_its_level(bench, folder, true, tmp_path):
    about = {"mode": "oracle", "given": {"L2": 1, "L3": 2}}
    made = score_folder(submitted(tmp_path / "s", bench, true, **about), folder)
    assert {(line["level"], line["mode"], line["j"]) for line in made["lines"]} == {
        ("L1", "oracle", 0),
        ("L2", "oracle", 1),
        ("L3", "oracle", 2),
    }


def test_results_depend_on_truth_and_files(bench, folder, true, tmp_path):
    one = score_folder(submitted(tmp_path / "a", bench, true, levels=["L1"]), folder)
    again = score_folder(submitted(tmp_path / "b", bench, true, levels=["L1"]), folder)
    late = {n: t.shift(0.01).crop(0, SECONDS) for n, t in true.items()}
    other = score_folder(submitted(tmp_path / "c", bench, late, levels=["L1"]), folder)
    assert one == again
    assert one["files"] != other["files"] and one["scored"] == other["scored"]
    changed = shutil.copytree(folder, tmp_path / "changed")
    sound = changed / "clips" / sorted(true)[0] / "sound.wav"
    sound.write_bytes(sound.read_bytes()[:-2] + b"\x01\x01")
    with pytest.raises(Faulty, match="sound.wav is not the file"):
        score_folder(tmp_path / "a", changed)


def test_names_of_results(bench, folder, true, tmp_path):
    made = score_folder(submitted(tmp_path / "s", bench, true, levels=["L1"]), folder)
    assert result_name("../../etc/passwd") == "etc-passwd"
    assert result_name("日本") == "system"
    path = write_result(made, tmp_path / "results")
    assert path.name == "a-system.json" and write_result(made, tmp_path / "results") == path
    other = {**made, "system": {**made["system"], "system": "A  system"}}
    with pytest.raises(BadInput, match="that of 'a system'"):
        write_result(other, tmp_path / "results")


# The command.


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = main(["bench", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_command(folder, bench, true, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = submitted(tmp_path / "s", bench, true)
    assert run(capsys, "validate", folder) == (0, f"{folder}: no faults\n", "")
    assert run(capsys, "validate", place, "--benchmark", folder)[0] == 0
    code, out, _ = run(capsys, "score", place, "--benchmark", folder)
    assert code == 0 and "L1      *onset_f1" in out and "1.0000" in out
    assert Path("results/a-system.json").is_file()
    code, out, _ = run(capsys, "import", folder, "-o", "set")
    assert code == 0 and "3 clips" in out and len(list(Path("set").iterdir())) == 6


def test_the_command_lists_faults_and_writes_nothing(
    folder, bench, true, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    place = submitted(tmp_path / "s", bench, true)
    for name in true:
        (place / f"{name}.mid").unlink()
    (place / "evil\x1b[2J.mid").write_bytes(b"")
    before = sorted(p.name for p in tmp_path.rglob("*"))
    for arguments in (["validate", place], ["score", place]):
        code, out, err = run(capsys, *arguments, "--benchmark", folder)
        lines = err.splitlines()
        assert code == 2 and out == "" and len(lines) == 5
        assert lines[0] == "cop bench: s: 4 faults, nothing is written"
        assert "\x1b" not in err
    assert sorted(p.name for p in tmp_path.rglob("*")) == before
    code, _, err = run(capsys, "score", place)
    assert code == 2 and "cop bench export benchmark" in err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    code, _, err = run(capsys, "export", "full")
    assert code == 2 and "not empty" in err and (tmp_path / "full" / "file").is_file()


def test_export_by_command(root, tmp_path, capsys, monkeypatch):
    "Two clips of the shipped manifest, and what belongs to them."
    monkeypatch.chdir(root)
    monkeypatch.setattr(exchange, "clip_views", lambda i, s=None: ten_seconds(i))
    items, split_hash = read_manifest(root / "data" / "manifest.json")
    ours = [i for i in items if "etude/" in i.work_id or i.domain == "foley"]
    monkeypatch.setattr("cop_repro.data.clips.read_manifest", lambda path: (ours, split_hash))
    code, out, _ = run(capsys, "export", tmp_path / "out", "--limit", "2")
    assert code == 0 and "4 clips of split test" in out
    assert benchmark_faults(tmp_path / "out") == []
    assert read_benchmark(tmp_path / "out").split_hash == split_hash


def ten_seconds(item):
    names = VIEWS if item.domain == "piano" else ("video",)
    return {name: np.zeros((250, 16, 16, 3), np.uint8) for name in names}


def test_all_five_cameras_are_rendered(scores):
    item = piano_items(next(iter(scores.values())), "test", 0.4, 1, seed=0)
    item = item or piano_items(next(iter(scores.values())), "test", SECONDS, 1, seed=0)
    views = exchange.clip_views(item[0], scores[item[0].recipe["work"]])
    assert tuple(views) == VIEWS
    assert len({frames.shape[0] for frames in views.values()}) == 1
    assert all(frames.std() > 1 for frames in views.values())


def test_parsing_is_light(root):
    code = (
        "import sys, cop_repro.cli as cli; cli.build_parser().parse_args(['bench', 'score', 'x']); "
        "print(*{'torch', 'jsonschema', 'mir_eval'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
