"Verdicts: each metric of the paper by paired differences, one honest word for the claim."
import numpy as np
import pytest

from cop_repro.benchmark.report import CLAIMS, Claim, overall_verdict, verdict, write_report
from cop_repro.judges.extractors import Features, set_score
from cop_repro.measure.audio_metrics import bootstrap_draws, draws_interval, frechet_distance, kl_per_clip

IDS = tuple(f"c{i}" for i in range(24))
WORKS = {c: f"w{i // 3}" for i, c in enumerate(IDS)}
PAPER = {"columns": {"table2": {"fad": "lower", "kl": "lower"}}, "table2": {"base": {"fad": .78, "kl": 1.73}, "base_without_text": {"fad": .80, "kl": 2.22}}}

def rng(seed=0): return np.random.default_rng(seed)

def features(values, kind): return Features(values, IDS, kind, "judge 00", 16_000)

def line(metric, ref, est, seed=0):
    from dataclasses import asdict
    return {"suffix": "", **asdict(set_score(metric, ref, est, WORKS, seed))}

def rows(noise):
    "Scores of a row whose features are the true ones and some noise; the noise of two rows is the same, scaled."
    true, shared = rng(1).normal(size=(24, 5)), rng(2).normal(size=(24, 5))
    made = {m: line(m, None if m == "inception_score" else features(true, kind), features(true + noise * shared, kind))
            for m, kind in (("fad", "window"), ("fd", "clip"), ("kl", "logits"), ("inception_score", "logits"))}
    clips = [{"clip_id": c, "work_id": WORKS[c], "suffix": "", "metrics": {"mel_distance": 10 + noise + .1 * i % 2}} for i, c in enumerate(IDS)]
    return clips, made

GOOD, BAD = rows(.3), rows(1.2)
SCORES, SETS = {"base": GOOD[0], "base_without_text": BAD[0]}, {"base": GOOD[1], "base_without_text": BAD[1]}

def test_set_scores_keep_what_pairing_needs():
    true, est = rng(1).normal(size=(24, 5)), rng(2).normal(size=(24, 5))
    kl = set_score("kl", features(true, "logits"), features(est, "logits"), WORKS)
    np.testing.assert_allclose(list(kl.per_clip.values()), kl_per_clip(true, est), rtol=1e-8)
    assert tuple(kl.per_clip) == IDS and not kl.draws and kl.value == pytest.approx(np.mean(list(kl.per_clip.values())))
    fd = set_score("fd", features(true, "clip"), features(est, "clip"), WORKS, num_samples=40)
    assert len(fd.draws) == 40 and not fd.per_clip and fd.value == pytest.approx(frechet_distance(true, est))
    assert fd.ci_high - fd.ci_low == pytest.approx(np.subtract(*np.quantile(fd.draws, [.975, .025])), rel=1e-6)
    alone = set_score("fd", features(true, "clip"), features(est, "clip"), dict.fromkeys(IDS, "w"))
    assert alone.draws == () and alone.ci_low is None

def test_claims_are_judged_on_the_papers_metrics():
    found = verdict(CLAIMS[0], SCORES, SETS, PAPER)
    by = {m["metric"]: m for m in found["metrics"]}
    assert found["verdict"] == "mixed" and by["inception_score"]["verdict"] == "not reproduced"  # noise in logits makes a classifier sound surer: IS contradicts the others
    assert {m for m in by if by[m]["counts"]} == {"fad", "fd", "kl", "inception_score", "clip_score"}
    for metric in ("fad", "fd", "kl"): assert by[metric]["verdict"] == "reproduced" and by[metric]["difference"] == pytest.approx(BAD[1][metric]["value"] - GOOD[1][metric]["value"], rel=1e-6) and by[metric]["n"] == 24
    assert by["clip_score"]["verdict"] == "not run" and not by["mel_distance"]["counts"] and by["mel_distance"]["verdict"] == "reproduced"
    assert by["fad"]["paper"] == pytest.approx(.02) and by["kl"]["paper"] == pytest.approx(.49) and "paper" not in by["fd"]
    without = {row: {m: x for m, x in made.items() if m != "inception_score"} for row, made in SETS.items()}
    assert verdict(CLAIMS[0], SCORES, without)["verdict"] == "reproduced"
    back = verdict(Claim("X", "noise helps", "base_without_text", "base", ("fad", "kl")), SCORES, SETS, PAPER)
    assert back["verdict"] == "not reproduced" and all(m["ci_high"] < 0 for m in back["metrics"])
    assert verdict(CLAIMS[0], {"base": GOOD[0], "base_without_text": GOOD[0]}, {"base": GOOD[1], "base_without_text": GOOD[1]})["verdict"] == "inconclusive"

