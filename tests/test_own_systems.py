# SPDX-License-Identifier: Apache-2.0
"`cop bench ladder` and `board`: cells, controls and page hold the same numbers."

import csv
import json
from argparse import Namespace

import numpy as np
import pytest

from cop_repro.benchmark import exchange, own_systems, scores
from cop_repro.benchmark.exchange import ExportPlan, export_benchmark, level_notes, read_benchmark
from cop_repro.benchmark.level_values import LevelFunctions, other_piano
from cop_repro.benchmark.own_systems import (
    COP,
    SYNTHESISER,
    OwnSystem,
    another_clip,
    check_split,
    level_clip,
    play_systems,
)
from cop_repro.benchmark.protocol import LEVELS, Faulty, schema_faults
from cop_repro.benchmark.scores import Scoring, headlines
from cop_repro.cli import main, score
from cop_repro.cli._views import SHIPPED
from cop_repro.cli.bench import _styled, _views_of
from cop_repro.core import AssetMismatch, BadInput, MissingExtra
from cop_repro.data.clips import piano_items, piano_views
from cop_repro.data.performance import etudes
from cop_repro.systems.cop import load_performer

SECONDS = 2.0
CELLS = [(m, j) for m in (1, 2, 3, 4) for j in range(m)]


def small_views(item, score=None):
    "A real top view, from which rolls are predicted, and black pictures of the other cameras."
    black = np.zeros((round(25 * SECONDS), 32, 48, 3), np.uint8)
    views = dict.fromkeys(("left", "right", "front", "pedal"), black)
    return piano_views(item, score, ("top",)) | views


@pytest.fixture(scope="module")
def assets(root):
    return root / "data" / "assets"


@pytest.fixture(scope="module")
def folder(root, tmp_path_factory):
    "An exported folder of two works; its split is that of the shipped weights."
    split_hash = json.loads((root / "data" / "manifest.json").read_text())["split_hash"]
    works = {score.work_id: score for score in etudes(root / "data" / "etudes")}
    first = list(works.values())[:2]
    items = tuple(piano_items(score, "test", SECONDS, 1, seed=0)[2] for score in first)
    made = tmp_path_factory.mktemp("bench") / "benchmark"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exchange, "clip_views", small_views)
        export_benchmark(ExportPlan("test", split_hash, items), works, made)
    return made


@pytest.fixture(scope="module")
def bench(folder):
    return read_benchmark(folder)


@pytest.fixture(scope="module")
def clips(bench):
    return [level_clip(bench, name) for name in bench.ids("piano")]


def system(clips, keep=1.0):
    "It looks a part of the true notes up and plays them on another piano."
    truth = {clip.clip_id: clip.notes for clip in clips}

    def f1(seen, notes):
        true = truth[seen.clip_id]
        return level_notes(true.crop(0, keep * seen.duration_s), "L1")

    def f2(seen, notes):
        true = truth[seen.clip_id]
        return notes.replace(velocities=true.velocities[: len(notes)])

    def f3(seen, notes):
        return notes.replace(pedal=truth[seen.clip_id].pedal)

    return OwnSystem(LevelFunctions(f1, f2, f3, other_piano), 7, "A system of a test.")


def no_transcriber():
    raise MissingExtra("no transcriber in this test")


@pytest.fixture(scope="module")
def results(folder, clips, assets, tmp_path_factory):
    "What `cop bench ladder` writes of two systems that are made by hand."
    made = tmp_path_factory.mktemp("results") / "results"
    systems = {"perfect": system(clips), "half": system(clips, 0.5)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_systems, "own_systems", lambda performer, seed, styled, views: systems)
        patch.setattr(score, "find_judge", lambda asked: None)  # networks are tested elsewhere
        patch.setattr(scores, "transcriber_name", no_transcriber)
        place = ("--benchmark", str(folder), "-o", str(made))
        assert main(["bench", "ladder", *place, "--assets", str(assets)]) == 0
    return made


@pytest.fixture(scope="module")
def page(results, tmp_path_factory):
    "The leaderboard of these results."
    made = tmp_path_factory.mktemp("page") / "page"
    assert main(["bench", "board", str(results), "-o", str(made)]) == 0
    return made


def read(path):
    return json.loads(path.read_text())


def falls(results, name):
    return read(results / "waterfalls" / f"{name}.json")


def cells(entry):
    return {(int(c["level"][1]), c["j"]): c["value"] for c in entry["cells"]}


