# SPDX-License-Identifier: Apache-2.0
"Stage 2 with every way of injecting the roll: training, files, refusals, plans."

from dataclasses import replace

import numpy as np
import pytest
import torch

from cop_repro.cli._plan import Plan
from cop_repro.cli._plan_costs import Costs
from cop_repro.core import (
    AssetMismatch,
    ParamsError,
    from_dict,
    load_weights,
    numpy_rng,
    save_weights,
    torch_rng,
)
from cop_repro.model.cop_piano import RollInput, grow_piano, load_piano, save_piano
from cop_repro.model.dit import DiTConfig, MultiStreamDiT, StreamConfig, count_parameters
from cop_repro.model.flow import SampleConfig, sample
from cop_repro.model.roll import RollConfig, build_roll
from cop_repro.parameters import load_params, merge
from cop_repro.training.guidance import GuidanceConfig, guidance_step, learning_shares, piano_batch
from cop_repro.training.loop import TrainConfig, train
from cop_repro.training.planning import dit_cost
from cop_repro.training.stages import build_piano, resume_piano

SIZES = DiTConfig(
    2,
    StreamConfig(16, 1, 16),
    StreamConfig(8, 1, 8),
    latent_channels=4,
    text_width=6,
    video_features=5,
    num_registers=2,
    max_positions=48,
    time_frequencies=4,
)
STREAM = StreamConfig(16, 1, 16)
WAYS = ("extra_dit", "controlformer", "concat")
NEW = {
    "extra_dit": {"roll", "roll_input", "fusion"},
    "controlformer": {"control", "control_output", "sequence_input"},
    "concat": {"sequence_input"},
}


def predictor():
    torch.manual_seed(0)
    return build_roll(RollConfig(width=2, height=16, strip_width=104))


def toy(clips=8, f=8):
    rng = numpy_rng(0, "store")
    held = np.repeat(rng.random((clips, f, 11)) < 0.4, 8, 2).astype(np.float16)
    return {
        "latents": rng.standard_normal((clips, 3 * f, 4)).astype(np.float16),
        "text": np.ones((clips, 2, 6), np.float16),
        "text_mask": np.ones((clips, 2), bool),
        "video": rng.standard_normal((clips, f, 5)).astype(np.float16),
        "strips": rng.integers(0, 255, (clips, f, 16, 104), np.uint8),
        "presence": held,
        "onset": held,
        "velocity": (held * 0.5).astype(np.float16),
        "pedal": np.zeros((clips, f), np.float16),
        "soft_presence": held,
        "soft_velocity": (held * 0.5).astype(np.float16),
    }


def config(way, **other):
    return GuidanceConfig(roll_source="cached", joint_every=2, joint_items=2, injector=way, **other)


