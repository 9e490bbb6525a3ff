# SPDX-License-Identifier: Apache-2.0
"DPO: golden values, shared noise, frozen reference, pairs, stop rule."

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from cop_repro.core import BadInput, ParamsError, from_dict, numpy_rng, torch_rng
from cop_repro.model.cop_piano import grow_piano
from cop_repro.model.dit import DiTConfig, MultiStreamDiT, StreamConfig
from cop_repro.model.flow import Conditions, draw_noise_and_time, fm_loss
from cop_repro.model.roll import RollConfig, build_roll
from cop_repro.training.loop import TrainConfig, train
from cop_repro.training.preference import (
    PreferenceConfig,
    dpo_margin,
    frozen_copy,
    pair_batch,
    preference_loss,
    preference_step,
    reference_of,
    winner_drifts,
)


class Affine(nn.Module):
    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([0.3, -0.1]))

    def forward(self, xt, t, cond):
        return self.theta[0] * xt + self.theta[1] * t[:, None, None]


def members():
    return torch.randn(2, 8, 6, 3, generator=torch_rng(0, "pair"))


CFG = PreferenceConfig()


def loss_of(model, reference, w, l, cfg=CFG, seed=0):
    return preference_loss(
        model, reference, w, l, Conditions(), Conditions(), torch_rng(seed, "dpo"), cfg
    )


def test_golden_value():
    z = dpo_margin(
        *(torch.tensor([x], dtype=torch.float64) for x in (0.90, 1.10, 0.95, 1.00)), beta=2.0
    )
    assert z.item() == pytest.approx(0.15) and -torch.nn.functional.logsigmoid(
        z
    ).item() == pytest.approx(0.620957, abs=1e-6)


def test_start_is_log_2_with_gradient_beta_over_4():
    model, (w, l) = Affine().eval(), members()
    loss, logs = loss_of(model, frozen_copy(model), w, l, PreferenceConfig(beta=40.0))
    loss.backward()
    x0, t = draw_noise_and_time(w, torch_rng(0, "dpo"))
    g_w, g_l = (
        torch.autograd.grad(fm_loss(model, x, Conditions(), x0, t), model.theta)[0] for x in (w, l)
    )
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6) and torch.allclose(
        model.theta.grad, 10 * (g_w - g_l), atol=1e-4
    )
    assert logs["winner_gap"] == logs["loser_gap"] == 0


def test_loss_by_hand_away_from_the_start():
    model, (w, l) = Affine().eval(), members()
    reference = frozen_copy(model)
    with torch.no_grad():
        model.theta.add_(torch.tensor([0.05, 0.02]))
    x0, t = draw_noise_and_time(w, torch_rng(0, "dpo"))
    one = lambda m, x: fm_loss(m, x, Conditions(), x0, t, per_example=True)
    z = dpo_margin(one(model, w), one(model, l), one(reference, w), one(reference, l), 100.0)
    loss, logs = loss_of(model, reference, w, l, PreferenceConfig(beta=100.0, anchor=3.0))
    assert loss.item() == pytest.approx(
        (-torch.nn.functional.logsigmoid(z).mean() + 3 * one(model, w).mean()).item(), abs=1e-5
    )
    assert logs["accuracy"].item() == pytest.approx((z > 0).float().mean().item())
    assert logs["winner_gap"].item() == pytest.approx(
        (one(model, w) - one(reference, w)).mean().item(), abs=1e-6
    )


def test_swapping_the_members_mirrors_the_margin():
    model, (w, l) = Affine().eval(), members()
    reference = frozen_copy(model)
    with torch.no_grad():
        model.theta.mul_(1.2)
    cfg = PreferenceConfig(beta=5.0)
    one, two = loss_of(model, reference, w, l, cfg)[1], loss_of(model, reference, l, w, cfg)[1]
    assert (
        one["winner_gap"].item() == pytest.approx(two["loser_gap"].item(), abs=1e-6)
        and one["accuracy"] + two["accuracy"] == 1
    )


def test_reference_is_frozen_and_separate():
    model, (w, l) = Affine().train(), members()
    reference = frozen_copy(model)
    assert (
        not reference.training
        and model.training
        and not any(p.requires_grad for p in reference.parameters())
    )
    with pytest.raises(BadInput, match="model is in training mode"):
        loss_of(model, reference, w, l)
    with pytest.raises(BadInput, match="reference is in training mode"):
        loss_of(model.eval(), reference.train(), w, l)


