"Rows of the evaluation: every network of a row lies where the parameters say, and results come back to the CPU."

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from cop_repro.core import RATES, AssetMismatch, ParamsError, load_weights, save_weights, torch_rng
from cop_repro.data.clips import Clip
from cop_repro.evaluation import rows
from cop_repro.evaluation.rows import Row, RowEntry
from cop_repro.model.flow import Sampled


@pytest.fixture(scope="module")
def row(root):
    assets = root / "data" / "assets"
    split = json.loads((root / "data" / "manifest.json").read_text())["split_hash"]
    return lambda kind, device: Row(
        kind,
        split,
        *(assets / f"{n}.safetensors" for n in ("codec", "encoders", "roll")),
        model=assets / ("piano.safetensors" if kind == "piano" else "general.safetensors"),
        sample=rows.SampleConfig(num_steps=2, cfg_strength=2.0),
        device=device,
    )


def placed(*modules):
    return {t.device.type for m in modules for t in (*m.parameters(), *m.buffers())}


def test_every_network_lies_on_the_device(row):
    "On the meta device, which needs no card."
    for kind in ("roll", "audeo"):
        assert placed(*(s.roll for s in rows.SYSTEMS[kind](row(kind, "meta")).values())) == {"meta"}
    performer = rows.SYSTEMS["piano"](row("piano", "meta"))[""].performer
    assert (
        placed(performer.codec, performer.encoders, performer.piano)
        == {"meta"}
        == placed(*rows._general_parts(row("general", "meta")))
    )


@pytest.mark.parametrize("kind", ["general", "piano"])
def test_a_model_of_other_latents_is_refused(row, tmp_path, kind):
    wanted = row(kind, "cpu")
    tensors, meta = load_weights(wanted.model)
    save_weights(tmp_path / "other.safetensors", tensors, {**meta, "latents": "0" * 12})
    build = {"general": rows._general_parts, "piano": rows.SYSTEMS["piano"]}[kind]
    with pytest.raises(AssetMismatch, match="learnt latents 000000000000"):
        build(replace(wanted, model=tmp_path / "other.safetensors"))


def test_noise_is_the_same_everywhere(row, monkeypatch):
    "It is drawn on the CPU and then moved; what the model sees is there, what comes back is on the CPU."
    model, codec, encoders = rows._general_parts(row("general", "cpu"))
    seen, moved, to = [], [], torch.Tensor.to
    monkeypatch.setattr(
        rows, "sample", lambda model, noise, cond, cfg: seen.append(noise) or Sampled(noise, 0)
    )
    monkeypatch.setattr(
        torch.Tensor, "to", lambda self, *a, **k: moved.append(a) or to(self, *a, **k)
    )
    wav = rows._generate(
        model,
        codec,
        encoders,
        row("general", "cpu"),
        Clip("c", "w", "test", "t2a", 1.0, "a bell", "bell"),
    )
    assert ("cpu",) in moved and isinstance(wav, np.ndarray) and len(wav) == RATES.samples(1.0)
    assert torch.equal(seen[0], torch.randn(1, 75, 128, generator=torch_rng(0, "sample", "c")))


def test_an_entry_is_a_value():
    assert (
        RowEntry("piano", "a/piano.safetensors").rendering == "nuisance"
        and RowEntry("controls").sample == {}
    )
    with pytest.raises(ParamsError, match="did you mean 'controls'"):
        RowEntry("control")
