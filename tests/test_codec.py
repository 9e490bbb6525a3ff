# SPDX-License-Identifier: Apache-2.0
"Codec: parity with other implementations, the asset contract, what is refused."

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from cop_repro.core import (
    AssetMismatch,
    BadInput,
    ParamsError,
    from_dict,
    load_weights,
    save_weights,
    torch_rng,
)
from cop_repro.measure.audio_metrics import si_sdr_spec
from cop_repro.model import codec as C

torch.set_num_threads(1)


def tones(seconds: float = 2.0, count: int = 1) -> torch.Tensor:
    "Decaying harmonic tones, a stand-in for a piano."
    rng = np.random.default_rng(0)
    time = np.arange(round(24_000 * seconds)) / 24_000
    wav = np.zeros((count, len(time)))
    for row in wav:
        for onset in np.arange(0, seconds, 0.25):
            pitch, level = 440 * 2 ** (rng.integers(-24, 15) / 12), rng.uniform(0.2, 1)
            after = np.clip(time - onset, 0, None)
            row += sum(
                (time >= onset)
                * level
                / h
                * np.exp(-3 * h**0.5 * after)
                * np.sin(2 * np.pi * h * pitch * after)
                for h in range(1, 6)
            )
    return C.prepare_wav(torch.from_numpy(wav).float())


@pytest.fixture(scope="module")
def wav() -> torch.Tensor:
    return tones(2.0, 2)


@pytest.fixture(scope="module")
def small(wav) -> C.EmbeddedCodec:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codec = C.EmbeddedCodec(C.CodecConfig(width=32, num_blocks=1))
    return codec.eval().fit_statistics([wav])


def test_prepare_wav_matches_its_definition():
    wav = torch.randn(3, 1000, generator=torch_rng(0, "test")) * 7 + 2
    centred = wav - wav.mean(-1, keepdim=True)
    torch.testing.assert_close(
        C.prepare_wav(wav), 0.5 * centred / centred.abs().amax(-1, keepdim=True)
    )
    assert C.prepare_wav(wav[0]).shape == (1000,)


@pytest.mark.parametrize("level", [0.0, 1.0, -0.3, 1e-9])
def test_silence_stays_silence(level):
    assert C.prepare_wav(torch.full((2, 480), level)).eq(0).all()


@pytest.mark.parametrize(
    "bad",
    [
        torch.zeros(2, 0),
        torch.tensor([1.0, float("nan")]),
        torch.tensor([1.0, float("inf")]),
        torch.ones(4, dtype=torch.int16),
    ],
)
def test_prepare_wav_refuses(bad):
    with pytest.raises(BadInput):
        C.prepare_wav(bad)


def test_spectrogram_agrees_with_torch_stft(wav):
    ours = C.spectrogram(wav)
    padded = torch.nn.functional.pad(wav, (480, 480))
    theirs = torch.stft(
        padded, 1280, 320, window=torch.hann_window(1280), center=False, return_complex=True
    ).mT
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(C.inverse_spectrogram(ours), wav, atol=1e-5, rtol=0)


def test_computed_phase_beats_random_phase(wav):
    magnitude = C.spectrogram(wav).abs()
    random = torch.polar(
        torch.ones_like(magnitude),
        6.2831855 * torch.rand(magnitude.shape, generator=torch_rng(0, "test phase")),
    )
    score = lambda est: float(
        np.mean([si_sdr_spec(a, b) for a, b in zip(wav.numpy(), est.numpy())])
    )
    computed = score(C.wav_from_magnitude(magnitude, 4))
    assert computed > 13 and computed > score(C.wav_from_magnitude(magnitude, 4, phase=random)) + 3


def test_phase_does_not_drift_over_minutes():
    tone = 0.5 * torch.sin(2 * torch.pi * 1000.3 * torch.arange(24_000 * 60) / 24_000)[None]
    magnitude = C.spectrogram(tone).abs()
    again = C.spectrogram(C.wav_from_magnitude(magnitude, 0)).abs()
    torch.testing.assert_close(
        again[:, -50:-3].amax(-1), magnitude[:, -50:-3].amax(-1), rtol=0.02, atol=0
    )


