# SPDX-License-Identifier: Apache-2.0
"Layout of tables, what may stand in one column, counted clips and weights, Figures 3 and 4."

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
import yaml

from cop_repro.core import BadInput, ParamsError, save_weights
from cop_repro.data.clips import Clip, Item
from cop_repro.evaluation.claims import Result, load_claims, paper_results
from cop_repro.evaluation.evaluate import Row
from cop_repro.evaluation.inventory import (
    clip_lines,
    count_weights,
    row_weights,
    save_row_weights,
    weight_lines,
)
from cop_repro.evaluation.report import RunInfo, verdict_page, write_report, write_verdicts
from cop_repro.evaluation.spectrograms import draw_spectrograms, save_spectrograms, shown_clips
from cop_repro.evaluation.tables import (
    MAX_COLUMNS,
    latex_blocks,
    load_tables,
    markdown_blocks,
    table_blocks,
)
from cop_repro.systems.catalogue import SYSTEMS
from cop_repro.systems.contract import NoSettings, SystemFiles
from cop_repro.systems.general import GeneralSystem


@pytest.fixture(scope="module")
def definitions(root):
    return yaml.safe_load((root / "refs" / "tables.yaml").read_text())


@pytest.fixture(scope="module")
def tables(definitions):
    return load_tables(definitions)


@pytest.fixture(scope="module")
def paper(root):
    return yaml.safe_load((root / "refs" / "paper.yaml").read_text())


def scored(value, ids="abcd", **other):
    "Scored clips of one row."
    entry = {"suffix": "", "pianist": "crisp", "metrics": {"si_sdr_spec": value}}
    clips = [{**entry, "clip_id": c, "work_id": c, **other} for c in ids]
    return [{**clip, "metrics": dict(clip["metrics"])} for clip in clips]


def run_of(tables):
    return RunInfo("embedded", "test", "a transcriber", tables)


@pytest.mark.parametrize(
    "kind, changed",
    [
        ("profiles", {"profile": "smoke"}),
        ("clip sets", {"clips": "other"}),
        ("extractors", {"extractor": "another network"}),
    ],
)
def test_a_table_that_would_mix_is_refused(tmp_path, tables, paper, kind, changed):
    "Nothing is written: the table, the column and both rows are named."
    lines, _ = write_report(tmp_path / "own", run_of(tables), {"cop_piano": scored(3.0)}, paper)
    own = next(r for r in lines if r.row == "cop_piano" and r.table == "table4" and r.n)
    foreign = replace(own, row="no_guidance", **changed)
    with pytest.raises(BadInput, match=f"table4 would mix {kind}.*'si_sdr_spec'") as refused:
        write_report(
            tmp_path / "mixed", run_of(tables), {"cop_piano": scored(3.0)}, paper, extra=[foreign]
        )
    assert "'no_guidance'" in str(refused.value) and "'cop_piano'" in str(refused.value)
    assert not (tmp_path / "mixed").exists()


def test_rows_scored_on_other_clips_are_refused(tmp_path, tables, paper):
    rows = {"cop_piano": scored(3.0), "no_guidance": scored(1.0, "abce")}
    with pytest.raises(BadInput, match="table4 would mix clip sets"):
        write_report(tmp_path, run_of(tables), rows, paper)


def test_rows_of_two_judges_are_refused(tmp_path, tables, paper):
    judge = {"metric": "fad", "value": 1.0, "ci_low": 0.5, "ci_high": 2.0, "n": 4, "suffix": ""}
    about = {"sample_rate": 16_000, "ids": "ab"}
    sets = {
        row: [{**judge, **about, "extractor": f"judge {row}"}]
        for row in ("cop_piano", "no_guidance")
    }
    with pytest.raises(BadInput, match="table4 would mix extractors in the column 'fad'"):
        write_report(tmp_path, run_of(tables), {}, paper, sets)


