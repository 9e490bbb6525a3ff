# SPDX-License-Identifier: Apache-2.0
"Verdicts: each metric of the paper by paired differences, one honest word for the claim."

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from matplotlib.figure import Figure

from cop_repro.core import BadInput, plain_text
from cop_repro.data.keyboard import Keyboard
from cop_repro.data.notes import make_notes
from cop_repro.evaluation import evaluate
from cop_repro.evaluation.claims import (
    Claim,
    Result,
    load_claims,
    over_seeds,
    overall_verdict,
    summarise,
    verdict,
)
from cop_repro.evaluation.nuisance_ablation import ablation_results
from cop_repro.evaluation.real_videos import _save_picture
from cop_repro.evaluation.report import (
    RunInfo,
    _seed_table,
    comparison_table,
    plot_rows,
    save_figures,
    write_report,
)
from cop_repro.evaluation.scoring import ScoredTask
from cop_repro.evaluation.tables import load_tables
from cop_repro.judges.extractors import Features, set_score
from cop_repro.measure.audio_metrics import (
    bootstrap_draws,
    draws_interval,
    frechet_distance,
    kl_per_clip,
)
from cop_repro.systems.contract import NoSettings, SystemFiles
from cop_repro.systems.cop import Performance, draw_performance

IDS = tuple(f"c{i}" for i in range(24))
WORKS = {c: f"w{i // 3}" for i, c in enumerate(IDS)}
PAPER = {
    "columns": {"table2": {"fad": "lower", "kl": "lower"}},
    "table2": {"base": {"fad": 0.78, "kl": 1.73}, "base_without_text": {"fad": 0.80, "kl": 2.22}},
}


@pytest.fixture(scope="module")
def run(root):
    "A run whose results are laid out as `refs/tables.yaml` says."
    names = ("tables", "claims")
    layout, entries = (yaml.safe_load((root / "refs" / f"{n}.yaml").read_text()) for n in names)
    tables = load_tables(layout)
    claims = [replace(claim, clips=8) for claim in load_claims(entries, tables)]
    return RunInfo("embedded", "test", "ear", tables, claims)


@pytest.fixture(scope="module")
def claims(run):
    "The claims by their names, each content with eight clips."
    return {claim.claim_id: claim for claim in run.claims}


def rng(seed=0):
    return np.random.default_rng(seed)


def features(values, kind):
    return Features(values, IDS, kind, "judge 00", 16_000)


def line(metric, ref, est, seed=0):
    return {"suffix": "", **asdict(set_score(metric, ref, est, WORKS, seed))}


def rows(noise):
    "Scores of a row whose features are the true ones and a multiple of the same noise."
    true, shared = rng(1).normal(size=(24, 5)), rng(2).normal(size=(24, 5))
    made = {
        m: line(
            m,
            None if m == "inception_score" else features(true, kind),
            features(true + noise * shared, kind),
        )
        for m, kind in (
            ("fad", "window"),
            ("fd", "clip"),
            ("kl", "logits"),
            ("inception_score", "logits"),
        )
    }
    clips = [
        {
            "clip_id": c,
            "work_id": WORKS[c],
            "suffix": "",
            "metrics": {"mel_distance": 10 + noise + 0.1 * i % 2},
        }
        for i, c in enumerate(IDS)
    ]
    return clips, made


GOOD, BAD = rows(0.3), rows(1.2)
SCORES, SETS = (
    {"base": GOOD[0], "base_without_text": BAD[0]},
    {"base": GOOD[1], "base_without_text": BAD[1]},
)


