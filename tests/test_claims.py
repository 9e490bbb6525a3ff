# SPDX-License-Identifier: Apache-2.0
"""Claims as data.

Matched controls that differ in one thing, margins that the clips can resolve, all training seeds.
"""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from cop_repro.cli import main
from cop_repro.core import ParamsError, from_dict
from cop_repro.evaluation.claims import (
    LABELS,
    Claim,
    agreement,
    claim_word,
    load_claims,
    over_seeds,
    resolves,
    verdict,
)
from cop_repro.evaluation.nuisance_ablation import ablation_results
from cop_repro.evaluation.report import claim_sections, judge_claims, split_rows
from cop_repro.evaluation.reruns import compare_verdicts
from cop_repro.evaluation.tables import load_tables
from cop_repro.parameters import check_params, load_params, merge, settings_hash
from cop_repro.training.contrast import ContrastConfig
from cop_repro.training.guidance import GuidanceConfig
from cop_repro.training.preference import PreferenceConfig, check_window, winner_drifts

C4 = ("label_accuracy", "fad", "fd", "kl", "inception_score", "clip_score")
YES, NO, OPEN, MISSING = "reproduced", "not reproduced", "inconclusive", "not run"


@pytest.fixture(scope="module")
def params(root):
    return load_params(root / "params.yaml")


@pytest.fixture(scope="module")
def entries(root):
    "The file of the claims as it is written."
    return yaml.safe_load((root / "refs" / "claims.yaml").read_text())


@pytest.fixture(scope="module")
def tables(root):
    return load_tables(yaml.safe_load((root / "refs" / "tables.yaml").read_text()))


@pytest.fixture(scope="module")
def claims(entries, tables):
    return {claim.claim_id: claim for claim in load_claims(entries, tables)}


def clips(values, metric="si_sdr_spec"):
    "Scored clips, each of a work of its own."
    return [
        {"clip_id": f"c{i}", "work_id": f"w{i}", "suffix": "", "metrics": {metric: float(v)}}
        for i, v in enumerate(values)
    ]


def test_the_nine_claims_have_reasons_and_one_owner(claims, entries, root):
    assert list(claims) == [f"C{i}" for i in range(1, 10)]
    assert all(len(claim.why.split()) >= 10 for claim in claims.values())
    texts = {claim.text for claim in claims.values()}
    code = "".join(path.read_text() for path in (root / "cop_repro").rglob("*.py"))
    assert not [text for text in texts if text in code]
    assert not re.search(r"CLAIMS = |keeps=0\.1", code)


@pytest.mark.parametrize(
    "claim_id, changes, message",
    [
        ("C2", {"worse": ["cl_plian"]}, "did you mean 'cl_plain'"),
        ("C2", {"worse": ["cl"]}, "compared with itself"),
        ("C2", {"worse": []}, "must not be empty"),
        ("C2", {"counts": ["fadd"]}, "unknown metric 'fadd'"),
        ("C2", {"beside": ["fad"]}, "named once"),
        ("C2", {"clips": 0}, "must be positive"),
        ("C2", {"clips": "many"}, "clips"),
        ("C2", {"table": "table9"}, "unknown table 'table9'"),
        ("C2", {"why": ""}, "must not be empty"),
        ("C2", {"paper": ["cl"]}, "two rows"),
        ("C2", {"margin": {}}, "margin"),
        ("C4", {"margins": {"fad": 15.0}}, "every metric that counts"),
        ("C4", {"clips": 8, "resolvable": {}}, "what 8 clips resolve .not stated"),
        ("C4", {"resolvable": dict.fromkeys(C4, 50.0)}, "below what 32 clips resolve"),
        ("C5", {"metrics": []}, "metrics"),
    ],
)
def test_a_wrong_claim_is_refused_by_name(entries, tables, claim_id, changes, message):
    wrong = {"claims": {claim_id: {**entries["claims"][claim_id], **changes}}}
    with pytest.raises(ParamsError, match=message):
        load_claims(wrong, tables)