def test_silence_through_the_codec(small):
    silence = torch.zeros(1, 24_000)
    with torch.no_grad():
        latents = small.encode(silence)
        assert torch.isfinite(latents).all() and torch.isfinite(small.decode(latents)).all()
    loss, logs = C.codec_step(copy.deepcopy(small), silence, torch_rng(0, "test noise"))
    assert torch.isfinite(loss) and np.isfinite(list(logs.values())).all()


@pytest.mark.parametrize("seconds", [1 / 75, 0.2, 1, 2])
def test_lengths(small, seconds):
    wav = tones(2.0)[:, : round(24_000 * seconds)]
    with torch.no_grad():
        latents = small.encode(wav)
        assert (
            latents.shape == (1, round(75 * seconds), 128)
            and small.decode(latents).shape == wav.shape
        )


def test_batching_changes_nothing(small, wav):
    with torch.no_grad():
        torch.testing.assert_close(
            small.encode(wav)[1:], small.encode(wav[1:]), atol=1e-4, rtol=1e-4
        )
        latents = small.encode(wav)
        torch.testing.assert_close(
            small.decode(latents)[1:], small.decode(latents[1:]), atol=1e-3, rtol=0
        )


def test_shift_by_whole_frames(small, wav):
    later = torch.cat([torch.zeros(2, 3200), wav], 1)
    with torch.no_grad():
        torch.testing.assert_close(
            small.encode(later)[:, 12:], small.encode(wav)[:, 2:], atol=1e-3, rtol=0
        )


def test_statistics_are_of_the_data(small, wav):
    with torch.no_grad():
        latents = small.encode(wav).flatten(0, 1)
    assert (
        latents.mean(0).abs().max() < 1e-3 and (latents.std(0, correction=0) - 1).abs().max() < 1e-2
    )


def test_unfitted_codec_refuses_both_ways(wav, tmp_path):
    codec = C.EmbeddedCodec(C.CodecConfig(width=8, num_blocks=1))
    for use in (
        lambda: codec.encode(wav),
        lambda: codec.decode(torch.zeros(1, 5, 128)),
        lambda: C.save_codec(tmp_path / "c.safetensors", codec),
    ):
        with pytest.raises(AssetMismatch, match="fit_statistics"):
            use()
    with pytest.raises(AssetMismatch, match="fit_statistics"):
        codec.align(codec, [wav])
    with pytest.raises(BadInput):
        codec.fit_statistics([])
    with pytest.raises(BadInput, match="no waveforms"):
        codec.align(codec, [])


@pytest.mark.parametrize("shape", [(1, 24_001), (24_000,), (1, 2, 24_000), (1, 0)])
def test_encode_refuses_shapes(small, shape):
    with pytest.raises(BadInput):
        small.encode(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 128, 75), (75, 128), (1, 0, 128)])
def test_decode_refuses_shapes(small, shape):
    with pytest.raises(BadInput):
        small.decode(torch.zeros(shape))


def test_training_improves_and_repeats(wav):
    def run():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            codec = C.EmbeddedCodec(C.CodecConfig(width=32, num_blocks=1))
        optimiser, rng, history = (
            torch.optim.AdamW(codec.parameters(), lr=5e-3),
            torch_rng(0, "test noise"),
            [],
        )
        for _ in range(25):
            loss, logs = C.codec_step(codec, wav, rng)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            history.append(logs["snr_db"])
        return history

    first = run()
    assert first == run() and first[-1] > first[0] + 5


def test_a_correction_begins_as_nothing_and_uses_neighbours(small, wav):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codec = C.EmbeddedCodec(C.CodecConfig(width=32, num_blocks=1, encoder_blocks=2))
    assert codec.load_state_dict(small.state_dict(), strict=False).unexpected_keys == []
    later = torch.cat([wav[:, :12_000], -0.5 * wav[:, 12_000:]], 1)
    reach = lambda: (
        ((codec.raw_latents(wav) - codec.raw_latents(later)).abs().amax((0, 2)) > 1e-5)
        .int()
        .argmax()
    )  # first frame that a later change reaches
    with torch.no_grad():
        torch.testing.assert_close(codec.encode(wav), small.encode(wav))
        alone = reach()
        codec.correction[-1].weight.normal_(0, 0.1, generator=torch_rng(0, "test correction"))
        assert reach() < alone