def test_set_scores_keep_what_pairing_needs():
    true, est = rng(1).normal(size=(24, 5)), rng(2).normal(size=(24, 5))
    kl = set_score("kl", features(true, "logits"), features(est, "logits"), WORKS)
    np.testing.assert_allclose(list(kl.per_clip.values()), kl_per_clip(true, est), rtol=1e-8)
    assert tuple(kl.per_clip) == IDS
    assert not kl.draws
    assert kl.value == pytest.approx(np.mean(list(kl.per_clip.values())))
    fd = set_score("fd", features(true, "clip"), features(est, "clip"), WORKS, num_samples=40)
    assert len(fd.draws) == 40
    assert not fd.per_clip
    assert fd.value == pytest.approx(frechet_distance(true, est))
    assert fd.ci_high - fd.ci_low == pytest.approx(
        np.subtract(*np.quantile(fd.draws, [0.975, 0.025])), rel=1e-6
    )
    alone = set_score("fd", features(true, "clip"), features(est, "clip"), dict.fromkeys(IDS, "w"))
    assert alone.draws == ()
    assert alone.ci_low is None


def test_claims_are_judged_on_the_papers_metrics(claims):
    found = verdict(claims["C1"], SCORES, SETS, PAPER)
    by = {m["metric"]: m for m in found["metrics"]}
    # noise in logits makes a classifier sound surer: IS contradicts the others
    assert found["verdict"] == "mixed"
    assert by["inception_score"]["verdict"] == "not reproduced"
    assert {m for m in by if by[m]["counts"]} == {
        "fad",
        "fd",
        "kl",
        "inception_score",
        "clip_score",
    }
    for metric in ("fad", "fd", "kl"):
        assert by[metric]["verdict"] == "reproduced"
        assert by[metric]["difference"] == pytest.approx(
            BAD[1][metric]["value"] - GOOD[1][metric]["value"], rel=1e-6
        )
        assert by[metric]["n"] == 24
    assert by["clip_score"]["verdict"] == "not run"
    assert not by["mel_distance"]["counts"]
    assert by["mel_distance"]["verdict"] == "reproduced"
    assert by["fad"]["paper"] == pytest.approx(0.02)
    assert by["kl"]["paper"] == pytest.approx(0.49)
    assert "paper" not in by["fd"]
    without = {
        row: {m: x for m, x in made.items() if m != "inception_score"} for row, made in SETS.items()
    }
    assert verdict(claims["C1"], SCORES, without)["verdict"] == "reproduced"
    noise = Claim("helps", "table2", "base_without_text", ("base",), ("fad", "kl"), 8, "a test")
    back = verdict(noise, SCORES, SETS, PAPER)
    assert back["verdict"] == "not reproduced"
    assert all(m["ci_high"] < 0 for m in back["metrics"])
    assert (
        verdict(
            claims["C1"],
            {"base": GOOD[0], "base_without_text": GOOD[0]},
            {"base": GOOD[1], "base_without_text": GOOD[1]},
        )["verdict"]
        == "inconclusive"
    )


def test_pairing_is_narrower_than_two_intervals(claims):
    "What two rows share cancels draw by draw."
    near = rows(0.35)[1]
    fad = verdict(claims["C1"], {}, {"base": GOOD[1], "base_without_text": near})["metrics"][0]
    assert fad["verdict"] == "reproduced"
    assert fad["ci_high"] - fad["ci_low"] < 0.5 * (
        GOOD[1]["fad"]["ci_high"] - GOOD[1]["fad"]["ci_low"]
    )


def test_equal_systems_are_rarely_told_apart():
    "Systems of one distribution: the paired interval of FD rarely excludes zero."
    wrong = 0
    for trial in range(24):
        r = rng(trial)
        true = r.normal(size=(16, 4, 16))
        systems = [
            true + 0.8 * r.normal(size=(16, 1, 16)) + 0.4 * r.normal(size=(16, 4, 16)) for _ in "ab"
        ]
        (a, drawn_a), (b, drawn_b) = (
            bootstrap_draws(
                lambda i, t=true, s=s: frechet_distance(t[i].reshape(-1, 16), s[i].reshape(-1, 16)),
                range(16),
                seed=trial,
                num_samples=60,
            )
            for s in systems
        )
        low, high = draws_interval(a - b, drawn_a - drawn_b, centre=True)
        wrong += not low <= 0 <= high
    assert wrong <= 4