def test_pairing_is_narrower_than_two_intervals():
    "What two rows share cancels draw by draw."
    near = rows(.35)[1]
    fad = verdict(CLAIMS[0], {}, {"base": GOOD[1], "base_without_text": near})["metrics"][0]
    assert fad["verdict"] == "reproduced" and fad["ci_high"] - fad["ci_low"] < .5 * (GOOD[1]["fad"]["ci_high"] - GOOD[1]["fad"]["ci_low"])

def test_equal_systems_are_rarely_told_apart():
    "Two systems of one distribution: the paired interval of their Frechet distances leaves zero out in at most the share that it may."
    wrong = 0
    for trial in range(24):
        r = rng(trial)
        true = r.normal(size=(16, 4, 16))
        systems = [true + .8 * r.normal(size=(16, 1, 16)) + .4 * r.normal(size=(16, 4, 16)) for _ in "ab"]
        (a, drawn_a), (b, drawn_b) = (bootstrap_draws(lambda i, s=s: frechet_distance(true[i].reshape(-1, 16), s[i].reshape(-1, 16)), range(16), seed=trial, num_samples=60) for s in systems)
        low, high = draws_interval(a - b, drawn_a - drawn_b, centre=True)
        wrong += not low <= 0 <= high
    assert wrong <= 4

@pytest.mark.parametrize("metric, change", [("fad", {"ids": "other clips"}), ("fad", {"extractor": "judge 11"}), ("kl", {"extractor": "judge 11"}), ("fad", {"draws": [1.0, 2.0]}), ("kl", {"per_clip": {"c0": 1.0}})])
def test_what_cannot_be_paired_is_not_run(metric, change):
    sets = {**SETS, "base": {**GOOD[1], metric: {**GOOD[1][metric], **change}}}
    assert {m["metric"]: m for m in verdict(CLAIMS[0], SCORES, sets)["metrics"]}[metric]["verdict"] == "not run"

@pytest.mark.parametrize("words, said", [
    ("++", "reproduced"), ("+-", "mixed"), ("+-000", "mixed"), ("+0", "reproduced"), ("+00", "inconclusive"), ("--0?", "not reproduced"), ("0", "inconclusive"), ("??", "not run"), ("", "not run")])
def test_one_word(words, said):
    names = {"+": "reproduced", "-": "not reproduced", "0": "inconclusive", "?": "not run"}
    assert overall_verdict([names[w] for w in words]) == said

def test_report_prints_a_line_a_metric(tmp_path):
    _, found = write_report(tmp_path, {k: v for k, v in SCORES.items()}, [], PAPER, "embedded", "test", "", {k: list(v.values()) for k, v in SETS.items()})
    text = (tmp_path / "tables.md").read_text()
    assert "| C1 | text helps V2A (base over base_without_text) | | **mixed** |" in text and "| | | fad | reproduced | +" in text and "(mel_distance)" in text and "+0.02" in text
    assert found[0]["verdict"] == "mixed" and found[2]["verdict"] == "not run"

def test_seeds_side_by_side():
    run = [verdict(CLAIMS[4], {"cop_piano": [{**s, "metrics": {"si_sdr_spec": 1.0 + sign * .1}} for s in GOOD[0]], "no_guidance": [{**s, "metrics": {"si_sdr_spec": 1.0}} for s in GOOD[0]]}) for sign in (1, -1)]
    from cop_repro.benchmark.report import _seed_table
    assert _seed_table({"default": run[:1]}) == ""
    table = _seed_table({"default": run[:1], "seed1": run[1:]}).splitlines()
    assert table[-1].startswith("| C5") and "+0.10" in table[-1] and "-0.10" in table[-1] and table[-1].endswith("| no |")

def test_ablation_has_intervals_over_works():
    from cop_repro.systems.ablation import ablation_results
    clips = [{"work_id": f"w{i // 2}", "metrics": {"onset_f1": .1 * i}} for i in range(6)]
    several, one = ablation_results({"all": {"clean": clips, "real": clips[:1]}}, "default")
    assert (several.row, several.n, several.value) == ("all_clean", 6, pytest.approx(.25)) and several.ci_low < .25 < several.ci_high
    assert one.row == "all_real" and one.ci_low is None and one.value == 0
