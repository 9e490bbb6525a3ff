# SPDX-License-Identifier: Apache-2.0
"The text-to-audio baseline and the flow beside it: equal budgets, exact sampler, files, refusals."

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from cop_repro.cli._profiles import profile_params
from cop_repro.core import AssetMismatch, BadInput, ParamsError, from_dict
from cop_repro.data.clips import Clip, fill_store
from cop_repro.evaluation.evaluate import RowEntry, make_row
from cop_repro.model.codec import load_codec
from cop_repro.model.dit import DiTConfig, MultiStreamDiT, StreamConfig
from cop_repro.model.flow import Conditions, DropoutConfig, SampleConfig
from cop_repro.parameters import load_params
from cop_repro.systems.catalogue import trainable
from cop_repro.systems.contract import SystemFiles
from cop_repro.systems.latent_diffusion import (
    CaptionTraining,
    DiffusionSettings,
    FlowSettings,
    NoiseSchedule,
    UNet,
    UNetConfig,
    diffusion_loss,
    load_diffusion,
    sample_diffusion,
    sampling_levels,
)
from cop_repro.training.loop import TrainConfig
from cop_repro.training.stages import Place

PAIR = ("latent_diffusion", "flow_matched")
DATA = CaptionTraining(crop_s=0.4)
SMALL = {
    "latent_diffusion": DiffusionSettings(UNetConfig((32, 32)), data=DATA),
    "flow_matched": FlowSettings(
        DiTConfig(1, StreamConfig(32, 1), text_width=96, num_registers=2, time_frequencies=8), DATA
    ),
}
TRAIN = TrainConfig(3, 4, 1e-3, ema=0.5)
SOLVER = {"num_steps": 2, "cfg_strength": 2.0, "window_s": None, "temperature": 1.0}
CLIP = Clip("c", "w", "test", "t2a", 1.0, "a bell rings", "bell")


@pytest.fixture(scope="module")
def files(root):
    "Codec, encoders and predictor that are shipped."
    assets = root / "data" / "assets"
    split = json.loads((root / "data" / "manifest.json").read_text())["split_hash"]
    return SystemFiles(
        split, *(assets / f"{name}.safetensors" for name in ("codec", "encoders", "roll"))
    )


@pytest.fixture(scope="module")
def place(files, tmp_path_factory):
    "A function that makes the place of a run: six captioned clips, two of them with a video."
    folder = tmp_path_factory.mktemp("captions")
    columns = {
        "latents": ((60, 128), "float16"),
        "video": ((20, 128), "float16"),
        "has_video": ((), "bool"),
        "text": ((5, 96), "float16"),
        "text_mask": ((5,), "bool"),
    }
    rng = np.random.default_rng(0)

    def make(i):
        row = {name: rng.standard_normal(shape) for name, (shape, _) in columns.items()}
        return row | {"has_video": i < 2, "text_mask": np.arange(5) < 3}

    about = {"split_hash": files.split, "latents": load_codec(files.codec, files.split).latent_id}
    index = [{"clip_id": f"c{i}", "split": "train", "domain": "t2a"} for i in range(6)]
    fill_store(folder / "general", index, columns, make, range(6), 1, **about)

    def at(name):
        scratch = folder / "scratch" / name
        return Place({"general": folder / "general"}, scratch, folder / f"{name}.safetensors")

    return at


@pytest.fixture(scope="module")
def trained(place, files):
    "What each stage returned, and its file."
    made = {}
    for name in PAIR:
        where = place(name)
        made[name] = trainable(name).fit(where, SMALL[name], TRAIN, files), where.made
    return made


@pytest.mark.parametrize("profile", [None, "paper", "gpu", "scratch"])
def test_both_have_the_same_data_steps_and_weights(root, profile):
    params = profile_params(root, profile) if profile else load_params(root / "params.yaml")
    variants = params["train_systems"]["variants"]
    diffusion = from_dict(DiffusionSettings, variants["latent_diffusion"]["settings"])
    flow = from_dict(FlowSettings, variants["flow_matched"]["settings"])
    assert diffusion.data == flow.data
    configs = [from_dict(TrainConfig, variants[name]["train"]) for name in PAIR]
    assert configs[0] == configs[1]
    with torch.device("meta"):
        networks = UNet(diffusion.unet), MultiStreamDiT(flow.dit)
    weights = [sum(p.numel() for p in network.parameters()) for network in networks]
    assert 0.9 < weights[0] / weights[1] < 1.1
    assert flow.dit.video is None and flow.dit.roll is None


def test_the_flow_is_as_wide_and_deep_as_stage_one(root):
    params = load_params(root / "params.yaml")
    own = params["train_systems"]["variants"]["flow_matched"]["settings"]["dit"]
    assert {key: params["train_general"]["dit"][key] for key in own} == own


@pytest.mark.parametrize("name", PAIR)
def test_a_row_is_trained_loaded_and_sampled(trained, files, name):
    result, made = trained[name]
    assert result.result.step == 3
    assert np.isfinite(result.result.losses).all()
    row = make_row(RowEntry(name, {name: made.name}), files, made.parent, SOLVER)
    hash(row)  # a worker keeps the systems of a row by it
    [system] = row.load().values()
    sound = system.predict(CLIP).wav
    assert sound.shape == (24_000,) and np.isfinite(sound).all()
    other = system.predict(replace(CLIP, text="thunder rolls")).wav
    assert not np.array_equal(sound, other), "the caption acts"
    assert np.array_equal(sound, system.predict(CLIP).wav)