@pytest.mark.parametrize(
    "metric, change",
    [
        ("fad", {"ids": "other clips"}),
        ("fad", {"extractor": "judge 11"}),
        ("kl", {"extractor": "judge 11"}),
        ("fad", {"draws": [1.0, 2.0]}),
        ("kl", {"per_clip": {"c0": 1.0}}),
    ],
)
def test_what_cannot_be_paired_is_not_run(claims, metric, change):
    sets = {**SETS, "base": {**GOOD[1], metric: {**GOOD[1][metric], **change}}}
    assert {m["metric"]: m for m in verdict(claims["C1"], SCORES, sets)["metrics"]}[metric][
        "verdict"
    ] == "not run"


@pytest.mark.parametrize(
    "words, said",
    [
        ("++", "reproduced"),
        ("+-", "mixed"),
        ("+-000", "mixed"),
        ("+0", "reproduced"),
        ("+00", "inconclusive"),
        ("--0?", "not reproduced"),
        ("0", "inconclusive"),
        ("??", "not run"),
        ("", "not run"),
    ],
)
def test_one_word(words, said):
    names = {"+": "reproduced", "-": "not reproduced", "0": "inconclusive", "?": "not run"}
    assert overall_verdict([names[w] for w in words]) == said


def test_report_prints_a_line_a_metric(tmp_path, run):
    sets = {entry: list(lines.values()) for entry, lines in SETS.items()}
    _, found = write_report(tmp_path, run, SCORES, PAPER, sets)
    text = (tmp_path / "tables.md").read_text()
    assert "| C1 | text helps V2A (base over base_without_text) |  | **mixed** |" in text
    assert "|  |  | fad | reproduced | +" in text
    assert "(mel_distance)" in text
    assert "+0.02" in text
    assert found[0]["verdict"] == "mixed"
    assert found[2]["verdict"] == "not run"


def test_seeds_side_by_side(claims):
    run = [
        verdict(
            claims["C5"],
            {
                "cop_piano": [{**s, "metrics": {"si_sdr_spec": 1.0 + sign * 0.1}} for s in GOOD[0]],
                "no_guidance": [{**s, "metrics": {"si_sdr_spec": 1.0}} for s in GOOD[0]],
            },
        )
        for sign in (1, -1)
    ]
    assert _seed_table(run[:1], "default") == ""
    table = _seed_table(over_seeds(run[:1], {"seed1": run[1:]}), "default").splitlines()
    assert table[-1].startswith("| C5")
    assert "| 0.14 |" in table[-1]
    assert "+0.10" in table[-1]
    assert "-0.10" in table[-1]
    assert table[-1].endswith("| no |")


def test_ablation_has_intervals_over_works():
    clips = [{"work_id": f"w{i // 2}", "metrics": {"onset_f1": 0.1 * i}} for i in range(6)]
    several, one = ablation_results({"all": {"clean": clips, "real": clips[:1]}}, "default")
    assert (several.row, several.n, several.value) == (
        "all_clean",
        6,
        pytest.approx(0.25),
    )
    assert several.ci_low < 0.25 < several.ci_high
    assert one.row == "all_real"
    assert one.ci_low is None
    assert one.value == 0


def kept(claim, shift, spread=0.01):
    "A claim on FAD: the base at 10, the new row `shift` worse."
    r = rng(3)
    draws = 10 + r.normal(size=200)
    row = lambda worse: {
        "fad": {
            "value": 10.0 + worse,
            "draws": (draws + worse + spread * r.normal(size=200)).tolist(),
            "ids": "ab",
            "extractor": "judge 00",
            "n": 8,
        }
    }
    return verdict(claim, {}, {"base": row(0), "piano2h": row(shift)})