def test_a_learning_encoder_gains_nothing_by_growing(small, wav):
    "The gradient along the encoder's scale vanishes; values use running statistics, which follow."
    codec = copy.deepcopy(small)
    raw = codec.raw_latents(wav)
    scale = torch.ones((), requires_grad=True)
    before = codec.latent_std.clone()
    latents = C.normalise_in_training(codec, scale * raw.detach())
    (latents**2).sum().backward()
    assert abs(float(scale.grad)) < 1e-2 * float((latents.detach() ** 2).sum())
    torch.testing.assert_close(
        latents, (raw - codec.latent_mean) / codec.latent_std, atol=1e-3, rtol=1e-3
    )
    C.normalise_in_training(codec, 2 * scale * raw.detach())
    assert (codec.latent_std / before - 1 - (1 - C.STATISTICS_MEMORY)).abs().max() < 1e-2
    assert C.normalise_in_training(codec, scale * raw.detach().bfloat16()).dtype == torch.float32
    frozen = codec.latent_std.clone()
    C.normalise_in_training(codec, raw.detach())
    assert torch.equal(codec.latent_std, frozen)


def test_latents_turned_back_and_the_same_sound(small, wav):
    codec, other = copy.deepcopy(small), tones(2.0, 3)[2:] * 0.1
    with torch.no_grad():
        turn = torch.linalg.qr(torch.randn(128, 128, generator=torch.Generator().manual_seed(1)))[0]
        codec.encoder.weight.copy_(turn @ small.encoder.weight * 2), codec.encoder.bias.add_(0.3)
        codec.encoder.weight.add_(
            0.01
            * torch.randn(codec.encoder.weight.shape, generator=torch.Generator().manual_seed(2))
        )
        codec.fit_statistics([wav])
        before, away = (
            codec.log_magnitude(codec.encode(other)),
            (codec.encode(wav) - small.encode(wav)).square().mean(),
        )
        explained = codec.align(small, [wav])
        torch.testing.assert_close(
            codec.log_magnitude(codec.encode(other)), before, atol=1e-2, rtol=0
        )
        near = (codec.encode(wav) - small.encode(wav)).square().mean()
        spread = small.encode(wav).var((0, 1), correction=0).mean()
    assert near < 0.5 * away and explained == pytest.approx(1 - float(near / spread), abs=1e-3)
    assert torch.equal(codec.latent_std, small.latent_std) and codec.latent_id != small.latent_id


def test_loss_falls_with_the_error(wav):
    ref = C.spectrogram(wav).abs()
    losses = [float(C.codec_loss(C.compress(ref * gain), ref)[0]) for gain in (1.0, 1.1, 1.5, 3.0)]
    assert losses == sorted(losses)
    assert C.codec_loss(C.compress(ref * 2), ref)[1]["snr_db"] == pytest.approx(0, abs=0.05)


def test_save_and_load(small, wav, tmp_path):
    path = tmp_path / "codec.safetensors"
    C.save_codec(path, small, split="s1", extra={"steps": 3})
    loaded = C.load_codec(path, split="s1")
    with torch.no_grad():
        assert torch.equal(loaded.encode(wav), small.encode(wav)) and loaded.config == small.config
    assert load_weights(path)[1]["steps"] == 3 and not loaded.training


@pytest.mark.parametrize(
    "change",
    ["split", "sample_rate", "channels", "asset", "shape", "missing", "unknown", "statistics"],
)
def test_load_refuses(small, tmp_path, change):
    path = tmp_path / "codec.safetensors"
    C.save_codec(path, small, split="s1")
    tensors, meta = load_weights(path)
    if change in meta:
        meta[change] = "other"
    elif change == "shape":
        tensors["skip.bias"] = torch.zeros(3)
    elif change == "missing":
        del tensors["skip.bias"]
    elif change == "unknown":
        tensors["more"] = torch.zeros(3)
    else:
        tensors["latent_mean"] = torch.full((128,), float("nan"))
    save_weights(path, tensors, meta)
    with pytest.raises(AssetMismatch):
        C.load_codec(path, split="s1")


