# SPDX-License-Identifier: Apache-2.0
"Sequences injected into a DiT: exact starts, copies, counts, files, refusals."

from dataclasses import replace

import pytest
import torch

from cop_repro.core import AssetMismatch, BadInput, CopError, ParamsError, torch_rng
from cop_repro.model.controlformer import (
    InjectedConfig,
    InjectedDiT,
    build_dit,
    inject,
    injected_width,
    load_injected,
)
from cop_repro.model.dit import (
    DiTConfig,
    MultiStreamDiT,
    StreamConfig,
    load_dit,
    paper_config,
    save_dit,
)
from cop_repro.model.flow import Conditions, SampleConfig, fm_loss, sample

TINY = DiTConfig(
    depth=4,
    audio=StreamConfig(32, 2, 16),
    video=StreamConfig(24, 2, 8),
    latent_channels=6,
    text_width=10,
    video_features=12,
    num_registers=3,
    max_positions=160,
    time_frequencies=8,
)
WIDTH = 9
WAYS = ("controlformer", "concat")


def stir(model):
    rng = torch_rng(1, "stir")
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=rng), alpha=0.1)
    return model.eval()


@pytest.fixture(scope="module")
def base():
    return stir(MultiStreamDiT(TINY))


@pytest.fixture
def batch():
    rng = torch_rng(0, "batch")

    def randn(*shape):
        return torch.randn(*shape, generator=rng)

    given = Conditions(
        randn(2, 4, 10), video=randn(2, 20, 12), roll=torch.rand(2, 20, WIDTH, generator=rng)
    )
    return randn(2, 20, 6), torch.rand(2, generator=rng), given


@pytest.mark.parametrize("injector, added", [("controlformer", 170_433_728), ("concat", 91_136)])
def test_counts_at_the_papers_size(injector, added):
    with torch.device("meta"):
        plain = MultiStreamDiT(paper_config())
        grown = InjectedDiT(InjectedConfig(**vars(paper_config()), injector=injector))
    counts = [sum(p.numel() for p in m.parameters()) for m in (plain, grown)]
    assert counts[1] - counts[0] == added
    assert counts[0] == 710_952_640


@pytest.mark.parametrize("copies", [1, 2, 3, 4])
def test_every_number_of_copies_starts_as_the_base(copies, base, batch):
    "Copies beyond the first half stand in layers with a U-skip."
    xt, t, cond = batch
    model = inject(base, "controlformer", WIDTH, copies).eval()
    with torch.no_grad():
        plain, features = base(xt, t, replace(cond, roll=None), features=True)
        ours, found = model(xt, t, cond, features=True)
    assert torch.equal(ours, plain) and torch.equal(found.audio, features.audio)
    copied = [layer for layer in model.layers if hasattr(layer, "control")]
    assert len(copied) == copies
    for layer in copied:
        pairs = zip(layer.control.parameters(), layer.audio.parameters())
        assert all(torch.equal(a, b) and a.data_ptr() != b.data_ptr() for a, b in pairs)
    stir(model)
    with torch.no_grad():
        moved = model(xt, t, replace(cond, roll=1 - cond.roll)) - model(xt, t, cond)
    assert moved.abs().max() > 1e-3


def test_copies_are_of_the_trained_blocks_and_not_fresh(base):
    fresh = InjectedDiT(InjectedConfig(**vars(TINY), sequence_width=WIDTH))
    weights = [m.layers[0].control.ff.up.weight for m in (fresh, inject(base, WAYS[0], WIDTH))]
    assert not torch.equal(*weights)
    assert torch.equal(weights[1], base.layers[0].audio.ff.up.weight)


