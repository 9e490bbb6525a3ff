# SPDX-License-Identifier: Apache-2.0
"FactorCL: golden sums, two players in one loss, balanced batches, its forms, bad input."

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from cop_repro.core import BadInput, ParamsError, from_dict, numpy_rng, torch_rng
from cop_repro.model.dit import DiTConfig, MultiStreamDiT, StreamConfig, load_dit, save_dit
from cop_repro.model.flow import Conditions, DropoutConfig
from cop_repro.training.contrast import PostTrainingData
from cop_repro.training.factor_contrast import (
    FACTORCL,
    TERMS,
    FactorConfig,
    FactorHeads,
    Samples,
    balanced_rows,
    build_critics,
    build_factor,
    collapsed,
    estimate,
    factor_cost,
    factor_loss,
    factor_step,
    factors,
    total_information,
)
from cop_repro.training.loop import TrainConfig, train
from cop_repro.training.planning import Cost, NetworkCosts

LOG2 = math.log(2)
SIZES = DiTConfig(
    2,
    StreamConfig(16, 1, 16),
    StreamConfig(8, 1, 8),
    latent_channels=4,
    text_width=6,
    video_features=5,
    num_registers=2,
    max_positions=64,
    time_frequencies=4,
)
LABELS = [name for name in "abcde" for _ in range(6)]


class ToyStore(dict):
    "Thirty clips of five classes, all of them training clips."

    def select(self, **wanted):
        return np.arange(30)

    def values(self, name, rows):
        return [LABELS[row] for row in rows]


@pytest.fixture()
def store():
    rng = numpy_rng(0, "store")
    return ToyStore(
        latents=rng.standard_normal((30, 24, 4)).astype(np.float16),
        video=rng.standard_normal((30, 8, 5)).astype(np.float16),
    )


def samples(groups=2, clips=3):
    rng = torch_rng(0, "samples")
    label = torch.eye(groups).repeat_interleave(clips, 0)
    n = groups * clips
    audio, video = torch.randn(n, 5, generator=rng), torch.randn(n, 4, generator=rng)
    return Samples(audio, video, label, groups)


def network(form="factor"):
    torch.manual_seed(0)
    heads = FactorHeads(TERMS[form], (5, 4))
    return heads, build_critics(TERMS[form], heads.widths, 2, hidden=8)


def gradients(loss, module):
    weights = list(module.parameters())
    found = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
    return [torch.zeros(()) if g is None else g for g in found]


@pytest.mark.parametrize(
    "exact, expected, once",
    [
        ((0.0, LOG2, 0.0, 0.0), (-LOG2, LOG2, LOG2), 0.0),
        ((LOG2, 0.0, LOG2, LOG2), (LOG2, 0.0, 0.0), 2 * LOG2),
        ((0.0, 0.0, LOG2, 0.0), (0.0, LOG2, 0.0), LOG2),
    ],
    ids=["xor", "copy", "unique"],
)
@pytest.mark.parametrize("form", ["factor", "term"])
def test_golden_sums(form, exact, expected, once):
    i12, i12_y, i1y, i2y = (torch.tensor(value) for value in exact)
    values = {"nce_12y": i12_y, "club_12y": i12_y, "nce_1y": i1y, "nce_2y": i2y}
    bounds = {name: values.get(name[:8].removesuffix("_u"), i12) for name in TERMS[form]}
    for name in ("nce_12y_u1", "nce_12y_u2"):
        if name in bounds:
            bounds[name] = i12_y
    made = [value.item() for value in factors(bounds).values()]
    assert made == pytest.approx(expected, abs=1e-6)
    assert total_information(bounds).item() == pytest.approx(LOG2, abs=1e-6)
    assert total_information(bounds, "once").item() == pytest.approx(once, abs=1e-6)


@pytest.mark.parametrize("form", ["factor", "term"])
def test_the_two_players_do_not_share_a_gradient(form):
    heads, critics = network(form)
    bounds, twins = estimate(heads, critics, TERMS[form], samples())
    total, learning = total_information(bounds), sum(twins.values())
    for name, term in TERMS[form].items():
        from_total = max(g.abs().max() for g in gradients(total, critics[name]))
        from_learning = max(g.abs().max() for g in gradients(learning, critics[name]))
        assert (from_total > 0) == (term.kind == "nce"), name
        assert (from_learning > 0) == (term.kind == "club"), name
    assert all(g.abs().max() == 0 for g in gradients(learning, heads))
    assert any(g.abs().max() > 0 for g in gradients(total, heads))


