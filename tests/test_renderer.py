# SPDX-License-Identifier: Apache-2.0
"The renderer: notes to latents, its errors of notes, and flows of piano clips that start from it."

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cop_repro.core import AssetMismatch, ParamsError, file_hash, numpy_rng, torch_rng
from cop_repro.data.clips import Clip
from cop_repro.data.notes import UNKNOWN_VELOCITY, make_notes, notes_to_roll
from cop_repro.data.performance import make_score
from cop_repro.model.codec import CodecConfig, EnCodec24, make_codec
from cop_repro.model.cop_piano import grow_piano, load_piano, save_piano
from cop_repro.model.dit import DiTConfig, MultiStreamDiT, StreamConfig
from cop_repro.model.flow import DropoutConfig, SampleConfig, draw_noise_and_time, path
from cop_repro.model.renderer import (
    NUM_COLUMNS,
    Renderer,
    RendererConfig,
    load_renderer,
    note_columns,
    save_renderer,
)
from cop_repro.model.roll import (
    RollConfig,
    build_roll,
    logits_to_notes,
    logits_to_roll,
    roll_to_logits,
    save_roll,
)
from cop_repro.systems.cop import CopSystem, Performer
from cop_repro.training.components import NoteErrors, corrupted, renderer_step_fn
from cop_repro.training.features import (
    PerformanceData,
    PerformedSounds,
    performed_sounds,
    piano_batch,
    store_rolls,
)
from cop_repro.training.guidance import GuidanceConfig, guidance_loss, guidance_step
from cop_repro.training.loop import TrainConfig
from cop_repro.training.stages import Place, build_piano, renderer_of, resume_piano, train_renderer

SIZES = DiTConfig(
    2,
    StreamConfig(16, 1, 16),
    latent_channels=4,
    text_width=6,
    num_registers=2,
    max_positions=48,
    time_frequencies=4,
)
STREAM = StreamConfig(16, 1, 16)
SMALL = RendererConfig(width=8, dilations=(1,))
PHRASE = make_notes([60, 64], [0.02, 0.2], [0.15, 0.3], [40, 90], [(0.1, 0.25)])


def renderer(channels=4, seed=0):
    torch.manual_seed(seed)
    return Renderer(SMALL, channels)


def predictor():
    torch.manual_seed(0)
    return build_roll(RollConfig(width=2, height=16, strip_width=104)).eval()


def piano(velocity=True, spread=0.5, **k):
    return grow_piano(
        MultiStreamDiT(SIZES), predictor(), STREAM, velocity, renderer=renderer(**k), spread=spread
    )


def test_columns_by_hand():
    columns = note_columns(PHRASE, 30)
    assert columns.shape == (30, NUM_COLUMNS)
    held, struck, decay = np.split(columns[:, :-1], 3, 1)
    c4, e4 = 60 - 21, 64 - 21
    assert np.flatnonzero(struck[:, c4]).tolist() == [1]  # 0.02 s lies in frame 1 of 13 ms
    assert struck[1, c4] == pytest.approx(40 / 127)
    assert np.flatnonzero(held[:, e4])[[0, -1]].tolist() == [15, 21]  # 0.2 to 0.3 s, at centres
    assert decay[14, c4] > 0 == held[14, c4]  # the pedal holds what the key has left
    middle = (5 + 0.5) / 75
    assert decay[5, c4] == pytest.approx(40 / 127 * np.exp(-(middle - 0.02)), rel=1e-5)
    assert np.flatnonzero(columns[:, -1])[[0, -1]].tolist() == [7, 18]
    assert np.array_equal(note_columns(PHRASE, 15, 0.2), columns[15:])


def test_silence_has_no_columns():
    assert not note_columns(make_notes([], [], [], []), 10).any()


@pytest.mark.parametrize("velocity", [True, False])
def test_unknown_velocities_do_not_count(velocity):
    model, louder = renderer(), PHRASE.replace(velocities=[90, 40])
    same = torch.equal(model.render(PHRASE, 24, velocity), model.render(louder, 24, velocity))
    assert same != velocity


def test_errors_are_of_the_stated_size():
    count = 4000
    onsets = np.arange(count) * 0.2
    pitches = 21 + np.arange(count) % 88
    notes = make_notes(pitches, onsets, onsets + 0.1, 20 + np.arange(count) % 100)
    errors = NoteErrors(clean=0.0, missing=0.0, flat=0.0, shrink=(0.5, 0.5), level=0.0)
    read = corrupted(notes, errors, numpy_rng(0, "errors"))
    moved = (read.onsets_s - notes.onsets_s)[1:-1]
    assert np.std(moved) == pytest.approx(0.013, rel=0.1)
    slope, _ = np.polyfit(notes.velocities, read.velocities, 1)
    assert slope == pytest.approx(0.5, abs=0.02)
    assert len(corrupted(notes, replace(errors, missing=0.5), numpy_rng(0, "errors"))) == (
        pytest.approx(count / 2, rel=0.06)
    )
    flat = corrupted(notes, replace(errors, flat=1.0), numpy_rng(0, "errors"))
    assert set(flat.velocities) == {UNKNOWN_VELOCITY}