@pytest.mark.parametrize("injector", WAYS)
def test_checkpointing_and_windows_change_nothing_else(injector, base, batch):
    xt, t, cond = batch
    model = stir(inject(base, injector, WIDTH))
    again = build_dit({**vars(model.config), "checkpointing": True, **_streams(model.config)})
    again.load_state_dict(model.state_dict())
    gradients = []
    for network in (model, again):
        network.zero_grad()
        fm_loss(network, xt, cond, torch.zeros_like(xt), t).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    assert torch.allclose(*gradients, atol=1e-6)
    config = SampleConfig(2, 1.0, 1.0, window_s=0.2, overlap_s=0.1)
    assert sample(model.eval(), xt, cond, config).latents.isfinite().all()


def _streams(config):
    return {name: vars(getattr(config, name)) for name in ("audio", "video")}


@pytest.mark.parametrize("injector", WAYS)
def test_a_dropped_sequence_cannot_leak(injector, base, batch):
    xt, t, cond = batch
    model = stir(inject(base, injector, WIDTH))
    wild = replace(cond, roll=torch.full_like(cond.roll, torch.nan)).drop(roll=True)
    with torch.no_grad():
        assert torch.equal(model(xt, t, wild), model(xt, t, replace(cond, roll=None)))


def test_roll_stream_and_injector_stand_side_by_side(batch):
    "The roll's keys come first; each part acts on its own path."
    xt, t, cond = batch
    base = stir(MultiStreamDiT(replace(TINY, roll=StreamConfig(16, 1, 16), roll_keys=WIDTH)))
    model = inject(base, "controlformer", 6)
    assert injected_width(model.config) == WIDTH + 6 and injected_width(TINY) == 0
    reference = torch.randn(2, 20, 6, generator=torch_rng(2, "reference"))
    both = replace(cond, roll=torch.cat([cond.roll, reference], -1))
    with torch.no_grad():
        assert torch.equal(model.eval()(xt, t, both), base(xt, t, cond))
        stir(model)
        one = model(xt, t, both)
        other = model(xt, t, replace(both, roll=torch.cat([cond.roll, -reference], -1)))
        silent = model(xt, t, replace(both, roll=torch.cat([0 * cond.roll, reference], -1)))
    assert (one - other).abs().max() > 1e-3 < (one - silent).abs().max()


def test_files_keep_the_injector(base, batch, tmp_path):
    xt, t, cond = batch
    model = stir(inject(base, "controlformer", WIDTH, 1))
    save_dit(tmp_path / "a.safetensors", model, {"stage": "test"})
    again, meta = load_injected(tmp_path / "a.safetensors", "controlformer")
    assert again.config == model.config and meta["stage"] == "test"
    with torch.no_grad():
        assert torch.equal(again(xt, t, cond), model(xt, t, cond))
    save_dit(tmp_path / "plain.safetensors", base)
    for name, wanted, why in (
        ("a", "concat", "has the injector controlformer, concat is needed"),
        ("plain", "concat", "has the injector none, concat is needed"),
    ):
        with pytest.raises(AssetMismatch, match=why) as error:
            load_injected(tmp_path / f"{name}.safetensors", wanted)
        assert "\n" not in str(error.value)
    with pytest.raises(CopError, match="injector") as error:
        load_dit(tmp_path / "a.safetensors")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes, why",
    [
        ({"injector": "concatt"}, "did you mean 'concat'"),
        ({"copied_layers": 5}, "1 to 4 are possible"),
        ({"copied_layers": 0}, "1 to 4 are possible"),
        ({"injector": "concat", "copied_layers": 1}, "copies no block"),
        ({"sequence_width": 0}, "at least 1"),
    ],
)
def test_impossible_sizes_are_refused_in_one_line(changes, why):
    with pytest.raises(ParamsError, match=why) as error:
        InjectedConfig(**vars(TINY), **changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("injector", WAYS)
def test_wrong_sequences_are_refused(injector, base, batch):
    xt, t, cond = batch
    model = inject(base, injector, WIDTH)
    for roll in (cond.roll[:, :7], cond.roll[..., :3]):
        with pytest.raises(BadInput, match="latent frames"):
            model(xt, t, Conditions(roll=roll))
    with pytest.raises(BadInput, match="injects a sequence already"):
        inject(model, injector, WIDTH)