def test_the_other_side_of_a_unique_factor_is_fixed():
    heads, critics = network()
    bounds, _ = estimate(heads, critics, TERMS["factor"], samples())
    u1, u2 = (factors(bounds)[name] for name in ("U1", "U2"))
    assert all(g.abs().max() == 0 for g in gradients(u1, heads.video))
    assert all(g.abs().max() == 0 for g in gradients(u2, heads.audio))
    assert all(g.abs().max() == 0 for g in gradients(u1, heads.audio["s"]))


def test_a_pair_critic_is_the_mlp_of_the_concatenation():
    from cop_repro.training.factor_contrast import PairCritic

    torch.manual_seed(0)
    critic, left, right = PairCritic(3, 2, 7), torch.randn(2, 4, 3), torch.randn(2, 4, 2)
    weight = torch.cat([critic.left.weight, critic.right.weight], 1)
    pair = torch.cat([left[1, 2], right[1, 3]])
    by_hand = critic.rest(weight @ pair + critic.left.bias)
    assert torch.allclose(critic(left, right)[1, 2, 3], by_hand[0], atol=1e-6)


def test_conditional_estimates_stay_within_a_class():
    "Exchanging the pictures of another class changes nothing within this one."
    heads, critics = network()
    given = {"club_12y": TERMS["factor"]["club_12y"]}
    one = samples()
    order = torch.tensor([2, 1, 0])
    both = torch.cat([order, 3 + order])
    shuffled = replace(one, audio=one.audio[both], video=one.video[both])
    before = estimate(heads, critics, given, one)[0]["club_12y"]
    after = estimate(heads, critics, given, shuffled)[0]["club_12y"]
    assert torch.allclose(before, after, atol=1e-6)


def test_published_sizes():
    with torch.device("meta"):
        heads, critics = build_factor((1024, 1280), 6, FactorConfig("compat"))
    sizes = [sum(p.numel() for p in part.parameters()) for part in (heads.audio, heads.video)]
    assert sizes == [2_099_200, 3_279_360]
    assert sum(p.numel() for p in critics.parameters()) == 1_449_473
    assert 710_952_640 + sum(sizes) + 1_449_473 == 717_780_673


def test_balanced_batches():
    rows = [balanced_rows(LABELS, step, 12, 4, 3) for step in range(40)]
    for batch in rows:
        names = [LABELS[row] for row in batch]
        assert len(set(batch)) == 12
        assert [names.count(name) for name in set(names)] == [3] * 4
        assert names == [name for name in dict.fromkeys(names) for _ in range(3)]
    assert set(sum(rows, [])) == set(range(30))  # every clip takes part
    parts = [balanced_rows(LABELS, 5, 12, 4, 3, part, 2) for part in range(2)]
    assert sorted(sum(parts, [])) == sorted(rows[5])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"batch_size": 10}, "cannot be divided"),
        ({"parts": 4}, "at least two whole classes"),
        ({"classes": 6}, "have 5"),
        ({"batch_size": 28}, "class 'a' has 6"),
    ],
)
def test_batches_that_are_refused(settings, message):
    with pytest.raises((BadInput, ParamsError), match=message):
        balanced_rows(LABELS, **{"step": 0, "batch_size": 12, "classes": 4, "seed": 0} | settings)


def test_samples_that_are_refused():
    good = samples()
    with pytest.raises(BadInput, match="at least two"):
        replace(good, groups=6)  # the index of a clip as its class
    with pytest.raises(BadInput, match="one class"):
        replace(good, groups=1)
    with pytest.raises(BadInput, match="second views"):
        Samples(good.audio, good.video)


@pytest.mark.parametrize(
    "wrong",
    [
        {"form": "compat", "counting": "once"},
        {"form": "compat", "heads": "term"},
        {"form": "six"},
        {"heads": "own"},
        {"counting": "twice"},
        {"classes": 1},
        {"frame_drop": 1.0},
        {"weight": -1.0},
        {"tau": 0.07},
    ],
)
def test_bad_configurations(wrong):
    with pytest.raises(ParamsError):
        from_dict(FactorConfig, wrong)