def test_post_trained_rows_are_compared_with_the_same_steps(claims, params):
    "Row and control are trained alike; their settings differ in the objective alone."
    assert claims["C2"].worse == ("cl_plain",)
    assert claims["C8"].worse == ("dpo_anchor",)
    assert claims["C3"].worse == ("cl", "factorcl_plain")
    assert claims["C8"].counts[0] == "style_preference"
    variants = params["train_preference"]["variants"]
    for name, control in (("cl", "cl_plain"), ("dpo", "dpo_anchor")):
        own, other = variants[name], variants[control]
        for key in ("objective", "start", "made", "train"):
            assert own[key] == other[key], (name, key)
        assert other["settings"]["objective"] == "none"
    with_term, without = (
        from_dict(PreferenceConfig, variants[name]["settings"]) for name in ("dpo", "dpo_anchor")
    )
    assert replace(with_term, objective="none") == without
    assert replace(with_term, anchor=0.0) == from_dict(
        PreferenceConfig, variants["dpo_no_anchor"]["settings"]
    )
    for entry in variants.values():
        shape = ContrastConfig if entry["objective"] == "cl" else PreferenceConfig
        if entry["objective"] in ("cl", "dpo"):
            from_dict(shape, entry["settings"])


def test_rows_of_claims_are_scored_or_openly_missing(claims, params, tables):
    scored = {row for rows in params["evaluate"]["variants"].values() for row in rows}
    printed = {tables.row_name(row) for row in scored if row != "controls"}
    missing = {row for table in tables.tables.values() for row in table.not_run}
    further = {row for pair in tables.comparisons.values() for row in pair.worse}
    for claim in claims.values():
        assert {claim.better, *claim.worse, *claim.worse_beside} <= printed | missing | further
    counts = {"table2": "general_clips", "table3": "general_clips"}
    for claim in claims.values():
        assert claim.clips <= params["evaluate"][counts.get(claim.table, "clips")]


def test_what_else_differs_is_what_the_parameters_say(claims, params):
    "The verdict of C5 names every parameter in which its two rows differ."
    variants = params["train_piano"]["variants"]
    guided, unguided = (
        vars(from_dict(GuidanceConfig, variants[name])) for name in ("cop_piano", "no_guidance")
    )
    differing = {key for key in guided if guided[key] != unguided[key]}
    assert differing <= set(claims["C5"].differs)
    assert set(claims["C5"].differs) - differing <= {"spread"}  # which goes with `start`
    found = verdict(claims["C5"], {})
    assert found["differs"] == dict(claims["C5"].differs)


def test_c4_is_judged_on_the_papers_model(claims, params):
    row = params["evaluate"]["variants"]["general"]["piano2h"]
    assert row["models"]["general"] == "train_piano/cop_piano/piano.safetensors"
    assert claims["C4"].counts[0] == "label_accuracy"
    assert set(claims["C4"].margins) == set(claims["C4"].counts) == set(C4)


def test_the_smallest_effect_is_found_four_times_in_five():
    "Draws of normal differences; the interval of one draw is that of all."
    rng, n = np.random.default_rng(5), 40
    half = 1.96 / np.sqrt(n)
    effect = resolves(-half, half)
    found = rng.normal(effect, 1, size=(4000, n)).mean(1) - half > 0
    assert abs(found.mean() - 0.8) < 0.03


def test_fewer_clips_than_written_leave_a_claim_open(claims):
    better, worse = clips(np.arange(30) + 2.0), clips(np.arange(30))
    rows = {"cop_velocity": better, "cop_piano": worse}
    few = verdict(claims["C7"], rows)
    assert few["verdict"] == OPEN and few["metrics"][0]["ci_low"] > 0
    enough = verdict(replace(claims["C7"], clips=30), rows)
    assert enough["verdict"] == YES
    assert compare_verdicts([few], [few]) == []
    assert "does not follow" in compare_verdicts([few], [{**few, "verdict": YES}])[0]


