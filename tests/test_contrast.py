# SPDX-License-Identifier: Apache-2.0
"Contrastive losses: golden values, invariances, features, bounds on mutual information."

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from cop_repro.core import BadInput, ParamsError, from_dict, numpy_rng, torch_rng
from cop_repro.model.dit import DiTConfig, MultiStreamDiT, StreamConfig
from cop_repro.model.flow import Conditions, DropoutConfig
from cop_repro.training.contrast import (
    CONTRAST_TERMS,
    ContrastConfig,
    ContrastHeads,
    build_heads,
    club_bound,
    contrast_loss,
    contrast_step,
    eq5_terms,
    first_layers,
    nce_bound,
    stretch,
    supcon_out_terms,
)
from cop_repro.training.loop import TrainConfig

EA = normalize(torch.tensor([[[1.0, 0], [1, 1]], [[0, 1], [-1, 1]]]), dim=-1)
EV = normalize(torch.tensor([[[1, 0.2], [0.8, 1]], [[0.1, 1], [-1, 0.5]]]), dim=-1)
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


def batch(b=6, n=24):
    rng = torch_rng(0, "batch")
    return torch.randn(b, n, 4, generator=rng), Conditions(
        torch.randn(b, 2, 6, generator=rng), video=torch.randn(b, n, 5, generator=rng)
    )


def model(sizes=SIZES):
    net = MultiStreamDiT(sizes, seed=1)
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.add_(torch.randn(p.shape, generator=torch_rng(0, "stir", i)), alpha=0.1)
    return net


@pytest.mark.parametrize(
    "tau, total, mean",
    [(0.07, 0.0844014, 2.515155), (0.5, 1.1090689, 1.037195), (1.0, 1.6520768, 1.123281)],
)
def test_golden_values(tau, total, mean):
    assert eq5_terms(EA, EV, tau).sum().item() == pytest.approx(total, abs=2e-6)
    assert supcon_out_terms(EA, EV, tau).mean().item() == pytest.approx(mean, abs=2e-6)


def test_equation_5_by_loops():
    rng = torch_rng(0, "loops")
    a, v = (
        normalize(torch.randn(3, 4, 6, generator=rng), dim=-1),
        normalize(torch.randn(3, 5, 6, generator=rng), dim=-1),
    )
    by_hand = torch.zeros(3, 4)
    for i in range(3):
        for j in range(4):
            e = torch.stack(
                [torch.stack([(a[i, j] @ v[k, l] / 0.3).exp() for l in range(5)]) for k in range(3)]
            )
            by_hand[i, j] = -(e[i].sum() / e.sum()).log()
    assert torch.allclose(eq5_terms(a, v, 0.3), by_hand, atol=1e-5)
    assert bool((eq5_terms(a, v, 0.3) >= 0).all()) and bool(
        (supcon_out_terms(a, v, 0.3) >= eq5_terms(a, v, 0.3)).all()
    )


def test_small_temperatures_do_not_overflow():
    assert torch.isfinite(eq5_terms(EA, EV, 1e-3)).all()


def test_chance_at_random_features():
    rng = torch_rng(0, "chance")
    a, v = (normalize(torch.randn(32, 4, 512, generator=rng), dim=-1) for _ in range(2))
    assert eq5_terms(a, v, 1.0).mean().item() == pytest.approx(math.log(32), abs=0.02)


def test_audio_features_do_not_depend_on_the_picture():
    net, (x1, cond) = model().eval(), batch()
    t = torch.full((6,), 0.5)
    other = replace(cond, video=cond.video.flip(0), text=cond.text.flip(0))
    alone = [first_layers(net, x1, t, c).audio for c in (cond, other)]
    letter = [first_layers(net, x1, t, c, see_all=True).audio for c in (cond, other)]
    assert torch.equal(*alone) and not torch.allclose(*letter, atol=1e-3)
    whole = net(x1, t, cond, features=True)[1]
    assert torch.allclose(whole.audio, letter[0], atol=1e-5) and torch.allclose(
        whole.video, first_layers(net, x1, t, cond).video, atol=1e-5
    )
    assert len(net.layers) == 2


def test_gradients_reach_first_layer_and_heads_only():
    net, (x1, cond) = model(), batch()
    heads = ContrastHeads(16, 8, 12)
    first = first_layers(net, x1, torch.rand(6, generator=torch_rng(0, "t")), cond)
    eq5_terms(*heads(first.audio, first.video)).mean().backward()
    assert all(p.grad is not None for p in heads.parameters())
    touched = {
        n.split(".")[1]
        for n, p in net.named_parameters()
        if n.startswith("layers") and p.grad is not None and p.grad.abs().sum() > 0
    }
    assert touched == {"0"}