def modules_for(cfg):
    heads, critics = build_factor((16, 8), 5, cfg)
    return {"dit": MultiStreamDiT(SIZES, seed=1), "heads": heads, "critics": critics}


@pytest.mark.parametrize("form", ["supervised", "self_supervised", "compat"])
def test_every_form_trains_and_logs_its_bounds(form, store, tmp_path):
    cfg = FactorConfig(form, hidden=8, frames=3)
    modules, plan = modules_for(cfg), TrainConfig(2, 8, 1e-3)
    labels = dict(enumerate(LABELS))
    step_fn = factor_step(modules, store, labels, plan, cfg)
    assert step_fn(1, 0, 1)[0].item() == step_fn(1, 0, 1)[0].item() != step_fn(0, 0, 1)[0].item()
    made = train(modules, step_fn, plan, tmp_path)
    names = {"fm", "gradient_norm", *cfg.terms}
    if form != "compat":
        upper = {f"twin_{name}" for name, term in cfg.terms.items() if term.kind == "club"}
        names |= {"S", "U1", "U2"} | upper
    assert set(made.logs) == names
    assert np.isfinite(made.losses).all()


def test_the_loss_is_its_parts(store):
    labels, plan = dict(enumerate(LABELS)), TrainConfig(2, 8, 1e-3)
    cfg = FactorConfig(weight=0.5, hidden=8, frames=3)
    loss, logs = factor_step(modules_for(cfg), store, labels, plan, cfg)(0, 0, 1)
    twins = sum(value for name, value in logs.items() if name.startswith("twin_"))
    information = logs["S"] + logs["U1"] + logs["U2"]
    assert loss.item() == pytest.approx((logs["fm"] - 0.5 * information - twins).item(), abs=1e-5)


def test_a_clip_without_video_is_refused():
    cfg = FactorConfig(hidden=8, frames=3, classes=2)
    modules, rng = modules_for(cfg), torch_rng(0, "batch")
    cond = Conditions(video=torch.randn(4, 24, 5, generator=rng))
    batch = torch.randn(4, 24, 4, generator=rng), cond.drop(video=torch.arange(4) == 1)
    label = torch.eye(5)[[0, 0, 1, 1]]
    with pytest.raises(BadInput, match="has no video"):
        factor_loss(*modules.values(), batch, label, torch_rng(0, "loss"), cfg)


def test_a_collapsed_head_is_named():
    assert collapsed({"a": 0.01, "b": 0.3}, {"a": 0.6, "b": 0.6}) == ["a"]
    assert collapsed({"a": 0.01}, {"a": 0.4}) == []


def test_built_from_a_file_and_saved_without_heads(store, tmp_path):
    save_dit(tmp_path / "start.safetensors", MultiStreamDiT(SIZES, seed=1))
    data = PostTrainingData({}, [], store, 24, DropoutConfig())
    cfg, plan = FactorConfig(hidden=8, frames=3), TrainConfig(1, 8, 1e-3)
    start = tmp_path / "start.safetensors"
    run = FACTORCL.build(start, data, plan, cfg, 0, torch.device("cpu"))
    assert sorted(run.modules) == ["critics", "dit", "heads"]
    FACTORCL.save(tmp_path / "made.safetensors", run.modules, {"split_hash": "s"})
    loaded, meta = load_dit(tmp_path / "made.safetensors")
    assert meta["kind"] == FACTORCL.asset
    assert loaded.state_dict().keys() == run.modules["dit"].state_dict().keys()


def test_cost_counts_the_features_of_both_views():
    cost = Cost(1000, 10_000, 100)
    networks, plan = NetworkCosts(SIZES, cost, cost, cost), TrainConfig(10, 16, 1e-3)
    one, two = (
        factor_cost("f", networks, plan, FactorConfig(form, hidden=8))
        for form in ("supervised", "self_supervised")
    )
    assert one.flops == 10 * 3 * 16 * (10_000 + 2 * 5_000)
    assert two.flops == 10 * 3 * 16 * (10_000 + 4 * 5_000)
    assert one.trained > 1000