def test_every_block_is_narrow_and_holds_every_number(tables, paper):
    "All numbers of the paper, and a value of ours in every column of every row."
    lines = paper_results(paper)
    for name, table in tables.tables.items():
        for row in table.rows:
            for metric, unit in (("si_sdr_spec", "dB"), ("fad", ""), ("mel_distance", "dB")):
                value = 1.2345, 1.0, 1.5, 4, unit, True, "embedded", "test", "", "ab"
                lines.append(Result(name, tables.row_name(row), metric, *value))
    for name, table in tables.tables.items():
        blocks = table_blocks(lines, name, table)
        assert all(len(block.head) <= MAX_COLUMNS for block in blocks), name
        assert all(len(row) == len(block.head) for block in blocks for row in block.rows)
    table2 = table_blocks(lines, "table2", tables.tables["table2"])
    main = [block for block in table2 if not block.title]
    assert [row[0] for row in main[0].rows][:2] == ["base_without_text", "base"]
    assert "mmaudio_l_44k" not in [row[0] for block in main for row in block.rows]
    assert table2[-1].title == "The paper's further rows"
    assert main[0].head[1:6] == (
        "paper: parameters",
        "fad ↓",
        "paper",
        "paper: fd ↓",
        "paper: kl [nat] ↓",
    )


def test_controls_stand_apart_and_once(tables):
    about = "embedded", "test", "", "ab"
    lines = [
        Result("table2", row, "fad", value, None, None, 4, "", False, *about)
        for row, value in (
            ("base", 3.0),
            ("base_true_sound", 0.0),
            ("cl", 4.0),
            ("cl_true_sound", 0.0),
            ("cl_shuffled", 7.0),
        )
    ]
    first, controls = table_blocks(lines, "table2", tables.tables["table2"])
    assert [row[0] for row in first.rows] == ["base", "cl"]
    assert [row[0] for row in controls.rows] == ["true_sound", "cl_shuffled"]
    assert controls.title.startswith("Controls")


def test_exports_hold_what_the_page_holds(tmp_path, tables, paper):
    rows = {"cop_piano": scored(3.0), "no_guidance": scored(-1.0)}
    lines, _ = write_report(tmp_path, run_of(tables), rows, paper)
    assert {p.name for p in (tmp_path / "tables").iterdir()} == {
        f"{name}.{kind}" for name in tables.tables for kind in ("csv", "tex")
    }
    read = list(csv.DictReader(io.StringIO((tmp_path / "tables" / "table4.csv").read_text())))
    assert len(read) == sum(r.table == "table4" for r in lines)
    own = next(r for r in read if (r["row"], r["label"]) == ("no_guidance", "embedded"))
    assert (float(own["value"]), own["n"], own["profile"]) == (-1.0, "4", "test")
    tex = (tmp_path / "tables" / "table4.tex").read_text()
    for tabular in tex.split(r"\begin{tabular}{l")[1:]:
        width = tabular.split("}")[0].count("r")
        cells = [line for line in tabular.splitlines() if line.endswith(r"\\")]
        assert cells and all(line.count("&") == width for line in cells)
    assert tex.count(r"\toprule") == tex.count(r"\bottomrule") == tex.count(r"\end{table}")
    assert r"no\_guidance" in tex and "$-$1.00" in tex and "↑" not in tex
    page = (tmp_path / "tables.md").read_text()
    assert "| row | paper: parameters | si_sdr_spec [dB] ↑ | paper | mos_melody ↑ | paper |" in page
    assert "| no_guidance | 789M | -1.00 [-1.00, -1.00] | -2.26 | not run | 1.68 |" in page


def test_text_for_latex_is_escaped(tables):
    about = "embedded", "test", "100% {a}_b #1", "ab"
    line = Result("table4", "a&b_$^~\\", "fad", -1.0, None, None, 4, "", False, *about)
    blocks = table_blocks([line], "table4", tables.tables["table4"])
    tex = latex_blocks("table4", "50 % & more", blocks)
    assert r"a\&b\_\$\textasciicircum{}\textasciitilde{}\textbackslash{} & $-$1.00 \\" in tex
    assert r"50 \% \& more" in tex and r"100\% \{a\}\_b \#1" in tex
    assert "4 clips" in markdown_blocks("x", blocks)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"parts": [{"title": "x"}]}, "rows"),
        ({"parts": [{"title": "x", "rows": ["a"], "rowss": []}]}, "rowss"),
    ],
)
def test_a_part_is_checked(definitions, change, message):
    table4 = {**definitions["tables"]["table4"], **change}
    changed = {**definitions, "tables": {**definitions["tables"], "table4": table4}}
    with pytest.raises(ParamsError, match=message):
        load_tables(changed)