def test_config_is_strict():
    assert from_dict(C.CodecConfig, {"kind": "encodec"}).kind == "encodec"
    for wrong in (
        {"kind": "dac"},
        {"widht": 3},
        {"width": 0},
        {"max_noise": -1.0},
        {"encoder_blocks": -1},
    ):
        with pytest.raises(ParamsError):
            from_dict(C.CodecConfig, wrong)


def tiny_hub_folder(folder: Path):
    "A random EnCodec of two filters, saved by transformers as the hub's is."
    from transformers import EncodecConfig, EncodecModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = EncodecModel(
            EncodecConfig(num_filters=2, num_lstm_layers=1, codebook_size=4, codebook_dim=128)
        ).eval()
    model.save_pretrained(folder)
    return model


def test_encodec_agrees_with_transformers(wav, tmp_path):
    model = tiny_hub_folder(tmp_path)
    codec = C.make_codec(C.CodecConfig("encodec", encodec_source=str(tmp_path)))
    with torch.no_grad():
        theirs = model.encoder(wav[:, None])
        torch.testing.assert_close(codec.raw_latents(wav), theirs.mT, atol=1e-4, rtol=1e-4)
        codec.fit_statistics([wav])
        torch.testing.assert_close(
            codec.decode(codec.encode(wav)), model.decoder(theirs)[:, 0], atol=1e-4, rtol=1e-3
        )


def test_encodec_reads_the_library_names(wav, tmp_path):
    from encodec.modules import SEANetDecoder, SEANetEncoder

    sizes = {"dimension": 128, "n_filters": 2, "causal": True, "norm": "none", "lstm": 2}
    encoder, decoder = SEANetEncoder(**sizes).eval(), SEANetDecoder(**sizes).eval()
    plain = {
        f"{part}.{k}": v
        for part, net in (("encoder", encoder), ("decoder", decoder))
        for k, v in net.state_dict().items()
    }
    normed = {k: v for k, v in plain.items() if not k.endswith(".weight")}
    for k, v in plain.items():
        if k.endswith(".weight"):
            normed[k + "_g"] = v.norm(dim=tuple(range(1, v.ndim)), keepdim=True)
            normed[k + "_v"] = 3 * v
    save_weights(tmp_path / "any.safetensors", normed | {"quantizer.x": torch.zeros(2)}, {})
    codec = C.make_codec(C.CodecConfig("encodec", encodec_source=str(tmp_path / "any.safetensors")))
    with torch.no_grad():
        torch.testing.assert_close(
            codec.raw_latents(wav), encoder(wav[:, None]).mT, atol=1e-4, rtol=1e-4
        )
    codec.fit_statistics([wav])
    C.save_codec(tmp_path / "saved.safetensors", codec, split="s")
    with torch.no_grad():
        assert torch.equal(
            C.load_codec(tmp_path / "saved.safetensors", "s").encode(wav), codec.encode(wav)
        )


def test_encodec_missing_or_wrong_weights(tmp_path):
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "nowhere", tmp_path / "empty"):
        with pytest.raises(BadInput, match="safetensors"):
            C.make_codec(C.CodecConfig("encodec", encodec_source=str(source)))
    save_weights(tmp_path / "other.safetensors", {"linear.weight": torch.zeros(2, 2)}, {})
    save_weights(
        tmp_path / "half.safetensors",
        {"encoder.model.0.conv.conv.weight": torch.zeros(2, 1, 7)},
        {},
    )
    save_weights(
        tmp_path / "gain.safetensors",
        {"encoder.model.0.conv.conv.weight_v": torch.zeros(2, 1, 7)},
        {},
    )
    for name in ("other", "half", "gain"):
        with pytest.raises(AssetMismatch):
            C.make_codec(
                C.CodecConfig("encodec", encodec_source=str(tmp_path / f"{name}.safetensors"))
            )