def trained(way, folder):
    "A model after four steps, and the model it started as."
    cfg = config(way, base_share=0.1, predictor_share=0.0)
    model = build_piano(MultiStreamDiT(SIZES), predictor(), STREAM, cfg, seed=1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    plan = TrainConfig(4, 4, 1e-2, clip_norm=1.0, shares=learning_shares(model, cfg))
    train({"piano": model}, guidance_step(model, toy(), range(8), plan, cfg, 12), plan, folder)
    return model.eval(), before


def outputs(model):
    batch = piano_batch(toy(), range(5), torch_rng(0, "batch"), 12)
    with torch.no_grad():
        cond = model.with_roll(batch.cond, model.soft_roll(batch.strips, batch.background), 12)
        start = torch.randn(5, 12, 4, generator=torch_rng(0, "start"))
        return sample(model, start, cond, SampleConfig(2, 0.0, 1.0)).latents


@pytest.mark.parametrize("way", WAYS)
def test_a_model_trains_and_comes_back_from_its_file(way, tmp_path):
    model, before = trained(way, tmp_path / "run")
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    for part in NEW[way]:
        assert any(part in name.split(".") for name in moved), part
    assert not any(name.startswith("predictor") for name in moved)
    save_piano(tmp_path / "p.safetensors", model, {"split_hash": "s"})
    again, meta = load_piano(tmp_path / "p.safetensors")
    assert meta["dit"].get("injector", "extra_dit") == way
    assert torch.equal(outputs(again), outputs(model))


@pytest.mark.parametrize("way", WAYS)
def test_new_weights_learn_at_the_full_rate_and_others_at_that_of_stage_one(way):
    cfg = config(way, base_share=0.1)
    model = build_piano(MultiStreamDiT(SIZES), predictor(), STREAM, cfg)
    shares = learning_shares(model, cfg)
    names = [f"piano.dit.{name}" for name, _ in model.dit.named_parameters()]
    found = {n: next(f for prefix, f in shares.items() if n.startswith(prefix)) for n in names}
    assert {n for n, f in found.items() if f == 1} == {
        n for n in names if NEW[way] & set(n.split("."))
    }
    assert set(found.values()) == {1.0, 0.1}


def test_the_default_is_the_stream_of_the_paper():
    "A variant without the field makes what it made: the same sizes, the same weights."
    base = MultiStreamDiT(SIZES)
    made = build_piano(base, predictor(), STREAM, GuidanceConfig(), seed=3)
    grown = grow_piano(base, predictor(), STREAM, seed=3)
    assert type(made.dit) is MultiStreamDiT
    assert made.dit.config == replace(SIZES, roll=STREAM)
    pairs = zip(made.state_dict().values(), grown.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("way", WAYS)
def test_a_file_of_one_injector_is_not_another(way, tmp_path):
    base = MultiStreamDiT(SIZES)
    model = build_piano(base, predictor(), STREAM, config(way))
    path = tmp_path / "p.safetensors"
    save_piano(path, model, {"split_hash": "s"})
    assert resume_piano(path, base, predictor(), STREAM, config(way), "s").dit.config == (
        model.dit.config
    )
    for other in set(WAYS) - {way}:
        with pytest.raises(AssetMismatch, match=f"injector: {way}, this run asks for {other}") as e:
            resume_piano(path, base, predictor(), STREAM, config(other), "s")
        assert "\n" not in str(e.value)
    tensors, meta = load_weights(path)
    others = {w: build_piano(base, predictor(), STREAM, config(w)).dit.config for w in WAYS}
    for other in set(WAYS) - {way}:
        save_weights(path, tensors, {**meta, "dit": _dict(others[other])})
        with pytest.raises(AssetMismatch, match="does not hold the weights") as e:
            load_piano(path)
        assert "\n" not in str(e.value)


def _dict(cfg):
    streams = {n: s and vars(s) for n in ("audio", "video", "roll") for s in [getattr(cfg, n)]}
    return {**vars(cfg), **streams}


def test_another_number_of_copies_is_another_model(tmp_path):
    base, one = MultiStreamDiT(SIZES), config("controlformer", copied_layers=1)
    path = tmp_path / "p.safetensors"
    save_piano(path, build_piano(base, predictor(), STREAM, one), {"split_hash": "s"})
    with pytest.raises(AssetMismatch, match="another dit"):
        two = replace(one, copied_layers=2)
        resume_piano(path, base, predictor(), STREAM, two, "s")


@pytest.mark.parametrize(
    "wrong, why",
    [
        ({"injector": "control_former"}, "did you mean 'controlformer'"),
        ({"injector": "concat", "copied_layers": 1}, "copies no block"),
        ({"copied_layers": 1}, "copies no block"),
        ({"injector": "concat", "restart_fusion": True}, "restart_fusion"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(wrong, why):
    for make in (lambda: GuidanceConfig(**wrong), lambda: from_dict(GuidanceConfig, wrong)):
        with pytest.raises(ParamsError) as error:
            make()
        assert "\n" not in str(error.value)
    with pytest.raises(ParamsError, match=why):
        GuidanceConfig(**wrong)


def test_more_copies_than_layers_are_refused():
    wide = config("controlformer", copied_layers=3)
    with pytest.raises(ParamsError, match="1 to 2 are possible") as error:
        build_piano(MultiStreamDiT(SIZES), predictor(), STREAM, wide)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("way", [RollInput("controlformer"), RollInput("controlformer", 5)])
def test_the_cost_of_a_deep_controlformer_is_counted(way):
    "Extrapolated from two and four layers, or counted at full depth: the weights are exact."
    sizes = way.sizes(replace(SIZES, depth=6), STREAM, 88)
    with torch.device("meta"):
        block = sum(p.numel() for p in MultiStreamDiT(SIZES).layers[0].audio.parameters())
        plain = count_parameters(MultiStreamDiT(replace(SIZES, depth=6)))["total"]
    width, copies = SIZES.audio.width, way.copied_layers or 3
    cost = dit_cost(sizes, 12, 2)
    added = copies * (block + width * width + width) + 88 * width + width
    assert cost.parameters == plain + added
    assert cost.flops > dit_cost(RollInput("concat").sizes(SIZES, STREAM, 88), 12, 2).flops


def test_a_plan_counts_the_variants_own_network(root):
    "A variant with copies is larger than the same variant with a wider input, in stage 3 too."
    params = load_params(root / "params.yaml")
    jobs = {}
    for way in WAYS:
        changed = {"train_piano": {"variants": {"cop_velocity": {"injector": way}}}}
        plan = Plan(merge(params, changed), Costs())
        cfg, seconds = plan.train("train_piano"), plan.crop_s("train_piano")
        own = plan.piano_costs(seconds, cfg, plan.guidance("cop_velocity").roll_input)
        assert plan.way_of("train_piano/cop_velocity/piano.safetensors") == RollInput(way)
        jobs[way] = own[0].parameters
    assert plan.way_of("train_general/general.safetensors") == RollInput()
    assert len(set(jobs.values())) == 3 and min(jobs, key=jobs.get) == "concat"