def test_the_papers_weights_and_counterparts(paper):
    found = {(r.table, r.row, r.metric): r.value for r in paper_results(paper)}
    assert found["table2", "factorcl", "parameters"] == 718e6
    assert found["table2", "foleycrafter", "parameters"] == 1.22e9
    assert found["table5", "cop_velocity_dpo", "parameters"] == 789e6
    assert found["table1", "foley_train", "clips"] == 173_000
    assert found["table1", "t2a_train", "clips"] == 49_000 + 402_000 + 37_000 + 5_000 + 695_000


@pytest.fixture()
def files(tmp_path):
    "A roll predictor of 16 weights and a piano model of 70."
    shapes = {"roll": (4, 4), "piano": (2, 5, 7)}
    for name, shape in shapes.items():
        save_weights(tmp_path / f"{name}.safetensors", {"w": torch.zeros(shape)}, {})
    paths = [tmp_path / f"{name}.safetensors" for name in ("codec", "encoders", "roll")]
    return SystemFiles("", *paths, models=(("piano", tmp_path / "piano.safetensors"),))


def test_weights_of_rows_reach_their_tables(tmp_path, tables, files):
    rows = {
        name: Row(system, "reconstruction", own, NoSettings())
        for name, system, own in (
            ("cop_piano", "cop", files),
            ("audeo_style", "audeo", replace(files, models=())),
            ("controls", "controls", replace(files, models=())),
        )
    }
    assert [sum(row_weights(row).values()) for row in rows.values()] == [70, 16, 0]
    folders = {name: tmp_path / name for name in rows}
    for folder in folders.values():
        folder.mkdir()
    save_row_weights(tmp_path, rows)
    assert json.loads((tmp_path / "cop_piano" / "weights.json").read_text()) == {"piano": 70}
    suffixes = {"audeo_style": ("", "same_soundfont"), "cop_piano": ("", "shuffled")}
    clips = {name: [{"suffix": s} for s in suffixes.get(name, ("truth",))] for name in rows}
    lines = weight_lines(folders, clips, tables, "embedded", "test")
    assert {(r.table, r.row): r.value for r in lines} == {
        ("table4", "cop_piano"): 70,
        ("table5", "cop_piano"): 70,
        ("table4", "audeo_style"): 16,
        ("table4", "audeo_style_same_soundfont"): 16,
    }
    (tmp_path / "cop_piano" / "weights.json").unlink()
    with pytest.raises(BadInput, match="row cop_piano has scores but no weights.json"):
        weight_lines(folders, clips, tables, "embedded", "test")


def test_a_file_that_holds_no_weights_is_refused(tmp_path):
    (tmp_path / "m.safetensors").write_bytes(b"no weights")
    with pytest.raises(BadInput, match="m.safetensors is not a readable safetensors file"):
        count_weights(tmp_path / "m.safetensors")


def test_parts_of_a_system_are_files_of_the_run():
    fields = set(SystemFiles.__dataclass_fields__)
    assert {part for entry in SYSTEMS.values() for part in entry.parts} <= fields


def test_clips_are_counted_by_set_and_split():
    items = [Item(f"c{i}", f"w{i // 2}", "train", "piano", 10.0) for i in range(4)]
    items.append(Item("v", "v", "val", "piano", 10.0))
    index = [{"split": i.split, "duration_s": i.duration_s, "work_id": i.work_id} for i in items]
    recorded = [{"split": "train", "duration_s": 4.5, "work_id": "x"}]
    lines = clip_lines({"piano": index[1:], "Set": recorded}, items, "embedded", "test")
    found = {(r.row, r.metric): r.value for r in lines}
    assert found["piano_train", "listed"] == 4
    assert found["piano_train", "clips"] == 3
    assert found["piano_train", "works"] == 2
    assert found["piano_val", "seconds"] == 10
    assert found["Set_train", "seconds"] == 4.5
    assert ("Set_train", "listed") not in found
    assert ("piano_test", "clips") not in found


class Scenes:
    "A store of two true sounds."

    index = [
        {"clip_id": c, "domain": "foley", "text": f"scene {c}", "notes": None} for c in ("a", "b")
    ]

    def __getitem__(self, name):
        beeps = np.sin(np.arange(24_000) * 0.3) * (np.arange(24_000) % 12_000 < 4_000)
        return np.stack([beeps, beeps]) * 16_000