def test_every_file_of_a_folder_has_its_form(results):
    for kind, files in (("result", results.glob("*.json")), ("waterfalls", results.glob("w*/*"))):
        files = list(files)
        assert len(files) == 2
        assert not [fault for path in files for fault in schema_faults(read(path), kind)]
    controls = {path.stem for path in (results / "controls").iterdir()}
    assert controls == {
        *("silence", "random-notes", "rhythm-matched", "shuffled", "one-frame-late"),
        *("constant-velocity", "no-pedal", "other-piano", "other-views", "codec"),
    }
    assert {path.name for path in results.glob("waterfalls.*")} == {
        "waterfalls.md",
        "waterfalls.png",
    }


@pytest.mark.parametrize("name", ["perfect", "half"])
def test_losses_telescope(results, name):
    entry = falls(results, name)
    values = cells(entry)
    assert sorted(values) == CELLS
    for fall in entry["waterfalls"]:
        m = int(fall["level"][1])
        assert fall["start"] == pytest.approx(values[m, 0], abs=1e-9)
        losses = {loss["level"]: loss["value"] for loss in fall["losses"]}
        assert sum(losses[j] for j in range(1, m)) == pytest.approx(
            values[m, m - 1] - values[m, 0], abs=1e-9
        )
        ceiling = fall["start"] + sum(losses.values())
        codec = headlines(read(results / "controls" / "codec.json"))["L4"]
        assert ceiling == pytest.approx(codec if m == 4 else 1.0, abs=1e-9)


def test_a_perfect_predictor_reaches_the_ceiling(results):
    assert [headlines(read(results / "perfect.json"))[f"L{m}"] for m in (1, 2, 3)] == [1, 1, 1]
    half = cells(falls(results, "half"))
    assert half[2, 1] == 1 and half[2, 0] < 1


def test_the_synthesiser_on_the_truth_is_a_control(results):
    control = read(results / "controls" / "other-piano.json")
    for name in ("perfect", "half"):
        found = cells(falls(results, name))[4, 3]
        assert found == pytest.approx(headlines(control)["L4"], abs=1e-9)
    assert (
        control["per_clip"]["L4"]["si_sdr_spec"]
        == (read(results / "perfect.json")["per_clip"]["L4"]["si_sdr_spec"])
    )


def test_a_cascade_is_its_result(results):
    "Cells are computed from outputs, results from the files that hold them."
    for name in ("perfect", "half"):
        values = cells(falls(results, name))
        for level, value in headlines(read(results / f"{name}.json")).items():
            assert value == pytest.approx(values[int(level[1]), 0], abs=1e-9), (name, level)


def test_tables_hold_all_cells(results):
    rows = list(csv.DictReader((results / "cells.csv").read_text().splitlines()))
    assert len(rows) == 2 * len(CELLS)
    for row in rows:
        values = cells(falls(results, row["system"]))
        assert float(row["value"]) == values[int(row["level"][1]), int(row["j"])]
    table = (results / "waterfalls.md").read_text()
    assert table.count("| cascade |") == table.count("| ceiling |") == 2 * 3


def test_the_page_holds_exactly_the_numbers_of_the_files(results, page):
    board = read(page / "leaderboard.json")
    shown = {}
    for row in board["rows"]:
        for metric, cell in row["values"].items():
            key = row["control"], row["system"], row["level"], metric
            shown[key] = tuple(cell[part] for part in ("value", "ci_low", "ci_high", "n"))
    filed = {}
    for path in (*results.glob("*.json"), *results.glob("controls/*.json")):
        result = read(path)
        for line in result["lines"]:
            control = path.parent.name == "controls"
            key = control, result["system"]["system"], line["level"], line["metric"]
            filed[key] = tuple(line[part] for part in ("value", "ci_low", "ci_high", "n"))
    assert shown == filed
    entries = [falls(results, name)["waterfalls"] for name in ("half", "perfect")]
    assert board["waterfalls"] == [fall for entry in entries for fall in entry]
    assert {card["system"]: len(card["clips"]) for card in board["cards"]} == {
        "perfect": 2,
        "half": 2,
    }
    assert (page / "clip-0-sound.ogg").stat().st_size > 1000


def test_a_page_replaces_nothing_but_a_page(results, page, tmp_path, capsys):
    assert main(["bench", "board", str(results), "-o", str(page)]) == 0
    (tmp_path / "precious.txt").write_text("mine")
    assert main(["bench", "board", str(results), "-o", str(tmp_path)]) != 0
    assert "other files" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def copied(results, place):
    "The result of one system with its waterfalls."
    (place / "waterfalls").mkdir(parents=True)
    for name in ("half.json", "waterfalls/half.json"):
        (place / name).write_text((results / name).read_text())
    return place