def test_a_margin_is_in_the_metrics_unit():
    claim = Claim("kept", "table4", "new", ("old",), ("si_sdr_spec",), 8, "a test")
    kept = replace(claim, margins={"si_sdr_spec": 1.0}, resolvable={"si_sdr_spec": 0.5})
    rows = lambda loss: {"new": clips(np.arange(8.0) - loss), "old": clips(np.arange(8.0))}
    assert [verdict(kept, rows(loss))["verdict"] for loss in (0.5, 1.5)] == [YES, NO]
    assert verdict(claim, rows(0.5))["verdict"] == NO
    assert verdict(kept, rows(0.5))["metrics"][0]["margin"] == 1.0


def test_every_baseline_that_counts_must_be_beaten():
    claim = Claim(
        "CoP beats Audeo",
        "table4",
        "cop",
        ("near", "far"),
        ("si_sdr_spec",),
        8,
        "a test",
        worse_beside=("own",),
    )
    levels = {"cop": 5.0, "near": 6.0, "far": 1.0, "own": 9.0}
    rows = {name: clips(np.arange(8) + level) for name, level in levels.items()}
    found = verdict(claim, rows)
    assert [row["verdict"] for row in found["against"]] == [NO, YES, NO]
    assert [row["counts"] for row in found["against"]] == [True, True, False]
    assert found["verdict"] == "mixed"
    assert verdict(claim, {**rows, "near": rows["far"]})["verdict"] == YES
    assert verdict(claim, {**rows, "far": rows["near"]})["verdict"] == NO
    del rows["far"]
    assert verdict(claim, rows)["verdict"] == OPEN
    assert verdict(claim, {"cop": rows["cop"]})["verdict"] == MISSING


def test_the_papers_difference_is_that_of_its_own_rows(claims, root):
    paper = yaml.safe_load((root / "refs" / "paper.yaml").read_text())
    lines = {c: verdict(claims[c], {}, None, paper)["metrics"] for c in ("C2", "C8", "C9")}
    by = {c: {m["metric"]: m.get("paper") for m in found} for c, found in lines.items()}
    assert by["C2"]["fd"] == pytest.approx(-0.14)  # 6.28 - 6.42, against its base
    assert by["C8"]["si_sdr_spec"] == pytest.approx(0.15)
    assert by["C9"]["clap_score"] == pytest.approx(0.149)  # against TANGO


def test_each_claim_reads_the_rows_of_its_own_table(claims, tables):
    "Tables 2 and 3 both print a row `base`; FactorCL and latent diffusion are judged once scored."
    metric = "mel_distance"
    scored = {
        "base": clips([5.0] * 16, metric),
        "cl": clips(np.arange(16) / 10, metric),
        "base_t2a": clips([7.0] * 16, metric),
    }
    few = [replace(claims[c], counts=(metric,), beside=(), clips=16) for c in ("C3", "C9")]
    judged = judge_claims(split_rows(scored, tables), {}, {}, tables, few)
    assert [v["verdict"] for v in judged] == [MISSING, MISSING]
    rows = split_rows(scored, tables)
    rows["table2"]["factorcl"] = clips(np.arange(16) / 10 - 1.0, metric)
    rows["table2"]["factorcl_plain"] = clips(np.arange(16) / 10 + 1.0, metric)
    rows["table2"]["flow_matched"] = clips([5.0] * 16, metric)
    rows["table3"]["flow_matched"] = clips([7.0] * 16, metric)
    rows["table3"]["latent_diffusion"] = clips(np.arange(16) / 10 + 8.0, metric)
    found = {v["claim"]: v for v in judge_claims(rows, {}, {}, tables, few)}
    assert found["C3"]["verdict"] == found["C9"]["verdict"] == YES
    assert found["C3"]["metrics"][0]["difference"] == pytest.approx(1.0)
    assert found["C9"]["metrics"][0]["difference"] == pytest.approx(1.75)  # from 7, not from 5