def test_what_is_kept_has_a_margin(claims):
    assert [c.claim_id for c in claims.values() if c.margins] == ["C4"]
    fad = replace(claims["C4"], counts=("fad",), margins={"fad": 1.0}, resolvable={"fad": 0.5})
    found = {
        name: kept(fad, *how)
        for name, how in {
            "kept": (0.5,),
            "better": (-3,),
            "lost": (2,),
            "unclear": (1, 0.5),
        }.items()
    }
    assert {k: v["verdict"] for k, v in found.items()} == {
        "kept": "reproduced",
        "better": "reproduced",
        "lost": "not reproduced",
        "unclear": "inconclusive",
    }
    assert found["kept"]["metrics"][0]["margin"] == pytest.approx(1)
    assert found["kept"]["metrics"][0]["difference"] == pytest.approx(-0.5)
    wins = Claim("wins", "table2", "piano2h", ("base",), ("mel_distance",), 8, "a test")
    scores = {
        "base": GOOD[0],
        "piano2h": [
            {**s, "metrics": {"mel_distance": s["metrics"]["mel_distance"] + 0.5}} for s in GOOD[0]
        ],
    }
    keeps = replace(wins, margins={"mel_distance": 1.0}, resolvable={"mel_distance": 0.5})
    assert verdict(wins, scores)["verdict"] == "not reproduced"
    assert verdict(keeps, scores)["verdict"] == "reproduced"
    assert verdict(keeps, scores)["metrics"][0]["margin"] == 1.0
    assert "margin" not in verdict(wins, scores)["metrics"][0]


def test_report_names_judges_and_prints_what_only_the_paper_has(tmp_path, run):
    paper = {
        "columns": {"table5": {"si_sdr_spec": "higher", "mos_melody": "higher"}},
        "table5": {
            "cop_velocity": {"si_sdr_spec": 3.06, "mos_melody": 3.14},
            "midi": {"precision": 0.41, "f1": 0.37},
        },
    }
    clip = lambda i, suffix, **metrics: {
        "clip_id": f"c{i}",
        "work_id": f"w{i // 2}",
        "suffix": suffix,
        "pianist": "crisp",
        "metrics": metrics,
        "extractors": {"style_preference": "style judge 01"},
    }
    scored = {
        "cop_velocity": [clip(i, "", si_sdr_spec=float(i), style_preference=0.9) for i in range(4)],
        "controls": [clip(i, "truth", si_sdr_spec=100.0, style_preference=0.1) for i in range(2)],
        "video2roll": [{**clip(i, "", onset_f1=0.5), "extractors": {}} for i in range(4)],
    }
    sets = {"piano2h": [], "base": []}
    lines, verdicts = write_report(tmp_path, run, scored, paper, sets)
    assert {r.extractor for r in lines if r.metric == "style_preference"} == {"style judge 01"}
    assert {r.extractor for r in lines if r.metric == "si_sdr_spec"} == {""}
    midi = {(r.row, r.metric): r for r in lines if r.row.startswith("midi_")}
    assert midi["midi_table5", "midi_f1"].value == 0.37
    assert {(r.table, r.label) for r in midi.values()} == {("roll", "paper")}
    text = (tmp_path / "tables.md").read_text()
    table5, roll = (
        text.split("## In the shape of Table 5")[1].split("##")[0],
        text.split("## Roll predictor")[1].split("##")[0],
    )
    main_table, below = table5.split("Style judge on the true sound")
    assert "| mos_melody ↑ | paper |" in main_table
    assert "| cop_velocity | 1.50 [0.50, 2.50] | 3.06 | not run | 3.14 |" in main_table
    assert "true_sound_crisp" not in main_table
    assert "| true_sound_crisp | 0.10" in below
    assert "| row | midi_precision ↑ | midi_f1 ↑ |" in roll
    assert "| midi_table5 | 0.41 | 0.37 |" in roll
    assert "midi" not in roll.split("MIDI of the paper's")[0]
    assert "within a margin of base" in text


def test_two_style_judges_are_both_named():
    clips = [
        {
            "clip_id": f"c{i}",
            "work_id": f"w{i}",
            "metrics": {"style_preference": 0.5},
            "extractors": {"style_preference": f"style judge {i}"},
        }
        for i in range(2)
    ]
    assert (
        summarise(clips, "table5", "x", "embedded", "default")[0].extractor
        == "style judge 0 and style judge 1"
    )


