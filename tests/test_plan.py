# SPDX-License-Identifier: Apache-2.0
"The plan: published counts, memory by hand, refusals with a remedy, JSON from the command."

import json
from dataclasses import replace

import pytest
import torch

from cop_repro.cli import main
from cop_repro.cli._plan_costs import Costs
from cop_repro.cli._plan_text import plan_text
from cop_repro.core import BadInput
from cop_repro.model.dit import DiTConfig, MultiStreamDiT, StreamConfig
from cop_repro.model.flow import Conditions
from cop_repro.training import planning as counting
from cop_repro.training.contrast import ContrastConfig, contrast_cost
from cop_repro.training.guidance import GuidanceConfig, guidance_job
from cop_repro.training.loop import TrainConfig
from cop_repro.training.planning import (
    Cost,
    Machine,
    NetworkCosts,
    checkpoint_bytes,
    count_cost,
    dit_cost,
    encoder_flops,
    fit_as_written,
    fit_job,
    hours,
    job_memory,
    network_job,
    transformer_flops,
)
from cop_repro.training.preference import PreferenceConfig, preference_cost

COST, PREDICTOR = (
    Cost(1_000_000, 10_000_000, 5_000_000, 0, 1_000_000),
    Cost(200_000, 4_000_000, 20_000_000),
)
TRAIN = TrainConfig(steps=10, batch_size=16, learning_rate=1e-3)