def run_of(low, claim="C7", metric="si_sdr_spec"):
    "A verdict whose interval is one wide."
    line = {"metric": metric, "counts": True, "difference": low + 0.5, "n": 40, "clips": 40}
    line |= {"ci_low": low, "ci_high": low + 1.0}
    line["verdict"] = YES if low > 0 else NO if low + 1 < 0 else OPEN
    return {"claim": claim, "text": "a claim", "verdict": line["verdict"], "metrics": [line]}


@pytest.mark.parametrize(
    "lows, said",
    [
        ((1.0, 2.0, 0.5), YES),
        ((1.0, 2.0, -0.5), OPEN),
        ((1.0, -2.0, 1.0), "mixed"),
        ((-2.0, -3.0, -4.0), NO),
        ((-2.0, -0.5, -4.0), OPEN),
    ],
)
def test_a_claim_is_reproduced_only_in_all_seeds(lows, said):
    own, *others = map(run_of, lows)
    seeds = {f"seed{i + 1}": [v] for i, v in enumerate(others)}
    (found,) = over_seeds([own], seeds)
    assert (found["here"], found["verdict"]) == (own["verdict"], said)
    line = found["metrics"][0]
    assert line["seeds"] == {f"seed{i}": low + 0.5 for i, low in enumerate(lows) if i}
    assert line["spread"] == pytest.approx(np.std([low + 0.5 for low in lows], ddof=1))
    assert line["ci_low"] == lows[0]  # the interval stays that over works
    assert claim_word(found) == said
    assert compare_verdicts([found], [found]) == []


def test_a_seed_that_has_not_judged_a_claim_does_not_confirm_it():
    own = run_of(1.0)
    for silent in ([], [{"claim": "C7", "verdict": MISSING, "metrics": []}]):
        (found,) = over_seeds([own], {"seed1": silent})
        assert found["verdict"] == OPEN
        assert "spread" not in found["metrics"][0]
    missing = {"claim": "C3", "text": "", "verdict": MISSING, "metrics": []}
    assert over_seeds([missing], {"seed1": [run_of(1.0, "C3")]})[0]["verdict"] == MISSING
    assert agreement([MISSING, MISSING]) == MISSING


def test_cop_verdicts_shows_seeds_beside_works(tmp_path, monkeypatch, capsys, root, params):
    "The published seeds with the parameters of this run; others are named and left out."
    from cop_repro.cli import verdicts

    for name in ("params.yaml", "settings.ini"):
        (tmp_path / name).write_text((root / name).read_text())
    own, other = run_of(1.0), run_of(-2.0)
    places = {"": own}
    places |= {f"profiles/{seed}": other for seed in params["report"]["seeds"]}
    settings = settings_hash(claim_sections(params))
    for place, found in places.items():
        folder = tmp_path / "reports" / place
        folder.mkdir(parents=True, exist_ok=True)
        made = {"settings": settings, "verdicts": [found]} if place else [found]
        (folder / "verdicts.json").write_text(json.dumps(made))
    monkeypatch.setattr(verdicts, "project_root", lambda: tmp_path)
    assert main(["verdicts"]) == 0
    said = capsys.readouterr().out
    assert "C7 a claim: mixed (this run: reproduced, seed1: not reproduced" in said
    assert "si_sdr_spec +1.500 [+1.000, +2.000] over works; seed1 -1.500" in said
    assert "spread over seeds" in said
    stale = {"settings": "of another run", "verdicts": [other]}
    for seed in params["report"]["seeds"]:
        path = tmp_path / "reports" / "profiles" / seed / "verdicts.json"
        path.write_text(json.dumps(stale))
    assert main(["verdicts"]) == 0
    said = capsys.readouterr().out
    assert "seed1: made with other parameters" in said
    assert "C7 a claim: reproduced\n" in said