def test_scored_clips_name_their_style_judge(monkeypatch):
    class Judge:
        provenance = "style judge 01"

        def __call__(self, wav):
            return 0.25

    def two_clips(system, clip, other, seed):
        "One prediction with a sound and one without."
        return [
            {"suffix": "", "wav": np.zeros(3), "metrics": {}},
            {"suffix": "notes", "wav": None, "metrics": {}},
        ]

    files = SystemFiles("", *[Path("x")] * 3)
    row = evaluate.Row("cop", "reconstruction", files, NoSettings(), touches=("a", "b"))
    monkeypatch.setattr(evaluate, "Store", lambda folder: None)
    monkeypatch.setattr(evaluate, "store_clip", lambda store, i: i)
    monkeypatch.setattr(evaluate, "_loaded", lambda row: {"": None})
    monkeypatch.setattr(evaluate, "_style_judge", lambda folder, *touches: Judge())
    monkeypatch.setitem(evaluate.ROW_TASKS, "reconstruction", ScoredTask("piano", two_clips))
    sounding, silent = evaluate._score_chunk(row, "folder", [0], [1], 1)
    assert sounding["metrics"] == {"style_preference": 0.25}
    assert sounding["extractors"] == {"style_preference": "style judge 01"}
    assert silent["metrics"] == {}
    assert "extractors" not in silent
    untouched = replace(row, touches=None)
    assert "extractors" not in evaluate._score_chunk(untouched, "folder", [0], [1], 1)[0]
    monkeypatch.setitem(evaluate.ROW_TASKS, "reconstruction", ScoredTask("foley", two_clips))
    assert "extractors" not in evaluate._score_chunk(row, "folder", [0], [1], 1)[0]


def test_lines_made_elsewhere_and_other_seeds_are_in_the_report(tmp_path, run):
    "A line of a table that is not defined is refused."
    elsewhere = Result(
        "real", "cop_perform", "onset_f1", 0.5, None, None, 1, "", True, "embedded", "test", "ear"
    )
    lines, _ = write_report(tmp_path, run, SCORES, PAPER)
    assert [r.label for r in lines if r.table == "real"] == ["not run"] * 2
    lines, verdicts = write_report(tmp_path, run, SCORES, PAPER, extra=[elsewhere])
    assert [r for r in lines if r.table == "real"] == [elsewhere]
    assert "another training seed" not in (tmp_path / "tables.md").read_text()
    write_report(tmp_path, run, SCORES, PAPER, seeds={"seed1": verdicts})
    assert "another training seed" in (tmp_path / "tables.md").read_text()
    with pytest.raises(BadInput, match="table 'nowhere'"):
        write_report(tmp_path, run, SCORES, PAPER, extra=[replace(elsewhere, table="nowhere")])