@pytest.mark.parametrize("objective", list(CONTRAST_TERMS))
def test_the_sum_of_two_losses(objective):
    net, heads = model(), ContrastHeads(16, 8, 12)
    values = [
        contrast_loss(
            net, heads, batch(), torch_rng(0, "loss"), ContrastConfig(objective, weight=w, frames=4)
        )
        for w in (0.0, 0.5)
    ]
    (zero, logs), (half, _) = values
    assert zero.item() == pytest.approx(logs["fm"].item(), abs=1e-6)
    assert (half - zero).item() == pytest.approx(0.5 * logs["contrast"].item(), abs=1e-5) and logs[
        "chance"
    ].item() == pytest.approx(math.log(6))


def test_clips_without_pictures_take_part_in_the_flow_loss_only():
    net, heads = model(), ContrastHeads(16, 8, 12)
    x1, cond = batch()
    some = replace(cond, video_keep=torch.tensor([True, True, True, False, False, False]))
    _, logs = contrast_loss(
        net,
        heads,
        (x1, some),
        torch_rng(0, "loss"),
        ContrastConfig(frames=4),
        DropoutConfig(0, 0, 0, 0, 0),
    )
    assert logs["chance"].item() == pytest.approx(math.log(3))
    with pytest.raises(BadInput, match="at least two recorded"):
        contrast_loss(
            net,
            heads,
            (x1, cond.drop(video=torch.arange(6) > 0)),
            torch_rng(0, "loss"),
            ContrastConfig(frames=4),
        )
    with pytest.raises(BadInput, match="no clip"):
        contrast_loss(net, heads, (x1, replace(cond, video=None)), torch_rng(0, "loss"))


def test_stretches_are_consecutive_and_shared():
    clock = torch.arange(24.0)[None, :, None].repeat(5, 1, 2)
    one, two = stretch([clock, 10 * clock], ContrastConfig(frames=4, stride=3), torch_rng(0, "s"))
    assert (
        torch.equal(10 * one, two)
        and bool((one.diff(dim=1) == 3).all())
        and len(one[:, 0, 0].unique()) > 1
    )
    with pytest.raises(BadInput, match="need 25 latents"):
        stretch([clock], ContrastConfig(frames=9, stride=3), torch_rng(0, "s"))


def test_step_function():
    rng = numpy_rng(0, "store")
    store = {
        "latents": rng.standard_normal((8, 24, 4)).astype(np.float16),
        "video": rng.standard_normal((8, 8, 5)).astype(np.float16),
    }
    net, cfg = model(), ContrastConfig(frames=3, width=12)
    step = contrast_step(
        net, build_heads(net, cfg), [(store, range(8))], TrainConfig(4, 4, 1e-3), cfg, 12
    )
    assert step(1, 0, 1)[0].item() == step(1, 0, 1)[0].item() != step(2, 0, 1)[0].item()
    assert all(
        torch.equal(a, b)
        for a, b in zip(build_heads(net, cfg).parameters(), build_heads(net, cfg).parameters())
    )


@pytest.mark.parametrize(
    "wrong", [{"objective": "factorcl"}, {"tau": 0.0}, {"frames": 0}, {"temperature": 1.0}]
)
def test_bad_configurations(wrong):
    with pytest.raises(ParamsError):
        from_dict(ContrastConfig, wrong)


def test_bad_shapes():
    with pytest.raises(BadInput, match="equal clips and width"):
        eq5_terms(EA, EV[:1])
    with pytest.raises(BadInput, match="two recorded clips"):
        eq5_terms(EA[:1], EV[:1])
    with pytest.raises(BadInput, match="video stream"):
        first_layers(
            MultiStreamDiT(replace(SIZES, video=None)), batch()[0], torch.rand(6), Conditions()
        )


def test_bounds():
    scores = torch.tensor([[2, 0.5, -1], [0, 1.5, 0.3], [-0.5, 0.2, 1]])
    assert [
        round(x.item(), 6) for x in (nce_bound(scores), nce_bound(scores, True), club_bound(scores))
    ] == [0.706226, 0.705513, 1.055556]
    assert (
        nce_bound(torch.zeros(5, 5)).item() == pytest.approx(0, abs=1e-6)
        and club_bound(torch.ones(5, 5)).item() == 0
    )
    assert nce_bound(1000 * torch.eye(7, dtype=torch.float64)).item() == pytest.approx(
        math.log(7), abs=1e-5
    )