@pytest.mark.parametrize("wrong", [{"clean": 2}, {"onset_s": -1}, {"shrink": (0, 3)}])
def test_impossible_errors_are_refused(wrong):
    with pytest.raises(ParamsError, match="fractions"):
        NoteErrors(**wrong)


def test_the_loss_of_an_other_codec_is_refused_by_name():
    encodec = EnCodec24.__new__(EnCodec24)
    torch.nn.Module.__init__(encodec)
    encodec.config = CodecConfig(kind="encodec")
    sounds = PerformedSounds([PHRASE], np.zeros((1, 320 * 75), np.int16), np.zeros((1, 75, 4)))
    with pytest.raises(ParamsError, match="encodec codec has no magnitudes"):
        renderer_step_fn(renderer(), encodec, sounds, TrainConfig(1, 1, 1e-3), 0.5)


def toy():
    rng = numpy_rng(0, "store")
    held = np.repeat(rng.random((6, 8, 11)) < 0.4, 8, 2).astype(np.float16)
    latents = rng.standard_normal((2, 6, 24, 4)).astype(np.float16)
    return {
        "latents": latents[0],
        "text": np.ones((6, 2, 6), np.float16),
        "text_mask": np.ones((6, 2), bool),
        "strips": rng.integers(0, 255, (6, 8, 16, 104), np.uint8),
        "presence": held,
        "onset": held,
        "velocity": (held * 0.5).astype(np.float16),
        "pedal": np.zeros((6, 8), np.float16),
        "soft_presence": held,
        "soft_velocity": (held * 0.5).astype(np.float16),
        "render_velocity": latents[1],
        "render_presence": -latents[1],
    }


class Recorder(torch.nn.Module):
    "In the place of a DiT: keeps what it is given."

    def __init__(self, dit):
        super().__init__()
        self.config, self.scale = dit.config, torch.nn.Parameter(torch.ones(()))

    def forward(self, xt, t, cond):
        self.xt, self.t = xt, t
        return self.scale * xt


def test_the_flow_starts_from_the_stored_latents():
    model = piano()
    batch = piano_batch(
        toy(), range(4), torch_rng(0, "b"), 12, 0, "soft_velocity", render="render_velocity"
    )
    model.dit = Recorder(model.dit)
    cfg = GuidanceConfig(start="renderer", roll_source="cached")
    guidance_loss(model, batch, torch_rng(1, "noise"), cfg, 0, dropout=DropoutConfig(0, 0, 0, 0, 0))
    noise, t = draw_noise_and_time(batch.x1, torch_rng(1, "noise"))
    assert torch.equal(model.dit.xt, path(batch.render + 0.5 * noise, batch.x1, t)[0])


@pytest.mark.parametrize("velocity", [True, False])
def test_a_step_reads_the_latents_of_its_roll(velocity):
    cfg = GuidanceConfig(
        "velocity" if velocity else "presence",
        start="renderer",
        roll_source="cached",
        joint_every=9,
    )
    model = piano(velocity)
    plan = TrainConfig(1, 4, 1e-3)
    losses = []
    for name in ("render_velocity", "render_presence"):
        store = toy()
        store[name] = store[name] + 5  # far from where it was
        step = guidance_step(model.eval(), store, range(6), plan, cfg, 12)
        losses.append(step(1, 0, 1)[0].item())
    assert (losses[0] > losses[1]) == velocity


def test_variants_say_where_they_start():
    with pytest.raises(ParamsError, match="needs the stored notes"):
        GuidanceConfig(start="renderer")
    with pytest.raises(ParamsError, match="start is 'render'"):
        GuidanceConfig(start="render")
    with pytest.raises(ParamsError, match="start 'noise' with a model that has a renderer"):
        guidance_step(piano(), toy(), range(6), TrainConfig(1, 4, 1e-3))


def test_predicted_notes_and_their_latents_are_stored():
    strips = numpy_rng(0, "strips").integers(0, 255, (8, 16, 104), np.uint8)
    made = store_rolls(predictor(), strips, renderer())
    assert made["render_velocity"].shape == (24, 4)
    assert set(made) == {"soft_presence", "soft_velocity", "render_presence", "render_velocity"}


def test_true_notes_take_the_place_of_predicted_ones():
    roll = notes_to_roll(PHRASE, 0.32)
    assert logits_to_notes(roll_to_logits(roll)).pitches.tolist() == [60, 64]
    back = logits_to_roll(roll_to_logits(roll))
    assert np.abs(back.presence - roll.presence).max() < 1e-3


class Encoders(SimpleNamespace):
    "Features of zeros."

    @staticmethod
    def encode_strips(strips):
        return torch.zeros(1, len(strips), 5)