def test_stop_rule():
    noise = numpy_rng(0, "gaps").standard_normal(200)
    rule = winner_drifts(100)
    assert (
        not rule({})
        and not rule({"winner_gap": noise[:99] + 9})
        and rule({"winner_gap": noise + 1})
        and not rule({"winner_gap": noise - 1})
    )
    assert rule({"winner_gap": np.r_[noise[:100] - 9, noise[:100] + 1]}) and not winner_drifts(0)(
        {"winner_gap": noise + 9}
    )


def toy():
    rng = numpy_rng(0, "store")
    held = np.repeat(rng.random((6, 8, 11)) < 0.4, 8, 2).astype(np.float16)
    both = lambda x: np.concatenate([x, x])
    store = {
        "latents": rng.standard_normal((12, 24, 4)).astype(np.float16),
        "text": np.ones((12, 1, 6), np.float16),
        "text_mask": np.ones((12, 1), bool),
        "strips": both(rng.integers(0, 255, (6, 8, 16, 104), np.uint8)),
        "pedal": np.zeros((12, 8), np.float16),
    }
    return store | {n: both(held) for n in ("presence", "onset", "velocity", "soft_velocity")}, [
        (i, i + 6) for i in range(6)
    ]


def piano():
    torch.manual_seed(0)
    base = MultiStreamDiT(
        DiTConfig(
            2,
            StreamConfig(16, 1, 16),
            latent_channels=4,
            text_width=6,
            num_registers=2,
            max_positions=24,
            time_frequencies=4,
            dropout=0.5,
        )
    )
    return grow_piano(
        base, build_roll(RollConfig(width=2, height=16, strip_width=104)), StreamConfig(16, 1, 16)
    )


def test_pairs_share_window_and_condition():
    store, pairs = toy()
    clock = np.arange(24)[None, :, None].repeat(12, 0).repeat(4, 2).astype(np.float16)
    batch, other = pair_batch(store | {"latents": clock}, pairs, torch_rng(0, "x"), 12)
    assert (
        torch.equal(batch.x1, other)
        and len(batch.x1[:, 0, 0].unique()) > 1
        and len(batch.strips) == 6
    )
    with pytest.raises(BadInput, match="rows 0 and 7 differ in their onset roll"):
        pair_batch(store, [(0, 7)], torch_rng(0, "x"), 12)
    words = store | {"text": np.arange(12).reshape(12, 1, 1).repeat(6, 2).astype(np.float16)}
    with pytest.raises(BadInput, match="differ in their text"):
        pair_batch(words, pairs, torch_rng(0, "x"), 12)


@pytest.mark.parametrize("joint", [None, 2, 0])
def test_first_step_of_the_stage_is_log_2_although_the_model_has_dropout(joint, tmp_path):
    store, pairs = toy()
    model = piano()
    reference, plan = frozen_copy(model), TrainConfig(2, 4, 1e-3)
    before = copy.deepcopy(reference.state_dict())
    result = train(
        {"piano": model},
        preference_step(
            model, reference, store, pairs, plan, PreferenceConfig(joint_items=joint), 12
        ),
        plan,
        tmp_path,
    )
    assert result.losses[0] == pytest.approx(math.log(2), abs=1e-5)
    assert all(torch.equal(v, before[n]) for n, v in reference.state_dict().items())
    assert not torch.equal(model.dit.audio_output.weight, reference.dit.audio_output.weight)


@pytest.mark.parametrize(
    "wrong", [{"beta": 0.0}, {"anchor": -1.0}, {"window": -1}, {"joint_items": -1}, {"gamma": 1.0}]
)
def test_bad_configurations(wrong):
    with pytest.raises(ParamsError):
        from_dict(PreferenceConfig, wrong)


def test_the_released_reference_noise_and_both_losses():
    "A live reference with beta 2 and both losses has the gradient of the winner's flow loss."
    model, (w, l) = Affine().eval(), members()
    live = PreferenceConfig(beta=2.0, reference="live", both=1.0)
    assert (
        reference_of(model, live) is model and reference_of(model, PreferenceConfig()) is not model
    )
    loss, logs = loss_of(model, reference_of(model, live), w, l, live)
    loss.backward()
    x0, t = draw_noise_and_time(w, torch_rng(0, "dpo"))
    assert torch.allclose(
        model.theta.grad,
        torch.autograd.grad(fm_loss(model, w, Conditions(), x0, t), model.theta)[0],
        atol=1e-5,
    )
    assert logs["winner_gap"] == logs["loser_gap"] == 0
    apart = loss_of(model, frozen_copy(model), w, l, PreferenceConfig(shared=False))[1]
    assert apart["winner_gap"] != 0 and apart["loser_gap"] != 0
    for wrong in ({"reference": "other"}, {"both": -1.0}):
        with pytest.raises(ParamsError):
            PreferenceConfig(**wrong)