def test_the_stop_rule_can_fire(params, root):
    "In every profile it looks back over fewer steps than the run has, and a rising error ends it."
    for path in [None, *sorted((root / "profiles").glob("*.yaml"))]:
        own = params if path is None else merge(params, load_params(path))
        for entry in own["train_preference"]["variants"].values():
            if entry["objective"] == "dpo":
                cfg = from_dict(PreferenceConfig, entry["settings"])
                check_window(cfg.window, entry["train"]["steps"])
    window = params["train_preference"]["variants"]["dpo"]["settings"]["window"]
    steps = params["train_preference"]["variants"]["dpo"]["train"]["steps"]
    rising = np.linspace(0.0, 0.1, steps)
    ended = [n for n in range(1, steps + 1) if winner_drifts(window)({"winner_gap": rising[:n]})]
    assert ended and ended[0] == window < steps
    assert not winner_drifts(window)({"winner_gap": -rising})
    with pytest.raises(ParamsError, match="looks back 50 steps .* the run has 40"):
        check_window(50, 40)


@pytest.mark.parametrize("profile", ["smoke", "gpu", "paper"])
def test_profiles_train_the_controls_as_their_rows(root, params, profile):
    made = merge(params, load_params(root / "profiles" / f"{profile}.yaml"))
    check_params(made)
    variants = made["train_preference"]["variants"]
    assert variants["cl"]["train"] == variants["cl_plain"]["train"]
    control = made["evaluate"]["variants"]["piano"]["dpo_anchor"]["models"]["piano"]
    settings = from_dict(PreferenceConfig, variants["dpo"]["settings"])
    if settings.anchor:
        assert variants["dpo"]["train"] == variants["dpo_anchor"]["train"]
        assert control == "train_preference/dpo_anchor/piano.safetensors"
    else:  # without an anchor, the same steps without the preference change nothing
        assert control == variants["dpo"]["start"]


def test_recorded_videos_have_a_label_of_their_own():
    one = [{"work_id": "w", "metrics": {"onset_f1": 0.5}}]
    lines = ablation_results({"all": {"clean": one, "real": one}}, "default")
    assert {line.row: line.label for line in lines} == {
        "all_clean": "embedded",
        "all_real": "recorded",
    }
    assert "recorded" in LABELS


def test_a_preference_that_trains_nothing_is_refused():
    with pytest.raises(ParamsError, match="nothing to train"):
        PreferenceConfig(objective="none")
    for wrong in ({"objective": "eq5"}, {"objective": "none"}):
        with pytest.raises(ParamsError):
            PreferenceConfig(**wrong)
    assert ContrastConfig(objective="none").weight == 0.04
    with pytest.raises(ParamsError, match="none"):
        ContrastConfig(objective="nothing")


def test_the_control_has_the_anchors_gradient_alone():
    "Loss of the control = loss of the preference minus its Eq. 7, on the same draws."
    from cop_repro.core import torch_rng
    from cop_repro.model.flow import Conditions
    from cop_repro.training.preference import frozen_copy, preference_loss

    class Scale(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = torch.nn.Parameter(torch.tensor(0.3))

        def forward(self, xt, t, cond):
            return self.factor * xt

    model = Scale().eval()
    reference, pairs = frozen_copy(model), torch.randn(2, 4, 6, 3, generator=torch_rng(0, "pairs"))

    def loss_of(**settings):
        cfg = PreferenceConfig(anchor=2.0, **settings)
        empty = Conditions()
        return preference_loss(model, reference, *pairs, empty, empty, torch_rng(1, "draws"), cfg)

    (control, logs), (whole, same) = loss_of(objective="none"), loss_of()
    assert torch.allclose(whole - control, same["dpo"])
    assert logs["winner_gap"] == same["winner_gap"]
    (alone,) = torch.autograd.grad(control, model.factor)
    (single,) = torch.autograd.grad(loss_of(objective="none")[0] / 2, model.factor)
    assert torch.allclose(alone, 2 * single)
