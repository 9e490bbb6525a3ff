# SPDX-License-Identifier: Apache-2.0
"Rows of the evaluation: networks lie on the asked device, and sounds come back to the CPU."

import json
import pickle

import numpy as np
import pytest
import torch

from cop_repro.core import (
    RATES,
    AssetMismatch,
    BadInput,
    ParamsError,
    load_weights,
    save_weights,
    torch_rng,
)
from cop_repro.data.clips import Clip, prepare_level
from cop_repro.data.notes import make_notes, synthesise
from cop_repro.evaluation.evaluate import Row, RowEntry, make_row
from cop_repro.measure.audio_metrics import si_sdr_spec
from cop_repro.model.flow import SampleConfig, Sampled
from cop_repro.systems import general
from cop_repro.systems.audeo import PIANOS, audeo_sound
from cop_repro.systems.contract import SystemFiles

SOLVER = {"num_steps": 2, "cfg_strength": 2.0}
MODELS = {"cop": {"piano": "piano.safetensors"}, "general": {"general": "general.safetensors"}}
CLIP = Clip("c", "w", "test", "t2a", 1.0, "a bell", "bell")


@pytest.fixture(scope="module")
def row(root):
    "A function that makes a row of a system from the shipped assets, or from other models."
    assets = root / "data" / "assets"
    split = json.loads((root / "data" / "manifest.json").read_text())["split_hash"]
    paths = [assets / f"{name}.safetensors" for name in ("codec", "encoders", "roll")]

    def make(system, device="cpu", models=assets) -> Row:
        files = SystemFiles(split, *paths, device=device)
        return make_row(RowEntry(system, MODELS.get(system, {})), files, models, SOLVER)

    return make


def placed(*modules):
    return {t.device.type for m in modules for t in (*m.parameters(), *m.buffers())}


def test_every_network_lies_on_the_device(row):
    "On the meta device, which needs no GPU."
    for name in ("roll", "audeo"):
        systems = row(name, "meta").load()
        assert systems
        assert placed(*(s.roll for s in systems.values())) == {"meta"}
    performer = row("cop", "meta").load()[""].performer
    assert placed(performer.codec, performer.encoders, performer.piano) == {"meta"}
    system = row("general", "meta").load()[""]
    assert placed(system.model, system.codec, system.encoders) == {"meta"}
    assert placed(row("controls", "meta").load()[""].codec) == {"meta"}


@pytest.mark.parametrize("name", ["general", "cop"])
@pytest.mark.parametrize(
    "change, message",
    [
        ({"latents": "0" * 12}, "learnt latents 000000000000"),
        ({"split_hash": "elsewhere"}, "trained under split elsewhere"),
    ],
)
def test_a_model_of_other_latents_or_another_split_is_refused(
    row, root, tmp_path, name, change, message
):
    file = next(iter(MODELS[name].values()))
    tensors, meta = load_weights(root / "data" / "assets" / file)
    save_weights(tmp_path / file, tensors, {**meta, **change})
    with pytest.raises(AssetMismatch, match=message):
        row(name, models=tmp_path).load()


def test_a_row_names_the_models_that_it_needs(row, root):
    files = row("general").files
    wanted = make_row(RowEntry("cop"), files, root, SOLVER)
    with pytest.raises(ParamsError, match="needs a model 'piano'"):
        wanted.load()


def test_noise_is_the_same_everywhere(row, monkeypatch):
    "Noise is sampled on the CPU and then moved to the model; the sound comes back to the CPU."
    system = row("general").load()[""]
    seen, moved, to = [], [], torch.Tensor.to

    def fake_sample(model, noise, cond, cfg):
        seen.append((noise, cfg))
        return Sampled(noise, 0)

    def recorded_to(self, *args, **options):
        moved.append((tuple(self.shape), *args))
        return to(self, *args, **options)

    monkeypatch.setattr(general, "sample", fake_sample)
    monkeypatch.setattr(torch.Tensor, "to", recorded_to)
    prediction = system.predict(CLIP)
    (noise, solver), wav = seen[0], prediction.wav
    assert ((1, 75, 128), torch.device("cpu")) in moved
    assert isinstance(wav, np.ndarray)
    assert len(wav) == RATES.samples(1.0)
    assert torch.equal(noise, torch.randn(1, 75, 128, generator=torch_rng(0, "sample", "c")))
    assert solver == SampleConfig(**SOLVER)
    system.sample = SampleConfig(**SOLVER, temperature=0.5)
    system.predict(CLIP)
    assert torch.equal(seen[1][0], 0.5 * noise)


def test_the_baseline_has_a_row_for_each_piano(row):
    "Their names are those of the tables; only the piano differs."
    systems = row("audeo").load()
    assert {suffix: s.piano for suffix, s in systems.items()} == {
        "": "other",
        "same_soundfont": "same",
        "different_piano": "different",
    }
    assert len({id(s.roll) for s in systems.values()}) == 1


def test_a_really_different_piano_is_far_from_the_truth():
    "One chord at the velocity of the baseline: what remains is the timbre."
    notes = make_notes([48, 60, 64, 67], [0.1] * 4, [1.4] * 4, [100] * 4)
    truth = prepare_level(synthesise(notes, 1.5))
    level = {piano: si_sdr_spec(truth, audeo_sound(notes, 1.5, piano)) for piano in PIANOS}
    assert level["same"] > 60
    assert level["other"] > level["different"] + 3
    with pytest.raises(BadInput, match="'differnt'.*did you mean 'different'.*pianos are other"):
        audeo_sound(notes, 1.5, "differnt")


def test_an_entry_is_a_value():
    assert RowEntry("cop", {"piano": "a/piano.safetensors"}).rendering == "nuisance"
    assert RowEntry("controls").sample == {}
    with pytest.raises(ParamsError, match="did you mean 'controls'"):
        RowEntry("control")


def test_a_row_can_be_sent_to_another_process(row):
    made = row("general")
    sent = pickle.loads(pickle.dumps(made))
    assert sent == made
    assert hash(sent) == hash(made)