NAMES = {
    "two prices": "$20_vs_$20,000 piano.mp4",
    "a command": "$\\foo$ \\$5.mp4",
    "no text": b"F\xfcr Elise\n.mp4".decode("utf-8", "surrogateescape"),
    "no glyph": "\N{CJK UNIFIED IDEOGRAPH-6708}\N{CJK UNIFIED IDEOGRAPH-5149}\N{GRINNING FACE}.mp4",
    "long": "W" * 300,
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_names_of_users_are_drawn_as_they_are(tmp_path, run, name):
    notes = make_notes([60], [0.2], [0.8], [90])
    soundfile.write(tmp_path / "s.wav", 0.1 * np.sin(np.arange(48_000)), 24_000)
    corners = np.array([(0, 0), (959, 0), (959, 127), (0, 127)], float)
    keyboard = Keyboard(corners, 1.0, (1.0,) * 7)
    frame = np.zeros((128, 960, 3), np.uint8)
    made = Performance(tmp_path / "s.wav", 2.0, notes, keyboard, frame, {}, None)
    draw_performance(tmp_path / "p.png", made, f"Keyboard found in {name}")
    _save_picture(tmp_path / "r.png", name, notes, notes)
    sounds = {name: {"truth": np.ones(4800), "cop": np.ones(4800)}}
    place, value = ("table4", name, "si_sdr_spec"), (1.0, None, None, 4, "dB", True)
    lines = [Result(*place, *value, "embedded", "default", "")]
    save_figures(tmp_path, lines, run.tables, sounds, {name: (notes, notes)})
    assert all((tmp_path / f"{p}.png").stat().st_size for p in ("p", "r", "rolls", "headlines"))
    ax = plot_rows(Figure().subplots(), lines, "table4", "si_sdr_spec", "")
    label = ax.get_yticklabels()[0].get_text()
    assert label == plain_text(name, 60) and len(label.replace("\\$", "$")) <= 61


PIANO_ROWS = ("audeo_style", "audeo_style_same_soundfont", "audeo_style_different_piano")


def piano_scores(level):
    "Scored clips of a system at one level (dB), a little apart by clip."
    return [
        {
            "clip_id": c,
            "work_id": WORKS[c],
            "suffix": "",
            "metrics": {
                "si_sdr_spec": level + 0.1 * (i % 3),
                "transcription_f1": 0.5 + level / 100,
                "mel_distance": 10 - level,
            },
        }
        for i, c in enumerate(IDS)
    ]


def piano_set(noise, suffix=""):
    true, shared = rng(1).normal(size=(24, 5)), rng(2).normal(size=(24, 5))
    made = line("fad", features(true, "window"), features(true + noise * shared, "window"))
    return {**made, "suffix": suffix}


@pytest.fixture()
def pianos():
    "Rows and set scores as `evaluate` writes them: CoP between two of the baseline's pianos."
    suffixes = {"": 6.0, "same_soundfont": 7.0, "different_piano": 1.0}
    audeo = [
        {**clip, "suffix": suffix}
        for suffix, level in suffixes.items()
        for clip in piano_scores(level)
    ]
    scored = {"cop_piano": piano_scores(4.0), "audeo_style": audeo}
    noises = {"": 0.8, "same_soundfont": 0.1, "different_piano": 1.2}
    sets = {
        "cop_piano": [piano_set(0.4)],
        "audeo_style": [piano_set(noise, suffix) for suffix, noise in noises.items()],
    }
    return scored, sets


def pairs_of(verdicts):
    "Difference of every pair beside claim C6, by rows and metric."
    c6 = next(v for v in verdicts if v["claim"] == "C6")
    return c6, {
        (pair["better"], pair["worse"], m["metric"]): m
        for pair in c6["pairs"]
        for m in pair["metrics"]
    }


def test_the_baseline_is_compared_on_three_pianos(tmp_path, run, pianos):
    lines, verdicts = write_report(tmp_path, run, pianos[0], PAPER, pianos[1])
    c6, found = pairs_of(verdicts)
    assert (c6["worse"], c6["verdict"]) == ("audeo_style", "mixed")
    against = {row["worse"]: (row["counts"], row["verdict"]) for row in c6["against"]}
    assert against == dict(
        zip(
            PIANO_ROWS,
            ((True, "not reproduced"), (False, "not reproduced"), (True, "reproduced")),
        )
    )
    assert [m["metric"] for m in c6["metrics"] if m["counts"]] == ["si_sdr_spec"]
    beside = {m["metric"]: m for m in c6["metrics"] if not m["counts"]}
    assert set(beside) == {"transcription_f1", "mel_distance", "fad"}
    assert all(m["ci_low"] <= m["difference"] <= m["ci_high"] for m in beside.values())
    level = {row: found["cop_piano", row, "si_sdr_spec"]["difference"] for row in PIANO_ROWS}
    assert level == pytest.approx(dict(zip(PIANO_ROWS, (-2, -3, 3))))
    distance = {row: found["cop_piano", row, "fad"] for row in PIANO_ROWS}
    assert [distance[row]["verdict"] for row in PIANO_ROWS] == [
        "reproduced",
        "not reproduced",
        "reproduced",
    ]
    mels = [found["cop_piano", row, "mel_distance"]["difference"] for row in PIANO_ROWS]
    assert mels == pytest.approx([-2, -3, 3])
    printed = {
        (r.table, r.row) for r in lines if r.metric == "fad" and r.value and r.table != "table2"
    }
    assert printed == {("table4", row) for row in ("cop_piano", *PIANO_ROWS)} | {
        ("table5", "cop_piano")
    }
    text = (tmp_path / "tables.md").read_text().split("## C6: Chain-of-Perform against Audeo")[1]
    assert "| cop_piano | audeo_style_different_piano | +3.00 [" in text
    assert "| cop_shipped | audeo_style | not run | not run | not run | not run |  |" in text


def test_a_piano_that_was_not_scored_is_not_run(tmp_path, run, pianos):
    scored, sets = pianos
    scored["audeo_style"] = [c for c in scored["audeo_style"] if c["suffix"] != "different_piano"]
    _, verdicts = write_report(tmp_path, run, scored, PAPER, {row: [] for row in sets})
    c6, found = pairs_of(verdicts)
    assert c6["verdict"] == "inconclusive"  # against one of the two pianos that count
    words = {metric: m["verdict"] for (_, row, metric), m in found.items() if row == PIANO_ROWS[2]}
    assert set(words.values()) == {"not run"}
    assert found["cop_piano", "audeo_style", "fad"]["verdict"] == "not run"
    assert "difference" in found["cop_piano", "audeo_style", "mel_distance"]
    old = [{k: v for k, v in verdict.items() if k != "pairs"} for verdict in verdicts]
    table = comparison_table(old, run.tables, "C6").splitlines()
    assert len(table) == 2 + 9
    assert all(row.count("not run") == 4 for row in table[2:])


class Judge:
    "An extractor that remembers which sounds it was given."

    classes = ("bell",)

    def __init__(self):
        self.given = []

    def several(self, kinds, ids, wavs, sample_rate=24_000):
        self.given.append([float(wav[0]) for wav in wavs])
        values = np.array([[float(wav[0]), i] for i, wav in enumerate(wavs)])
        return {kind: Features(values, tuple(ids), kind, "judge 00", 16_000) for kind in kinds}


class ThreeClips:
    "A store of three true sounds."

    def values(self, column, places):
        names = {"clip_id": "abc", "work_id": "vvw", "label": "ppp"}[column]
        return [names[place] for place in places]


def test_each_piano_has_scores_of_its_own_set(monkeypatch):
    "Without controls and labels; a row without sound has none."
    monkeypatch.setattr(evaluate, "store_wav", lambda store, r: np.full(3, float(r)))
    row = evaluate.Row("audeo", "reconstruction", SystemFiles("", *[Path("x")] * 3), NoSettings())

    def sounds(suffix, level):
        return [{"clip_id": c, "suffix": suffix, "wav": np.full(3, level)} for c in ("c", "a", "b")]

    silent = [{"clip_id": c, "suffix": "", "wav": None} for c in "abc"]
    scored = {"audeo": [*sounds("", 5.0), *sounds("different_piano", 9.0)], "roll": silent}
    chosen = dict.fromkeys(scored, (ThreeClips(), [0, 1, 2]))
    judge = Judge()
    made = evaluate.score_sets(dict.fromkeys(scored, row), chosen, scored, judge)
    assert made["roll"] == []
    assert [(s["suffix"], s["metric"], s["n"]) for s in made["audeo"]] == [
        ("", "fad", 3),
        ("different_piano", "fad", 3),
    ]
    assert judge.given == [[0, 1, 2], [5] * 3, [9] * 3]
    assert made["audeo"][1]["value"] > made["audeo"][0]["value"] > 0