def test_a_row_with_true_notes_starts_from_their_latents():
    model = piano().eval()
    model.dit = Recorder(model.dit)
    text = SimpleNamespace(encode=lambda _: (torch.zeros(1, 2, 6), torch.ones(1, 2, dtype=bool)))
    codec = SimpleNamespace(
        channels=4,
        latent_mean=torch.zeros(4),
        decode=lambda z: z.flatten(1),
    )
    solver = SampleConfig(1, 0.0, temperature=0.0)
    performer = Performer(codec, Encoders(text=text), model, solver)
    strips = np.zeros((8, 16, 104), np.uint8)
    clip = Clip("c", "w", "test", "piano", 0.32, notes=PHRASE, strips=strips)
    made = CopSystem(performer, true_notes=True).predict(clip)
    assert made.notes == PHRASE
    assert torch.allclose(model.dit.xt[0], model.renderer.render(PHRASE, 24))


def test_a_model_keeps_its_renderer(tmp_path):
    model = piano(spread=0.25).eval()
    save_piano(tmp_path / "piano.safetensors", model)
    again, meta = load_piano(tmp_path / "piano.safetensors")
    assert again.spread == 0.25
    assert torch.equal(again.render(PHRASE, 24), model.render(PHRASE, 24))
    with pytest.raises(AssetMismatch, match="channels"):
        piano(channels=8)
    with pytest.raises(ParamsError, match="spread is 0"):
        piano(spread=0)


def test_a_renderer_of_another_codec_or_file_is_refused_by_name(tmp_path):
    path = tmp_path / "renderer.safetensors"
    save_renderer(path, renderer(), {"latents": "a"})
    about = {"renderer_hash": file_hash(path)}
    assert renderer_of(path, "a", about).config == SMALL
    with pytest.raises(AssetMismatch, match=r"renderer\.safetensors.*latents"):
        renderer_of(path, "b", about)
    with pytest.raises(AssetMismatch, match="run the stage train_roll again"):
        renderer_of(path, "a", {"renderer_hash": "other"})
    save_roll(tmp_path / "roll.safetensors", predictor())
    with pytest.raises(AssetMismatch, match="holds 'roll', not a renderer"):
        load_renderer(tmp_path / "roll.safetensors")


def test_a_finished_model_goes_on_with_a_renderer_or_without(tmp_path):
    path, base, keys = tmp_path / "piano.safetensors", MultiStreamDiT(SIZES), predictor()
    started = GuidanceConfig(start="renderer", roll_source="cached")
    save_piano(path, build_piano(base, keys, STREAM, started, 0, renderer()), {"split_hash": "s"})
    new = renderer(seed=1)
    again = resume_piano(path, base, keys, STREAM, started, "s", renderer=new)
    assert torch.equal(again.render(PHRASE, 24)[0], new.render(PHRASE, 24))
    with pytest.raises(AssetMismatch, match="trained with a renderer"):
        resume_piano(path, base, keys, STREAM, GuidanceConfig(), "s")
    wide = Renderer(RendererConfig(width=16, dilations=(1,)), 4)
    with pytest.raises(AssetMismatch, match="other sizes"):
        resume_piano(path, base, keys, STREAM, started, "s", renderer=wide)


def scores():
    rows = [(48 + i % 24, 0.5 * i, 0.4, i % 2) for i in range(60)]
    return [make_score(f"w{k}", rows, title="", composer="", source="etude") for k in range(2)]


def test_the_stage_learns_from_performances_and_resumes_exactly(tmp_path):
    from cop_repro.model.codec import save_codec

    torch.manual_seed(0)
    codec = make_codec(CodecConfig(width=16, num_blocks=1, num_rounds=2)).eval()
    data = PerformanceData(clips=3, duration_s=4.0)
    codec.fit_statistics([torch.randn(1, 24_000, generator=torch_rng(0, "noise")) * 0.1])
    sounds = performed_sounds(data, scores(), codec)
    assert all(len(notes) >= 8 for notes in sounds.notes)
    assert len({str(notes.pitches) for notes in sounds.notes}) == 3
    save_codec(tmp_path / "codec.safetensors", codec, "s")

    def run(name, steps, init=None):
        place = Place({}, tmp_path / name, tmp_path / f"{name}.safetensors")
        plan = TrainConfig(steps, 2, 3e-3, decay="constant", optimizer="muon", save_every=4)
        settings = (SMALL, data, NoteErrors(), plan, 1.0, 1.0, init)
        made = train_renderer(place, scores(), "s", tmp_path / "codec.safetensors", *settings)
        return made.result.logs["mse"]

    whole = run("whole", 12)
    assert whole[-3:].mean() < whole[:3].mean()
    assert np.array_equal(run("again", 12), whole)
    run("further", 1, tmp_path / "whole.safetensors")
    with pytest.raises(AssetMismatch, match="other sizes"):
        save_renderer(
            tmp_path / "wide.safetensors",
            Renderer(RendererConfig(width=16), codec.channels),
            {"latents": codec.latent_id},
        )
        run("wide", 1, tmp_path / "wide.safetensors")