def test_the_paper_profile(root, capsys, monkeypatch):
    monkeypatch.chdir(root)
    assert main(["plan", "--profile", "paper", "--gpus", "8", "--gpu-memory", "80", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    wanted = {
        "base": 710_952_640,
        "piano_51": 789_296_595,
        "piano_88": 789_320_312,
        "base_cl": 712_133_312,
        "video2roll_51": 12_713_651,
        "video2roll_88": 12_718_424,
        "audio_dit": 350_409_216,
        "video_stream": 299_791_552,
        "fusion": 60_751_872,
        "roll_stream": 50_661_472,
        "fusion_3": 75_694_080,
    }
    assert {k: made["parameters"][k] for k in wanted} == wanted
    jobs = {j["job"]: j for j in made["jobs"]}
    assert len(jobs) == 13 and all(j["memory"]["total"] <= 80 for j in jobs.values())
    one = jobs["train_general"]
    assert (
        one["memory"]["weights"] == pytest.approx(4 * 0.71095264)
        and one["memory"]["moments"] == 2 * one["memory"]["gradients"]
    )
    assert one["steps"] == 330_000 and one["flops"] == pytest.approx(
        3 * one["steps"] * 128 * made["flops"]["one_clip_forward"], rel=0.15
    )  # the piano model is a little larger
    assert jobs["train_piano@cop_velocity"]["accumulate"] > 1, (
        "sixteen full videos do not fit one GPU at once"
    )
    assert made["clips"]["video"] + made["clips"]["sound"] == 1_361_000 and any(
        "assumed" in a for a in made["assumptions"]
    )
    written = {w["job"]: w for w in made["as_written"]}
    assert (
        set(written) == set(jobs)
        and all(w["fits"] and w["checkpointing"] for w in written.values())
        and written["train_general"]["sharded"]
        and not written["train_roll"]["sharded"]
    )
    assert (written["train_general"]["clips_per_gpu"], written["train_general"]["accumulate"]) == (
        16,
        1,
    ) and written["train_general"]["memory_gb"] < one["memory"]["total"]
    text = plan_text(made)
    assert "as the profile is written" in text and "fits: " in text
    assert all(w in text for w in (*jobs, "710,952,640", "GB/GPU", "hours", "assumed", "disk"))
    assert made["hours"]["total"] == pytest.approx(
        sum(v for k, v in made["hours"].items() if k != "total")
    )


def test_what_cannot_be_planned(root, capsys, monkeypatch):
    monkeypatch.chdir(root)
    for options, why in (
        (["--gpu-memory", "-1"], "at least one"),
        (["--mfu", "40"], "per cent"),
        (["--gpu", "abacus"], "abacus"),
        (["--gpus", "0"], "at least one"),
    ):
        assert main(["plan", "--profile", "smoke", "--gpus", "1", *options]) == 2
        assert why in capsys.readouterr().err
    assert main(["plan", "--profile", "papre"]) == 2 and "paper" in capsys.readouterr().err


def test_memory_by_hand():
    job, bare = network_job("x", COST, replace(TRAIN, ema=0.9)), dict(waste=0.0, context_gb=0.0)
    assert job_memory(job, Machine(gpus=4, **bare))["total"] == pytest.approx(
        (20 * 1e6 + 4 * 5e6) / 1e9
    )
    assert job_memory(job, Machine(gpus=4, **bare), 2, True)["total"] == pytest.approx(
        (20 * 1e6 + 2 * 1e6) / 1e9
    )
    assert job_memory(job, Machine(gpus=4, sharded=True, **bare))["total"] == pytest.approx(
        (5 * 1e6 + 4 * 5e6) / 1e9
    )
    assert checkpoint_bytes(1000) == 3 * 12_000 and checkpoint_bytes(1000, True, 1) == 2 * 16_000


def test_muon_keeps_one_moment_of_a_matrix():
    cost = replace(COST, matrices=600_000)
    adam, muon = (network_job("x", cost, replace(TRAIN, optimizer=o)) for o in ("adam", "muon"))
    bare = dict(waste=0.0, context_gb=0.0)
    whole, sharded = (Machine(gpus=4, sharded=divided, **bare) for divided in (False, True))
    assert job_memory(adam, whole)["moments"] == pytest.approx(8e6 / 1e9)
    assert job_memory(muon, whole)["moments"] == pytest.approx((8e6 - 4 * 600_000) / 1e9)
    assert checkpoint_bytes(1000, True, 1, matrices=600) == 2 * (16_000 - 2_400)
    assert fit_job(adam, sharded).memory["weights"] == pytest.approx(1e6 / 1e9)
    with pytest.raises(BadInput, match="Muon needs whole matrices.* sharded over 4 GPUs"):
        fit_job(muon, sharded)
    with pytest.raises(BadInput, match="Muon needs whole matrices"):
        fit_as_written(replace(muon, sharded=True), whole)
    assert fit_job(muon, replace(sharded, gpus=1)).accumulate == 1, "nothing is divided"
    with pytest.raises(BadInput, match="smaller network"):
        fit_job(muon, Machine(memory_gb=0.01, gpus=8, **bare))


def test_matrices_are_counted():
    "Those of linear layers, in every job, at an extrapolated depth; positions are none."
    sizes = dict(latent_channels=8, text_width=6, video_features=5, num_registers=2)
    audio, video = StreamConfig(32, 2, 16), StreamConfig(16, 1, 16)
    config = DiTConfig(6, audio, video, max_positions=64, time_frequencies=8, **sizes)
    with torch.device("meta"):
        two_axes = sum(p.numel() for p in MultiStreamDiT(config).parameters() if p.ndim == 2)
    cost = dit_cost(config, 30, 4)
    assert cost.matrices == two_axes - (64 * 32 + 2 * 32 + 2 * 16)
    roll = replace(PREDICTOR, matrices=50)
    networks = NetworkCosts(config, cost, cost, roll)
    assert network_job("1", cost, TRAIN).matrices == cost.matrices
    guidance = guidance_job("2", cost, roll, TRAIN, GuidanceConfig(), 8)
    assert guidance.matrices == cost.matrices + 50
    contrast = contrast_cost("cl", networks, TRAIN, ContrastConfig(width=4))
    assert contrast.matrices == cost.matrices + 4 * (32 + 16)
    preference = preference_cost("dpo", networks, TRAIN, PreferenceConfig())
    assert preference.matrices == cost.matrices + 50


def test_help_comes_in_order():
    job, bare = network_job("x", COST, TRAIN), dict(gpus=1, waste=0.0, context_gb=0.0)
    fits = [fit_job(job, Machine(memory_gb=m, **bare)) for m in (0.1, 0.06, 0.0215, 0.0175)]
    assert [(f.accumulate, f.checkpointing) for f in fits] == [
        (1, False),
        (2, False),
        (16, False),
        (16, True),
    ]
    assert fits[3].flops == pytest.approx(fits[0].flops * 4 / 3) and fits[1].hours == fits[
        0
    ].hours == hours(fits[0].flops, Machine(**bare), "fp32")
    with pytest.raises(BadInput, match="divisor of 16"):
        fit_job(job, Machine(gpus=3))
    with pytest.raises(BadInput, match="at least 0 GB|smaller network"):
        fit_job(job, Machine(memory_gb=0.01, **bare))
    with pytest.raises(BadInput, match="sharded over the 8 GPUs"):
        fit_job(job, Machine(memory_gb=0.01, gpus=8, waste=0.0, context_gb=0.0))


def test_operations_of_every_stage():
    one = 3 * 16 * 10e6
    assert network_job("1", COST, TRAIN).flops == 10 * one
    joint = guidance_job(
        "2", COST, PREDICTOR, TRAIN, GuidanceConfig(joint_every=2, joint_items=4), 8
    )
    assert (
        joint.flops == pytest.approx(10 * (3 * 24 * 10e6 + 3 * 2 * 4e6))
        and joint.trained == 1_200_000
        and joint.batch == 8
    )
    ten = DiTConfig(
        10,
        StreamConfig(32, 2, 16),
        StreamConfig(16, 1, 16),
        latent_channels=8,
        text_width=6,
        video_features=5,
    )
    networks = NetworkCosts(ten, COST, COST, PREDICTOR)
    assert contrast_cost("cl", networks, TRAIN, ContrastConfig()).flops == pytest.approx(
        10 * one * 1.2
    )
    dpo = preference_cost("dpo", networks, TRAIN, PreferenceConfig(joint_items=0))
    assert dpo.flops == 10 * 4 * 32 * 10e6 and dpo.frozen == dpo.trained
    assert transformer_flops(2, 8, 32, 5) == 2 * (
        8 * 5 * 64 + 4 * 5 * 8 * 32 + 4 * 25 * 8
    ) and encoder_flops(2, 0) == 2 * encoder_flops(1, 0)


def test_counted_is_real():
    "Kept bytes of fake tensors are those of real ones, in an extrapolated network with a roll."
    config = DiTConfig(
        depth=6,
        audio=StreamConfig(64, 1),
        video=StreamConfig(64, 1),
        roll=StreamConfig(32, 1, 32),
        text_width=16,
        video_features=24,
        num_registers=2,
        max_positions=64,
        time_frequencies=8,
        dropout=0.1,
    )
    cost, kept, alive = dit_cost(config, 30, 4), {}, []
    model = MultiStreamDiT(config).train()
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}

    def pack(t):
        if t.untyped_storage().data_ptr() not in own:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            alive.append(t)
        return t

    cond = Conditions(
        text=torch.zeros(2, 4, 16),
        text_mask=torch.ones(2, 4, dtype=torch.bool),
        video=torch.zeros(2, 30, 24),
        roll=torch.zeros(2, 30, 88),
    )
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        alive.append(model(torch.zeros(2, 30, 128), torch.zeros(2), cond))
    assert sum(kept.values()) == cost.fixed_bytes + 2 * cost.kept_bytes and cost.parameters == sum(
        p.numel() for p in model.parameters()
    )
    linear = count_cost(lambda: torch.nn.Linear(30, 7), lambda m, b: m(torch.zeros(b, 11, 30)))
    assert (linear.parameters, linear.flops, linear.kept_bytes) == (
        217,
        2 * 11 * 30 * 7,
        4 * 11 * 30,
    )


def test_counted_once(tmp_path, monkeypatch):
    "Costs are kept between calls, counted anew for other code, and a damaged file is no file."
    path, config = (
        tmp_path / "work" / "costs.json",
        DiTConfig(
            depth=2,
            audio=StreamConfig(64, 1),
            text_width=16,
            num_registers=2,
            max_positions=64,
            time_frequencies=8,
        ),
    )
    first = Costs(path)
    made = first("dit", config, 30, 4, "bf16"), first("flops", config, 30, 4)
    first.save()
    assert made == (dit_cost(config, 30, 4, "bf16"), made[0].flops) and first.counted == 2
    again = Costs(path)
    monkeypatch.setattr(counting, "dit_cost", None)
    monkeypatch.setattr(counting, "dit_flops", None)
    assert (
        again("dit", config, 30, 4, "bf16"),
        again("flops", config, 30, 4),
    ) == made and again.counted == 0
    path.write_text(path.read_text().replace(first.code, "other"))
    assert Costs(path).known == {}
    path.write_text("{")
    assert Costs(path).known == {} and Costs(None).known == {}


def test_one_pass_over_many_equals_two():
    "Eq. 1 from one pass over a prime number of clips agrees with two passes, in both precisions."
    config = DiTConfig(
        depth=2,
        audio=StreamConfig(64, 1),
        video=StreamConfig(32, 1, 32),
        text_width=16,
        video_features=24,
        num_registers=2,
        max_positions=64,
        time_frequencies=8,
    )
    for precision in ("fp32", "bf16"):
        cost, kept = dit_cost(config, 30, 4, precision), []
        for batch in (1, 2):
            with counting.FakeTensorMode():
                kept.append(
                    sum(
                        counting._trace(
                            MultiStreamDiT(config).train(),
                            lambda m, b: counting._clips(m, b, 30, 4),
                            batch,
                            precision,
                        )[1]
                    )
                )
        assert (cost.kept_bytes, cost.fixed_bytes) == (kept[1] - kept[0], 2 * kept[0] - kept[1])


def test_as_written():
    "The plan as written: parts, recomputed layers, sharded weights; by hand."
    bare = dict(gpus=4, waste=0.0, context_gb=0.0)
    job = replace(
        network_job("x", COST, replace(TRAIN, accumulate=2, sharding="full")), checkpointing=True
    )
    assert (job.accumulate, job.sharded) == (2, True)
    fit = fit_as_written(job, Machine(memory_gb=0.001, **bare))
    assert fit.memory["total"] == pytest.approx((16 * 1e6 / 4 + 2 * 1e6) / 1e9) and (
        fit.clips_per_gpu,
        fit.accumulate,
        fit.checkpointing,
    ) == (2, 2, True), "too much, and said so"
    assert fit.flops == pytest.approx(job.flops * 4 / 3)
    with pytest.raises(BadInput, match="accumulate 3"):
        fit_as_written(replace(job, accumulate=3), Machine(**bare))


def test_a_plan_that_does_not_fit_as_written(root, capsys, monkeypatch):
    monkeypatch.chdir(root)
    assert main(["plan", "--profile", "smoke", "--gpus", "1", "--gpu-memory", "1.67"]) == 0
    said = capsys.readouterr().out
    assert "does not fit: " in said and "cheapest way" in said