def test_figures_show_shared_clips_and_name_missing_rows(tmp_path, tables):
    (tmp_path / "base").mkdir()
    (tmp_path / "cl").mkdir()
    for row, count in (("base", 2), ("cl", 1)):
        for i in range(count):
            soundfile.write(tmp_path / row / f"{i}-row.flac", np.full(24_000, 0.1), 24_000)
        kept = [{"clip_id": c} for c in "ab"[:count]]
        (tmp_path / row / "kept.json").write_text(json.dumps(kept))
    folders = {row: tmp_path / row for row in ("base", "cl")}
    stores = {"foley": Scenes(), "piano": Scenes()}
    made = save_spectrograms(tmp_path / "out", tables, stores, folders, 2)
    assert made == ["figure3"]
    assert (tmp_path / "out" / "figure3.png").read_bytes()[:4] == b"\x89PNG"
    sound = np.full(24_000, 0.1, np.float32)
    shown = shown_clips(Scenes(), {"base": {"a": sound, "b": sound}, "cl": {"b": sound}})
    assert [clip.title for clip in shown] == ["scene b"]
    assert list(shown[0].sounds) == ["true sound", "base", "cl"]
    assert len(shown[0].events_s) >= 1
    figure = draw_spectrograms(shown, "title", ["factorcl"])
    assert "not run: factorcl" in figure.get_suptitle()
    assert figure.axes[0].get_ylabel() == "true sound\nHz"
    assert figure.axes[2].get_xlabel() == "time (s)"


def test_a_verdict_is_three_sentences(tmp_path, tables, paper, root):
    rows = {
        row: [
            {**clip, "metrics": {"si_sdr_spec": level + 0.1 * i}}
            for i, clip in enumerate(scored(0.0))
        ]
        for row, level in (("cop_piano", 3.0), ("no_guidance", -1.0))
    }
    entries = yaml.safe_load((root / "refs" / "claims.yaml").read_text())
    claims = [replace(claim, clips=4) for claim in load_claims(entries, tables)]
    run = replace(run_of(tables), claims=claims)
    _, verdicts = write_report(tmp_path, run, rows, paper)
    reasons = {"C5": {"reproduced": "Because.", "not reproduced": "Another reason."}}
    page = verdict_page(verdicts, reasons)
    assert page.count("- *Claimed*:") == page.count("- *Found*:") == page.count("- *Why*:")
    assert page.count("- *Why*:") == len(verdicts)
    assert max(map(len, page.splitlines())) <= 100
    said = " ".join(page.split())
    c5 = said.split("**C5 ")[1].split("**C6 ")[0]
    assert "`cop_piano` is better than `no_guidance` by si_sdr_spec" in c5
    assert "the paper's differences are si_sdr_spec +5.61" in c5
    assert "on 4 clips the claim holds by si_sdr_spec +4.00 [" in c5
    assert "Because." in c5 and "Another" not in c5
    kept = said.split("**C4 ")[1].split("**C5 ")[0]
    assert "is worse by no more than a margin than `base`" in kept and "was not run" in kept
    write_verdicts(tmp_path, run_of(tables), verdicts, reasons)
    assert page in (tmp_path / "verdicts.md").read_text()


def test_every_verdict_of_the_default_run_has_a_reason(root):
    verdicts = json.loads((root / "reports" / "verdicts.json").read_text())
    reasons = yaml.safe_load((root / "refs" / "reasons.yaml").read_text())
    lacking = [v["claim"] for v in verdicts if v["verdict"] not in reasons.get(v["claim"], {})]
    assert not lacking


class Encoders:
    "Encoders that say what they were given."

    class Text:
        def encode(self, texts):
            return torch.zeros(1, 2, 3), torch.ones(1, 2, dtype=torch.bool)

    text = Text()

    def encode_strips(self, strips):
        return torch.full((1, 4, 5), float(strips.mean()))


def test_the_stage_1_model_is_conditioned_on_keyboard_strips():
    system = GeneralSystem(None, None, Encoders())
    clip = Clip("c", "w", "test", "piano", 1.0, "x", strips=np.full((25, 4, 8), 7, np.uint8))
    given = system.conditions(clip, 75)
    assert given.video.shape == (1, 75, 5)
    assert float(given.video.mean()) == 7
    assert system.conditions(replace(clip, strips=None), 75).video is None