def test_training_is_repeatable(trained, place, files):
    for name in PAIR:
        again = trainable(name).fit(place(f"{name} again"), SMALL[name], TRAIN, files)
        assert np.array_equal(again.result.losses, trained[name][0].result.losses)


def test_training_starts_at_the_loss_of_doing_nothing(trained):
    "Of white data: 1 after weighting, and the fraction of the data that is left before it."
    kept = NoiseSchedule().kept()
    x1 = torch.randn(4000, 2, 3, generator=torch.Generator().manual_seed(0))
    batch, rng = (x1, Conditions()), torch.Generator().manual_seed(1)

    def nothing(x, level, cond):
        return torch.zeros_like(x)

    loss, logs = diffusion_loss(nothing, batch, rng, kept, DropoutConfig())
    assert abs(float(loss) - 1) < 0.05
    assert abs(float(logs["noise_error"]) - float(kept.mean())) < 0.02
    assert abs(trained["latent_diffusion"][0].result.losses[0] - 1) < 0.1


def test_sampling_data_of_unit_variance_has_a_closed_form():
    "The best prediction is sqrt(1 - kept) x: a step multiplies by the cosine of its angle."
    schedule = NoiseSchedule()
    kept = schedule.kept()

    def best(x, level, cond):
        return torch.zeros_like(x)  # nothing to correct

    x0 = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for num_steps in (1, 7, 200):
        made = sample_diffusion(best, x0, Conditions(), schedule, SampleConfig(num_steps, 0.0))
        shares = torch.cat([kept[sampling_levels(num_steps, 1000)], torch.ones(1)])
        factor = shares.sqrt().acos().diff().cos().prod()
        torch.testing.assert_close(made, factor * x0)


def test_guidance_moves_away_from_the_null_branch():
    schedule = NoiseSchedule()
    cond = Conditions(torch.zeros(1, 1, 1, dtype=torch.float64))

    def constant(x, level, cond):
        null = cond.text_keep is not None and not cond.text_keep.any()
        return torch.full_like(x, 1.0 if null else 2.0)

    def stronger(x, level, cond):
        return torch.full_like(x, 5.0)  # 2 + 3 (2 - 1)

    x0 = torch.zeros(1, 4, 2, dtype=torch.float64)
    made = sample_diffusion(constant, x0, cond, schedule, SampleConfig(3, 3.0))
    torch.testing.assert_close(
        made, sample_diffusion(stronger, x0, cond, schedule, SampleConfig(3, 0.0))
    )


@pytest.mark.parametrize("length", [1, 2, 7, 150])
def test_any_length_is_accepted(length):
    model = UNet(UNetConfig((32, 32, 32))).eval()
    xk = torch.zeros(1, length, 128)
    assert model(xk, torch.tensor([3]), Conditions()).shape == xk.shape


def test_a_dropped_caption_cannot_leak():
    model = UNet(UNetConfig((32,), latent_channels=4, text_width=6)).eval()
    torch.nn.init.ones_(model.output.weight)
    xk, level = torch.randn(2, 9, 4), torch.tensor([5, 900])
    broken = Conditions(torch.full((2, 3, 6), torch.nan)).drop(text=True)
    torch.testing.assert_close(model(xk, level, broken), model(xk, level, Conditions()))


@pytest.mark.parametrize(
    "config",
    [
        SampleConfig(2, window_s=2.0),
        SampleConfig(2, method="midpoint"),
        SampleConfig(2, rescale=0.5),
        SampleConfig(2, guided=(0.0, 0.5)),
        SampleConfig(2, roll_strength=1.0),
    ],
)
def test_settings_of_the_flow_alone_are_refused(config):
    schedule, x0 = NoiseSchedule(), torch.zeros(1, 4, 2)
    with pytest.raises(ParamsError, match="DDIM"):
        sample_diffusion(lambda x, level, cond: x, x0, Conditions(), schedule, config)


@pytest.mark.parametrize("count", [0, 1001])
def test_impossible_numbers_of_steps_are_refused(count):
    with pytest.raises(BadInput, match="1 to 1000"):
        sampling_levels(count, 1000)


def test_other_weights_are_refused(trained, files):
    _, made = trained["flow_matched"]
    with pytest.raises(BadInput, match="no latent diffusion"):
        load_diffusion(made)
    _, own = trained["latent_diffusion"]
    elsewhere = replace(files, split="elsewhere", models=(("latent_diffusion", own),))
    with pytest.raises(AssetMismatch, match="trained under split"):
        trainable("latent_diffusion").load(elsewhere, DiffusionSettings())


@pytest.mark.parametrize("wrong", [{"widths": []}, {"widths": [40]}])
def test_impossible_widths_are_refused(wrong):
    with pytest.raises(ParamsError, match="multiples of 32"):
        from_dict(UNetConfig, wrong)


def test_videos_are_refused_by_the_network():
    with pytest.raises(BadInput, match="caption alone"):
        UNet(UNetConfig((32,)))(
            torch.zeros(1, 4, 128), torch.tensor([0]), Conditions(video=torch.zeros(1, 4, 8))
        )