def test_files_that_do_not_belong_together_are_refused(results, tmp_path, capsys):
    def refusal(spoil):
        place = copied(results, tmp_path / spoil.__name__)
        spoil(place)
        page = tmp_path / "page"
        assert main(["bench", "board", str(place), "-o", str(page)]) != 0
        assert not page.exists()
        return capsys.readouterr().err

    def no_result(place):
        (place / "half.json").rename(place / "waterfalls" / "other.txt")

    def no_waterfall_system(place):
        entry = falls(results, "perfect")
        (place / "waterfalls" / "perfect.json").write_text(json.dumps(entry))

    def other_clips(place):
        entry = falls(results, "half")
        entry["scored"]["truth"] = "0" * 16
        (place / "waterfalls" / "half.json").write_text(json.dumps(entry))

    def bad_form(place):
        entry = falls(results, "half")
        entry["cells"][0]["n"] = "many"
        entry["surprise"] = 1
        (place / "waterfalls" / "half.json").write_text(json.dumps(entry))

    def odd_media(place):
        (place / "clips" / "half").mkdir(parents=True)
        (place / "clips" / "half" / "a.exe").write_bytes(b"")

    assert "no result file" in refusal(no_result)
    assert "'perfect' has waterfalls and no result" in refusal(no_waterfall_system)
    assert "scored on different clips" in refusal(other_clips)
    said = refusal(bad_form)
    assert "2 faults" in said and "surprise" in said and "'many'" in said
    assert "a.exe is no file of a card" in refusal(odd_media)


def test_weights_of_another_split_are_refused(bench, assets):
    other = exchange.Benchmark(bench.folder, {**bench.manifest, "split_hash": "0" * 16})
    for name in ("piano.safetensors", SHIPPED):
        check_split(assets / name, bench)
        with pytest.raises(AssetMismatch, match=f"{name} was trained on split"):
            check_split(assets / name, other)
    with pytest.raises(AssetMismatch, match="trained on split"):
        _views_of(assets, None, other)
    with pytest.raises(AssetMismatch, match="trained on split"):
        _styled(Namespace(styles=assets / "piano.safetensors", dpo=None, seed=0), None, other)


def test_no_weights_of_views_are_said(bench, tmp_path, capsys):
    assert _views_of(tmp_path, None, bench) is None
    assert "the rows of five views are left out" in capsys.readouterr().err


def test_one_work_has_no_controls(clips):
    with pytest.raises(BadInput, match="of one work"):
        another_clip(clips[0], clips[:1])
    assert another_clip(clips[0], clips).work_id != clips[0].work_id


@pytest.fixture(scope="module")
def played(bench, clips, assets):
    "Our own systems, and what they make of one clip."
    systems = own_systems.own_systems(load_performer(assets))
    kept = {name: systems[name] for name in (SYNTHESISER, COP)}
    return kept, play_systems(kept, clips[:1], Scoring(bench))


def test_own_systems_share_a_predictor_and_differ_in_sound(played, clips):
    _, made = played
    name = clips[0].clip_id
    assert made[COP].notes == made[SYNTHESISER].notes
    assert made[SYNTHESISER].cells[1, 0][name] > 0.5
    assert sorted(made[COP].cells) == CELLS
    assert not np.array_equal(made[COP].sounds[name], made[SYNTHESISER].sounds[name])


def test_the_sound_of_a_clip_comes_out_the_same_again(played, bench, clips):
    systems, made = played
    name = clips[0].clip_id
    seen = level_clip(bench, name, ("top",)).seen("L4")
    notes, f4 = made[COP].notes[name], systems[COP].functions.f4
    assert np.array_equal(f4(seen, notes), made[COP].sounds[name])


def test_an_export_of_the_levels_alone(monkeypatch, root, tmp_path):
    monkeypatch.setattr(exchange, "clip_views", small_views_any)
    manifest = str(root / "data" / "manifest.json")
    place = str(tmp_path / "b")
    args = ["bench", "export", place, "--limit", "1", "--only-levels", "--manifest", manifest]
    assert main(args) == 0
    made = read_benchmark(place)
    assert (len(made.ids("piano")), made.ids("general")) == (1, [])
    assert not made.manifest["style_clips"] and made.manifest["style_judge"]
    assert main(["bench", "validate", place]) == 0


def small_views_any(item, score=None):
    names = LEVELS["L3"].views
    return {name: np.zeros((round(25 * item.duration_s), 32, 48, 3), np.uint8) for name in names}


def test_a_benchmark_with_faults_is_not_played(folder, assets, tmp_path, monkeypatch):
    import shutil

    spoilt = shutil.copytree(folder, tmp_path / "spoilt")
    next(spoilt.glob("clips/*/L1.mid")).unlink()
    place = ("--benchmark", str(spoilt), "-o", str(tmp_path / "r"))
    assert main(["bench", "ladder", *place, "--assets", str(assets)]) == 2
    assert not (tmp_path / "r").exists()
    assert issubclass(Faulty, BadInput)
